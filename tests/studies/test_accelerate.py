"""One run by several processes: the numbers of one process, a single writer, and refusals."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from forgetting.config.schema import StudyConfig, validate
from forgetting.errors import UsageError
from forgetting.models import processes
from forgetting.store.folder import HeldError, StudyFolder
from forgetting.studies import launching
from forgetting.studies.engines import Accelerate, Event, Local
from forgetting.studies.engines import team as engine_room
from forgetting.studies.execute import is_pending
from forgetting.studies.provenance import other_processes
from forgetting.studies.repeat import repeat
from forgetting.studies.study import left, study
from forgetting.tuning import stopping
from forgetting.tuning.run import _own_random
from small_study import command, fields, numbers
from together import act

TWO = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_CPU", "num_processes": 2, "use_cpu": True}


def written(folder: Path, **more: Any) -> Path:
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(TWO | more))
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Accelerate:
    return Accelerate(launching.read_launch(written(tmp_path_factory.mktemp("two"))))


def configure(tiny_model: Path, corpora: Path, **changes: Any) -> StudyConfig:
    """Conversations with answers of different length: a mean of the processes' means would be another loss."""
    chat = {"chat": {"source": str(corpora / "chat.jsonl"), "heldout": 0.2}}
    training = {"steps": 8, "batch_size": 4, "micro_batch_size": 1, "warmup_steps": 1, "learning_rate": 1e-2}
    given = {"datasets": chat, "context": 16, "training": training, "measure": {"start": 2, "every": 2}}
    return validate(fields(tiny_model, corpora, **{**given, **changes}), where="test")


def largest_difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    assert [row.keys() for row in one] == [row.keys() for row in other]
    return max(abs((a[key] or 0) - (b[key] or 0)) for a, b in zip(one, other, strict=True) for key in a)


PLAIN: dict[str, Any] = {"name": "lora", "rank": 4}
DROPPED = {**PLAIN, "label": "d", "dropout": 0.3}


@pytest.fixture(scope="module")
def done(
    tiny_model: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory, two: Accelerate
) -> tuple[StudyConfig, Path, dict[str, str], list[Event]]:
    """A study by two processes: its configuration and folder, failures, and events."""
    general = {"source": str(corpora / "train.jsonl")}
    together = [
        {"name": "kl", "on": "both", "text": general},  # one term per batch, and gradients added once per step
        {"name": "flow"},
        {"name": "l2sp", "weight": 10.0},
        {"name": "interpolation", "alphas": [0.0, 0.5, 1.0]},
    ]
    full = {"name": "full", "label": "f", "mitigations": [together]}
    methods = [PLAIN, {**PLAIN, "label": "wild", "alpha": 3e38}, full, DROPPED]
    config, out, events = (
        configure(tiny_model, corpora, methods=methods),
        tmp_path_factory.mktemp("done"),
        list[Event](),
    )
    return config, out, study(config, out, engine=two, on_event=events.append).failed, events


@pytest.mark.full
def test_two_processes_give_the_numbers_of_one(
    tmp_path: Path, done: tuple[StudyConfig, Path, dict[str, str], list[Event]]
) -> None:
    config, out, failed, events = done
    study(config, tmp_path / "1", engine=Local(1))
    one, both = numbers(tmp_path / "1"), numbers(out)
    (wild,) = failed
    assert "the run diverged; lower training.learning_rate" in failed[wild]
    assert StudyFolder.open(out).run(wild).read()["kind"] == "diverged"  # by the main process, as by one
    assert one.keys() == both.keys()
    assert one.pop(wild) == both.pop(wild)
    for run, rows in one.items():
        moved = abs(rows[-1]["finetune_loss"] - rows[0]["finetune_loss"])
        differs = largest_difference(rows, both[run])
        assert rows[0] == both[run][0]  # the base model, measured by two processes: every bit
        # gradients are summed in another order (seen: 1e-7); dropout draws other numbers in each process
        assert differs > 1e-4 if "-d-" in run else 0 < differs < 2e-6 < 1e-3 * moved * 100
    plain_run = next(run for run in one if "-lora-" in run)
    alone, state = (StudyFolder.open(place).run(plain_run).read() for place in (tmp_path / "1", out))
    assert (state["processes"], state["accelerate"]["num_processes"], alone["processes"]) == (2, 2, 1)
    assert state["notices"] == alone["notices"]
    assert len(list((out / "cache").glob("targets-*.safetensors"))) == 1
    reported = [(event.kind, event.step) for event in events if event.task == state["run_id"]]
    assert reported == [("started", 0), *(("step", step) for step in range(1, 9)), ("ended", 0)]
    # repeated by one process, no mean may differ by more than its standard error: this is not the same machine
    again = repeat(out, state["run_id"])
    assert again.holds
    assert again.elsewhere == ("processes 2 then, 1 now",)


