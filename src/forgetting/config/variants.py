"""Variants chosen by name in a configuration, such as methods: parsed, and expanded into a grid."""

from __future__ import annotations

from typing import TypeVar

from .registry import Registry
from .schema import Variant, VariantOptions, expand, validated

V = TypeVar("V", bound=VariantOptions)


class Variants(Registry[type[V]]):
    """Variants of one kind, such as the methods: classes whose fields are their options."""

    def parse(self, config: Variant) -> V:
        """One variant's configuration, with its options checked.

        Raises:
            UsageError: an unknown name or a wrong option; says what came and what is allowed.
        """
        return validated(self.find(config.name), config.options, self._where(config))

    def grid(self, config: Variant) -> list[V]:
        """All variants that one entry stands for: a list, for an option that takes one value, gives one each.

        Raises:
            UsageError: as `parse`; also an empty list, or one that repeats a value.
        """
        kind, where = self.find(config.name), self._where(config)
        return [validated(kind, options, where) for options in expand(config.options, kind, where)]

    def _where(self, config: Variant) -> str:
        return f"{self._field}.{config.name}"
