"""Kill studies at random moments and see that nothing is lost: `python bench/faults.py --moments 50`.

A study of a small random model is killed again and again, resumed each time, and held against one that ran undisturbed.
It counts as survived where every row that could be read at any moment is in the end there with the same numbers, no
row is there twice, and all numbers equal the undisturbed study's to the last bit. Prints the table of
docs/reliability.md. Needs Linux; the kinds with Ray need ray, `disk` a mount of a small tmpfs (root).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
}
# a second signal during the stop that the first asked for ends the command at once, as a shell sees it with 143 or 130
ENDED_BY_SIGNAL = (-signal.SIGKILL, 130, 143, -signal.SIGTERM, -signal.SIGINT)
COSTS = ("train_seconds", "measure_seconds", "peak_memory")
Key = tuple[str, int, Any]


@dataclass
class Tally:
    """What a kind of fault did."""

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

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
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
        return subprocess.Popen(
            [*command, *flags],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def judge(self, out: Path, seen: dict[Key, dict[str, Any]], tally: Tally) -> None:
        """Hold a finished study against the undisturbed one, and against every row that was ever seen in it."""
        found = rows(out)
        tally.studies += 1
        tally.rows += len(found)
        if len({key for key, _ in found}) < len(found):
            tally.wrong.append("a row twice")
        if lost := {key for key, row in seen.items() if dict(found).get(key) != row}:
            tally.wrong.append(f"{len(lost)} reported rows lost or changed")
        if dict(found) != self.whole:
            tally.wrong.append("numbers differ from the undisturbed study's")


def disturb(bench: Bench, tally: Tally, moments: int, flags: list[str], strike: Callable[[int], bool]) -> None:
    """Run studies, striking each at random moments until `moments` faults happened; judge those that finish.

    A strike that ends the driver is followed by the same command again; one that does not, by a further moment.
    """
    number, seen = 0, dict[Key, dict[str, Any]]()
    out = bench.folder / f"{id(tally)}-0"
    process = bench.start(out, *flags)
    while True:
        wait = bench.random.uniform(0.0, bench.took * 0.8) if tally.faults < moments else None
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            tally.faults += strike(process.pid)
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                seen |= dict(rows(out))
                continue
        seen |= dict(rows(out))
        if process.returncode == 0:
            bench.judge(out, seen, tally)
            if tally.faults >= moments:
                return
            number, seen = number + 1, {}
            out = bench.folder / f"{id(tally)}-{number}"
        elif process.returncode not in ENDED_BY_SIGNAL:
            errors = process.stderr.read().decode() if process.stderr else ""
            if process.returncode != 1 or "died 4 times in a row without getting further" not in errors:
                tally.wrong.append(f"exit code {process.returncode}: {errors.strip().splitlines()[-1:]}")
                return
            tally.given_up += 1  # struck too often, and it said so; the same command tries again
        process = bench.start(out, *flags)


def kill(pid: int) -> bool:
    """Kill -9 of one process."""
    os.kill(pid, signal.SIGKILL)
    return True


def kill_worker(bench: Bench) -> Callable[[int], bool]:
    """Kill -9 of one of the driver's spawned workers, if it has any yet."""
    import psutil

    def strike(pid: int) -> bool:
        workers = [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]
        return bool(workers) and kill(bench.random.choice(workers).pid)

    return strike


def kill_ray_worker(bench: Bench) -> Callable[[int], bool]:
    """Kill -9 of a worker process that a run is in."""
    import psutil

    def strike(_pid: int) -> bool:
        named = [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"]]
        workers = [process for process in named if process.info["cmdline"][0].startswith("ray::plain-")]
        return bool(workers) and kill(bench.random.choice(workers).pid)

    return strike


def stop(bench: Bench) -> Callable[[int], bool]:
    """SIGTERM or SIGINT to the whole process group, as a terminal or a scheduler sends them."""

    def strike(pid: int) -> bool:
        os.killpg(pid, bench.random.choice([signal.SIGTERM, signal.SIGINT]))
        return True

    return strike


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

    strikes = {"ray-driver": kill, "ray-worker": kill_ray_worker(bench), "ray-node": kill_node}
    try:
        disturb(bench, tally, moments, ["--engine", "ray", "--ray-address", cluster.address], strikes[kind])
    finally:
        cluster.shutdown()


def fill_disk(bench: Bench, tally: Tally, moments: int) -> None:
    """Studies on a tmpfs that fills up at a random size; then it gets room, and they go on."""
    for number in range(moments):
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
                    or "no room left on the disk" not in last
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
        strikes = {"driver": kill, "driver-of-workers": kill, "worker": kill_worker(bench), "stop": stop(bench)}
        disturb(bench, tally, moments, ["--jobs", "1" if kind == "driver" else "2"], strikes[kind])
    return tally


def main() -> None:
    """Parse, run, print the table; exit code 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="faults of each kind")
    parser.add_argument("--kinds", nargs="*", choices=[*KINDS], default=[*KINDS])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("| fault | faults | studies | rows | survived |\n|---|---|---|---|---|")
    failed = False
    with tempfile.TemporaryDirectory(prefix="forgetting-faults-") as folder:
        bench = Bench(Path(folder), given.seed)
        for kind in given.kinds:
            tally = run(bench, kind, given.moments)
            failed |= bool(tally.wrong)
            verdict = "; ".join(tally.wrong[:3]) or "; ".join(tally.notes) or "all"
            verdict += f" ({tally.given_up} times given up and begun again)" if tally.given_up else ""
            print(f"| {KINDS[kind]} | {tally.faults} | {tally.studies} | {tally.rows} | {verdict} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
