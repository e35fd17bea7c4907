"""The contract of a mitigation: options in, a run that forgets less out."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from ..config import Section


class Mitigation(Section, ABC):
    """One way to hold forgetting back. Its fields are its options.

    Class attributes:
        name: its name in a configuration.
        references: BibTeX keys or arXiv ids of its sources.
    """

    name: ClassVar[str]
    references: ClassVar[tuple[str, ...]] = ()

    def label(self) -> str:
        """Its name and the options that differ from their defaults, for tables: `replay fraction=0.1`."""
        given = [f"{field}={getattr(self, field)}" for field in type(self).model_fields if self._differs(field)]
        return " ".join([self.name, *given])

    def _differs(self, field: str) -> bool:
        return bool(getattr(self, field) != type(self).model_fields[field].default)
