"""Data for the report's "what if" section: a data set's joint law with its bootstrap draws, and answers to check it.

The page's script evaluates the law (`templates/whatif_law.js`) at any rank, number of steps and budget, from the exact
numbers of the fit: doubles in base64. Before it shows anything, it evaluates the points of `checks` and `spent` and
compares them with the results of `predict` and `plan` stored here.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from forgetting.analysis.fit import Fit
from forgetting.analysis.fit.bootstrap import LOST
from forgetting.analysis.fit.objective import LOGARITHMIC
from forgetting.analysis.fit.rivals import own_share
from forgetting.analysis.fit.show import spans
from forgetting.analysis.laws.base import Array
from forgetting.analysis.plan.cost import Cost
from forgetting.analysis.plan.frontier import FAR, plan_budget
from forgetting.analysis.plan.predict import predict_rows
from forgetting.analysis.plan.surface import surface_of
from forgetting.display.commands import exact
from forgetting.display.numbers import finite, level, plain
from forgetting.reporting.series import Panel

STOPS = 60
"""Stops of the slider of steps, in addition to the measured steps."""
WIDER = 2.0
"""The slider of ranks extends this factor below and above the measured range."""
EXACT = 1e-6
"""A rank within this distance of an integer counts as that integer."""


def what_if(panel: Panel, cost: Cost | None) -> dict[str, Any] | None:
    """The data of one panel as plain values; None if no law is fitted to its losses over several P and N.

    Args:
        panel: one data set.
        cost: the cost of one of its training steps; None if unknown.
    """
    fit = panel.joint
    if fit is None or fit.objective == LOGARITHMIC or panel.points.empty:
        return None
    if any(low == high for low, high in fit.measured_range.values()):
        return None  # with a single P or N the law cannot predict others
    surface = surface_of(fit)
    floor = fit.diagnostics.get("forgetting_floor")
    per_rank, sizes = _sizes(panel, fit)
    steps = _steps(panel, fit)
    size = _middle(panel, fit)
    budget = _budget(fit, size)
    made = {
        "law": {"centre": surface.law.centre, "signs": surface.law.signs, "theta": _doubles(surface.theta)},
        "draws": _doubles(surface.draws),
        "own": own_share(len(surface.draws), surface.rivals),
        "rivals": [{**rival.law.spec, "draws": _doubles(rival.draws)} for rival in surface.rivals],
        "confidence": fit.confidence,
        "level": level(fit.confidence),
        "widen": fit.widen,
        "lost": LOST,
        "run": [fit.run_scales(output) for output in surface.law.outputs],
        "range": fit.measured_range,
        "far": FAR,
        "floor": floor,
        "per_rank": per_rank,
        "sizes": sizes,
        "steps": steps,
        "start": [size, fit.measured_range["step"][1], budget],
        "cost": None
        if cost is None
        else {"tokens": cost.tokens_per_step, "seconds": cost.seconds, "flops": _flops(cost, size)},
        "spans": spans(fit.band_laws()) if fit.rivals else "",
        "no_bands": fit.no_bands,
        "checks": _checks(fit, sizes, steps),
        "spent": _spent(fit, sizes, budget),
    }
    result: dict[str, Any] = plain(made)
    return result


def what_if_words(panel: Panel, made: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Arguments with which `forgetting predict` and `plan` print the numbers that the page begins with."""
    size, steps, budget = made["start"]
    of = ["--dataset", panel.name, "--params", exact(size)]
    floor = ["--floor", "0"] if made["floor"] is None else []  # then the budget is a forgetting loss
    return [*of, "--steps", exact(steps)], [*of, "--budget", exact(budget), *floor]


def _flops(cost: Cost, size: float) -> list[float] | None:
    """FLOPs of a step without trainable parameters, and the FLOPs that each trainable parameter adds to it.

    Assumes adapters, because only they have several sizes. None if the model's size is unknown or not above P.
    """
    if cost.model_params is None or size >= cost.model_params:
        return None
    none, one = cost.flops(1.0, 0.0), cost.flops(1.0, 1.0)
    assert none is not None
    assert one is not None
    return [none, one - none]