@pytest.mark.slow
def test_stopped_killed_and_resumed_equals_uninterrupted(
    tiny_model: Path,
    corpora: Path,
    tmp_path: Path,
    two: Accelerate,
    done: tuple[StudyConfig, Path, dict[str, str], list[Event]],
) -> None:
    config = configure(tiny_model, corpora, methods=[DROPPED])
    folder, events = StudyFolder.create_or_resume(tmp_path / "cut", config), list[Event]()
    (run_id,) = left(tmp_path / "cut")

    def stop(event: Event) -> None:
        if event.step == 3:
            stopping.request(signal.SIGTERM)

    with pytest.raises(stopping.StoppedError):
        study(config, tmp_path / "cut", engine=two, on_event=stop)
    assert folder.run(run_id).held_by() is None
    assert is_pending(folder.run(run_id).read())
    stopped = [row["step"] for row in folder.run(run_id).measurements()]
    (checkpoint,) = sorted((folder.run(run_id).path / "checkpoints").iterdir())[-1:]
    assert int(checkpoint.name.split("-")[1]) >= 3
    assert {f.name for f in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    with pytest.raises(UsageError, match=r"the number of processes changed from 2 to 1 since run .* started"):
        study(config, tmp_path / "cut", engine=Local(1))

    def kill(event: Event) -> None:
        events.append(event)
        if event.step == 6 and not any(event.kind == "retried" for event in events):
            second = next(pid for pid in children() if pid != holder(folder.run(run_id).path))
            os.kill(second, signal.SIGKILL)

    study(config, tmp_path / "cut", engine=two, on_event=kill)
    assert [event.kind for event in events].count("retried") == 1
    retried = next(event for event in events if event.kind == "retried")
    assert retried.note.startswith("process 1 of 2: killed")
    assert numbers(tmp_path / "cut") == {run_id: numbers(done[1])[run_id]}
    assert len(stopped) < len(folder.run(run_id).measurements())
    assert len(folder.run(run_id).read()["resumed"]) == 2


def children() -> list[int]:
    """Processes that this one has spawned for a run."""
    import multiprocessing

    return [process.pid for process in multiprocessing.active_children() if process.pid]


def holder(run: Path) -> int:
    return int(json.loads((run / "lock").read_text())["pid"])


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_its_reason(
    tmp_path: Path, two: Accelerate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_room, "GRACE", 0.5)
    work = functools.partial(act, str(tmp_path))

    def do(*tasks: str) -> dict[str, str]:
        return two.execute(tasks, work, lambda _: None, one_thread=True)

    lost = do("well", "second", "alone", "drifts")
    assert lost == {
        "second": "process 1 of 2: ValueError: of the second",
        "drifts": "process 1 of 2: after step 7 the weights of process 1 differ from those of process 0",
    }
    with pytest.raises(UsageError, match="of the first"):
        do("well too", "first")
    assert {(tmp_path / f"{task}-{me}").read_text() for task in ("well", "well too") for me in (0, 1)} == {"3"}
    with pytest.raises(HeldError, match="held by nobody"):
        do("held")
    assert not children()


@pytest.mark.slow
def test_the_command_stops_and_resumes_without_orphan_processes(
    tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    given = fields(tiny_model, corpora)
    given["training"] |= {"steps": 200}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(given))
    out, flags = tmp_path / "s", ["--accelerate-config", str(written(tmp_path))]
    forgetting = [sys.executable, "-m", "forgetting"]
    subprocess.run(
        [*forgetting, "study", str(tmp_path / "my.yaml"), "--out", str(out), "--prepare", *flags], check=True
    )
    (run_id,) = left(out)
    run = StudyFolder.open(out).run(run_id)

    def started(enough: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*forgetting, "run", str(out), run_id, *flags], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        deadline = time.monotonic() + 180
        while len(run.measurements()) < enough:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    process = started(3)
    os.killpg(process.pid, signal.SIGTERM)  # every process of the run gets it, as a scheduler sends it
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    assert (
        errors.splitlines()[-1] == "stopped; everything measured so far is kept; run the same command again to resume"
    )
    assert "Traceback" not in errors
    process = started(8)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while run.held_by() is not None:  # its processes notice that it is gone
        assert time.monotonic() < deadline
        time.sleep(0.1)
    done = subprocess.run([*forgetting, "run", str(out), run_id, *flags, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["worked"], report["status"], report["measured_steps"]) == (True, "done", 101)
    assert [row["step"] for row in run.measurements()] == list(range(0, 201, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"distributed_type": "FSDP"}, "fsdp_config: got 'None'; give its fields, as TRL's fsdp2.yaml does"),
        ({"distributed_type": "DEEPSPEED"}, "DEEPSPEED: weights sharded by DeepSpeed cannot be measured; allow"),
        ({"fsdp_config": {"fsdp_version": 2}}, "only with distributed_type FSDP; leave it out"),
        (
            {"distributed_type": "NO"},
            "this means one process; leave out --accelerate-config; allowed: MULTI",
        ),
        ({"distributed_type": "XLA"}, "distributed_type 'XLA'; allowed: MULTI_GPU and MULTI_CPU"),
        ({"distributed_type": ["MULTI_CPU"]}, "allowed: MULTI_GPU and MULTI_CPU"),
        ({"num_processes": 1}, "num_processes: got '1'; give a number of at least 2"),
        ({"num_processes": "two"}, "num_processes: got 'two'; give a number of at least 2"),
        ({"num_machines": 2}, "main_process_ip: got 'None'; give the first machine's address (or MASTER_ADDR)"),
        ({"num_machines": 3}, "num_processes 2: counts the processes of all 3 machines; give a multiple of 3"),
        ({"num_machines": 2, "machine_rank": 2}, "machine_rank: got '2'; give the index of this machine, 0 to 1"),
        ({"num_machines": 2, "main_process_ip": "h", "main_process_port": 0}, "main_process_port: got 'None'; give a"),
        ({"mixed_precision": "fp8"}, "mixed_precision: got 'fp8'; give no, fp16 or bf16"),
        ({"gpu_ids": "0"}, "gpu_ids '0'; give all, or at least 2 numbers such as 0,1"),
        ({"gpu_ids": "a,b"}, "gpu_ids 'a,b'; give all"),
        ({"use_cpu": "yes"}, "use_cpu: got 'yes'; give true or false"),
        (
            {"dynamo_config": {"dynamo_backend": "INDUCTOR"}},
            "dynamo_config: unsupported field; remove it",
        ),
        ({"enable_cpu_affinity": True}, "enable_cpu_affinity: unsupported field"),
    ],
)
def test_unsupported_accelerate_configurations_are_refused(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    path = written(tmp_path, **content)
    with pytest.raises(UsageError) as error:
        launching.read_launch(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_gpu_ids_are_those_of_one_machine(tmp_path: Path) -> None:
    place = {"num_machines": 2, "main_process_ip": "h", "main_process_port": 29500}
    launch = launching.read_launch(written(tmp_path, num_processes=4, gpu_ids="0,1", **place), 1)
    assert (launch.processes, launch.gpu_ids, list(launch.local)) == (4, "0,1", [2, 3])
    with pytest.raises(UsageError, match="gpu_ids '0'; give all, or at least 2 numbers"):
        launching.read_launch(written(tmp_path, num_processes=4, gpu_ids="0", **place), 1)


def test_the_configurations_that_trl_ships() -> None:
    trl = pytest.importorskip("trl")
    shipped = Path(trl.__file__).parent / "accelerate_configs"
    launch = launching.read_launch(shipped / "multi_gpu.yaml")
    assert (launch.processes, launch.device, launch.gpu_ids) == (8, "cuda", None)
    assert launch.content["mixed_precision"] == "bf16"
    assert launch.sharding is None
    launch = launching.read_launch(shipped / "fsdp2.yaml")
    assert (launch.processes, launch.device, launch.sharding) == (8, "cuda", processes.Sharding())
    for name in ("zero1", "zero2", "zero3", "single_gpu"):
        with pytest.raises(UsageError, match="allowed: MULTI_GPU and MULTI_CPU, where every process has the whole mod"):
            launching.read_launch(shipped / f"{name}.yaml")
    with pytest.raises(UsageError, match=r"fsdp1\.yaml: fsdp_config\.fsdp_version: got '1'; give 2"):
        launching.read_launch(shipped / "fsdp1.yaml")


@pytest.mark.parametrize(
    ("training", "processes", "message"),
    [
        (
            {"batch_size": 6},
            4,
            "got 6, which 4 processes cannot share evenly; give a multiple of 4, or num_processes of 2",
        ),
        ({"batch_size": 7}, 2, "num_processes of 7"),
        (
            {"batch_size": 24, "micro_batch_size": 8},
            2,
            "got 8; each process has 12 windows of a batch; give one of 1, 2",
        ),
        ({"batch_size": 24, "micro_batch_size": 24}, 2, None),
        ({"batch_size": 24, "micro_batch_size": 6}, 2, None),
    ],
)
def test_a_batch_is_distributed_evenly_or_refused(
    tiny_model: Path, corpora: Path, training: dict[str, Any], processes: int, message: str | None
) -> None:
    config = configure(tiny_model, corpora, training={"steps": 8, "warmup_steps": 1, **training})
    if message is None:
        launching.check_shares(config, processes)
        return
    with pytest.raises(UsageError) as error:
        launching.check_shares(config, processes)
    assert message in str(error.value)


def test_runs_that_several_processes_cannot_do_are_refused(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--out", tmp_path / "s", "--accelerate-config", written(tmp_path))
    code, _, error = command(capsys, "study", *flags, "--jobs", 2)
    assert (code, error) == (
        2,
        "error: --accelerate-config: does not go with --jobs 2: its processes execute one run at a time\n",
    )
    code, _, error = command(capsys, "study", *flags, "--device", "cuda")
    assert code == 2
    assert "model.device: got cuda; the accelerate configuration is for cpu: give auto or cpu" in error
    assert not (tmp_path / "s").exists()
    gpus = Accelerate(processes.Launch(2, "cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="2 processes need a GPU each, but 0 are visible here"), gpus.ready():
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UsageError, match=r"WORLD_SIZE=2: started by accelerate launch or torchrun; instead start forgetting"
    ):
        study(configure(tiny_model, corpora), tmp_path / "t", engine=Local(1))
    assert not (tmp_path / "t").exists()


def test_a_model_whose_loss_is_a_mean_over_one_batch_is_refused(tiny_model: Path) -> None:
    from forgetting.config.schema import ModelConfig
    from forgetting.models.loading import load_base

    base = load_base(ModelConfig(source=str(tiny_model)))
    launching.check_model(base)
    base.model.accepts_loss_kwargs = False
    with pytest.raises(UsageError, match="LlamaForCausalLM: its loss does not take the number of tokens"):
        launching.check_model(base)


def test_a_run_keeps_its_number_of_processes() -> None:
    assert other_processes({}, 2, sharded=False) == ""
    assert other_processes({"status": "failed"}, 2, sharded=True) == ""  # given up before it began
    two = {"versions": {}, "processes": 2}
    assert other_processes(two, 2, sharded=False) == ""
    assert other_processes({"versions": {}}, 2, sharded=False) == "the number of processes changed from 1 to 2"
    parts = two | {"accelerate": {"fsdp": {}}}
    assert other_processes(parts, 2, sharded=True) == ""
    assert other_processes(parts, 2, sharded=False) == "weights were sharded by FSDP and are whole in each process"


def test_each_process_has_its_own_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for index in (0, 1, 2, 1):
        monkeypatch.setattr(processes, "index", lambda index=index: index)
        torch.manual_seed(5)
        _own_random(5)
        drawn.append(torch.rand(3).tolist())
    assert drawn[1] == drawn[3]
    assert len({tuple(one) for one in drawn}) == 3
