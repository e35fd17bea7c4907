"""What works on this machine: for each check, what was found and what to do about it.

Checks test and never guess: the disk in the folder itself, bf16 by computing in it. Tokens are reported as set or not
set; a result never contains their text.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..display.numbers import several
from ..errors import ForgettingError, UsageError
from . import missing

if TYPE_CHECKING:
    from packaging.requirements import Requirement

State = Literal["works", "note", "broken"]
OLDEST_PYTHON = (3, 11)
LITTLE_DISK = 5e9
"""Free bytes below which a study of a real model soon runs out of space for checkpoints."""
SLOW_FSYNC = 0.25
"""Seconds per fsync; each measured row waits for one."""
HUB_TIMEOUT, RAY_TIMEOUT = 3.0, 30.0
MARKS = {"works": "ok    ", "note": "note  ", "broken": "BROKEN"}
TOKENS = {"HF_TOKEN": "gated models of the Hub", "WANDB_API_KEY": "logging to Weights & Biases"}


@dataclass(frozen=True)
class Check:
    """One check and its outcome.

    Attributes:
        name: what was checked.
        state: `works`, `note` (works with limits, or is missing but not always needed), or `broken`.
        found: what was found.
        advice: what to do; empty if there is nothing to do.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def doctor(folder: Path, *, ray_address: str | None = None) -> list[Check]:
    """Check this machine.

    Args:
        folder: where studies are or will be stored; nothing is left in it. For a study folder or configuration file,
            also check the memory that its runs need.
        ray_address: a Ray cluster to check, as for `--ray-address`; None checks none.

    Returns:
        The checks in reading order. Studies can run on the machine if none is `broken`.
    """
    study = _study_in(folder)
    if study is not None:
        folder = study.parent
    looks: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("extras", _extras),
        ("torch", _torch),
        ("cores and memory", _machine),
        ("disk", lambda: _disk(folder)),
        ("cache", _cache),
        ("tokens", _tokens),
        ("hub", _hub),
    ]
    if study is not None:
        looks.append(("memory of runs", lambda: _runs(study)))
    if ray_address is not None:
        looks.append(("ray", lambda: _ray(ray_address)))
    checks: list[Check] = []
    for name, look in looks:
        try:
            checks += look()
        except ModuleNotFoundError as error:
            module = (error.name or "").split(".")[0]
            checks.append(Check(name, "broken", f"{module} is not installed", missing.install(module)))
        except Exception as error:  # a broken installation may raise anything
            why = (str(error).strip().splitlines() or [""])[0]
            checks.append(Check(name, "broken", f"the check failed: {type(error).__name__}: {why}", "reinstall it"))
    return checks


def as_rows(checks: list[Check]) -> list[dict[str, str]]:
    """The checks as plain objects."""
    return [asdict(check) for check in checks]


def as_lines(checks: list[Check]) -> list[str]:
    """The checks as lines, and a last line that names the broken ones."""
    width = max(len(check.name) for check in checks)
    lines = [
        f"{MARKS[check.state]} {check.name:{width}}  {check.found}{f' -> {check.advice}' if check.advice else ''}"
        for check in checks
    ]
    broken = [check.name for check in checks if check.state == "broken"]
    return [*lines, f"broken: {', '.join(broken)}" if broken else "nothing is broken: studies can run here"]


def plainly(arguments: list[str]) -> str:
    """The checks as text, for when the command's own packages are missing; takes `[FOLDER] [--json]`."""
    folders = [argument for argument in arguments if not argument.startswith("-")]
    checks = doctor(Path(*folders[:1]))
    if "--json" in arguments:
        return json.dumps({"ok": False, "checks": as_rows(checks)}, indent=1)
    return "\n".join(as_lines(checks))


def _python() -> Iterator[Check]:
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        yield Check("python", "broken", version, "use Python 3.11 or newer")
    else:
        yield Check("python", "works", f"{version} on {platform.system()} {platform.machine()}")


