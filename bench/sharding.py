"""Peak memory of each of two FSDP2 processes on a CPU, compared with one process.

    python bench/sharding.py [--layers 72] [--only lora full] [--folder DIR]

A random Llama with many small blocks, in float32, is tuned for a few steps on short windows, so that the memory is that
of the model and not of activations: by one process, then by two with sharded weights. Printed is the largest resident
memory of each process (the kernel's VmHWM, which includes pages of mapped files) and of its own memory (RssAnon): the
table of docs/clusters.md. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from memory import make_model, make_text

SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 8}
VOCABULARY = 2560
METHODS = {"lora": {"name": "lora", "rank": 8}, "full": {"name": "full"}}
FSDP = {"distributed_type": "FSDP", "num_processes": 2, "use_cpu": True, "fsdp_config": {"fsdp_version": 2}}
POLL = 0.02


@dataclass
class Seen:
    """What was seen of one process, in MiB; `line` is (seconds, resident, own, of files) over time."""

    most: float = 0.0
    own: float = 0.0
    line: list[tuple[float, float, float, float]] = field(default_factory=list)


def status(pid: int) -> dict[str, float]:
    """Fields of /proc/PID/status in MiB; empty if the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    found = (line.split() for line in lines)
    return {row[0].rstrip(":"): int(row[1]) / 1024 for row in found if row[0].startswith(("VmHWM", "VmRSS", "Rss"))}


def family(pid: int) -> list[int]:
    """A process and all of its descendants."""
    found = [pid]
    for one in found:
        try:
            tasks = list(Path(f"/proc/{one}/task").iterdir())
            found += [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def watched(command: list[str]) -> tuple[dict[int, Seen], str]:
    """Run a command and watch its processes."""
    seen: dict[int, Seen] = {}
    with tempfile.TemporaryFile("w+") as errors:
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        began = time.monotonic()
        while running.poll() is None:
            for pid in family(running.pid):
                if "VmHWM" in (now := status(pid)):
                    one = seen.setdefault(pid, Seen())
                    one.most, one.own = max(one.most, now["VmHWM"]), max(one.own, now["RssAnon"])
                    one.line.append((time.monotonic() - began, now["VmRSS"], now["RssAnon"], now["RssFile"]))
            time.sleep(POLL)
        errors.seek(0)
        return seen, errors.read() if running.returncode else ""


def configuration(folder: Path, method: str, optimizer: str) -> Path:
    """A study of one run of three steps."""
    given = {
        "model": {"source": str(folder / "model")},
        "text": {"source": str(folder / "general.jsonl"), "documents": "rows"},
        "datasets": {"d": {"source": str(folder / "train.jsonl"), "documents": "rows"}},
        "methods": [METHODS[method]],
        "context": 16,
        "training": {"steps": 3, "batch_size": 2, "micro_batch_size": 1, "warmup_steps": 1, "optimizer": optimizer},
        "measure": {"start": 1, "every": 2, "batch_tokens": 16, "text_tokens": 48, "heldout_tokens": 48},
    }
    path = folder / f"{method}-{optimizer}.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


def rows(study: Path) -> list[dict[str, float]]:
    """The rows of the study's only run."""
    (path,) = study.glob("runs/*/measurements.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=84)
    parser.add_argument("--only", nargs="*", default=["lora", "full"])
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--lines", type=Path, help="write the memory over time to this folder")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        folder.mkdir(exist_ok=True)
        if not (folder / "model").exists():
            make_model(folder / "model", {**SIZES, "num_hidden_layers": given.layers}, VOCABULARY)
            make_text(folder, 16)
        (folder / "fsdp2.yaml").write_text(yaml.safe_dump(FSDP))
        stored = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors")) / 2**20
        print(f"weights: {stored:,.0f} MiB", flush=True)
        print("| run | processes | peak of each, MiB | own memory of each, MiB | share of one's peak |")
        print("|---|---:|---:|---:|---:|")
        for method in given.only:
            alone, found = 0.0, {}
            for count in given.processes:
                study = Path(tempfile.mkdtemp(dir=folder)) / "study"
                config = configuration(folder, method, given.optimizer)
                command = [sys.executable, "-m", "forgetting", "study", str(config), "--out", str(study)]
                more = ["--jobs", "1"] if count == 1 else ["--accelerate-config", str(folder / "fsdp2.yaml")]
                seen, errors = watched([*command, *more])
                if errors:
                    sys.exit(errors[-2000:])
                largest = sorted(seen.values(), key=lambda one: -one.most)[:count]
                alone = largest[0].most if count == 1 else alone
                share = f"{largest[0].most / alone:.2f}" if alone else ""
                peaks, own = (" and ".join(f"{getattr(one, n):,.0f}" for one in largest) for n in ("most", "own"))
                print(f"| {method} | {count} | {peaks} | {own} | {share} |", flush=True)
                found[count] = rows(study)
                for index, one in enumerate(largest if given.lines else []):
                    text = "\n".join(" ".join(f"{value:.2f}" for value in row) for row in one.line)
                    (given.lines / f"{method}-{count}-{index}.txt").write_text(text)
            if len(found) == 2:
                pairs = [(a, b) for a, b in zip(*found.values(), strict=True)]
                apart = max(abs(a[key] - b[key]) for a, b in pairs for key in ("finetune_loss", "forgetting"))
                print(f"largest difference of a loss: {apart:.1e}", flush=True)


if __name__ == "__main__":
    main()
