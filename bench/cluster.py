"""Studies as on a cluster, each undisturbed, killed and stopped: `python bench/cluster.py [--only NAME ...]`.

A study of a small random model (LoRA and full fine-tuning; LoRA alone in 4 bits) is done by one process, in 4 bits, in
bfloat16, by two FSDP2 processes, by two commands with one FSDP2 process each, and on Ray with two FSDP2 processes a
run. Each is compared with one plain process, then done again and disturbed in the middle of its first run, resumed with
the same command if it ended, and compared with the undisturbed one: rows to the last bit, and the saved weights byte
for byte.
With --grow, a study of one LoRA run is extended instead, by a rank, a seed, full fine-tuning (not in 4 bits) and more
steps at once, and compared with a study that was planned so. Prints the tables of docs/clusters.md. Linux only; needs
bitsandbytes and ray.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from forgetting.store.columns import COSTS
from forgetting.store.folder import StudyFolder
from memory import make_model, make_text

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
TWO = {"distributed_type": "FSDP", "num_processes": 2, "use_cpu": True, "fsdp_config": {"fsdp_version": 2}}
STEPS = 30
MORE = 45
"""Steps of the grown studies."""
ROWS = 3
"""Rows of the first run after which it is disturbed."""
WAIT = 1500.0


@dataclass
class Mode:
    """A way to do a study: the flags of each of its commands."""

    flags: list[list[str]]
    faults: list[str]
    config: str = "study"


@dataclass
class Done:
    """A finished study: its rows and weights by run, and the exit codes of its commands."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    codes: list[str] = field(default_factory=list)


def stat(pid: int) -> tuple[int, str]:
    """The parent and the command line of a process."""
    with suppress(OSError):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return parent, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return 0, ""


def below(pid: int) -> list[int]:
    """All descendants of a process."""
    parents = {int(path.name): stat(int(path.name))[0] for path in Path("/proc").iterdir() if path.name.isdigit()}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def holder(out: Path) -> int:
    """The process that holds the lock of the run that goes on."""
    running = [path.parent for path in out.glob("runs/*/run.json") if json.loads(path.read_text())["status"] != "done"]
    return int(json.loads((running[0] / "lock").read_text())["pid"])


def processes_of(command: int) -> list[int]:
    """The processes of a run that a command or a Ray worker below it started, through a fork server."""
    return [pid for pid in below(command) if all("forkserver" in stat(one)[1] for one in (pid, stat(pid)[0]))]


def target(fault: str, command: int, out: Path) -> int:
    """The process to kill or stop.

    Args:
        fault: one of `FAULTS`.
        command: the command that it concerns.
        out: the study.
    """
    writes = holder(out)
    if fault == "kill -9 of a process":
        return next(pid for pid in processes_of(command) if pid != writes)
    if fault == "kill -9 of the writing process":
        return writes
    if fault == "kill -9 of the Ray worker":
        worker = stat(stat(writes)[0])[0]
        assert "ray::" in stat(worker)[1], stat(worker)
        return worker
    return command


