"""What a configuration chooses by name, with options of its own: parsed, and expanded into the grid that it means."""

from __future__ import annotations

from typing import TypeVar

from .registry import Registry
from .schema import Variant, VariantOptions, expand, validated

V = TypeVar("V", bound=VariantOptions)


class Variants(Registry[type[V]]):
    """Kinds of one thing, such as the methods: classes whose fields are the options of each."""

    def parse(self, config: Variant) -> V:
        """A configuration of one, its options checked.

        Raises:
            UsageError: none has that name, or a wrong option; names it, what came and what is allowed.
        """
        return validated(self.find(config.name), config.options, self._where(config))

    def grid(self, config: Variant) -> list[V]:
        """All that one entry of a configuration means: a list for an option that takes one value is one each.

        Raises:
            UsageError: as `parse`; an empty list, or one that repeats a value.
        """
        kind, where = self.find(config.name), self._where(config)
        return [validated(kind, options, where) for options in expand(config.options, kind, where)]

    def _where(self, config: Variant) -> str:
        return f"{self._field}.{config.name}"
