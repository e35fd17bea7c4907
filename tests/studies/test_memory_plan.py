"""The memory of a study's runs is reported before the first one starts, and what cannot fit is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forgetting.cli import main
from forgetting.config.schema import StudyConfig
from forgetting.errors import UsageError
from forgetting.models import memory
from forgetting.models.loading import base_source
from forgetting.models.memory import Room
from forgetting.studies import memory_plan
from forgetting.studies.engines import Local, Ray
from forgetting.studies.memory_plan import MemoryPlan, Places
from forgetting.studies.study import prepare, study
from forgetting.tuning.grid import expand_runs
from short_study import configure

ONE = Places(jobs=1)
METHODS = [{"name": "lora", "rank": [4, 8, 16]}, {"name": "full"}]


def plan(config: StudyConfig, places: Places = ONE) -> MemoryPlan:
    return memory_plan.plan(config, expand_runs(config), base_source(config.model), places)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the memory of this machine in GB."""

    def set_to(total: float, free: float) -> None:
        monkeypatch.setattr(memory, "cpu_room", lambda *_: Room(int(total * 1e9), int(free * 1e9), "this machine"))

    return set_to


@pytest.mark.full
def test_a_table_of_the_smallest_and_the_largest_rank_of_each_method(tiny_model: Path, corpora: Path) -> None:
    made = plan(configure(tiny_model, corpora, methods=METHODS, seeds=[0, 1]))
    assert [row.label for row in made.rows] == ["lora r 4", "lora r 16", "full"]
    text = str(made)
    assert "memory of a run, GB, on cpu; this machine has" in text
    assert "optimiser" in text
    assert made.warnings() == []
    (small, large, _) = made.to_dict()["runs"]
    assert large["trained"] == 4 * small["trained"]
    assert small["total"] == sum(small[part] for part in ("weights", "gradients", "optimiser", "held", "passes"))


def test_runs_that_may_not_fit_give_a_one_line_warning(tiny_model: Path, corpora: Path, there: Any) -> None:
    there(2.0, 0.9)
    config = configure(tiny_model, corpora)
    assert plan(config).warnings() == []
    two = configure(tiny_model, corpora, seeds=[0, 1])
    (line,) = plan(two, Places(jobs=3)).warnings()  # no more runs at once than there are
    assert "2 at once 1.1 GB, but this machine has 0.90 GB free of 2.0: a run may fail; use fewer --jobs" in line
    reserving = plan(config, Places(memory=0.1))
    (line,) = reserving.warnings()
    assert "--run-memory reserves 0.1 GB" in line
    assert replace(reserving, device="cuda").warnings() == []  # the memory of the node, not of its GPUs


def test_runs_that_cannot_fit_are_refused_before_the_model_is_loaded(
    tiny_model: Path, corpora: Path, there: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there(4.0, 3.0)
    config = configure(tiny_model, corpora, methods=[{"name": "lora", "rank": 1_000_000}])
    monkeypatch.setattr("forgetting.studies.inputs.StudyInputs.base", lambda _: pytest.fail("the model was loaded"))
    for go in (
        lambda: study(config, tmp_path / "s", engine=Local(1)),
        lambda: prepare(config, tmp_path / "s", Local(1)),
    ):
        with pytest.raises(UsageError) as refused:
            go()
        message = str(refused.value)
        assert message.startswith("memory: lora r 1000000 needs ")
        assert "this machine has only 4.0 GB; use a smaller rank" in message
    assert not (tmp_path / "s").exists()


def test_a_rank_that_no_layer_has_is_reported(
    tiny_model: Path, corpora: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(configure(tiny_model, corpora, methods=[{"name": "lora", "rank": [32, 100]}]), tmp_path / "s", Local(1))
    (message,) = [one.getMessage() for one in caplog.records if "rank" in one.getMessage()]
    assert message.startswith(
        "methods.lora.rank: 100 is more than model.layers.0.self_attn.q_proj can use: it has 32 inputs"
    )


def test_runs_that_surely_fit_are_not_counted_in_detail(
    tiny_model: Path, corpora: Path, there: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tiny_model, corpora)
    runs, source = expand_runs(config), base_source(config.model)
    there(24.0, 20.0)
    assert memory_plan.surely_fits(config, runs, source, Places(jobs=2))
    assert not memory_plan.surely_fits(config, runs, source, Places(jobs=64))
    wide = expand_runs(
        configure(
            tiny_model,
            corpora,
            methods=[{"name": "peft", "config": {"peft_type": "LORA", "r": 60_000, "target_modules": "all-linear"}}],
        )
    )
    there(3.0, 1.5)
    assert not memory_plan.surely_fits(config, wide, source, Places(jobs=1))
    # the bound is above what is counted
    monkeypatch.setattr(memory_plan, "SURELY", 1.0)
    most = max(row.taken.total for row in plan(config).rows if row.taken is not None)
    there(24.0, (most + memory_plan.PROCESS["cpu"]) / 1e9)
    assert not memory_plan.surely_fits(config, runs, source, Places(jobs=1))


@pytest.mark.full
def test_prepare_prints_ids_alone_on_standard_output(
    tiny_model: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    config = configure(tiny_model, corpora)
    file.write_text(config.to_yaml())
    for more in ([], ["--json"]):
        monkeypatch.setattr(
            sys, "argv", ["forgetting", "study", str(file), "--out", str(tmp_path / "s"), "--prepare", *more]
        )
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
    output = capsys.readouterr()
    (run,) = expand_runs(config)
    first, _, rest = output.out.partition("\n")
    assert first == run.run_id()
    assert json.loads(rest)["memory"]["runs"][0]["run"] == "lora r 4"
    assert "memory of a run, GB, on cpu" in output.err


@pytest.mark.full
def test_the_doctor_reports_the_memory_for_a_configuration_and_a_study_folder(
    tiny_model: Path, corpora: Path, tmp_path: Path, there: Any
) -> None:
    from forgetting.cli.environment import doctor

    file = tmp_path / "mine.yaml"
    file.write_text(configure(tiny_model, corpora, methods=[{"name": "lora", "rank": 10**6}]).to_yaml())
    there(4.0, 3.0)
    found = {check.name: check for check in doctor(file)}
    assert found["memory lora r 1000000"].state == "broken"
    assert found["disk locks"].state == "works"
    file.rename(tmp_path / "study.yaml")
    assert "memory lora r 1000000" in {check.name for check in doctor(tmp_path)}
    (tmp_path / "study.yaml").write_text("model: 3")
    (check,) = [check for check in doctor(tmp_path) if check.name == "memory of runs"]
    assert check.state == "broken"
    assert "model" in check.found


def test_places() -> None:
    assert memory_plan.places_of(Local(3)) == Places(jobs=3)
    assert memory_plan.places_of(Ray(memory=4.0)) == Places(memory=4.0)
