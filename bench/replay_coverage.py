"""Coverage of intervals and bands of the law over the share of replay, on simulated studies like the miniature's.

Three ranks, seven shares, seven measured steps, one seed: 21 runs. The truth is close to the law of `instructions`;
every run has an offset and autocorrelated noise along it (`coverage.noise`). Counted is how often the 95 % interval of
each identified parameter, and of the share at which replay stops paying, covers the truth, and how often the bands of
the mean and of a new run do, inside the measured range and beyond it (a share of 0.3, 90 steps).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coverage import Tally, noise
from forgetting.analysis.fit import Fit, fit_law
from forgetting.analysis.laws import LAWS
from forgetting.analysis.plan import plan_replay

LAW = LAWS["replay"]
TRUTH = {
    **{"a_ft": 2.397, "alpha_ft": 0.1496, "b_ft": 5.946, "beta_ft": 0.133, "s_ft": 1.037},
    **{"a_f": 300.0, "alpha_f": 0.02, "b_f": 0.184, "beta_f": 0.604, "s_f": 0.817},
    **{"rho": 5.797, "m": 11.25, "k": 1.698, "g": 0.326, "c": 0.211},
}
PER_RANK = 12_320
RANKS = (8, 16, 64)
SHARES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
STEPS = np.arange(12, 61, 8)
POINTS = {"inside": [(16, 28, 0.03), (32, 60, 0.1), (8, 44, 0.0)], "beyond": [(64, 60, 0.3), (64, 90, 0.1)]}
BUDGET = 0.2
Array = NDArray[np.float64]


def mean(rank: float, steps: Array, share: float) -> Array:
    """[2, n] true fine-tuning loss and forgetting."""
    x = {"trainable_params": np.full(steps.shape, rank * PER_RANK), "step": steps.astype(float)}
    x["replay_fraction"] = np.full(steps.shape, share)
    return np.asarray(LAW.values(np.array([[TRUTH[name] for name in LAW.names]]), x)[0])


def study(rng: np.random.Generator) -> dict[str, list[float]]:
    """A study's table."""
    rows: dict[str, list[float]] = {}
    for number, (rank, share) in enumerate((rank, share) for rank in RANKS for share in SHARES):
        losses = mean(rank, STEPS, share) + noise(rng, STEPS, heavy=False)
        columns = {"run_id": np.full(STEPS.size, number), "step": STEPS, "rank": np.full(STEPS.size, rank)}
        columns |= {"trainable_params": columns["rank"] * PER_RANK, "replay_fraction": np.full(STEPS.size, share)}
        for name, values in (columns | dict(zip(LAW.outputs, losses, strict=True))).items():
            rows.setdefault(name, []).extend(values.tolist())
    return rows


def stops_at() -> float:
    """The true share at which replay stops paying at BUDGET: the longest run of rank 64, the best, just reaches it."""
    plain = mean(64, np.array([60]), 0.0)[1, 0]
    strength = (60 / TRUTH["m"]) ** TRUTH["k"] * (64 * PER_RANK / 1e6) ** TRUTH["g"]
    return float((plain / BUDGET - 1) / strength)


def held(fit: Fit, rng: np.random.Generator, place: str) -> dict[str, float]:
    """Shares of bands that cover."""
    hits: dict[str, list[bool]] = {"mean": [], "new run": []}
    for rank, step, share in POINTS[place]:
        true = mean(rank, np.array([step]), share)[:, 0]
        new = true + noise(rng, np.array([float(step)]), heavy=False)[:, 0]
        for row, output in enumerate(LAW.outputs):
            p = fit.predict(output, trainable_params=rank * PER_RANK, step=step, replay_fraction=share)
            hits["mean"].append(bool(p.low <= true[row] <= p.high))
            hits["new run"].append(bool(p.run_low <= new[row] <= p.run_high))
    return {f"{band}, {place}": float(np.mean(found)) for band, found in hits.items()}


def part_replay(studies: int, seed: int, starts: int = 24) -> None:
    """Print the coverage, in percent."""
    tally, true = Tally("replay"), stops_at()
    for number in range(studies):
        rng = np.random.default_rng([seed, number, 7])
        fit = fit_law("replay", study(rng), bootstrap=200, starts=starts)
        for name in ("alpha_ft", "s_ft", "m", "k", "g", "c"):
            e = fit.parameters[name]
            if np.isfinite([e.low, e.high]).all():
                tally.add(**{name: float(e.low <= TRUTH[name] <= e.high)})
        stops = plan_replay(fit, budget=BUDGET, params=[r * PER_RANK for r in (8, 16, 32, 64)]).stops_paying
        if stops is not None and np.isfinite([stops.low, stops.high]).all():
            tally.add(stops=float(stops.low <= true <= stops.high))
        tally.add(**{name: share for place in POINTS for name, share in held(fit, rng, place).items()})
    print(
        f"law of replay, {studies} simulated studies of {len(RANKS) * len(SHARES)} runs, 95 % intervals hold, per cent"
    )
    for name, values in tally.numbers.items():
        print(f"  {name}: {tally.share(name)} of {len(values)}")
