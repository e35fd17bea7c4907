"""General text for mitigations: which it is, its windows, and that it is never the text that is measured on."""

from __future__ import annotations

import functools

from ...config.schema import DatasetConfig, ModelConfig, RunConfig, TextConfig
from ...data.documents import load_corpus, passages, split_heldout
from ...data.tokenizing import tokenize
from ...data.windows import Windows
from ...errors import UsageError
from ...models.loading import load_tokenizer


def chosen_text(name: str, text: TextConfig | None, run: RunConfig) -> TextConfig:
    """The general text of a mitigation: as configured; of a study of the miniature its encyclopedia by default.

    Raises:
        UsageError: none is given, and there is no default.
    """
    if text is not None:
        return text
    if run.text.source.startswith("miniature:"):
        return TextConfig(source="miniature:encyclopedia")
    raise UsageError(
        f"mitigations.{name}.text: is missing; give general text other than the measured one, such as "
        "{source: FILE_OR_HUB_ID}"
    )


def general_windows(text: TextConfig, run: RunConfig) -> Windows:
    """The text as windows of the run's context; kept between the runs of one process."""
    return _windows(text.model_dump_json(), run.model.model_dump_json(), run.context)


@functools.lru_cache(maxsize=2)
def _windows(text: str, model: str, context: int) -> Windows:
    tokenizer = load_tokenizer(ModelConfig.model_validate_json(model))
    return tokenize(load_corpus(TextConfig.model_validate_json(text)), tokenizer, context)


def refuse_measured(name: str, text: TextConfig, run: RunConfig) -> None:
    """Refuse a text that shares a document, or a line of 80 characters, with what the run is measured on.

    Raises:
        UsageError: names the mitigation, the text and what it shares.
    """
    mine = _passages(text.model_dump_json())
    measured = {
        f"the measured text {run.text.source}": _passages(run.text.model_dump_json()),
        f"the held-out part of {run.dataset_name}": _heldout_passages(run.dataset.model_dump_json()),
    }
    for where, theirs in measured.items():
        shared = len(mine & theirs)
        if shared:
            raise UsageError(
                f"mitigations.{name}.text: {text.source} shares {shared} documents or passages with {where}; what is "
                "trained on would be measured: give other text"
            )


@functools.lru_cache(maxsize=4)
def _passages(text: str) -> frozenset[str]:
    return frozenset(passages(load_corpus(TextConfig.model_validate_json(text))))


@functools.lru_cache(maxsize=4)
def _heldout_passages(dataset: str) -> frozenset[str]:
    config = DatasetConfig.model_validate_json(dataset)
    return frozenset(passages(split_heldout(load_corpus(config), config.heldout)[1]))
