"""Registries of named things; an unknown name gets an error that lists the known ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from ..errors import UsageError, did_you_mean


class Named(Protocol):
    """An object or a class with a name."""

    @property
    def name(self) -> str:
        """The name that a user gives."""


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T]):
    """Named things in the given order. A new method, mitigation or law is one file and one row in its registry.

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
        """Register things by name.

        Args:
            kind: what they are, in the singular, for errors.
            things: each has its own name.
            field: the configuration field that names one; errors begin with it.
            hint: what else may be given instead of a name; errors end with it.

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
        """The thing with this name.

        Raises:
            UsageError: there is none; suggests the closest name and lists all choices.
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