def _requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What the package requires, and what each extra adds."""
    from packaging.requirements import Requirement

    extras = metadata.metadata("forgetting").get_all("Provides-Extra") or []
    every = [Requirement(line) for line in metadata.requires("forgetting") or []]
    needed = [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]
    added = {
        extra: [r for r in every if r not in needed and r.marker is not None and r.marker.evaluate({"extra": extra})]
        for extra in extras
    }
    return needed, added


def _lacking(requirements: list[Requirement]) -> tuple[list[str], list[str], list[str]]:
    """Installed packages with versions; missing or outdated ones, in words; and those as pip requirements."""
    there, lacking, wanted = [], [], []
    for requirement in requirements:
        name = requirement.name
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            why = f"{name} is not installed"
        else:
            there.append(f"{name} {version}")
            if requirement.specifier.contains(version, prereleases=True):
                continue
            why = f"{name} {version} is not {requirement.specifier}"
        lacking.append(why)
        wanted.append(f"'{name}{requirement.specifier}'")
    return there, lacking, wanted


def _packages() -> Iterator[Check]:
    requirements = _requirements()[0]
    there, lacking, wanted = _lacking(requirements)
    for requirement in requirements:  # pip may list a package whose files are gone
        module = missing.module_of(requirement.name)
        if f"'{requirement.name}{requirement.specifier}'" not in wanted and not missing.found(module):
            lacking.append(f"{requirement.name} has no module '{module}'")
            wanted.append(f"--force-reinstall '{requirement.name}{requirement.specifier}'")
    if lacking:
        yield Check("packages", "broken", "; ".join(lacking), f"pip install {' '.join(wanted)}")
    else:
        yield Check("packages", "works", ", ".join(there))


def _extras() -> Iterator[Check]:
    for extra, requirements in _requirements()[1].items():
        there, lacking, _ = _lacking(requirements)
        if not lacking:
            yield Check(f"extra [{extra}]", "works", ", ".join(there))
        elif extra != "dev":  # only contributors need it
            yield Check(
                f"extra [{extra}]", "note", "; ".join(lacking), f"if you need it: pip install 'forgetting[{extra}]'"
            )


def _torch() -> Iterator[Check]:
    torch = importlib.import_module("torch")
    yield Check("torch", "works", str(torch.__version__))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield Check(f"gpu {index}", "works", f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    elif torch.backends.mps.is_available():
        yield Check("gpu", "works", "Apple MPS", "choose it with --device mps")
    else:
        built = (
            f"this torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for CPUs"
        )
        yield Check(
            "gpu", "note", f"none; {built}", "small models run on the CPU; larger ones need a GPU and its driver"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Check("bf16", "note", "this GPU has no bfloat16", "use --dtype float32 (or float16)")
        return
    ones = torch.ones(8, 8, dtype=torch.bfloat16, device=device)
    exact = float((ones @ ones)[0, 0]) == 8.0
    found = f"{'computes' if exact else 'computes wrongly'} on {device}"
    yield Check("bf16", "works" if exact else "broken", found, "" if exact else "use --dtype float32")


def _machine() -> Iterator[Check]:
    from ..models.memory import cpu_room

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = ""
    if (room := cpu_room()) is not None:  # not available on Windows
        whose = "" if room.where == "this machine" else f" in {room.where}"
        memory = f", {room.total / 1e9:.1f} GB memory{whose}, {room.free / 1e9:.1f} of it free"
    yield Check("cores and memory", "works", f"{cores} CPU cores available{memory}")


def _study_in(place: Path) -> Path | None:
    """The configuration of the given study: of the file itself, or of a study folder."""
    if place.is_file():
        return place if place.suffix in (".yaml", ".yml") else None
    return place / "study.yaml" if (place / "study.yaml").is_file() else None


def _runs(study: Path) -> Iterator[Check]:
    """The memory that each kind of run of a study needs; reads no weights."""
    from ..config.files import with_flags
    from ..models.loading import base_source
    from ..studies.memory_plan import Places, plan
    from ..tuning.grid import expand_runs

    try:
        config = with_flags({}, study, None)
        found = plan(config, expand_runs(config), base_source(config.model), Places(jobs=None))
    except ForgettingError as error:
        yield Check("memory of runs", "broken", str(error), "fix the study's configuration")
        return
    for row in found.rows:
        if row.taken is None:
            yield Check(f"memory {row.label}", "note", row.why, "try a short run")
            continue
        state, advice = found.verdict(row)
        yield Check(f"memory {row.label}", state, found.sentence(row), advice)


def _disk(folder: Path) -> Iterator[Check]:
    place = folder.resolve()
    while not place.exists():  # a study folder that does not exist yet
        place = place.parent
    where = str(place)
    if not place.is_dir():
        yield Check("disk", "broken", f"{where} is a file", "give a folder")
        return
    free = shutil.disk_usage(place).free
    state: State = "works" if free >= LITTLE_DISK else "note"
    few = (
        ""
        if free >= LITTLE_DISK
        else "free some space: a run's checkpoints take several times the size of its trained weights"
    )
    yield Check("disk space", state, f"{free / 1e9:.1f} GB free in {where}", few)
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".forgetting-doctor-") as name:
            yield from _behaviour(Path(name), where)
    except OSError as error:
        yield Check("disk", "broken", f"{where}: {error.strerror}", "give a writable folder with free space")


def _behaviour(folder: Path, where: str) -> Iterator[Check]:
    """Whether the file system supports what a study needs: fsync, renaming over a file, locks."""
    one, two = folder / "one", folder / "two"
    two.write_text("old", encoding="utf-8")
    began = time.perf_counter()
    with one.open("w", encoding="utf-8") as file:
        file.write("new")
        file.flush()
        os.fsync(file.fileno())
    took = time.perf_counter() - began
    one.replace(two)
    if two.read_text(encoding="utf-8") != "new" or one.exists():
        advice = "store studies on another file system: here a crash could leave a half-written file"
        yield Check("disk rename", "broken", f"{where}: a rename does not replace a file", advice)
    else:
        yield Check("disk rename", "works", f"files are replaced atomically in {where}")
    slow = took > SLOW_FSYNC
    advice = "each measured row waits this long; a local disk is faster" if slow else ""
    yield Check("disk fsync", "note" if slow else "works", f"{1000 * took:.1f} ms to write a row to the disk", advice)
    if _locks(folder / "lock"):
        yield Check("disk locks", "works", "a second process cannot take a run that another one holds")
    else:
        advice = "start only one process per study here, or store it where flock works (on NFS: mount with locks)"
        yield Check("disk locks", "broken", f"{where}: a lock does not stop a second process", advice)


def _locks(path: Path) -> bool:
    """Whether a second holder is refused a locked file."""
    from filelock import lock_descriptor

    with path.open("w") as first, path.open("w") as second, suppress(OSError):
        return [lock_descriptor(file.fileno(), blocking=False) for file in (first, second)] == [True, False]
    return False


def _cache() -> Iterator[Check]:
    """The size of the user's cache, and its limit."""
    from ..data import cache_size

    place = cache_size.folder()
    try:
        most = cache_size.limit()
    except UsageError as error:
        yield Check("cache", "broken", str(error), f"set {cache_size.LIMIT} to a number, or unset it")
        return
    found = f"{cache_size.held_bytes(place) / 1e9:.2g} of at most {most / 1e9:g} GB in {place}"
    yield Check("cache", "works", f"{found} ({cache_size.LIMIT}); it may be deleted at any time")


