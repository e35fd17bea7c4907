"""NIST's nonlinear regression problems (StRD) from ten seeds, without starting values: which does each seed solve?

Problems are NIST's files (`.dat`) in a folder, https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml; without a
folder, the eight in the tests. A problem counts as solved if the sum of squares is at most the certified one, to 1e-6;
a failure counts as reported if the fit warns that it did not converge or that a better fit may exist.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from forgetting.analysis.fit import fit_law
from forgetting.analysis.laws import FormulaLaw
from forgetting.errors import ForgettingError

SEEDS = range(10)
TOLD = ("not the best", "better", "did not converge", "not a minimum")


def problems(folder: Path | None) -> Iterator[tuple[str, str, dict[str, np.ndarray], float]]:
    """Name, formula, table and certified sum of squares."""
    if folder is not None:
        for path in sorted(folder.glob("*.dat")):
            yield path.stem, *read(path.read_text(encoding="latin-1"))
        return
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "analysis"))
    from test_fit_nist import PROBLEMS, table

    for name, (formula, _, _, squares, _, _) in PROBLEMS.items():
        yield name, formula, {k: np.array(v) for k, v in table(name).items()}, squares


def read(text: str) -> tuple[str, dict[str, np.ndarray], float]:
    """One of NIST's files: formula, table, certified sum of squares."""
    text = re.sub(r"\n\s+pi\s*=\s*\S+", "", text)  # one problem defines it in a line of its own
    formula = re.search(r"\n\s+(\w+(?:\[y\])?\s*=.*?)\+\s*e\s*\n", text, re.DOTALL).group(1)
    formula = " ".join(formula.replace("[", "(").replace("]", ")").split())
    formula = re.sub(r"\bpi\b", repr(math.pi), formula)
    squares = float(re.search(r"Residual Sum of Squares:\s+(\S+)", text).group(1))
    header, body = text.rsplit("Data:", 1)[1].split("\n", 1)
    names = header.split()
    rows = np.array([[float(cell) for cell in line.split()] for line in body.splitlines() if line.strip()])
    table = dict(zip(names, rows.T, strict=True))
    if formula.startswith("log(y)"):
        formula, table = formula.replace("log(y)", "y"), table | {"y": np.log(table["y"])}
    return formula, table, squares


def part_nist_seeds(folder: Path | None) -> None:
    """Print how many problems each seed solves, and how many of the others it reports."""
    every = list(problems(folder))
    print(f"NIST StRD, {len(every)} problems from {len(SEEDS)} seeds, no start given")
    lost: dict[str, list[int]] = {}
    for seed in SEEDS:
        solved, reported, began = 0, 0, time.perf_counter()
        for name, formula, table, squares in every:
            law = FormulaLaw(formula, [column for column in table if column != "y"])
            try:
                fit = fit_law(law, table, seed=seed, bootstrap=0)
            except ForgettingError:
                reported += 1
                lost.setdefault(name, []).append(seed)
                continue
            # Lanczos1's sum of squares is 1e-25; with rounding, a fit may get below it
            if fit.objective_value <= squares * (1 + 1e-6):
                solved += 1
                continue
            lost.setdefault(name, []).append(seed)
            reported += any(mark in warning for warning in fit.warnings for mark in TOLD)
        seconds = time.perf_counter() - began
        print(
            f"  seed {seed}: {solved} of {len(every)} solved, {reported} failures reported, {seconds:.0f} s", flush=True
        )
    for name, seeds in lost.items():
        print(f"  {name}: not solved from seeds {', '.join(map(str, seeds))}")
