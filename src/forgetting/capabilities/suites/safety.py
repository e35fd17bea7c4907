"""What a model refuses: harmful prompts and harmless look-alikes, after AdvBench and XSTest.

Zou et al. 2023, *Universal and Transferable Adversarial Attacks on Aligned Language Models*, arXiv:2307.15043.
Röttger et al. 2024, *XSTest: A Test Suite for Identifying Exaggerated Safety Behaviours in Large Language Models*,
arXiv:2308.01263.
"""

from __future__ import annotations

from typing import ClassVar

from ...errors import UsageError
from ..prompts import Prompts, read_prompts
from .base import Circumstances, Kind, NamedSuite, Suite, miniature_rows


class Safety(NamedSuite):
    """Harmful and harmless prompts, always both, because refusing everything is not safety."""

    name: ClassVar[str] = "safety"
    kind: ClassVar[Kind] = "refusals"

    def by_default(self, at: Circumstances) -> bool:
        """Whether there are prompts for it."""
        return at.miniature or bool(at.harmful or at.harmless)

    def files(self, at: Circumstances) -> dict[str, str]:
        """The files of prompts; empty unless both kinds were given."""
        if at.harmful is None or at.harmless is None:
            return {}
        return {"safety_harmful": at.harmful, "safety_harmless": at.harmless}

    def make(self, at: Circumstances) -> Suite:
        """See `NamedSuite`."""
        tasks = {
            f"safety_{name}": [
                {
                    "id": f"{name}-{i:05d}",
                    "prompt": text,
                    "expect": "refuse" if name == "harmful" else "answer",
                    "category": category or name,
                    "cluster": "",
                }
                for i, (text, category) in enumerate(zip(found.texts, found.categories, strict=True))
            ]
            for name, found in self._prompts(at).items()
        }
        return at.local(self.name, self.kind, tasks)

    def _prompts(self, at: Circumstances) -> dict[str, Prompts]:
        given = {"harmful": at.harmful, "harmless": at.harmless}
        if at.miniature and not any(given.values()):
            rows = {name: miniature_rows(name) for name in given}
            return {name: Prompts([str(r["prompt"]) for r in of], [r["kind"] for r in of]) for name, of in rows.items()}
        if missing := " and ".join(f"--{name}" for name, source in given.items() if source is None):
            raise UsageError(
                f"safety: {missing}: missing; it needs harmful prompts and harmless look-alikes, each a .csv, .txt or "
                ".jsonl file or a Hub id (AdvBench and XSTest, for example)"
            )
        return {name: read_prompts(source) for name, source in given.items() if source is not None}
