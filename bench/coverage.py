"""Do the bands hold what they promise? Simulated studies of eight runs from the paper's Table 1, in four noise designs.

    python bench/coverage.py [--studies 200] [--designs ar t3 lengths curved] [--seed 0]

For each design: how often the 95 % band of the law's mean holds the true mean, and that of one new run a new run,
inside the measured range and beyond it; a band that is missing is a miss. Further the share of studies without a fit,
and of parameters outside their own interval. Beside each share its Monte Carlo standard error.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from forgetting.analysis.fit import Fit, fit_law
from forgetting.analysis.laws import PUBLISHED
from forgetting.errors import ForgettingError

LAW = PUBLISHED["kalajdzievski2024/openorca"]
PER_RANK = 2_498_560
RANKS = (8, 8, 16, 32, 32, 64, 128, 256)
STEPS = np.arange(50, 261, 15)
SIGMA = {"finetune_loss": 0.006, "forgetting_loss": 0.010}
"""Standard deviation of a measured loss around the law, nats/token; most of it is a run's own offset."""
OUTPUTS = ("finetune_loss", "forgetting_loss")
Array = NDArray[np.float64]


def mean(params: float, steps: Array, *, bend: float = 0.0) -> Array:
    """[2, n] true losses; `bend` adds a curvature in log N that the law does not have, in nats at the range's ends."""
    theta = np.array([LAW.parameters[name] for name in LAW.law.names])
    x = {"trainable_params": np.full(steps.shape, params), "step": steps.astype(float)}
    values = LAW.law.values(theta[None], x)[0]
    place = 2 * (np.log(steps) - np.log(50)) / np.log(260 / 50) - 1
    return np.asarray(values + bend * np.array([[1.0], [-1.0]]) * (place**2 - 1 / 3))


def noise(rng: np.random.Generator, steps: Array, *, heavy: bool) -> Array:
    """[2, n] errors of one run: an offset, and AR(1) errors along it; heavy: Student's t3, growing with N."""

    def draw(size: int) -> Array:
        return rng.standard_t(3, size) / np.sqrt(3.0) if heavy else rng.normal(size=size)

    out = np.empty((2, steps.size))
    for row, name in enumerate(OUTPUTS):
        series = np.empty(steps.size)
        series[0] = draw(1)[0]
        for i, step in enumerate(draw(steps.size - 1), start=1):
            series[i] = 0.6 * series[i - 1] + 0.8 * step
        scale = 0.5 + steps / 260 if heavy else 1.0
        out[row] = SIGMA[name] * (0.8 * draw(1)[0] + 0.6 * series) * scale
    return out


def study(rng: np.random.Generator, design: str) -> dict[str, list[float]]:
    """A study's table."""
    rows: dict[str, list[float]] = {}
    for number, rank in enumerate(RANKS):
        steps = STEPS[: rng.integers(5, STEPS.size + 1)] if design == "lengths" else STEPS
        losses = mean(rank * PER_RANK, steps, bend=bend(design)) + noise(rng, steps, heavy=design == "t3")
        columns = {"run_id": np.full(steps.size, number), "step": steps, "rank": np.full(steps.size, rank)}
        columns |= {"trainable_params": columns["rank"] * PER_RANK, **dict(zip(OUTPUTS, losses, strict=True))}
        for name, values in columns.items():
            rows.setdefault(name, []).extend(values.tolist())
    return rows


def bend(design: str) -> float:
    return 0.006 if design == "curved" else 0.0


POINTS = {
    "inside": [(16, 80), (64, 155), (128, 245)],
    "beyond": [(512, 260), (64, 520), (4, 100)],
}


def held(fit: Fit, rng: np.random.Generator, design: str, place: str) -> dict[str, list[bool]]:
    """Whether each band holds, by band: [mean, new run] at every point and output."""
    found: dict[str, list[bool]] = {"mean": [], "new run": []}
    for rank, step in POINTS[place]:
        at = np.array([float(step)])
        true = mean(rank * PER_RANK, at, bend=bend(design))[:, 0]
        # a new run at one step: offset and error of that step have the variance of the whole
        new = true + noise(rng, at, heavy=design == "t3")[:, 0]
        for row, output in enumerate(OUTPUTS):
            p = fit.predict(output, trainable_params=rank * PER_RANK, step=step)
            found["mean"].append(bool(p.low <= true[row] <= p.high))
            found["new run"].append(bool(p.run_low <= new[row] <= p.run_high))
    return found


def outside(fit: Fit) -> int:
    """Parameters that lie outside their own interval."""
    return sum(e.value < e.low or e.value > e.high for e in fit.parameters.values())


def run(design: str, studies: int, seed: int, say: Callable[[str], None] = print) -> None:
    shares: dict[str, list[float]] = {}
    refused, strays, began = 0, 0, time.perf_counter()
    for number in range(studies):
        rng = np.random.default_rng([seed, number, sum(map(ord, design))])
        table = study(rng, design)
        try:
            fit = fit_law("shifted_power", table, bootstrap=200)
        except ForgettingError:
            refused += 1
            fit = None
        for place in POINTS:
            got = {"mean": [False], "new run": [False]} if fit is None else held(fit, rng, design, place)
            for band, hits in got.items():
                shares.setdefault(f"{band}, {place}", []).append(float(np.mean(hits)))
        strays += 0 if fit is None else outside(fit) > 0
    parts = [f"{name} {np.mean(v):.1%} ± {np.std(v) / np.sqrt(len(v)):.1%}" for name, v in shares.items()]
    parts += [f"no fit {refused / studies:.1%}", f"a parameter outside its interval {strays / studies:.1%}"]
    say(f"{design:8} {'; '.join(parts)}")
    say(f"{'':8} {json.dumps({'studies': studies, 'seconds': round(time.perf_counter() - began)})}")


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--studies", type=int, default=200)
    ask.add_argument("--designs", nargs="+", default=["ar", "t3", "lengths", "curved"])
    ask.add_argument("--seed", type=int, default=0)
    asked = ask.parse_args()
    for design in asked.designs:
        run(design, asked.studies, asked.seed)


if __name__ == "__main__":
    main()
