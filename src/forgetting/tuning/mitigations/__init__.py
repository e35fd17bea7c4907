"""What reduces forgetting: one file per mitigation, listed in MITIGATIONS. Importing this does not import torch."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Sequence

import numpy as np

from ...config.schema import MitigationConfig, RunConfig
from ...config.variants import Variants
from ...errors import UsageError
from ...models import quantised
from ...models.loading import Base
from ..methods import METHODS, Context
from .base import Course, Mitigation, Situation, Takes, Term
from .budget import Budget
from .ewc import Ewc
from .flow import Flow, Weighting
from .freeze_layers import FreezeLayers
from .general import GeneralTexts
from .interpolation import Interpolation
from .kl import Kl
from .l2sp import L2sp
from .recipes import Dropout, LearningRate, WeightDecay
from .replay import Replay
from .token_masking import TokenMasking

MITIGATIONS: Variants[Mitigation] = Variants(
    "mitigation",
    (
        *(Replay, Kl, L2sp, Ewc),
        *(Budget, TokenMasking, Flow, LearningRate, FreezeLayers),
        *(WeightDecay, Dropout, Interpolation),
    ),
    field="mitigations",
)

__all__ = [
    "MITIGATIONS",
    "Course",
    "GeneralTexts",
    "Mitigation",
    "Situation",
    "Takes",
    "Term",
    "check_runs",
    "expand_together",
    "label",
    "parse_together",
    "plan_course",
    "with_recipe",
]


def parse_together(run: RunConfig) -> list[Mitigation]:
    """The mitigations of a run, in the order in which they plan what is trained on."""
    return sorted(map(MITIGATIONS.parse, run.mitigations), key=lambda mitigation: mitigation.stage)


def expand_together(together: Sequence[MitigationConfig]) -> list[tuple[MitigationConfig, ...]]:
    """All combinations of mitigations used together: the grid over the options of each, filled in and checked.

    Raises:
        UsageError: an unknown or repeated mitigation, a wrong option, or two that exclude each other.
    """
    names = [config.name for config in together]
    if len(set(names)) < len(names):
        raise UsageError(f"mitigations: {names} contains one twice; use each at most once in a combination")
    for one, other in itertools.permutations(names, 2):
        if other in MITIGATIONS.find(one).excludes:
            raise UsageError(f"mitigations: {one} and {other} exclude each other; use one of them")
    return list(itertools.product(*(_expand(config) for config in together)))


def _expand(config: MitigationConfig) -> list[MitigationConfig]:
    return [
        MitigationConfig.model_validate({"name": config.name, **one.model_dump(mode="json")})
        for one in MITIGATIONS.grid(config)
    ]


def label(together: Sequence[MitigationConfig]) -> str:
    """A combination's name in tables: `replay fraction=0.1 + kl weight=2.0`; empty for none."""
    return " + ".join(MITIGATIONS.parse(config).label() for config in together)


def check_runs(
    runs: Sequence[RunConfig], base: Base, general: GeneralTexts, context: Callable[[RunConfig], Context]
) -> None:
    """Refuse runs whose mitigations cannot work as requested, before any starts.

    If a mitigation depends on how the method changes the model, a copy of the base model is prepared to check it.

    Args:
        runs: all runs of a study.
        base: the base model, as loaded; not changed.
        general: the general texts of the study.
        context: what a run's method may know about it.

    Raises:
        UsageError: names the mitigation and what it does not work with.
    """
    seen: set[str] = set()
    for run in runs:
        same = run.model_copy(update={"seed": 0}).model_dump_json()
        together = [] if same in seen else parse_together(run)
        seen.add(same)
        for mitigation in together:
            if (stored := quantised.method_of(base.model.config)) is not None:
                mitigation.check_quantised(f"weights quantised by {stored}")
            mitigation.check(run, base)
            text = mitigation.general_text(run)
            if text is not None:
                general.refuse_measured(mitigation.name, text, run)
        structural = [one for one in together if type(one).check_model is not Mitigation.check_model]
        changed = with_recipe(run, together)
        key = json.dumps([run.method.model_dump(mode="json"), [one.model_dump_json() for one in structural]])
        if structural and key not in seen:
            seen.add(key)
            model = METHODS.parse(changed.method).prepare(copy.deepcopy(base.model), context(run))
            for mitigation in structural:
                mitigation.check_model(run, model)


def with_recipe(run: RunConfig, together: Sequence[Mitigation]) -> RunConfig:
    """The run with method and training configuration as changed by its parsed mitigations."""
    for mitigation in together:
        run = mitigation.recipe(run)
    return run


def plan_course(together: Sequence[Mitigation], course: Course, at: Situation) -> tuple[Course, list[Term]]:
    """What a run trains on and what is added to its loss; the base model is as loaded.

    Args:
        together: as from `parse_together`.
        course: the plain run's course.
        at: the run's situation.
    """
    for mitigation in together:
        course = mitigation.plan(course, at)
    terms = [term for mitigation in together if (term := mitigation.term(at)) is not None]
    weighting = [] if np.all(course.weights == 1.0) else [Weighting(course.weights)]
    return course, weighting + terms
