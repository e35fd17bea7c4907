"""Names that a library never promised to keep, and what to say once one is gone.

What is used of them stands in one file a library: `transformers_internals`, `peft_internals` and
`accelerate_internals` here, `capabilities/lm_eval_internals`, `studies/engines/ray_internals`. A name that vanishes
silently would change numbers, so each is asked for by its `PrivateName`, and a test finds every one of them in the
installed version.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ..errors import ForgettingError


@dataclass(frozen=True)
class PrivateName:
    """A private or undocumented name.

    Attributes:
        library: the distribution, as `pip` calls it.
        path: `module:name`, `module:Class.name`; of what objects have and their class does not, `object:name`.
        purpose: what is not right without it, as the end of a sentence.
        seen: the versions that are known to have it, first and last.
    """

    library: str
    path: str
    purpose: str
    seen: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(":")[2].rpartition(".")[2]

    def value(self) -> Any:
        """What the path leads to.

        Raises:
            ForgettingError: it is gone.
        """
        module, _, attributes = self.path.partition(":")
        try:
            found = importlib.import_module(module)
            for part in attributes.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError):
            raise self.gone() from None
        return found

    def of(self, owner: Any) -> Any:
        """The attribute of an object.

        Raises:
            ForgettingError: it is gone.
        """
        try:
            return getattr(owner, self.name)
        except AttributeError:
            raise self.gone() from None

    def gone(self) -> ForgettingError:
        """In words, what is gone and what to do."""
        return ForgettingError(
            f"{self.library} {metadata.version(self.library)} has no {self.path.partition(':')[2]} any more, without "
            f"which {self.purpose}; install a version that has it (known: {self.seen}), and please report this"
        )


def check(names: Iterable[PrivateName]) -> None:
    """See that all are there.

    Raises:
        ForgettingError: the first that is gone.
    """
    for name in names:
        name.value()
