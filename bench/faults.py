"""Kill studies at random moments and check that nothing is lost: `python bench/faults.py --moments 50`.

A study of a small random model is killed again and again, resumed each time, and compared with an undisturbed one. It
counts as survived if every row that could ever be read is still there at the end with the same numbers, no row occurs
twice, and all numbers equal those of the undisturbed study to the last bit. Prints the table of
docs/notes/faults.md. Needs Linux; the kinds with Ray need ray, `disk` a mount of a small tmpfs (root).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KINDS = {
    "driver": "kill -9 of the driver, one process",
    "driver-of-workers": "kill -9 of the driver of two workers",
    "worker": "kill -9 of one of two workers",
    "ray-driver": "kill -9 of the driver of a Ray cluster of two nodes",
    "ray-worker": "kill -9 of a Ray worker",
    "ray-node": "kill -9 of a Ray node",
    "stop": "SIGTERM or SIGINT to the driver of two workers",
    "disk": "disk full (a small tmpfs), then room",
    "moved": "the study folder of two workers moved away, then back",
    "rows": "kill -9 of the driver, then a row, a digit or the file of a run's measurements lost",
    "stderr": "the reader of standard error of two workers gone",
}
# a second signal, while the command stops after the first, ends it at once; a shell sees exit code 143 or 130
ENDED_BY_SIGNAL = (-signal.SIGKILL, 130, 143, -signal.SIGTERM, -signal.SIGINT)
COSTS = ("train_seconds", "measure_seconds", "peak_memory")
Key = tuple[str, int, Any]


@dataclass
class Tally:
    """The effects of one kind of fault."""

    faults: int = 0
    studies: int = 0
    rows: int = 0
    given_up: int = 0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_inputs(folder: Path) -> None:
    """A random model of 20 k parameters, and texts."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import conftest

    class Factory:
        def mktemp(self, name: str) -> Path:
            (folder / name).mkdir()
            return folder / name

    model = conftest.tiny_model.__wrapped__(Factory())  # type: ignore[attr-defined]
    corpora = conftest.corpora.__wrapped__(Factory())  # type: ignore[attr-defined]
    fields = {
        "name": "faults",
        "model": {"source": str(model)},
        "text": {"source": str(corpora / "general.jsonl")},
        "datasets": {"plain": {"source": str(corpora / "train.jsonl")}},
        "methods": [{"name": "lora", "rank": [2, 8], "dropout": 0.1}, {"name": "full"}],
        "context": 32,
        "training": {"steps": 120, "batch_size": 4, "warmup_steps": 2, "learning_rate": 3e-3},
        "measure": {"start": 3, "every": 3},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(fields))


def rows(out: Path) -> list[tuple[Key, dict[str, Any]]]:
    """Whole rows of all runs by (run, step, alpha), without the times, which no two runs share."""
    found = []
    for file in sorted(out.glob("runs/*/measurements.jsonl")):
        content = file.read_bytes()
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            row = {name: value for name, value in json.loads(line).items() if name not in COSTS}
            found.append(((file.parent.name, row["step"], row["alpha"]), row))
    return found


