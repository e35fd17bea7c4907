"""Selective token masking: does not train on tokens that surprise the base model.

Wu et al. 2025, *Mitigating Forgetting in LLM Fine-Tuning via Low-Perplexity Token Learning*, arXiv:2501.14315; their
threshold of 2.5 is the default.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from pydantic import Field

from ...errors import UsageError
from .base import Course, Mitigation, Situation
from .base_losses import base_losses


class TokenMasking(Mitigation):
    """Tokens of the task whose perplexity 1 / p_base(token) is above the threshold do not count in the loss.

    They stay in the context of later tokens. The loss is the mean over the remaining tokens.
    """

    name: ClassVar[str] = "token_masking"
    references: ClassVar[tuple[str, ...]] = ("wu2025stm",)
    excludes: ClassVar[tuple[str, ...]] = ("flow",)

    threshold: float = Field(
        2.5, gt=1, description="perplexity above which a token is masked; a list gives one run each"
    )

    def plan(self, course: Course, at: Situation) -> Course:
        """Mask the tokens; see `Mitigation.plan`."""
        windows = course.windows
        kept = base_losses(windows, at) <= np.log(self.threshold)
        predicted = windows.predicted.copy()
        predicted[predicted] = kept
        masked = dataclasses.replace(windows, predicted=predicted)
        targets = np.add.reduceat(predicted.astype(np.int64), windows.offsets[:-1])
        batches = targets[course.order].reshape(at.run.training.steps, -1).sum(1)
        if not batches.all():
            raise UsageError(
                f"mitigations.token_masking.threshold: {self.threshold} leaves no token in the batch of step "
                f"{int(np.argmin(batches)) + 1} ({kept.mean():.1%} of all tokens are kept); give a larger one"
            )
        at.facts[self.name] = {"kept": round(float(kept.mean()), 6)}
        return dataclasses.replace(course, windows=masked)
