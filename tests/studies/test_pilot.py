"""Pilots: refusals, a session from start to plan, and a resumed session."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forgetting
from forgetting.config.files import study_config
from forgetting.config.schema import StudyConfig, validate
from forgetting.errors import ForgettingError, UsageError
from forgetting.store.folder import StudyFolder
from forgetting.studies import pilot as session
from forgetting.studies import provenance
from forgetting.studies.pilot_config import write_plan
from forgetting.tuning import stopping
from forgetting.tuning.grid import runs_by_id
from scale_study import write_run
from short_study import configure
from small_study import command, fields

RANKS = (1, 2, 4, 8)


def of(tiny_model: Path, corpora: Path, **changes: Any) -> dict[str, Any]:
    training = {"steps": 40, "batch_size": 4, "warmup_steps": 2, "learning_rate": 1e-2}
    return fields(
        tiny_model,
        corpora,
        methods=[{"name": "lora", "rank": 2}],
        context=16,
        training=training,
        measure={"start": 4, "every": 4},
        **changes,
    )


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"methods": [{"name": "ia3"}]}, {}, "ia3 has no rank to plan; those that have: lora"),
        ({"methods": [{"name": "lora"}, {"name": "dora"}]}, {}, "uses one method"),
        (
            {"measure": {"start": 4, "every": 8}},
            {},
            "8 .--steps., measured at 4, 8; a law needs at least three measured steps",
        ),
        ({}, {"ranks": [8]}, "ranks .--rank.: got 8; the law over ranks and steps needs at least three"),
        ({}, {"budget": 0.0}, "budget: got 0.0; give a positive number"),
        ({}, {"minutes": float("nan")}, "minutes: got nan"),
        ({"training": {"steps": 20, "schedule": "linear"}}, {}, "schedule: linear; a pilot lengthens runs"),
        ({"capabilities": {"suites": ["knowledge"]}}, {}, "capabilities: not in a pilot"),
    ],
)
def test_unsupported_studies_are_refused_before_anything_starts(
    changes: dict[str, Any], arguments: dict[str, Any], message: str, tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    config = configure(tiny_model, corpora, **changes)
    with pytest.raises(UsageError, match=message):
        forgetting.pilot(config, tmp_path / "p", **{"budget": 0.1, **arguments})
    assert not (tmp_path / "p").exists()


def test_several_data_sets_and_folders_are_refused(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    one = {"source": str(corpora / "train.jsonl")}
    with pytest.raises(UsageError, match="datasets: a, b; a pilot plans for only one"):
        forgetting.pilot(of(tiny_model, corpora) | {"datasets": {"a": one, "b": {**one, "heldout": 0.3}}}, budget=0.1)
    (tmp_path / "study.yaml").write_text(validate(of(tiny_model, corpora), where="t").to_yaml())
    with pytest.raises(UsageError, match="a study folder; give its configuration"):
        forgetting.pilot(tmp_path, budget=0.1)
    other = of(tiny_model, corpora) | {"methods": [{"name": "lora", "rank": 2, "dropout": 0.1}]}
    with pytest.raises(UsageError, match="holds a study of another configuration"):
        forgetting.pilot(other, tmp_path, budget=0.1)


def test_the_plan_is_a_study_of_the_recommended_run(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    config = validate(of(tiny_model, corpora, seeds=[0, 3]), where="t")
    command_line = write_plan(config, tmp_path, 8, 3)
    assert command_line == f"forgetting study {tmp_path / 'plan.yaml'} --out {tmp_path}-planned"
    planned, _ = study_config(tmp_path / "plan.yaml")
    assert (planned.methods[0].options["rank"], planned.seeds, planned.training.steps) == (8, (4,), 3)
    assert (planned.training.warmup_steps, planned.measure.start) == (2, 3)
    assert planned.training.learning_rate == config.training.learning_rate


def test_a_pilot_in_the_current_folder_names_a_folder_beside_it_for_the_planned_run(
    tiny_model: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command_line = write_plan(validate(of(tiny_model, corpora), where="t"), Path(), 8, 3)
    assert command_line == f"forgetting study plan.yaml --out {tmp_path}-planned"


class MadeUp:
    """Replaces a study: simulated runs with the losses of the paper's law; some diverge, some are interrupted."""

    def __init__(self, diverging: int = 0) -> None:
        self.diverging = diverging
        self.done: list[tuple[int, int, int]] = []
        self.cut_at = 0

    def __call__(self, config: StudyConfig, out: Path, *, only: set[str], **_: Any) -> None:
        if len(self.done) + 1 == self.cut_at:
            raise stopping.StoppedError(signal.SIGTERM)
        folder = StudyFolder.create_or_resume(out, config)
        for run_id in only:
            run = runs_by_id(config)[run_id]
            rank = run.method.options["rank"]
            self.done.append((rank, run.seed, run.training.steps))
            if rank == self.diverging:
                record = provenance.record(run_id, run)
                folder.run(run_id).update(**record, status="failed", kind="diverged", why="loss is nan")
            else:
                write_run(folder, run, np.random.default_rng([rank, run.seed]), config.measured_steps())


