"""Things by name: a name that a user gave is found, or answered with the names that there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from ..errors import UsageError, did_you_mean


class Named(Protocol):
    """An object or a class with a name."""

    @property
    def name(self) -> str:
        """What a user calls it."""


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T]):
    """Things by name, in the order given. A new method, mitigation or law is one file and one row in its registry.

    Examples:
        >>> from types import SimpleNamespace
        >>> laws = Registry("law", [SimpleNamespace(name="linear"), SimpleNamespace(name="chinchilla")])
        >>> laws.find("linear").name, list(laws)
        ('linear', ['linear', 'chinchilla'])
        >>> laws.find("chinchila")
        Traceback (most recent call last):
            ...
        forgetting.errors.UsageError: no law 'chinchila'; did you mean 'chinchilla'? (choices: linear, chinchilla)
    """

    def __init__(self, kind: str, things: Iterable[T], *, field: str = "", hint: str = "") -> None:
        """Keep things by name.

        Args:
            kind: what they are, in the singular, for errors.
            things: each with a name of its own.
            field: of a configuration that names one; opens errors.
            hint: what else may be given in the place of a name; closes errors.

        Raises:
            ValueError: two have the same name.
        """
        self._kind, self._field, self._hint = kind, field, hint
        self._things: dict[str, T] = {}
        for thing in things:
            if thing.name in self._things:
                raise ValueError(f"two {kind}s are called {thing.name}")
            self._things[thing.name] = thing

    def find(self, name: str) -> T:
        """The thing of this name.

        Raises:
            UsageError: there is none; names the closest and all choices.
        """
        if name not in self._things:
            opening, closing = f"{self._field}: " * bool(self._field), f"; {self._hint}" * bool(self._hint)
            raise UsageError(f"{opening}no {self._kind} '{name}'; {did_you_mean(name, self)}{closing}")
        return self._things[name]

    def __getitem__(self, name: str) -> T:
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
