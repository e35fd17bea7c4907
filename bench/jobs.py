"""Memory of a study of eight runs on a large corpus, with one run at a time and with eight.

    python bench/jobs.py FOLDER [--rows 500000] [--jobs 1 8] [--steps 12] [--batch-tokens 128]

Writes the corpus (rows of 500 characters, from sentences of the miniature's encyclopedia) and its cache of windows
into FOLDER, unless they are there. Each study runs in a folder of its own, as the command. Printed is the largest sum
over its processes of the proportional set size (PSS: shared memory is divided among the processes that share it),
looked at every half second, what each process had then, and the processor seconds of all. The numbers must be equal.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from engines import numbers

LENGTH = 500
LOOK = 0.5
"""Characters of a row, and seconds between two looks."""
STUDY = """
name: jobs
model: {{source: miniature, dtype: float32}}
text: {{source: miniature:encyclopedia-heldout}}
datasets: {{large: {{source: {corpus}, heldout: 0.05, documents: rows}}}}
methods: [{{name: lora, rank: [2, 3, 4, 5, 6, 7, 8, 9]}}]
context: 128
training: {{steps: {steps}, batch_size: 1}}
measure: {{start: 1, every: 4, text_tokens: 3000, heldout_tokens: 3000, batch_tokens: {tokens}}}
"""


def make_corpus(path: Path, rows: int) -> None:
    """Rows of sentences in random order."""
    from forgetting.data.miniature.corpora import rows as corpus

    sentences = sorted({one for row in corpus("encyclopedia") for one in str(row["text"]).split(". ")})
    draw = random.Random(0)
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        for _ in range(rows):
            text = ". ".join(draw.choices(sentences, k=LENGTH // 20))[:LENGTH]
            file.write(json.dumps({"text": text}) + "\n")
    partial.rename(path)


def family(first: int) -> list[int]:
    """A process and all that it started, and these."""
    found = [first]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            with suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def sizes(pid: int) -> dict[str, float]:
    """PSS and private memory of a process, MB; empty if it has ended."""
    with suppress(OSError):
        rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
        found = {row[0].rstrip(":"): int(row[1]) * 1024 / 1e6 for row in rows}
        return {"pss": found["Pss"], "own": found["Private_Dirty"] + found["Private_Clean"]}
    return {}


def seconds(pid: int) -> float:
    """Processor seconds of a process so far; 0 if it has ended."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def watch(command: list[str], environment: dict[str, str]) -> tuple[float, list[dict[str, float]], float]:
    """Run a command; returns its largest PSS, MB, that of each of its processes then, and its processor seconds."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    largest, then, used = 0.0, [], dict[int, float]()
    while process.poll() is None:
        pids = family(process.pid)
        now = [found for pid in pids if (found := sizes(pid))]
        used |= {pid: max(seconds(pid), used.get(pid, 0.0)) for pid in pids}
        total = sum(one["pss"] for one in now)
        if total > largest:
            largest, then = total, now
        time.sleep(LOOK)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed; run it to see why")
    return largest, then, sum(used.values())


def main() -> None:
    """Make what is missing, run the studies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-tokens", type=int, default=128, help="128 is one row; the default of studies is 8192")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 8])
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    corpus = (given.folder / f"corpus-{given.rows}.jsonl").resolve()
    if not corpus.exists():
        make_corpus(corpus, given.rows)
    study = given.folder / "study.yaml"
    study.write_text(STUDY.format(corpus=corpus, steps=given.steps, tokens=given.batch_tokens))
    environment = {**os.environ, "FORGETTING_CACHE": str((given.folder / "cache").resolve()), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        command = [sys.executable, "-m", "forgetting", "study", str(study), "--out"]
        subprocess.run([*command, f"{place}/first", "--prepare"], env=environment, check=True, capture_output=True)
        first: dict[str, Any] = {}
        print("| jobs | PSS of all, MB | of each (its own), MB | processor seconds |\n|---:|---:|---|---:|")
        for jobs in given.jobs:
            total, each, used = watch([*command, f"{place}/{jobs}", "--jobs", str(jobs)], environment)
            parts = ", ".join(f"{one['pss']:.0f} ({one['own']:.0f})" for one in each)
            print(f"| {jobs} | {total:,.0f} | {parts} | {used:.0f} |", flush=True)
            first = first or numbers(Path(place) / str(jobs))
            if numbers(Path(place) / str(jobs)) != first:
                raise SystemExit("the numbers differ")


if __name__ == "__main__":
    main()