def quick(tiny_model: Path, corpora: Path) -> StudyConfig:
    fields = of(tiny_model, corpora)
    fields |= {"training": {"steps": 260}, "measure": {"start": 50, "every": 30}}
    return validate(fields | {"datasets": {"instructions": fields["datasets"]["plain"]}}, where="t")


@pytest.mark.full
def test_a_session_resumes_as_if_uninterrupted_and_leaves_out_diverged_runs(
    tiny_model: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(tiny_model, corpora)
    how = {"budget": 0.54, "tolerance": 0.02, "ranks": (8, 16, 64, 128, 256)}
    whole = MadeUp(diverging=256)
    monkeypatch.setattr(session, "study", whole)
    made = forgetting.pilot(config, tmp_path / "whole", **how)
    assert (made.stopped, made.planned) == ("tolerance", True)
    assert "Partial:" not in (page := (tmp_path / "whole" / "report.html").read_text())
    assert f"The pilot ended with {len(made.runs)} runs (1 failed): {made.why}." in page
    (tmp_path / "whole" / "pilot.json").write_text("{")  # a report needs no note
    assert "Partial:" in forgetting.report(tmp_path / "whole").report.read_text()
    assert {rank for rank, _, _ in whole.done} >= {8, 16, 128, 256}
    assert [rank for rank, _, _ in whole.done].count(256) == 1
    assert list(made.failed.values()) == ["loss is nan"]
    assert 256 not in {run.rank for run in made.runs}
    assert "failed: instructions-lora-r256" in str(made)
    cut = MadeUp(diverging=256)
    monkeypatch.setattr(session, "study", cut)
    for cut.cut_at in (1, 4, len(whole.done)):
        with pytest.raises(stopping.StoppedError):
            forgetting.pilot(config, tmp_path / "cut", **how)
    cut.cut_at = 0
    again = forgetting.pilot(config, tmp_path / "cut", **how)
    assert cut.done == whole.done
    assert again.runs == made.runs
    assert (again.rank, again.steps, again.forgetting) == (made.rank, made.steps, made.forgetting)
    more = len(cut.done)
    other = forgetting.pilot(config, tmp_path / "cut", **(how | {"budget": 0.55, "tolerance": 0.2}))
    assert (other.planned, len(cut.done)) == (True, more)  # the same runs answer for another budget
    late = forgetting.pilot(config, tmp_path / "cut", **(how | {"tolerance": 1e-6, "minutes": 1e-6}))
    assert (late.stopped, late.planned, late.rank) == ("time", True, made.rank)
    code = json.loads(json.dumps(late.to_dict()))
    assert (code["stopped"], code["rank"], len(code["runs"])) == ("time", made.rank, len(made.runs))


@pytest.mark.parametrize(
    "changes", [{"text": {"source": "other.jsonl"}}, {"training": {"steps": 260, "learning_rate": 0.1}}, {"context": 8}]
)
def test_a_pilot_with_nothing_left_to_run_refuses_another_configuration(
    tiny_model: Path, corpora: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = quick(tiny_model, corpora)
    StudyFolder.create_or_resume(tmp_path, config)
    (tmp_path / "pilot.json").write_text('{"seconds": 10, "chosen": []}')
    how: dict[str, Any] = {"budget": 0.5, "minutes": 0.1, "ranks": (8, 16, 64)}
    assert forgetting.pilot(config, tmp_path, **how).stopped == "time"
    other = validate({**config.model_dump(mode="json"), **changes}, where="t")
    with pytest.raises(UsageError, match=f"holds a study of another configuration .{next(iter(changes))}"):
        forgetting.pilot(other, tmp_path, **how)


def test_a_damaged_run_ends_a_pilot_instead_of_being_chosen_for_ever(
    tiny_model: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(MadeUp):
        def __call__(self, config: StudyConfig, out: Path, *, only: set[str], **_: Any) -> None:
            assert not self.done, "the damaged run was chosen again"
            super().__call__(config, out, only=only)
            (file,) = out.glob("runs/*/measurements.jsonl")
            file.write_text(file.read_text().partition("\n")[2])

    def told(step: Any) -> None:
        steps.append(step)
        assert len(steps) < 3, "the damaged run was chosen again"

    steps: list[Any] = []
    monkeypatch.setattr(session, "study", Cut())
    with pytest.raises(ForgettingError, match=r"r64-s0-\w+: damaged: measurements.jsonl has .* rows instead of"):
        forgetting.pilot(quick(tiny_model, corpora), tmp_path / "p", budget=0.5, ranks=(8, 16, 64), on_step=told)


@pytest.mark.full
def test_without_a_plan_it_says_why(
    tiny_model: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "study", MadeUp())
    config = quick(tiny_model, corpora)
    none = forgetting.pilot(config, tmp_path / "p", budget=2.0, ranks=(8, 16, 64))
    assert (none.stopped, none.planned, none.command) == ("unspent", False, None)
    assert "no rank spends the budget in 260 steps" in none.why
    assert none.to_dict()["forgetting"]["value"] is None
    few = forgetting.pilot(config, tmp_path / "p", budget=0.54, ranks=(8, 16, 64), minutes=1e-6)
    assert (few.stopped, few.planned) == ("time", False)
    assert "fewer than 5 runs" in few.why or "3 runs" in few.why


@pytest.mark.slow
def test_a_session_ends_with_a_plan_and_the_same_call_continues_it(
    tiny_model: Path, corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p"
    config = of(tiny_model, corpora)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "LATE", 0.0)  # the time is over after the first step
        short = forgetting.pilot(config, out, budget=0.45, minutes=60, ranks=RANKS)
    assert (short.stopped, short.planned, short.runs) == ("time", False, ())
    assert "before the current run ended" in short.why
    steps: list[Any] = []
    made = forgetting.pilot(config, out, budget=0.45, minutes=60, tolerance=0.2, ranks=RANKS, on_step=steps.append)
    assert (made.stopped, made.planned) == ("tolerance", True)
    assert len(made.runs) >= 5
    assert {run.rank for run in made.runs} >= {1, 2, 8}
    assert all(run.why for run in made.runs)
    assert steps[-1].runs == len(made.runs) - 1
    assert "left" in steps[-1].sentence()
    again = forgetting.plan(out, budget=0.45, ranks=RANKS)["plain"]
    assert [choice.steps for choice in again.frontier] == [choice.steps for choice in made.plan.frontier]
    best = next(choice for choice in again.frontier if choice.rank == made.rank)
    assert round(best.steps.value) == made.steps
    assert made.forgetting.low < 0.45 < made.forgetting.high
    code, output, _ = command(capsys, "table", out, "--json")
    assert code == 0
    assert {row["run_id"] for row in json.loads(output) if row["status"] == "done"} == {run.run_id for run in made.runs}
    same = forgetting.pilot(config, out, budget=0.45, minutes=60, tolerance=0.2, ranks=RANKS)
    assert [run.run_id for run in same.runs] == [run.run_id for run in made.runs]
    assert same.seconds >= made.seconds
    code, output, error = command(capsys, *str(made.command).split()[1:])
    assert code == 0, error
