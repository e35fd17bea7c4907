"""Private or undocumented names of libraries, and the error if one is gone.

Each library has one file of them: `LIBRARY_internals` here, and `capabilities/lm_eval_internals` and
`studies/engines/ray_internals`. If a name vanished silently, numbers would change. So each is accessed through its
`PrivateName`, and tests look for them in the installed versions.
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
        library: the distribution's name in `pip`.
        path: `module:name` or `module:Class.name`; `object:name` for names on objects that their class does not have.
        purpose: what goes wrong without it, as the end of a sentence.
        seen: the first and last version known to have it.
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
        """The object at the path.

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
        """The error for a name that is gone: which one, and what to do."""
        return ForgettingError(
            f"{self.library} {metadata.version(self.library)} no longer has {self.path.partition(':')[2]}, and without "
            f"it {self.purpose}; install a version that has it (known: {self.seen}), and please report this"
        )


def check(names: Iterable[PrivateName]) -> None:
    """Check that all exist.

    Raises:
        ForgettingError: names the first that is gone.
    """
    for name in names:
        name.value()
