"""One run by several machines: machine numbers, messages between the commands, and a run by two of them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from forgetting.errors import ForgettingError, UsageError
from forgetting.models.processes import Launch
from forgetting.studies import launching
from forgetting.studies.engines import Accelerate, machines
from forgetting.studies.study import study
from forgetting.tuning import stopping
from small_study import fields, numbers

TWO = {"distributed_type": "MULTI_CPU", "num_processes": 4, "num_machines": 2, "use_cpu": True}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def written(folder: Path, **more: Any) -> Path:
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(TWO | {"main_process_ip": "127.0.0.1", "main_process_port": 29500} | more))
    return path


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launching.RANKS, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_which_machine_this_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, machine_rank=1)
    launch = launching.read_launch(path)
    assert (launch.machines, launch.machine, launch.local, launch.address) == (2, 1, range(2, 4), "127.0.0.1")
    assert launching.read_launch(path, 0).local == range(2)
    monkeypatch.setenv("SLURM_NODEID", "0")  # the same file on all nodes
    assert launching.read_launch(path).machine == 0
    path = written(tmp_path, main_process_ip=None, main_process_port=None)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "2950")
    assert (launching.read_launch(path).address, launching.read_launch(path).port) == ("node1", 2950)
    with pytest.raises(UsageError, match="--machine-rank: got '2'; give the index of this machine, 0 to 1"):
        launching.read_launch(path, 2)
    monkeypatch.setenv("SLURM_NODEID", "5")
    with pytest.raises(UsageError, match=r"^SLURM_NODEID: got '5'"):
        launching.read_launch(path)
    with pytest.raises(UsageError, match="has num_machines 1; leave it out"):
        launching.read_launch(written(tmp_path, num_machines=1), 1)


def test_machines_other_than_the_first_run_no_study_of_their_own(
    tmp_path: Path, tiny_model: Path, corpora: Path
) -> None:
    from forgetting.config.schema import validate

    engine = Accelerate(launching.read_launch(written(tmp_path), 1))
    with pytest.raises(UsageError, match="machine_rank 1: the first machine runs the study"):
        study(validate(fields(tiny_model, corpora), where="test"), tmp_path / "s", engine=engine)


def hears(listener: machines.Machines, key: str, value: Any) -> None:
    """Wait for a message: what one client sets reaches another with a delay."""
    until = time.monotonic() + 20
    while listener.told(key) != value:
        assert time.monotonic() < until
        time.sleep(0.01)


def looks_often(listener: machines.Machines) -> None:
    """Check until no further heartbeat arrives; one may still be on its way."""
    for _ in range(200):
        listener.check()
        time.sleep(0.01)


def test_messages_between_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Launch(2, "cpu", machines=2, address="127.0.0.1", port=free_port())
    zero = machines.Machines(first, {"study": "/s"})
    one = machines.Machines(replace(first, machine=1), {"study": "/s"})
    zero.gather()
    assert one.told("task/0") is None
    zero.tell("task/0", {"task": "a"})
    hears(one, "task/0", {"task": "a"})
    with stopping.at_next_step():
        stopping.request(15)
        one.check()
        hears(zero, "stop", 15)
    one.tell("machine/1", {"study": "/other"})
    hears(zero, "machine/1", {"study": "/other"})
    with pytest.raises(UsageError, match="machine 1 has study '/other', but machine 0 has '/s'; give the"):
        zero.gather()
    monkeypatch.setattr(machines, "LOST", -1.0)
    one.leave()
    gone = pytest.raises(machines.GoneMachineError, match="machine 1 of the run is gone; everything up to the last")
    with stopping.at_next_step(), gone:
        looks_often(zero)
    zero.end({}, 1)


def test_a_command_that_was_started_again_takes_part_from_the_next_task_on() -> None:
    """The heartbeats of the new command would hide that the old one died."""
    first = Launch(2, "cpu", machines=2, address="127.0.0.1", port=free_port())
    zero = machines.Machines(first, {"study": "/s"})
    one = machines.Machines(replace(first, machine=1), {"study": "/s"})
    assert one.begin == 0
    zero.gather()
    zero.announce(0, {"task": "a"})
    zero.announce(1, {"task": "b"})
    hears(one, "now", 1)
    assert not zero.restarted(1)
    one.leave()
    again = machines.Machines(replace(first, machine=1), {"study": "/s"})
    assert again.begin == 2
    hears(zero, "joins/1", 2)
    assert not zero.told("left/1")
    assert zero.restarted(1)
    zero.announce(2, {"task": "b"})
    assert not zero.restarted(1)
    with stopping.at_next_step():
        again.check()
        with pytest.raises(ForgettingError, match="another command was started as machine 1, and takes the place of"):
            one.check()
    again.leave()
    zero.end({}, 3)


@pytest.mark.slow
def test_two_machines_give_the_numbers_of_one(tmp_path: Path, tiny_model: Path, corpora: Path) -> None:
    """Each machine is simulated by a separate command; weights are sharded over both."""
    given = fields(tiny_model, corpora, methods=[{"name": "lora", "rank": 2}])
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(given))
    fsdp = {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_version": 2}}
    path = written(tmp_path, main_process_port=free_port(), **fsdp)
    forgetting = [sys.executable, "-m", "forgetting", "study", str(tmp_path / "my.yaml"), "--out", str(tmp_path / "2")]
    both = [
        subprocess.Popen(
            [*forgetting, "--accelerate-config", str(path), "--machine-rank", str(rank)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    here = [*forgetting[:-1], str(tmp_path / "1"), "--jobs", "1"]
    subprocess.run(here, check=True, capture_output=True)
    ((run, rows),) = numbers(tmp_path / "1").items()
    shared = numbers(tmp_path / "2")[run]
    assert rows[0] == shared[0]
    for row, other in zip(rows, shared, strict=True):
        assert other == pytest.approx(row, abs=1e-5)