class Bench:
    """One folder, the undisturbed study in it, and how studies are started."""

    def __init__(self, folder: Path, seed: int, seconds: float) -> None:
        self.folder, self.random, self.seconds = folder, random.Random(seed), seconds
        self.began = 0.0
        make_inputs(folder)
        began = time.monotonic()
        process = self.start(folder / "whole", "--jobs", "2")
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(errors.decode())
        self.took = time.monotonic() - began
        self.whole = dict(rows(folder / "whole"))

    def start(self, out: Path, *flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "forgetting", "study", str(self.folder / "study.yaml"), "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        self.began = time.time()
        return subprocess.Popen(
            [*command, *flags],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def judge(self, out: Path, seen: dict[Key, dict[str, Any]], tally: Tally) -> None:
        """Compare a finished study with the undisturbed one, and with every row that was ever seen in it."""
        found = rows(out)
        tally.studies += 1
        tally.rows += len(found)
        if len({key for key, _ in found}) < len(found):
            tally.wrong.append("a row twice")
        if lost := {key for key, row in seen.items() if dict(found).get(key) != row}:
            tally.wrong.append(f"{len(lost)} reported rows lost or changed")
        if dict(found) != self.whole:
            tally.wrong.append("numbers differ from the undisturbed study's")


def disturb(
    bench: Bench,
    tally: Tally,
    moments: int,
    flags: list[str],
    inject: Callable[[subprocess.Popen[bytes], Path], bool],
    repair: Callable[[Path, int, str], bool] | None = None,
) -> None:
    """Run studies, with faults at random moments until `moments` of them happened; check those that finish.

    If a fault ends the driver, the same command is run again; otherwise the next fault follows.

    Args:
        bench: the folder and the undisturbed study.
        tally: counts what happened.
        moments: number of faults.
        flags: options of the command.
        inject: causes the fault in a running study, given its process and folder; returns whether it did.
        repair: given the folder, exit code and errors of a command that ended: undoes the fault's damage, and returns
            whether the fault explains that the command ended.
    """
    number, seen, end = 0, dict[Key, dict[str, Any]](), time.monotonic() + bench.seconds
    out = bench.folder / f"{id(tally)}-0"
    process = bench.start(out, *flags)
    while True:
        if time.monotonic() > end and tally.faults < moments:
            moments = tally.faults
            tally.notes.append(f"cut off after {bench.seconds / 60:.0f} minutes")
        wait = bench.random.uniform(0.0, bench.took * 0.8) if tally.faults < moments else None
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            tally.faults += inject(process, out)
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                seen |= dict(rows(out))
                continue
        seen |= dict(rows(out))
        errors = errors_of(process) if process.returncode else ""
        if process.returncode == 0:
            bench.judge(out, seen, tally)
            if out.with_name(f"{out.name}-moved").exists():
                tally.wrong.append("a second folder next to the one that was moved away")
            if tally.faults >= moments:
                return
            number, seen = number + 1, {}
            out = bench.folder / f"{id(tally)}-{number}"
        elif repair is not None and repair(out, process.returncode, errors):
            seen = {}  # rows deleted on purpose do not count as lost
        elif process.returncode not in ENDED_BY_SIGNAL:
            if process.returncode != 1 or "died 4 times in a row without progress" not in errors:
                tally.wrong.append(f"exit code {process.returncode}: {errors.strip().splitlines()[-1:]}")
                return
            tally.given_up += 1  # it gave up after too many faults, as its message says; the same command tries again
        process = bench.start(out, *flags)


def errors_of(process: subprocess.Popen[bytes]) -> str:
    """What a process that ended wrote to standard error."""
    return process.stderr.read().decode() if process.stderr and not process.stderr.closed else ""


def on_driver(inject: Callable[[int], bool]) -> Callable[[subprocess.Popen[bytes], Path], bool]:
    """A fault that only needs to know the driver's process."""
    return lambda process, _out: inject(process.pid)


def kill(pid: int) -> bool:
    """Kill -9 of one process."""
    os.kill(pid, signal.SIGKILL)
    return True


def move(bench: Bench) -> Callable[[subprocess.Popen[bytes], Path], bool]:
    """Move the study's folder away while runs write into it.

    A command that still starts would rightly begin a new study, as the folder that it is given does not exist.
    """

    def inject(process: subprocess.Popen[bytes], out: Path) -> bool:
        moved = out.with_name(f"{out.name}-moved")
        written = [file.stat().st_mtime for file in out.glob("runs/*/measurements.jsonl")]
        if moved.exists() or max(written, default=0.0) <= bench.began:
            return False
        out.rename(moved)
        with suppress(subprocess.TimeoutExpired):
            process.wait(120)
        if process.returncode == 0 and not out.exists():  # it had finished before the move
            moved.rename(out)
        return True

    return inject


def move_back(out: Path, code: int, errors: str) -> bool:
    """Move it back; the fault explains a command that reported the missing folder and wrote nothing."""
    moved = out.with_name(f"{out.name}-moved")
    if not moved.exists() or out.exists():
        return False
    moved.rename(out)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    messages = ("deleted or moved during", "no such folder", "not a study folder")
    return code in (1, 2) and len(lines) == 1 and any(words in lines[0] for words in messages)


def lose_rows(bench: Bench) -> Callable[[Path, int, str], bool]:
    """After a kill, lose something of a run's rows; delete the runs that a study then calls damaged."""
    from forgetting.store.folder import RunFolder

    def repair(out: Path, code: int, errors: str) -> bool:
        if code == 1 and "damaged" in errors:
            for run in out.glob("runs/*"):
                if RunFolder(run).damage():
                    shutil.rmtree(run)
            return True
        files = [file for file in sorted(out.glob("runs/*/measurements.jsonl")) if file.stat().st_size]
        if code != -signal.SIGKILL or not files:
            return False
        file = bench.random.choice(files)
        lines = file.read_text().splitlines(keepends=True)
        at, how = bench.random.randrange(len(lines)), bench.random.choice(["file", "row", "digit"])
        if how == "file":
            file.unlink()
        elif how == "row":
            file.write_text("".join([*lines[:at], *lines[at + 1 :]]))
        else:
            digits = [i for i, letter in enumerate(lines[at]) if letter in "12345678"]
            i = bench.random.choice(digits)
            lines[at] = lines[at][:i] + str(int(lines[at][i]) + 1) + lines[at][i + 1 :]
            file.write_text("".join(lines))
        return True

    return repair


def close_reader(process: subprocess.Popen[bytes], _out: Path) -> bool:
    """Close the reading end of the command's standard error, once."""
    if process.stderr is None or process.stderr.closed:
        return False
    process.stderr.close()
    return True


def kill_worker(bench: Bench) -> Callable[[int], bool]:
    """Kill -9 of one of the driver's spawned workers, if it has any yet."""
    import psutil

    def inject(pid: int) -> bool:
        workers = [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]
        return bool(workers) and kill(bench.random.choice(workers).pid)

    return inject


def kill_ray_worker(bench: Bench) -> Callable[[int], bool]:
    """Kill -9 of a worker process that a run is in."""
    import psutil

    def inject(_pid: int) -> bool:
        named = [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"]]
        workers = [process for process in named if process.info["cmdline"][0].startswith("ray::plain-")]
        return bool(workers) and kill(bench.random.choice(workers).pid)

    return inject


def stop(bench: Bench) -> Callable[[int], bool]:
    """SIGTERM or SIGINT to the whole process group, as a terminal or a scheduler sends them."""

    def inject(pid: int) -> bool:
        os.killpg(pid, bench.random.choice([signal.SIGTERM, signal.SIGINT]))
        return True

    return inject


def with_cluster(bench: Bench, tally: Tally, moments: int, kind: str) -> None:
    """A Ray cluster of a head without cores and two one-core nodes on this machine."""
    import logging

    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100_000_000, "include_dashboard": False}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=100_000_000) for _ in range(2)]
    logging.getLogger("ray").setLevel(logging.ERROR)

    def kill_node(_pid: int) -> bool:
        cluster.remove_node(nodes.pop(bench.random.randrange(2)), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1, object_store_memory=100_000_000))
        return True

    faults = {"ray-driver": kill, "ray-worker": kill_ray_worker(bench), "ray-node": kill_node}
    try:
        disturb(bench, tally, moments, ["--engine", "ray", "--ray-address", cluster.address], on_driver(faults[kind]))
    finally:
        cluster.shutdown()


