"""Simulated studies for tests of the comparison; errors are correlated along a run's trajectory, as in real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

START = 6.0  # nats/token: the base model's fine-tuning loss
STEPS = np.arange(48, 225, 16)
FLOOR = {4: 1.05, 8: 0.95, 16: 0.88, 32: 0.83, 64: 0.80, 128: 0.78}
NOISE = {"offset": 0.04, "jitter": 0.03, "loss": 0.01, "order": 0.02}
"""Standard deviations: a run's own offset of forgetting (relative), its jitter along the run, that of its fine-tuning
loss, and what the order of the data does to all runs of a seed (nats)."""


def trade_off(loss: Any, bend: float = 1.6) -> Any:
    """Forgetting at a fine-tuning loss: 0 at the base model's, steeper at lower losses unless bend is 1."""
    return 1.1 * (np.maximum(START - loss, 0) / 5) ** bend * (1.0 if bend == 1 else 1.0 / np.maximum(loss, 0.3) ** 0.3)


def correlated(rng: np.random.Generator, n: int, sd: float, rho: float = 0.7) -> np.ndarray:
    """An AR(1) series with standard deviation sd."""
    out = np.empty(n)
    out[0] = rng.normal(0, sd)
    for i in range(1, n):
        out[i] = rho * out[i - 1] + rng.normal(0, sd * np.sqrt(1 - rho**2))
    return out


def study(
    rng: np.random.Generator,
    *,
    ranks: Sequence[int] = (8, 16, 32, 64),
    seeds: Sequence[int] = (0, 1, 2),
    contenders: Mapping[str, Mapping[str, Any]] | None = None,
    between_ranks: float = 0.05,
    bend: float = 1.6,
    noise: Mapping[str, float] = NOISE,
    pace: float = 1.0,
) -> dict[str, list[Any]]:
    """A study's table.

    Args:
        rng: of everything.
        ranks: of the reference, `lora`.
        seeds: of every run.
        contenders: label -> rank (or None), saving (nats), seeds, mitigation, noisy (factor on its own noise): where
            they differ from the reference.
        between_ranks: standard deviation of a rank's own offset from the one trade-off curve, nats.
        bend: 1 for a straight line.
        noise: standard deviations.
        pace: steps of the reference that a contender's step is worth.
    """
    every = set(seeds) | {s for about in (contenders or {}).values() for s in about.get("seeds", ())}
    order = {
        s: (correlated(rng, STEPS.size, noise["order"]), correlated(rng, STEPS.size, noise["order"])) for s in every
    }
    offsets = {rank: rng.normal(0, between_ranks) for rank in ranks}
    entries = [("lora", rank, {}) for rank in ranks]
    entries += [(label, about.get("rank"), dict(about)) for label, about in (contenders or {}).items()]
    rows: dict[str, list[Any]] = {}
    for label, rank, about in entries:
        offset = offsets[rank] if rank in offsets else rng.normal(0, between_ranks)
        floor, noisy = FLOOR.get(rank or 0, 0.85), about.get("noisy", 1.0)
        for seed in about.get("seeds", seeds):
            steps = STEPS * (pace if label != "lora" else 1.0)
            loss = floor + 3.0 * np.exp(-steps / 60) + 12 / steps
            loss = loss + correlated(rng, STEPS.size, noise["loss"]) + order[seed][0] * 0.5
            forgot = (
                trade_off(loss, bend) * (1 + rng.normal(0, noisy * noise["offset"])) + offset - about.get("saving", 0.0)
            )
            forgot = forgot + correlated(rng, STEPS.size, noisy * noise["jitter"]) + order[seed][1]
            for step, x, y in zip(STEPS, loss, forgot, strict=True):
                row = {"dataset": "d", "method": "lora", "label": label, "mitigation": about.get("mitigation", "")}
                row |= {"rank": rank, "seed": seed, "run_id": f"{label}-{rank}-{about.get('mitigation', '')}-s{seed}"}
                row |= {"status": "done", "step": int(step), "finetune_loss": float(x), "forgetting": float(y)}
                row |= {"forgetting_loss": float(y) + 0.4, "trainable_params": 1000 * (rank or 20)}
                row |= {"train_seconds": 0.5 * step}
                for name, value in row.items():
                    rows.setdefault(name, []).append(value)
    return rows
