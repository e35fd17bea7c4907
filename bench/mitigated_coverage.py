"""Coverage of intervals and bands of the laws over the share of replay and the weight of KL, on simulated studies.

Studies are like the miniature's: for replay three ranks, seven shares, seven measured steps, one seed (21 runs); for KL
three ranks, five weights of which rank 16 has only 0 (11 runs). The truth is close to the law of `instructions`; every
run has an offset and autocorrelated noise along it (`coverage.noise`). Counted is how often the 95 % interval of each
identified parameter, and of the value at which the mitigation stops paying, covers the truth, and how often the bands
of the mean and of a new run do, inside the measured range and beyond it (a larger value, 90 steps).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coverage import Tally, noise
from forgetting.analysis.fit import Fit, fit_law
from forgetting.analysis.laws import LAWS
from forgetting.analysis.plan import plan_mitigated
from forgetting.store.axes import AXES

PER_RANK = 12_320
STEPS = np.arange(12, 61, 8)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """A simulated study.

    Attributes:
        name: of the law.
        truth: its parameters.
        runs: rank and value of each run.
        points: rank, step and value at which bands are judged.
        budget: of the plan.
    """

    name: str
    truth: dict[str, float]
    runs: list[tuple[float, float]]
    points: dict[str, list[tuple[float, float, float]]]
    budget: float

    def mean(self, rank: float, steps: Array, value: float) -> Array:
        """[2, n] true fine-tuning loss and forgetting."""
        law = LAWS[self.name]
        x = {"trainable_params": np.full(steps.shape, rank * PER_RANK), "step": steps.astype(float)}
        x[AXES[self.name].column] = np.full(steps.shape, value)
        return np.asarray(law.values(np.array([[self.truth[name] for name in law.names]]), x)[0])

    def study(self, rng: np.random.Generator) -> dict[str, list[float]]:
        """A study's table."""
        rows: dict[str, list[float]] = {}
        for number, (rank, value) in enumerate(self.runs):
            losses = self.mean(rank, STEPS, value) + noise(rng, STEPS, heavy=False)
            columns = {"run_id": np.full(STEPS.size, number), "step": STEPS, "rank": np.full(STEPS.size, rank)}
            columns |= {"trainable_params": columns["rank"] * PER_RANK}
            columns |= {AXES[self.name].column: np.full(STEPS.size, value)}
            for name, values in (columns | dict(zip(LAWS[self.name].outputs, losses, strict=True))).items():
                rows.setdefault(name, []).extend(values.tolist())
        return rows

    def stops_at(self) -> float:
        """The value at which it stops paying: where the longest run of rank 64, the best, just meets the budget."""
        left = self.budget / self.mean(64, np.array([60]), 0.0)[1, 0]
        rest = self.truth.get("u", 0.0)
        grown = (1 - left) / (left - rest)  # left = (1 + rest * grown) / (1 + grown)
        return float(grown / ((60 / self.truth["m"]) ** self.truth["k"] * (64 * PER_RANK / 1e6) ** self.truth["g"]))

    def held(self, fit: Fit, rng: np.random.Generator, place: str) -> dict[str, float]:
        """Shares of bands that cover."""
        hits: dict[str, list[bool]] = {"mean": [], "new run": []}
        for rank, step, value in self.points[place]:
            true = self.mean(rank, np.array([step]), value)[:, 0]
            new = true + noise(rng, np.array([float(step)]), heavy=False)[:, 0]
            at = {"trainable_params": rank * PER_RANK, "step": step, AXES[self.name].column: value}
            for row, output in enumerate(LAWS[self.name].outputs):
                p = fit.predict(output, **at)
                hits["mean"].append(bool(p.low <= true[row] <= p.high))
                hits["new run"].append(bool(p.run_low <= new[row] <= p.run_high))
        return {f"{band}, {place}": float(np.mean(found)) for band, found in hits.items()}


REPLAY = Design(
    "replay",
    {
        **{"a_ft": 2.397, "alpha_ft": 0.1496, "b_ft": 5.946, "beta_ft": 0.133, "s_ft": 1.037},
        **{"a_f": 300.0, "alpha_f": 0.02, "b_f": 0.184, "beta_f": 0.604, "s_f": 0.817},
        **{"rho": 5.797, "m": 11.25, "k": 1.698, "g": 0.326, "c": 0.211},
    },
    [(rank, share) for rank in (8, 16, 64) for share in (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)],
    {"inside": [(16, 28, 0.03), (32, 60, 0.1), (8, 44, 0.0)], "beyond": [(64, 60, 0.3), (64, 90, 0.1)]},
    0.2,
)
KL = Design(
    "kl",
    {
        **{"a_ft": 0.0353, "alpha_ft": 0.0913, "b_ft": 2.583, "beta_ft": 0.1112, "s_ft": 0.979},
        **{"a_f": 0.0715, "alpha_f": 0.02, "b_f": 0.1267, "beta_f": 0.5516, "s_f": 0.7034},
        **{"rho": 6.963, "m": 15.23, "k": 2.117, "g": 0.35, "u": 0.102, "c": -0.091, "d": 0.0326},
    },
    [(16, 0.0), *((rank, weight) for rank in (8, 64) for weight in (0.0, 0.03, 0.1, 0.3, 1.0))],
    {"inside": [(16, 28, 0.06), (32, 60, 0.2), (8, 44, 0.0)], "beyond": [(64, 60, 2.0), (64, 90, 0.3)]},
    0.12,
)


def part_mitigated(design: Design, studies: int, seed: int, starts: int = 24) -> None:
    """Print the coverage, in percent."""
    tally, true = Tally(design.name), design.stops_at()
    for number in range(studies):
        rng = np.random.default_rng([seed, number, 7])
        fit = fit_law(design.name, design.study(rng), bootstrap=200, starts=starts)
        for name in ("alpha_ft", "s_ft", "m", "k", "g", "u", "c", "d"):
            e = fit.parameters.get(name)
            if e is not None and np.isfinite([e.low, e.high]).all():
                tally.add(**{name: float(e.low <= design.truth[name] <= e.high)})
        params = [rank * PER_RANK for rank in (8, 16, 32, 64)]
        stops = plan_mitigated(fit, budget=design.budget, params=params).stops_paying
        if stops is not None and np.isfinite([stops.low, stops.high]).all():
            tally.add(stops=float(stops.low <= true <= stops.high))
        tally.add(**{name: share for place in design.points for name, share in design.held(fit, rng, place).items()})
    print(
        f"law of {design.name}, {studies} simulated studies of {len(design.runs)} runs, 95 % intervals hold, per cent"
    )
    for name, values in tally.numbers.items():
        print(f"  {name}: {tally.share(name)} of {len(values)}")