def fill_disk(bench: Bench, tally: Tally, moments: int) -> None:
    """Run studies on a tmpfs that fills up at a random size; then enlarge it, and resume them."""
    number, end = 0, time.monotonic() + bench.seconds
    while tally.faults < moments:
        number += 1
        if time.monotonic() > end:
            tally.notes.append(f"cut off after {bench.seconds / 60:.0f} minutes")
            return
        place = bench.folder / f"tmpfs-{number}"
        place.mkdir()
        size = bench.random.randrange(8, 1200)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            tally.notes.append("not run: no tmpfs can be mounted here")
            return
        try:
            process = bench.start(place / "study", "--jobs", "2")
            errors = process.communicate()[1].decode().strip().splitlines()
            seen = dict(rows(place / "study"))
            if process.returncode:
                tally.faults += 1
                last = errors[-1] if errors else ""
                if (
                    process.returncode != 1
                    or not re.search(r"the disk is (too )?full", last)
                    or any("Traceback" in e for e in errors)
                ):
                    tally.wrong.append(f"exit code {process.returncode}: {last}")
            subprocess.run(["mount", "-o", "remount,size=100m", str(place)], check=True)
            process = bench.start(place / "study", "--jobs", "2")
            process.communicate()
            if process.returncode:
                tally.wrong.append(f"exit code {process.returncode} when there was room")
            bench.judge(place / "study", seen, tally)
        finally:
            subprocess.run(["umount", str(place)], check=False)


def run(bench: Bench, kind: str, moments: int) -> Tally:
    """All faults of one kind."""
    tally = Tally()
    if kind == "disk":
        fill_disk(bench, tally, moments)
    elif kind.startswith("ray"):
        with_cluster(bench, tally, moments, kind)
    else:
        killing = on_driver(kill)
        faults = {
            **{
                "driver": killing,
                "driver-of-workers": killing,
                "rows": killing,
                "moved": move(bench),
                "stderr": close_reader,
            },
            **{"worker": on_driver(kill_worker(bench)), "stop": on_driver(stop(bench))},
        }
        repairs = {"moved": move_back, "rows": lose_rows(bench)}
        flags = ["--jobs", "1" if kind in ("driver", "rows") else "2"]
        disturb(bench, tally, moments, flags, faults[kind], repairs.get(kind))
    return tally


def main() -> None:
    """Parse arguments, run, and print the table; exit code 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="faults of each kind")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no further fault of a kind")
    parser.add_argument("--kinds", nargs="*", choices=[*KINDS], default=[*KINDS])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("| fault | faults | studies | rows | survived |\n|---|---|---|---|---|")
    failed = False
    with tempfile.TemporaryDirectory(prefix="forgetting-faults-") as folder:
        bench = Bench(Path(folder), given.seed, 60 * given.minutes)
        for kind in given.kinds:
            tally = run(bench, kind, given.moments)
            failed |= bool(tally.wrong)
            verdict = "; ".join(tally.wrong[:3]) or "; ".join(["all"] * bool(tally.studies) + tally.notes)
            verdict += f" ({tally.given_up} times given up and begun again)" if tally.given_up else ""
            print(f"| {KINDS[kind]} | {tally.faults} | {tally.studies} | {tally.rows} | {verdict} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
