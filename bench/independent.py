"""Coverage of the intervals of `fit --iid` on simulated tables with independent noise."""

from __future__ import annotations

import numpy as np

from forgetting.analysis.fit import fit_law
from forgetting.analysis.laws import FormulaLaw

LAWS = (
    ("y = a + b*x", {"a": 1.0, "b": 2.0}, 0.1),
    ("y = a*exp(-b*x) + c", {"a": 2.0, "b": 3.0, "c": 0.5}, 0.03),
)
SIZES = (8, 14, 30, 100)


def part_independent(tables: int, seed: int) -> None:
    """Print the coverage of nominal 95 % intervals of parameters, and of bands of the mean at five points."""
    print(f"independent rows, --iid: coverage of nominal 95 %, {tables} tables a law and size")
    for formula, truth, noise in LAWS:
        law = FormulaLaw(formula, ["x"])
        theta = np.array([truth[name] for name in law.names])
        for size in SIZES:
            rng = np.random.default_rng([seed, size])
            x, at = np.linspace(0, 1, size), np.linspace(0, 1, 5)
            exact, true = (law.values(theta[None], {"x": v})[0, 0] for v in (x, at))
            inside, bands = [], []
            for i in range(tables):
                table = {"x": x, "y": exact + rng.normal(0, noise, size)}
                fit = fit_law(law, table, iid=True, seed=i, start=theta, starts=0)
                inside.append([e.low <= t <= e.high for e, t in zip(fit.parameters.values(), theta, strict=True)])
                band = fit.predict("y", x=at)
                bands.append(np.mean((band.low <= true) & (true <= band.high)))
            each = ", ".join(
                f"{name} {share:.1%}" for name, share in zip(law.names, np.mean(inside, axis=0), strict=True)
            )
            error = np.sqrt(0.95 * 0.05 / tables)
            print(f"  {formula:20s} {size:3d} rows: {each} (+- {error:.1%}); bands {np.mean(bands):.1%}", flush=True)
