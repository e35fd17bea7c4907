"""Coverage and power of the comparison's intervals, on simulated studies. Prints the table of docs/notes/coverage.md.

    python bench/compare.py [--studies 400]

Each study has noise by run (an offset), along the run (AR(1) errors of both losses) and by seed (the order of the data
shifts all runs of a seed); see tests/simulated.py. Standard deviations: 4 % of its forgetting for a run's offset, 0.03
nats along the run, 0.01 nats of fine-tuning loss, 0.02 nats by the order of the data, 0.05 nats between ranks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import numpy as np

from forgetting.analysis.compare import contest, read_source
from forgetting.analysis.compare.source import AXES
from simulated import NOISE, study

TWINS = {f"twin{i}": {"rank": 16} for i in range(5)}
SAVER = {"saver": {"rank": 16, "saving": 0.1}}
SIX = (4, 8, 16, 32, 64, 128)
DESIGNS = {
    "same rank, 3 seeds, 6 contenders": {"contenders": SAVER | TWINS},
    "same rank, 3 seeds, 6 contenders, one reference rank": {"ranks": (16,), "contenders": SAVER | TWINS},
    "same rank, 3 seeds, 1 contender, one reference rank": {"ranks": (16,), "contenders": SAVER},
    "same rank, 2 seeds, 6 contenders": {"seeds": (0, 1), "contenders": SAVER | TWINS},
    "same rank, 5 seeds, 6 contenders": {"seeds": range(5), "contenders": SAVER | TWINS},
    "same rank, other seeds (3 and 3)": {
        "contenders": {
            "saver": {"rank": 16, "saving": 0.1, "seeds": (5, 6, 7)},
            "twin0": {"rank": 16, "seeds": (5, 6, 7)},
        }
    },
    "the order of the data matters 5 times as much": {
        "contenders": SAVER | TWINS,
        "noise": NOISE | {"order": 0.1},
    },
    "one contender scatters twice as much": {"contenders": SAVER | TWINS | {"noisy": {"rank": 16, "noisy": 2}}},
    "one contender scatters 3 times as much": {"contenders": SAVER | TWINS | {"noisy": {"rank": 16, "noisy": 3}}},
    "no rank in common, 6 ranks, 3 seeds": {"ranks": SIX, "contenders": {"saver": {"saving": 0.1}, "twin0": {}}},
    "no rank in common, 3 ranks, 3 seeds": {
        "ranks": (8, 16, 32),
        "contenders": {"saver": {"saving": 0.1}, "twin0": {}},
    },
    "no rank in common, 6 ranks, 1 seed": {
        "ranks": SIX,
        "seeds": (0,),
        "contenders": {"saver": {"saving": 0.1}, "twin0": {}},
    },
    "no rank in common, 6 ranks on one straight line": {
        "ranks": SIX,
        "bend": 1.0,
        "between_ranks": 0.01,
        "contenders": {"saver": {"saving": 0.1}, "twin0": {}},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=400)
    count = parser.parse_args().studies
    print("| design | coverage: twins | saver | noisy | power: alone | after Holm | any twin 'found' | width, nats |")
    print("|---|---|---|---|---|---|---|---|")
    began = time.perf_counter()
    for name, design in DESIGNS.items():
        found: dict[str, list[tuple[bool, bool, bool, float]]] = {"twin": [], "saver": [], "noisy": []}
        wrong = []
        for i in range(count):
            table = study(np.random.default_rng([13, i]), **design)
            made = contest(read_source(table, "d", AXES["finetune_loss"]), "lora").contenders
            claimed = {c.key.label: c.verdict in ("saves", "costs") for c in made}
            wrong.append(any(v for k, v in claimed.items() if k != "saver"))
            for c in made:
                e, truth = c.saving, design["contenders"][c.key.label].get("saving", 0.0)
                kind = c.key.label.rstrip("0123456789")
                row = (e.low <= truth <= e.high, not e.low <= 0 <= e.high, claimed[c.key.label], e.high - e.low)
                found[kind].append(row)
        mean = {k: np.array(v, dtype=float).mean(axis=0) for k, v in found.items() if v}
        width = np.median([row[3] for row in found["saver"]])

        def share(kind: str, column: int) -> str:
            return f"{mean[kind][column]:.1%}" if kind in mean else "–"  # noqa: B023 - used in this turn

        cells = [share("twin", 0), share("saver", 0), share("noisy", 0), share("saver", 1), share("saver", 2)]
        print(f"| {name} | {' | '.join(cells)} | {np.mean(wrong):.1%} | {width:.3f} |", flush=True)
    print(f"\n{count} studies a row, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
