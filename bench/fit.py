"""Benchmarks of the fitting engine: global optima, certified values, coverage, speed. Run: python bench/fit.py.

Each part prints the expected and found values and the time taken, on one thread unless noted. The parts `coverage`,
`next-run` and `pilot` simulate studies, which takes an hour of one core for 200 of them; all others take minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from coverage import part_coverage
from forgetting.analysis.fit import fit_law
from forgetting.analysis.fit.data import read_data
from forgetting.analysis.fit.objective import Objective
from forgetting.analysis.fit.search import search
from forgetting.analysis.fit.solver import Problem, minimise
from forgetting.analysis.laws import PUBLISHED
from forgetting.analysis.plan import plan_budget
from independent import part_independent
from mitigated_coverage import KL, REPLAY, part_mitigated
from next_run import part_next_run
from nist import part_nist_seeds
from pilot import part_pilot

CHINCHILLA = PUBLISHED["besiroglu2024/chinchilla"]
RANKS = (8, 16, 32, 64, 128, 256)
STEPS = np.arange(50, 261, 10.0)
PER_RANK = 2_498_560
INSIDE = {
    "trainable_params": PER_RANK * np.array([12.0, 24, 48, 96, 192] * 4),
    "step": np.repeat([70.0, 110, 160, 230], 5),
}


def truth_of(p):
    return np.array([[p.parameters[name] for name in p.law.names]])


def chinchilla_points(n=245, seed=0):
    """Points over the range of Besiroglu et al.; errors of log loss like those of their 245 points: Student's t with
    3 degrees of freedom, scale 0.0043."""
    rng = np.random.default_rng(seed)
    x = {k: np.exp(rng.uniform(*np.log(CHINCHILLA.measured_range[k]), n)) for k in ("N", "D")}
    loss = CHINCHILLA.law.values(truth_of(CHINCHILLA), x)[0, 0] * np.exp(0.0043 * rng.standard_t(3, n))
    return x | {"loss": loss}


def grid_optimum(table):
    """L-BFGS-B with scipy's default tolerances and the exact gradient, from Hoffmann et al.'s grid of 4,500 starts."""
    import itertools

    from scipy.optimize import minimize

    law, objective, log_loss = CHINCHILLA.law, Objective("huber-log"), np.log(table["loss"])

    def f(z):
        theta = np.array([[*np.exp(z[:3]), z[3], z[4]]])
        value = law.values(theta, table)[0, 0]
        r = log_loss - np.log(value)
        jacobian = law.gradient(theta, table)[0, 0] / value[:, None] * np.array([*theta[0, :3], 1, 1])
        return float(objective.cost(r, np.ones_like(r))), -objective.influence(r) @ jacobian

    e, ab = np.linspace(-1, 1, 5), np.linspace(0, 25, 6)
    exponent = np.linspace(0, 2, 5)
    starts = list(itertools.product(e, ab, ab, exponent, exponent))
    with np.errstate(all="ignore"):
        ends = [minimize(f, z, jac=True, method="L-BFGS-B") for z in starts]
    return len(starts), np.array([end.fun for end in ends]), np.mean([end.success for end in ends])


def part_chinchilla():
    table = chinchilla_points()
    data = read_data(CHINCHILLA.law, table)
    problem = Problem(CHINCHILLA.law, data.x, Objective("huber-log"))
    y, one = data.y.reshape(-1), np.ones(data.n)
    begin = time.perf_counter()
    found = [search(problem, y, one, starts=64, rng=np.random.default_rng(seed)) for seed in range(20)]
    seconds = (time.perf_counter() - begin) / 20
    costs = np.array([f.cost for f in found])
    begin = time.perf_counter()
    count, grid, success = grid_optimum(table)
    scipy_seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    rows = np.random.default_rng(0).multinomial(data.n, np.full(data.n, 1 / data.n), size=4000).astype(float)
    refits = minimise(
        problem, np.repeat(found[0].theta[None], 4000, 0), y[None], rows, max_iterations=60, tolerance=1e-6
    )
    boot = time.perf_counter() - begin
    print("245 Chinchilla points, summed Huber(1e-3) of log loss")
    print(f"  20 seeds: objective {costs.min():.12e}, spread {np.ptp(costs) / costs.min():.1e} relative (asked: 1e-7)")
    print(f"  share of 64 starts at the best: {min(f.share for f in found):.2f} to {max(f.share for f in found):.2f}")
    worse = (grid - costs.min()) / costs.min()
    print(f"  L-BFGS-B from {count} starts: best is {worse.min():+.1e} relative to the fit (asked: not below)")
    print(f"    {np.mean(worse > 1e-7):.0%} of its ends lie more than 1e-7 above; it claims success for {success:.0%}")
    print(f"  time: fit {seconds:.3f} s, grid {scipy_seconds:.1f} s, {scipy_seconds / seconds:.0f} x (asked: 100 x)")
    print(f"  4,000 bootstrap fits: {boot:.1f} s (asked: 30 s); {np.mean(refits.slope <= 1e-6):.1%} stationary to 1e-6")


def part_nist():
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "analysis"))
    from test_fit_nist import PROBLEMS, TRIALS, digits, table

    from forgetting.analysis.laws import FormulaLaw

    print("NIST StRD, digits that agree (least over parameters; standard deviations), from NIST's own start alone")
    for name, which in TRIALS:
        formula, starts, (certified, deviations), _, _, _ = PROBLEMS[name]
        law = FormulaLaw(formula, ["x"])
        start = [starts[which][int(n[1:]) - 1] for n in law.names]
        fit = fit_law(law, table(name), start=start, starts=0, bootstrap=0)
        values = [digits(fit.parameters[f"b{k + 1}"].value, c) for k, c in enumerate(certified)]
        errors = [digits(fit.diagnostics["standard_errors"][f"b{k + 1}"], d) for k, d in enumerate(deviations)]
        print(f"  {name:9s} start {which + 1}: {min(values):4.1f}; {min(errors):4.1f}")


def part_table1():
    print("Table 1's surfaces, noise-free, back again")
    for name in ("kalajdzievski2024/openorca", "kalajdzievski2024/news"):
        p = PUBLISHED[name]
        x = {
            "trainable_params": PER_RANK * np.repeat(RANKS, STEPS.size).astype(float),
            "step": np.tile(STEPS, len(RANKS)),
        }
        y = p.law.values(truth_of(p), x)[0]
        begin = time.perf_counter()
        fit = fit_law("shifted_power", x | {"finetune_loss": y[0], "forgetting_loss": y[1]}, bootstrap=0)
        seconds = time.perf_counter() - begin
        error = np.abs(p.law.values(fit.theta[None], INSIDE) - p.law.values(truth_of(p), INSIDE)).max()
        free = ("alpha_f", "alpha_ft", "beta_f", "beta_ft", "rho", "s_ft")
        off = max(abs(fit.parameters[k].value / p.parameters[k] - 1) for k in free)
        print(f"  {name}: surface {error:.1e} nats (asked: 1e-8), parameters {off:.1e} (asked: 1e-4), {seconds:.2f} s")


def part_plan():
    from scipy.optimize import brentq

    from forgetting.analysis.fit import fit_from_published

    fit = fit_from_published("kalajdzievski2024/openorca")
    worst = 0.0
    for level in (0.75, 0.8, 0.85, 0.9):
        for choice in plan_budget(fit, level).frontier:

            def excess(n, at=choice, level=level):
                return float(fit.predict("forgetting_loss", trainable_params=at.trainable_params, step=n).value) - level

            root = brentq(excess, 1, 1e5, xtol=1e-12, rtol=1e-15)
            worst = max(worst, abs(choice.steps.value / root - 1))
    print(f"plan on kalajdzievski2024/openorca, against bisection of the law: {worst:.1e} relative (asked: 1e-6)")


def part_shell():
    table = chinchilla_points(200)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        lines = [
            "N,D,loss",
            *(f"{n!r},{d!r},{v!r}" for n, d, v in zip(*(table[k].tolist() for k in table), strict=True)),
        ]
        path.write_text("\n".join(lines) + "\n")
        for objective in ("least-squares", "huber-log"):
            command = [sys.executable, "-m", "forgetting", "fit", str(path), "--law", "chinchilla", "--json"]
            seconds = []
            for _ in range(7):
                begin = time.perf_counter()
                subprocess.run([*command, "--objective", objective], check=True, stdout=subprocess.DEVNULL)
                seconds.append(time.perf_counter() - begin)
            print(
                f"forgetting fit on 200 rows, {objective}: median {np.median(seconds):.2f} s, "
                f"slowest {max(seconds):.2f} s of 7 (asked: 1 s)"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="only this one")
    parser.add_argument("--studies", type=int, default=200, help="of a design, and of the parts next-run and pilot")
    parser.add_argument("--seed", type=int, default=0, help="of simulated studies")
    parser.add_argument("--nist", type=Path, help="a folder of NIST's .dat files; default the eight in the tests")
    arguments = parser.parse_args()
    for name, part in PARTS.items():
        if arguments.part in (None, name):
            part(arguments)


PARTS = {
    "table1": lambda _: part_table1(),
    "nist": lambda _: part_nist(),
    "nist-seeds": lambda asked: part_nist_seeds(asked.nist),
    "plan": lambda _: part_plan(),
    "shell": lambda _: part_shell(),
    "chinchilla": lambda _: part_chinchilla(),
    "coverage": lambda asked: part_coverage(asked.studies, asked.seed),
    "independent": lambda asked: part_independent(asked.studies, asked.seed),
    "next-run": lambda asked: part_next_run(asked.studies, asked.seed),
    "replay": lambda asked: part_mitigated(REPLAY, asked.studies, asked.seed),
    "kl": lambda asked: part_mitigated(KL, asked.studies, asked.seed),
    "pilot": lambda asked: part_pilot(asked.studies, asked.seed),
}


if __name__ == "__main__":
    main()
