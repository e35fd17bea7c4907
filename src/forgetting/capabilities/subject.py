"""The two models of an evaluation, loaded when first needed."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.arguments import tokenizer_of
from ..config.schema import ModelConfig
from ..errors import UsageError
from .answers import LIVE

if TYPE_CHECKING:
    from ..models.pair import Pair
    from ..models.sources import Source


class Subject:
    """The two models of an evaluation; loaded when first needed, since a stored comparison needs neither."""

    def __init__(self, base: Any, tuned: Any, config: ModelConfig, tokenizer: Any = None) -> None:
        self.names = tuple(
            m if isinstance(m, str) else str(m) if isinstance(m, Path) else "live" for m in (base, tuned)
        )
        self._given, self._config, self._tokenizer = (base, tuned), config, tokenizer_of(tokenizer)

    @cached_property
    def pair(self) -> Pair:
        """The loaded models.

        Raises:
            UsageError: they cannot be loaded, or cannot be compared.
        """
        from ..models import comparable
        from ..models.generation import differing_settings
        from ..models.loading import Placement
        from ..models.pair import open_pair

        base, tuned = (source or live for source, live in zip(self._sources, self._given, strict=True))
        found = open_pair(base, tuned, tokenizer=self._tokenizer, settings=self._config, placement=Placement())
        if found.tokenizer is None:
            raise UsageError("loaded models need their tokenizer: evaluate(..., tokenizer=...)")
        if found.tuned_tokenizer is not None:
            found.notices.extend(comparable.check_tokenizers(found.tokenizer, found.tuned_tokenizer, []))
        if found.tuned is not found.base:
            found.notices.extend(differing_settings(found.base, found.tuned))
        return found

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's tokenizer; if the base is given by name, its weights are not loaded for it.

        Raises:
            UsageError: it cannot be loaded, or a loaded model was given without one.
        """
        from ..models.loading import load_tokenizer

        if self._tokenizer is not None:
            return self._tokenizer
        if "pair" in self.__dict__ or self.names[0] == "live":
            return self.pair.tokenizer
        return load_tokenizer(self._config.model_copy(update={"source": self.names[0]}), self._sources[0])

    def key(self, side: int) -> str:
        """A key of a model's content: the commit of a Hub id, a hash of a folder, or LIVE for a loaded model."""
        source = self._sources[side]
        if source is None:
            return LIVE
        return source.commit or content_key(source.config())

    @cached_property
    def _sources(self) -> tuple[Source | None, Source | None]:
        """The sources of the models that were given by name; None for loaded ones."""
        from ..models.sources import find

        code, revisions = self._config.trust_remote_code, (self._config.revision, None)
        base, tuned = (
            find(str(given), revision, code=code) if isinstance(given, str | Path) else None
            for given, revision in zip(self._given, revisions, strict=True)
        )
        return base, tuned

    def model(self, side: int) -> Any:
        """The base (0) or tuned (1) model."""
        return (self.pair.base, self.pair.tuned)[side]


def content_key(folder: Path) -> str:
    """A hash of the configuration, weights and Python code in a model or adapter folder."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*config.json"), *folder.glob("*.safetensors"), *folder.glob("*.py")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