def _tokens() -> Iterator[Check]:
    for name, use in TOKENS.items():
        there = bool(os.environ.get(name))
        if name == "HF_TOKEN" and not there:
            stored = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "token"
            with suppress(OSError):
                there = stored.stat().st_size > 0
        advice = "" if there else f"set it if you need {use}"
        yield Check(f"token {name}", "works" if there else "note", "set" if there else "not set", advice)


def _hub() -> Iterator[Check]:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        yield Check(
            "hub", "note", "offline, because HF_HUB_OFFLINE is set", "only local folders and cached files can be loaded"
        )
        return
    import urllib.error
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        yield Check("hub", "broken", "HF_ENDPOINT is not an http address", "unset it, or give https://HOST")
        return
    shown = endpoint.split("://")[0] + "://" + endpoint.split("://", 1)[1].rsplit("@", 1)[-1]  # without the password
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_TIMEOUT).close()  # noqa: S310
    except urllib.error.HTTPError:
        pass  # it answered
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        advice = "local models and data work without it; to load from the Hub, check the network and proxy"
        yield Check("hub", "note", f"{shown} cannot be reached ({type(why).__name__})", advice)
        return
    yield Check("hub", "works", f"{shown} answers")


def _ray(address: str) -> Iterator[Check]:
    """Join the cluster in a separate process: joining can hang, and cannot be undone in this one."""
    code = (
        "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); "
        "print(len([n for n in ray.nodes() if n['Alive']]), ray.cluster_resources())"
    )
    start = (
        "start one with `ray start --head`, then give its address; if it asks for a token (Ray 2.59 and later), set "
        "RAY_AUTH_MODE=token"
    )
    try:
        there = importlib.util.find_spec("ray") is not None
    except ValueError:  # raised for a module without a spec
        there = False
    if not there:
        yield Check("ray", "broken", "ray is not installed", "pip install 'forgetting[ray]'")
        return
    try:
        done: Any = subprocess.run(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=RAY_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        yield Check("ray", "broken", f"{address}: no answer in {RAY_TIMEOUT:.0f} s", start)
        return
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Check("ray", "broken", f"{address}: {why[:200]}", start)
        return
    nodes, resources = done.stdout.strip().splitlines()[-1].split(" ", 1)
    yield Check("ray", "works", f"{address}: {several(int(nodes), 'node')}, {resources[:200]}")