FAULTS = (
    "kill -9 of a process",
    "kill -9 of the writing process",
    "kill -9 of the Ray worker",
    "kill -9 of the command",
    "SIGTERM",
    "kill -9 of the first command",
    "SIGTERM to the first command",
    "kill -9 of the command, given again at once",
)
"""With two commands, the second is disturbed unless the first is named; the first writes."""
RAY = [name for name in FAULTS if "first" not in name and "again" not in name]
TEAM = [name for name in RAY if "Ray" not in name]
MODES = {
    "one plain process": Mode([["--jobs", "1"]], []),
    "4 bits, one process": Mode([["--jobs", "1"]], ["kill -9 of the command", "SIGTERM"], "bits"),
    "bfloat16, one process": Mode([["--jobs", "1"]], ["kill -9 of the command", "SIGTERM"], "bfloat16"),
    "FSDP2, two processes": Mode([["--accelerate-config", "fsdp2.yaml"]], TEAM),
    "bfloat16, FSDP2, two processes": Mode([["--accelerate-config", "fsdp2.yaml"]], TEAM, "bfloat16"),
    "FSDP2, two commands": Mode(
        [["--accelerate-config", "machines.yaml", "--machine-rank", rank] for rank in ("0", "1")],
        [name for name in FAULTS if "Ray" not in name],
    ),
    "Ray, one process a run": Mode([["--engine", "ray"]], ["kill -9 of the command", "SIGTERM"]),
    "Ray, two FSDP2 processes a run": Mode(
        [["--engine", "ray", "--run-cpus", "2", "--accelerate-config", "fsdp2.yaml"]], RAY
    ),
}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def make_inputs(folder: Path) -> None:
    """The model, the texts, and the configurations, also of studies that grow."""
    if not (folder / "model").exists():
        make_model(folder / "model", SIZES, 2560)
    make_text(folder, 64)
    kinds: dict[str, dict[str, Any]] = {"study": {}, "bits": {"bits": 4}, "bfloat16": {"dtype": "bfloat16"}}
    for name, model in kinds.items():
        lora: dict[str, Any] = {"name": "lora", "rank": [4], "learning_rate": 1e-3}
        full = [] if "bits" in model else [{"name": "full", "learning_rate": 2e-4}]
        given = {
            "model": {"source": str(folder / "model")} | model,
            "text": {"source": str(folder / "general.jsonl"), "documents": "rows"},
            "datasets": {"d": {"source": str(folder / "train.jsonl"), "documents": "rows"}},
            "methods": [lora, *full],
            "context": 64,
            "training": {"steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 5},
            "measure": {"start": 3, "every": 3, "batch_tokens": 256, "text_tokens": 512, "heldout_tokens": 512},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(given))
        # finished full fine-tuning has no checkpoint to go on from, so it is added only when the study grows
        (folder / f"{name}-small.yaml").write_text(yaml.safe_dump(given | {"methods": [lora]}))
        training = given["training"] | {"steps": MORE}  # type: ignore[operator]
        grown = {"methods": [lora | {"rank": [4, 8]}, *full], "seeds": [0, 1], "training": training}
        (folder / f"{name}-grown.yaml").write_text(yaml.safe_dump(given | grown))
    (folder / "fsdp2.yaml").write_text(yaml.safe_dump(TWO))


def is_in_the_middle(out: Path) -> bool:
    """Whether the first run has the rows after which it is disturbed."""
    return any(path.read_text().count("\n") >= ROWS for path in out.glob("runs/*/measurements.jsonl"))


def launched(folder: Path, mode: Mode, config: str, out: Path, fault: str | None) -> str:
    """Do a study with its commands, and disturb it once in the middle; returns their exit codes."""
    several = {"num_machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": free_port()}
    (folder / "machines.yaml").write_text(yaml.safe_dump(TWO | several))
    begun = [sys.executable, "-m", "forgetting", "study", f"{config}.yaml", "--out", str(out)]
    with (folder / "stderr.txt").open("ab") as errors:
        how: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": errors}
        commands = [subprocess.Popen([*begun, *flags], **how) for flags in mode.flags]
        until = time.monotonic() + WAIT
        while any(command.poll() is None for command in commands):
            if fault is not None and is_in_the_middle(out):
                index = 0 if "first" in fault else -1
                number = signal.SIGTERM if "SIGTERM" in fault else signal.SIGKILL
                os.kill(target(fault, commands[index].pid, out), number)
                if "again" in fault:
                    commands[index].wait()
                    commands[index] = subprocess.Popen([*begun, *mode.flags[index]], **how)
                fault = None
            if time.monotonic() > until:
                sys.exit(f"{config}, {mode.flags}: not done after {WAIT:.0f} s")
            time.sleep(0.01)
        if fault is not None:
            sys.exit(f"{out}: ended before it was disturbed; see {errors.name}")
    return "/".join(str(command.returncode) for command in commands)


def done(folder: Path, mode: Mode, out: Path, fault: str | None = None, config: str = "") -> Done:
    """Do a study to its end, with the same commands again if they ended before it."""
    codes: list[str] = []
    while not codes or set(codes[-1].split("/")) != {"0"}:
        codes.append(launched(folder, mode, config or mode.config, out, None if codes else fault))
        if len(codes) > 2:
            sys.exit(f"{out}: exit codes {codes}; see {folder / 'stderr.txt'}")
    runs = StudyFolder.open(out).runs()
    kept = {run.id: [{k: v for k, v in row.items() if k not in COSTS} for row in run.measurements()] for run in runs}
    weights = {
        run.id: hashlib.sha256(next((run.path / "adapter").glob("*.safetensors")).read_bytes()).hexdigest()
        for run in runs
    }
    return Done(kept, weights, codes)


def apart(one: Done, other: Done) -> float:
    """The largest difference of a number between runs with the same method, rank and seed."""
    there = {run.rpartition("-")[0]: rows for run, rows in other.rows.items()}
    both = [pair for run, rows in one.rows.items() for pair in zip(rows, there[run.rpartition("-")[0]], strict=True)]
    return max(abs(x[name] - y[name]) for x, y in both for name in x if isinstance(x[name], float))


def same(one: Done, other: Done) -> str:
    """Whether rows and weights are equal, in words for the table."""
    rows = "equal" if one.rows == other.rows else "DIFFER"
    return f"{rows} | {'equal' if one.weights == other.weights else 'DIFFER'}"


def tell(*cells: str) -> None:
    """Print one row of a table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def grow(folder: Path, name: str) -> None:
    """Do a small study, extend it in its folder, and compare it with one that was planned so."""
    mode = MODES[name]
    out = folder / f"{list(MODES).index(name)}-grown"
    small, larger = f"{mode.config}-small", f"{mode.config}-grown"
    codes = done(folder, mode, out, config=small).codes
    found = done(folder, mode, out, config=larger)
    planned = done(folder, mode, folder / f"{out.name}-planned", config=larger)
    plain = done(folder, MODES["one plain process"], folder / "plain-planned", config="study-grown")
    went_on = sum("went_on" in run.read() for run in StudyFolder.open(out).runs())
    assert went_on == 1, "the first run was trained again from its beginning"
    kept = Done({run: found.rows[run] for run in planned.rows}, {run: found.weights[run] for run in planned.weights})
    tell(name, ", ".join(codes + found.codes), f"{apart(planned, plain):.1e}", f"{len(kept.rows)}", same(kept, planned))


def disturb(folder: Path, name: str, faults: list[str], plain: Done) -> None:
    """Do a study undisturbed, then once for each fault."""
    number, mode = list(MODES).index(name), MODES[name]
    alone = done(folder, mode, folder / f"{number}")
    tell(name, "", ", ".join(alone.codes), f"{apart(alone, plain):.1e}", "", "")
    for fault in (fault for fault in mode.faults if fault in faults):
        found = done(folder, mode, folder / f"{number}-{FAULTS.index(fault)}", fault)
        tell(name, fault, ", ".join(found.codes), "", same(found, alone))


def main() -> None:
    """Do all studies, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=list(MODES)[1:], choices=list(MODES))
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--folder", type=Path, help="keep the studies here")
    parser.add_argument("--grow", action="store_true", help="grow a study instead of disturbing one")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        folder.mkdir(exist_ok=True)
        make_inputs(folder)
        if given.grow:
            tell("study", "exit codes", "planned study from one plain process, nats/token", "runs", "rows", "weights")
            print("|---|---|---:|---:|---|---|")
            for name in given.only:
                grow(folder, name)
            return
        plain = done(folder, MODES["one plain process"], folder / "plain")
        tell("study", "disturbed by", "exit codes", "from one plain process, nats/token", "rows", "weights")
        print("|---|---|---|---:|---|---|")
        for name in given.only:
            disturb(folder, name, given.faults, plain)


if __name__ == "__main__":
    main()