def _doubles(values: Array) -> str:
    """The array as little-endian doubles in base64, in row-major order."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode("ascii")


def _measured(panel: Panel, fit: Fit, column: str) -> list[float]:
    """The measured values of a variable within the fit's range, ascending."""
    low, high = fit.measured_range[column]
    found = panel.points[column].dropna().unique()
    return sorted(float(v) for v in found if low <= v <= high)


def _sizes(panel: Panel, fit: Fit) -> tuple[float | None, list[float]]:
    """P of rank 1, and the slider's stops, which are P at whole ranks; if ranks are unknown, None and stops over P."""
    low, high = fit.measured_range["trainable_params"]
    measured = _measured(panel, fit, "trainable_params")
    per_rank = fit.diagnostics.get("params_per_rank")
    if per_rank is not None:
        first, last = low / per_rank / WIDER, high / per_rank * WIDER
        ranks = [*(p / per_rank for p in measured), *(2.0**k for k in range(20) if first <= 2.0**k <= last)]
        whole = sorted({round(r) * per_rank for r in ranks if abs(r - round(r)) < EXACT and round(r) >= 1})
        if whole:
            return per_rank, whole
    return None, sorted({*measured, *map(float, np.round(np.geomspace(low / WIDER, high * WIDER, 15)))})


def _steps(panel: Panel, fit: Fit) -> list[float]:
    """Stops of the slider of steps: measured ones, and log-spaced integers over the range that plans allow."""
    low, high = fit.measured_range["step"]
    measured = _thinned(_measured(panel, fit, "step"))
    spaced = np.round(np.geomspace(max(1.0, low / FAR), high * FAR, STOPS))
    return sorted({*measured, *map(float, spaced)})


def _thinned(values: list[float]) -> list[float]:
    """At most STOPS evenly spaced values, including the first and the last."""
    if len(values) <= STOPS:
        return values
    return [values[i] for i in np.linspace(0, len(values) - 1, STOPS).round().astype(int)]


def _middle(panel: Panel, fit: Fit) -> float:
    """The median of the measured sizes."""
    measured = _measured(panel, fit, "trainable_params")
    return measured[len(measured) // 2] if measured else fit.measured_range["trainable_params"][0]


def _budget(fit: Fit, size: float) -> float:
    """The initial budget, in nats/token: forgetting at the geometric mean of the range of steps, to two digits."""
    step = float(np.sqrt(np.prod(fit.measured_range["step"])))
    loss = float(fit.predict("forgetting_loss", trainable_params=size, step=step).value)
    forgotten = loss - float(fit.diagnostics.get("forgetting_floor") or 0.0)
    return float(f"{forgotten:.2g}") if finite(forgotten) and forgotten > 0 else 0.1


def _ends(values: list[float]) -> Iterable[float]:
    return dict.fromkeys((values[0], values[len(values) // 2], values[-1]))


def _checks(fit: Fit, sizes: list[float], steps: list[float]) -> list[dict[str, Any]]:
    """Results of `predict` inside and outside the measured range."""
    rows = predict_rows(fit, fit.label, {"step": list(_ends(steps))}, params=list(_ends(sizes)))
    names = ("trainable_params", "step", "extrapolated")
    ends = ("value", "low", "high", "run_low", "run_high")
    return [
        {name: row[name] for name in names}
        | {"losses": [[row[output][end] for end in ends] for output in ("finetune_loss", "forgetting_loss")]}
        for row in rows
    ]


def _spent(fit: Fit, sizes: list[float], budget: float) -> list[dict[str, Any]]:
    """Results of `plan`: the steps at which each size reaches that budget."""
    return [
        {
            "trainable_params": c.trainable_params,
            "steps": [c.steps.value, c.steps.low, c.steps.high],
            "finetune_loss": [
                c.finetune_loss.value,
                c.finetune_loss.low,
                c.finetune_loss.high,
                *c.new_run["finetune_loss"],
            ],
            "extrapolated": c.extrapolated,
        }
        for c in plan_budget(fit, budget, params=list(_ends(sizes))).frontier
        if np.isfinite(c.steps.value)
    ]
