"""The inputs that a study's runs share; read once per study call or worker process, and passed explicitly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.schema import ProbeConfig, RunConfig, StudyConfig, TextConfig
from ..display.numbers import several
from ..errors import UsageError
from ..tuning.grid import expand_runs
from ..tuning.methods import Context

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ..data.prepared import Corpora
    from ..data.windows import Windows
    from ..measuring.base_targets import BaseTargets
    from ..models.loading import Base
    from ..models.processes import Launch
    from ..models.sources import Source
    from ..tuning.mitigations import GeneralTexts


class StudyInputs:
    """The texts, tokenizer and base targets of one study, each read when first used.

    One object serves one study call or one worker process. It is not shared between calls, so a file edited in the
    meantime is read again. Only the configuration is pickled, so each process reads the files itself.
    """

    def __init__(self, config: StudyConfig) -> None:
        """Create it without reading anything."""
        self.config = config
        self._datasets: dict[str, tuple[Windows, Windows]] = {}
        self._texts: dict[str, Windows] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return StudyInputs, (self.config,)

    @cached_property
    def runs(self) -> dict[str, RunConfig]:
        """All runs by id.

        Raises:
            UsageError: see `expand_runs`.
        """
        return {run.run_id(): run for run in expand_runs(self.config)}

    @cached_property
    def source(self) -> Source:
        """Where the base model is; a Hub id is pinned to one commit."""
        from ..models.loading import base_source

        return base_source(self.config.model)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The base model's tokenizer."""
        from ..models.loading import load_tokenizer

        return load_tokenizer(self.config.model, self.source)

    @cached_property
    def corpora(self) -> Corpora:
        """The corpora read from files, each once."""
        from ..data.array_cache import default_folder
        from ..data.prepared import Corpora

        return Corpora(self.tokenizer, self.config.context, default_folder())

    @cached_property
    def text(self) -> Windows:
        """Windows of the general text that forgetting is measured on."""
        return self.corpora.text(self.config.text).windows.sample(self.config.measure.text_tokens)

    def read_texts(self) -> None:
        """Read the further texts that need no model, and the prompts of the others, to find wrong files early.

        Raises:
            UsageError: a file is wrong; names its field.
        """
        from ..data.probes import read_probe

        for name, config in self.config.texts.items():
            with _named(name):
                if isinstance(config, ProbeConfig):
                    read_probe(config)
                else:
                    self._texts[name] = self._plain(config)

    def texts(self, base: Base, study: Path) -> dict[str, Windows]:
        """Windows of the further texts by name; the base model's answers are kept in the study's cache.

        Args:
            base: the base model as loaded; with `reference: full` the model in full precision answers instead.
            study: the study folder.

        Raises:
            UsageError: a text cannot be read.
        """
        for name, config in self.config.texts.items():
            if name not in self._texts:
                with _named(name):
                    if isinstance(config, ProbeConfig):
                        self._texts[name] = self._answers(config, base, study)
                    else:
                        self._texts[name] = self._plain(config)
        return {name: self._texts[name] for name in self.config.texts}

    def _plain(self, config: TextConfig) -> Windows:
        return self.corpora.text(config).windows.sample(self.config.measure.text_tokens)

    def _answers(self, config: ProbeConfig, base: Base, study: Path) -> Windows:
        from ..measuring.probes import probe_windows

        full = self.config.model.reference == "full"
        model = self.reference() if full else base
        how: dict[str, Any] = {"key": model.key, "context": self.config.context, "cache_dir": study / "cache"}
        return probe_windows(model.model, self.tokenizer, config, **how)

    def dataset(self, name: str) -> tuple[Windows, Windows]:
        """Training and held-out windows of a fine-tuning data set."""
        if name not in self._datasets:
            self._datasets[name] = self._read_dataset(name)
        return self._datasets[name]

    def _read_dataset(self, name: str) -> tuple[Windows, Windows]:
        train, heldout = self.corpora.dataset(self.config.datasets[name])
        return train.windows, heldout.windows.sample(self.config.measure.heldout_tokens)

    @cached_property
    def general(self) -> GeneralTexts:
        """The source of the general texts that mitigations use."""
        from ..tuning.mitigations import GeneralTexts

        return GeneralTexts(self.corpora)

    def base(self, *, host: bool = False) -> Base:
        """Load the base model; each run loads its own because it changes it.

        Args:
            host: load on the CPU, memory-mapped from its files, for weights that will be sharded over processes.
        """
        from ..models.loading import Placement, load_base

        return load_base(self.config.model, self.source, Placement(host=host))

    def shared_targets(self, base: Base, launch: Launch, study: Path) -> list[BaseTargets]:
        """The same as `targets`, computed by all processes of a launch on a sharded base model.

        Args:
            base: the base model as loaded; not changed.
            launch: the launch, which has a sharding.
            study: the study folder.
        """
        from ..measuring.base_targets import shared_targets
        from ..models.sharding import shard

        def load() -> Any:
            assert launch.sharding is not None
            model = self.base(host=True).model.requires_grad_(False)
            shard(model, model, launch.sharding, launch.device)
            return model

        how: dict[str, Any] = {"cache_dir": study / "cache", "batch_tokens": self.config.measure.batch_tokens}
        texts = [self.text, *self.texts(base, study).values()]
        return [shared_targets(load, text, device=launch.device, key=base.key, **how) for text in texts]

    def targets(self, base: Base, study: Path) -> list[BaseTargets]:
        """The reference model's targets for `text` and each of `texts`, computed once per study.

        They are kept in the study's cache. With `reference: full`, the model in full precision is loaded only if they
        are not there yet.

        Args:
            base: the base model as loaded.
            study: the study folder.
        """
        from ..measuring.base_targets import base_targets, stored_targets

        how: dict[str, Any] = {"cache_dir": study / "cache", "batch_tokens": self.config.measure.batch_tokens}
        texts = [self.text, *self.texts(base, study).values()]
        if self.config.model.reference == "full":
            stored = [stored_targets(base.model, text, key=base.reference_key, **how) for text in texts]
            found = [one for one in stored if one is not None]
            if len(found) == len(texts):
                return found
            base = self.reference()
        return [base_targets(base.model, text, key=base.key, **how) for text in texts]

    def reference(self) -> Base:
        """Load the model that forgetting is measured against."""
        from ..models.loading import load_base

        return load_base(self.config.model.measured_against(), self.source)

    def context(self, run: RunConfig) -> Context:
        """The context of a run that its method may use: seed, texts, tokenizer."""
        train, _ = self.dataset(run.dataset_name)
        return Context(run.seed, train, self.text, self.tokenizer, run.context)

    def fingerprints(self, dataset: str, base: Base, study: Path) -> dict[str, str]:
        """Hashes of the texts and the base model, which with the configuration determine a run's numbers.

        Args:
            dataset: name of the run's data set.
            base: the base model as loaded.
            study: the study folder, whose cache has the base model's answers.
        """
        train, heldout = self.dataset(dataset)
        parts = {"train": train, "heldout": heldout, "text": self.text}
        parts |= {f"texts.{name}": text for name, text in self.texts(base, study).items()}
        found = {name: part.fingerprint() for name, part in parts.items()} | {"base": base.key}
        return found | ({"reference": base.reference_key} if self.config.model.reference == "full" else {})

    def check_apart(self) -> None:
        """Refuse a measured text that shares a document or a long line with the training data.

        Raises:
            UsageError: names the data set and an example of what they share.
        """
        plain = {f"texts.{name}": text for name, text in self.config.texts.items() if isinstance(text, TextConfig)}
        for name, text in {"text": self.config.text, **plain}.items():
            self._check_apart(name, text)

    def _check_apart(self, field: str, text: TextConfig) -> None:
        from ..data.documents import load_corpus, split_heldout
        from ..data.passages import count_shared, shared_passages

        measured = self.corpora.text(text).passages
        for name, source in self.config.datasets.items():
            if shared := count_shared(measured, self.corpora.dataset(source)[0].passages):
                train, _ = split_heldout(load_corpus(source), source.heldout)
                example = next(iter(shared_passages(train, load_corpus(text))), "")
                raise UsageError(
                    f"{field}: {text.source} shares {several(shared, 'passage')} with the training data of "
                    f"'{name}', such as {example[:60]!r}; measured text must not be trained on: give other text, or "
                    "remove what they share from one of them"
                )

    def check_context(self) -> None:
        """Refuse windows longer than the model's maximum context.

        Raises:
            UsageError: names both lengths.
        """
        from ..models.loading import max_context

        positions = max_context(self.config.model, self.source)
        default = "" if "context" in self.config.model_fields_set else ", the default"
        if positions is not None and self.config.context > positions:
            raise UsageError(
                f"context: got {self.config.context}{default}; the model was built for at most {positions} positions; "
                f"give context {positions} (--context {positions}) or less"
            )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Prefix errors of the block with the field of the text."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"texts.{name}: {error}") from None
