"""General text for mitigations: which it is, its windows, and that it is never the text that is measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...config.schema import DatasetConfig, RunConfig, TextConfig
from ...data.documents import load_corpus, passages, split_heldout
from ...data.tokenizing import tokenize
from ...data.windows import Windows
from ...errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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


class GeneralTexts:
    """The general texts that a study's mitigations ask for: each is read once, while this object lives."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, context: int) -> None:
        """Nothing is read yet.

        Args:
            tokenizer: of the base model.
            context: tokens a window.
        """
        self.tokenizer, self.context = tokenizer, context
        self._windows: dict[TextConfig, Windows] = {}
        self._passages: dict[TextConfig, frozenset[str]] = {}

    def windows(self, text: TextConfig) -> Windows:
        """The windows of a text."""
        if text not in self._windows:
            self._windows[text] = tokenize(load_corpus(text), self.tokenizer, self.context)
        return self._windows[text]

    def refuse_measured(self, name: str, text: TextConfig, run: RunConfig) -> None:
        """Refuse a text that shares a document, or a line of 80 characters, with what the run is measured on.

        Raises:
            UsageError: names the mitigation, the text and what it shares.
        """
        mine = self._of(text)
        measured = {
            f"the measured text {run.text.source}": self._of(run.text),
            f"the held-out part of {run.dataset_name}": self._of(run.dataset),
        }
        for where, theirs in measured.items():
            shared = len(mine & theirs)
            if shared:
                raise UsageError(
                    f"mitigations.{name}.text: {text.source} shares {shared} documents or passages with {where}; what "
                    "is trained on would be measured: give other text"
                )

    def _of(self, text: TextConfig) -> frozenset[str]:
        """The hashes of a text's documents and long lines; of a data set, those of its held-out part."""
        if text not in self._passages:
            documents = load_corpus(text)
            if isinstance(text, DatasetConfig):
                documents = split_heldout(documents, text.heldout)[1]
            self._passages[text] = frozenset(passages(documents))
        return self._passages[text]
