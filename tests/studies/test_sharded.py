"""One run by several processes that share out the weights (FSDP2): the numbers of one, and nothing whole in any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from forgetting.config.schema import StudyConfig, validate
from forgetting.store.folder import StudyFolder
from forgetting.studies import launching
from forgetting.studies.engines import Accelerate, Local
from forgetting.studies.study import study
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


@pytest.mark.full
def test_two_processes_that_share_out_the_weights_give_the_numbers_of_one(
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
        print(run, largest_difference(rows, both[run]))
        assert largest_difference(rows, both[run]) < 1e-5
