"""One run by several processes with sharded weights (FSDP2): the numbers of one, and no whole model in any."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from forgetting.config.schema import StudyConfig, validate
from forgetting.errors import UsageError
from forgetting.models import processes
from forgetting.models.sharding import shard
from forgetting.store.folder import StudyFolder
from forgetting.studies import launching
from forgetting.studies.engines import Accelerate, Event, Local
from forgetting.studies.study import left, study
from forgetting.tuning import stopping
from small_study import fields, numbers

FSDP = {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_state_dict_type": "FULL_STATE_DICT"}
TWO = {"distributed_type": "FSDP", "num_processes": 2, "use_cpu": True, "fsdp_config": FSDP}


def engine(folder: Path, **more: Any) -> Accelerate:
    path = folder / "fsdp2.yaml"
    path.write_text(yaml.safe_dump(TWO | more))
    return Accelerate(launching.read_launch(path))


def configure(tiny_model: Path, corpora: Path, **changes: Any) -> StudyConfig:
    chat = {"chat": {"source": str(corpora / "chat.jsonl"), "heldout": 0.2}}
    training = {"steps": 6, "batch_size": 4, "micro_batch_size": 1, "warmup_steps": 1, "learning_rate": 1e-2}
    given = {"datasets": chat, "context": 16, "training": training, "measure": {"start": 2, "every": 2}}
    return validate(fields(tiny_model, corpora, **{**given, **changes}), where="test")


def largest_difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    assert [row.keys() for row in one] == [row.keys() for row in other]
    return max(abs((a[key] or 0) - (b[key] or 0)) for a, b in zip(one, other, strict=True) for key in a)


@pytest.mark.slow
def test_two_processes_with_sharded_weights_give_the_numbers_of_one(
    tmp_path: Path, tiny_model: Path, corpora: Path
) -> None:
    methods = [{"name": "lora", "rank": 4}, {"name": "full"}]
    config = configure(tiny_model, corpora, methods=methods)
    failed = study(config, tmp_path / "2", engine=engine(tmp_path)).failed
    assert not failed
    study(config, tmp_path / "1", engine=Local(1))
    one, both = numbers(tmp_path / "1"), numbers(tmp_path / "2")
    assert one.keys() == both.keys()
    for run, rows in one.items():
        assert rows[0] == both[run][0]  # the base model, measured by two processes: every bit
        assert largest_difference(rows, both[run]) < 1e-5  # seen: 5e-8
        alone, shared = (next((tmp_path / f"{n}/runs/{run}/adapter").glob("*.safetensors")) for n in (1, 2))
        tuned, same = load_file(alone), load_file(shared)
        assert tuned.keys() == same.keys()
        for name, tensor in tuned.items():
            torch.testing.assert_close(same[name], tensor, rtol=0, atol=2e-5)


@pytest.mark.slow  # three launches of two processes; the same engine with whole weights is in test_accelerate.py
def test_stopped_killed_and_resumed_with_sharded_weights_equals_uninterrupted(
    tmp_path: Path, tiny_model: Path, corpora: Path
) -> None:
    training = {"steps": 8, "batch_size": 4, "warmup_steps": 1, "learning_rate": 1e-2, "optimizer": "adamw"}
    config = configure(tiny_model, corpora, methods=[{"name": "full"}], training=training)
    two = engine(tmp_path)
    assert not study(config, tmp_path / "whole", engine=two).failed
    folder = StudyFolder.create_or_resume(tmp_path / "cut", config)
    (run_id,) = left(tmp_path / "cut")

    def stop(event: Event) -> None:
        if event.step == 3:
            stopping.request(signal.SIGTERM)

    with pytest.raises(stopping.StoppedError):
        study(config, tmp_path / "cut", engine=two, on_event=stop)
    (checkpoint,) = sorted((folder.run(run_id).path / "checkpoints").iterdir())[-1:]
    parts = {f"weights-{i}-of-2.safetensors" for i in (0, 1)} | {f"optimizer-{i}-of-2.pt" for i in (0, 1)}
    assert parts < {file.name for file in checkpoint.iterdir()}
    events: list[Event] = []

    def kill(event: Event) -> None:
        events.append(event)
        if event.step == 6 and not any(event.kind == "retried" for event in events):
            holder = int(json.loads((folder.run(run_id).path / "lock").read_text())["pid"])
            pids = [process.pid for process in multiprocessing.active_children() if process.pid]
            os.kill(next(pid for pid in pids if pid != holder), signal.SIGKILL)

    assert not study(config, tmp_path / "cut", engine=two, on_event=kill).failed
    assert [event.kind for event in events].count("retried") == 1
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    cut, uncut = (load_file(tmp_path / f"{one}/runs/{run_id}/adapter/model.safetensors") for one in ("cut", "whole"))
    assert cut.keys() == uncut.keys()
    assert all(torch.equal(cut[name], uncut[name]) for name in cut)


@pytest.mark.slow
def test_a_sharded_study_that_grows_equals_one_planned_so(tmp_path: Path, tiny_model: Path, corpora: Path) -> None:
    """By a rank, a seed, a method and more steps at once."""
    training = {"batch_size": 4, "warmup_steps": 1, "learning_rate": 1e-2, "optimizer": "adamw"}
    lora = {"name": "lora", "rank": [2]}
    short = configure(tiny_model, corpora, methods=[lora], training=training | {"steps": 4})
    methods, seeds = [lora | {"rank": [2, 3]}, {"name": "full"}], [0, 1]
    long = configure(tiny_model, corpora, methods=methods, seeds=seeds, training=training | {"steps": 8})
    two = engine(tmp_path)
    assert not study(short, tmp_path / "grown", engine=two).failed
    (first,) = numbers(tmp_path / "grown")
    with pytest.raises(UsageError, match="the number of processes changed from 2 to 1 since run"):
        study(long, tmp_path / "grown", engine=Local(1))
    assert not study(long, tmp_path / "grown", engine=two).failed
    assert not study(long, tmp_path / "planned", engine=two).failed
    grown, planned = numbers(tmp_path / "grown"), numbers(tmp_path / "planned")
    assert grown.keys() - planned.keys() == {first}
    assert {run: grown[run] for run in planned} == planned
    records = [StudyFolder.open(tmp_path / "grown").run(run).read() for run in planned]
    assert [one["went_on"] for one in records if "went_on" in one] == [{"run_id": first, "step": 4}]
    study(long, tmp_path / "1", engine=Local(1))
    for run, rows in numbers(tmp_path / "1").items():
        assert largest_difference(rows, grown[run]) < 1e-5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fsdp_version": 1}, "fsdp_version: got '1'; give 2 (`accelerate to-fsdp2` converts a file)"),
        ({"fsdp_offload_params": True}, "fsdp_offload_params: got 'True'; give false"),
        ({"fsdp_auto_wrap_policy": "SIZE_BASED_WRAP"}, "got 'SIZE_BASED_WRAP'; give TRANSFORMER_BASED_WRAP"),
        (
            {"fsdp_reshard_after_forward": "FULL_SHARD"},
            "got 'FULL_SHARD'; give true or false",
        ),
        ({"fsdp_state_dict_type": "LOCAL_STATE_DICT"}, "give FULL_STATE_DICT or SHARDED_STATE_DICT"),
        ({"fsdp_min_num_params": 100}, "fsdp_config.fsdp_min_num_params: unsupported field; remove it"),
    ],
)
def test_unsupported_fsdp_configurations_are_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        engine(tmp_path, fsdp_config=FSDP | content)
    assert str(error.value).startswith(f"{tmp_path / 'fsdp2.yaml'}: fsdp_config.")
    assert message in str(error.value)


def test_supported_fsdp_configurations_are_accepted(tmp_path: Path) -> None:
    more = {"fsdp_reshard_after_forward": False, "fsdp_activation_checkpointing": True, "fsdp_forward_prefetch": None}
    layers = {"fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer, Other"}
    launch = engine(tmp_path, fsdp_config=FSDP | more | layers).launch
    assert launch.sharding == processes.Sharding(False, ("LlamaDecoderLayer", "Other"), checkpointing=True)
    assert launch.content["fsdp"] == {
        "reshard_after_forward": False,
        "layers": ["LlamaDecoderLayer", "Other"],
        "checkpointing": True,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": [{"name": "lora", "mitigations": [[{"name": "l2sp"}]]}]}, "mitigations.l2sp: needs a whole mo"),
        (
            {"methods": [{"name": "lora", "mitigations": [[{"name": "replay", "generated": True}]]}]},
            "mitigations.replay generated=True: needs a whole model, but FSDP shards it over processes; use ",
        ),
        ({"capabilities": {"suites": ["miniature"]}}, "evaluate the saved models with `forgetting evaluate`"),
    ],
)
def test_methods_that_need_the_whole_model_are_refused(
    tiny_model: Path, corpora: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        launching.check_shardable(configure(tiny_model, corpora, **changes))
    assert message in str(error.value)


def test_gradient_hooks_are_refused(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.lm_head.weight.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(UsageError, match="its method changes gradients with hooks, which FSDP does not call"):
        shard(model, model, processes.Sharding(), "cpu")
