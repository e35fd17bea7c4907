"""One study with each engine: equal numbers, wall times, and the overhead per run.

    python bench/engines.py [--preset miniature] [--steps 224] [--datasets news] [--ranks 4 8]

Runs the study with `local --jobs 1`, `local --jobs 2` and `ray` (two one-core workers), each in its own process, and
prints a table. The overhead of a run is the study's wall time times the number of concurrent runs, minus the time that
its runs trained and measured, divided by the number of runs. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from forgetting.config.files import preset_fields
from forgetting.config.schema import validate
from forgetting.store.columns import COSTS
from forgetting.store.folder import StudyFolder

ENGINES = {
    "local --jobs 1": (1, ["--jobs", "1"]),
    "local --jobs 2": (2, ["--jobs", "2"]),
    "ray, 2 one-core workers": (2, ["--engine", "ray", "--run-cpus", "1"]),
}
TELL = """
import json, sys, time
from pathlib import Path
from forgetting.cli.study import _engine
from forgetting.config.schema import validate
from forgetting.config.files import read_fields
from forgetting.studies.study import study
if __name__ == "__main__":
    flags = dict(zip(sys.argv[3::2], sys.argv[4::2]))
    cpus = flags.get("--run-cpus")
    jobs = flags.get("--jobs")
    engine = _engine(flags.get("--engine", "local"), jobs and int(jobs), {"cpus": cpus and int(cpus)})
    began = time.monotonic()
    result = study(validate(read_fields(Path(sys.argv[1])), where="bench"), Path(sys.argv[2]), engine=engine)
    print(json.dumps({"seconds": time.monotonic() - began, "runs": result.seconds, "failed": result.failed}))
"""


def numbers(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of each run, without times and memory."""
    return {
        run.id: [{key: value for key, value in row.items() if key not in COSTS} for row in run.measurements()]
        for run in StudyFolder.open(out).runs()
    }


def busy(out: Path) -> list[float]:
    """Seconds that each run trained and measured."""
    last = [run.measurements()[-1] for run in StudyFolder.open(out).runs()]
    return [row["train_seconds"] + row["measure_seconds"] for row in last]


def main() -> None:
    """Run the study with each engine and print the table; exit code 1 if numbers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="miniature")
    parser.add_argument("--steps", type=int, help="fewer steps than the preset's")
    parser.add_argument("--datasets", nargs="*", help="only these of its data sets")
    parser.add_argument("--ranks", nargs="*", type=int, help="other ranks")
    given = parser.parse_args()
    fields = preset_fields(given.preset)
    if given.steps:
        fields["training"]["steps"] = given.steps
        fields["measure"]["start"] = min(fields["measure"]["start"], given.steps)
    if given.datasets:
        fields["datasets"] = {name: fields["datasets"][name] for name in given.datasets}
    if given.ranks:
        fields["methods"] = [{**fields["methods"][0], "rank": given.ranks}]
    config = validate(fields, where="bench")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    print("| engine | whole, s | runs, s | a run trains and measures, s | overhead a run, s | numbers |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="forgetting-engines-") as name:
        folder = Path(name)
        (folder / "study.yaml").write_text(config.to_yaml())
        (folder / "tell.py").write_text(TELL)
        first: dict[str, list[dict[str, Any]]] | None = None
        differ = False
        for number, (engine, (side_by_side, flags)) in enumerate(ENGINES.items()):
            out = folder / str(number)
            command = [sys.executable, str(folder / "tell.py"), str(folder / "study.yaml"), str(out), *flags]
            began = time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            whole = time.monotonic() - began
            if done.returncode:
                raise SystemExit(done.stderr)
            result = json.loads(done.stdout.splitlines()[-1])
            found, spent = numbers(out), busy(out)
            first = first or found
            differ |= found != first
            overhead = (result["runs"] * min(side_by_side, len(spent)) - sum(spent)) / len(spent)
            same = "equal" if found == first else "DIFFER"
            mean = sum(spent) / len(spent)
            print(
                f"| {engine} | {whole:.1f} | {result['runs']:.1f} | {mean:.1f} | {overhead:.2f} | {same} |", flush=True
            )
    sys.exit(differ)


if __name__ == "__main__":
    main()
