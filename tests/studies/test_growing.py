"""A study that grew in its folder equals one planned so from the start, row for row."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from forgetting.analysis.plan.adding import with_commands
from forgetting.analysis.plan.result import NextRun
from forgetting.analysis.study_table import read_study
from forgetting.config.schema import StudyConfig, validate
from forgetting.errors import ForgettingError, UsageError
from forgetting.store.folder import StudyFolder
from forgetting.store.growth import grown
from forgetting.studies.conclude import conclude
from forgetting.studies.engines import Event, Local
from forgetting.studies.study import study
from forgetting.tuning.grid import expand_runs
from forgetting.tuning.longer import of_steps, shorter_runs
from small_study import command, fields, numbers

pytestmark = pytest.mark.full
Make = Callable[..., StudyConfig]


@pytest.fixture(scope="module")
def make(tiny_model: Path, corpora: Path) -> Make:
    def made(**changes: Any) -> StudyConfig:
        given = fields(tiny_model, corpora)
        steps = changes.pop("steps", 6)
        given["training"] = given["training"] | {"steps": steps} | changes.pop("training", {})
        return validate(given | {"measure": {"start": 2, "every": 3}} | changes, where="test")

    return made


LORA = {"name": "lora", "rank": 2, "dropout": 0.1}
SEVERAL = [
    LORA | {"mitigations": [[], [{"name": "kl", "on": "task"}], [{"name": "interpolation", "alphas": [0.0, 0.5]}]]},
    {"name": "lora", "label": "low", "rank": 3, "learning_rate": 1e-3},
]


@pytest.fixture(scope="module")
def short(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of six steps."""
    out = tmp_path_factory.mktemp("short") / "s"
    study(make(methods=SEVERAL), out, engine=Local(1))
    return out


@pytest.fixture
def there(short: Path, tmp_path: Path) -> Path:
    """A copy of the short study."""
    return Path(shutil.copytree(short, tmp_path / "there"))


@pytest.fixture(scope="module")
def long(make: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The numbers of a study planned with more steps, seeds and methods from the start."""
    out = tmp_path_factory.mktemp("long") / "s"
    study(make(methods=SEVERAL, steps=10), out, engine=Local(1))
    return numbers(out)


def test_a_study_grown_by_steps_seeds_and_methods_equals_one_planned_so(
    make: Make, there: Path, long: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    events: list[Event] = []
    before = numbers(there)
    study(make(methods=SEVERAL, steps=10), there, engine=Local(1), on_event=events.append)
    after = numbers(there)
    assert {run: rows for run, rows in after.items() if run in long} == long
    assert {run: rows for run, rows in after.items() if run in before} == before
    first = {event.task: event.step for event in reversed(events) if event.kind == "step"}
    assert set(first) == set(long)
    assert set(first.values()) == {7}, "each goes on from the shorter run's last step"
    record = StudyFolder.open(there).run(next(iter(long))).read()
    assert record["went_on"]["step"] == 6
    assert record["status"] == "done"
    found = read_study(there)
    assert set(found.left.unasked) == set(before)
    assert not found.left.damaged
    assert set(found.counted()["run_id"]) == set(long)

    more = make(methods=[*SEVERAL, {"name": "lora", "rank": 4}], steps=10, seeds=[0, 1])
    study(more, there, engine=Local(1))
    study(more, tmp_path / "planned", engine=Local(1))
    planned = numbers(tmp_path / "planned")
    assert {run: rows for run, rows in numbers(there).items() if run in planned} == planned
    messages = grown(there, more)
    assert "training.steps: 6, then 10" in messages[0]
    assert "seeds: [0], then [0, 1]" in messages[1]
    assert "seeds: [0], then [0, 1]" in conclude(there).report.read_text()


def test_removed_runs_are_marked_and_reused_when_added_again(make: Make, there: Path) -> None:
    before, out = numbers(there), make(methods=SEVERAL[1:])
    study(out, there, engine=Local(1))
    assert len(read_study(there).left.unasked) == 3
    assert numbers(there) == before
    again = study(make(methods=SEVERAL), there, engine=Local(1))
    assert len(again.skipped) == 4
    assert read_study(there).left.unasked == ()
    assert numbers(there) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 16}, r"another configuration \(context: there 32, now 16\)"),
        ({"model": {"source": "other"}}, r"another configuration \(model\.source: there .*, now \"other\"\)"),
        ({"text": {"source": "other"}}, r"another configuration \(text\.source: there"),
        (
            {"texts": {"more": {"source": "other"}}},
            r"texts\.more\.source: there null, now \"other\"; .*are gone, so no",
        ),
        ({"measure": {"start": 2, "every": 4}}, r"another configuration \(measure\.every: there 3, now 4\)"),
        ({"training": {"batch_size": 2}}, r"another configuration \(training\.batch_size: there 4, now 2\)"),
        ({"training": {"warmup_steps": 3}}, r"another configuration \(training\.warmup_steps: there 2, now 3\)"),
        ({"training": {"schedule": "linear"}, "steps": 10}, r"another configuration \(training\.schedule: there"),
        ({"steps": 5}, r"training\.steps: there 6, now 5: a study's runs can only become longer"),
        ({"name": "other"}, r"\(name: there \"study\", now \"other\"\); to add runs to it, give the folder"),
        ({"seeds": [7]}, r"another configuration \(seeds: there \[0\], now \[7\]\)"),
        ({"methods": [{**LORA, "label": "mine"}]}, r"the run plain-lora-r2-s0-.* would now be plain-mine-r2-s0-.*"),
    ],
)
def test_changes_that_would_change_numbers_are_refused_by_name(
    make: Make, there: Path, changes: dict[str, Any], message: str
) -> None:
    stored = (there / "study.yaml").read_bytes()
    with pytest.raises(UsageError, match=message) as error:
        study(make(**{"methods": SEVERAL} | changes), there, engine=Local(1))
    assert "\n" not in str(error.value)
    assert (there / "study.yaml").read_bytes() == stored
    assert not (there / "history").exists()


def test_a_changed_data_set_is_refused_and_another_one_is_added(
    make: Make, there: Path, corpora: Path, tmp_path: Path
) -> None:
    sets = {"plain": {"source": str(corpora / "train.jsonl")}, "chat": {"source": str(corpora / "chat.jsonl")}}
    with pytest.raises(UsageError, match=r"datasets\.plain\.heldout: there 0\.1, now 0\.2"):
        study(make(datasets={"plain": sets["plain"] | {"heldout": 0.2}}), there, engine=Local(1))
    study(make(datasets=sets), there, engine=Local(1))
    assert {run.rsplit("-", 1)[0] for run in numbers(there)} > {"plain-lora-r2-s0", "chat-lora-r2-s0"}


def test_runs_that_cannot_be_lengthened_are_named(make: Make, tmp_path: Path) -> None:
    full = make(methods=[{"name": "full"}])
    study(full, tmp_path / "full", engine=Local(1))
    with pytest.raises(UsageError, match=r"run plain-full-s0-\w+ cannot be made longer: it has no checkpoint"):
        study(make(methods=[{"name": "full"}], steps=8), tmp_path / "full", engine=Local(1))
    replay = [{**LORA, "mitigations": [[{"name": "replay", "generated": True}]]}]
    short = make(methods=replay, steps=3)
    study(short, tmp_path / "replay", engine=Local(1))
    with pytest.raises(UsageError, match=r"the first steps of mitigation replay generated=True depend on"):
        study(make(methods=replay, steps=8), tmp_path / "replay", engine=Local(1))
    linear = {"schedule": "linear"}
    study(make(training=linear), tmp_path / "linear", engine=Local(1))
    with pytest.raises(UsageError, match=r"training\.steps: there 6, now 8: with schedule linear the learning rate"):
        study(make(training=linear, steps=8), tmp_path / "linear", engine=Local(1))


@pytest.mark.parametrize(("mitigation", "found"), [("l2sp", 1), ("budget", 0)])
def test_a_run_steered_towards_its_last_step_is_not_continued_even_if_it_was_interrupted(
    make: Make, tmp_path: Path, mitigation: str, found: int
) -> None:
    (run,) = expand_runs(make(methods=[LORA | {"mitigations": [[{"name": mitigation}]]}], steps=20))
    folder = StudyFolder(tmp_path)
    folder.run(of_steps(run, 10).run_id()).update(status="running")
    assert len(shorter_runs(folder, run, [10])) == found


def test_a_checkpoint_whose_rows_were_changed_is_not_used(make: Make, there: Path) -> None:
    run = next(there.glob("runs/plain-lora-r2-s0-*"))
    rows = (run / "measurements.jsonl").read_text().splitlines()
    (run / "measurements.jsonl").write_text(
        "".join(f"{row}\n" for row in [rows[0].replace('"step": 0', '"step": 1'), *rows[1:]])
    )
    with pytest.raises(UsageError, match=r"cannot be made longer: its rows up to the checkpoint at step 6 are lost or"):
        study(make(methods=SEVERAL, steps=10), there, engine=Local(1))


def test_growing_interrupted_anywhere_resumes_to_the_same_numbers(
    make: Make, there: Path, long: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may be killed after any file that it writes."""
    from forgetting import files

    real, config, cuts = files.os.replace, make(methods=SEVERAL, steps=10), iter(range(1, 100, 3))

    class Killed(BaseException):
        pass

    def ends_after(count: int) -> Callable[..., None]:
        left = [count]

        def replace(source: Any, target: Any) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            real(source, target)

        return replace

    for _ in range(4):
        monkeypatch.setattr(files.os, "replace", ends_after(next(cuts)))
        with pytest.raises(Killed):
            study(config, there, engine=Local(1))
    monkeypatch.setattr(files.os, "replace", real)
    study(config, there, engine=Local(1))
    after = numbers(there)
    assert {run: rows for run, rows in after.items() if run in long} == long
    assert not read_study(there).left.damaged


def test_two_processes_cannot_change_a_study_at_once(make: Make, there: Path) -> None:
    folder = StudyFolder.open(there)
    with folder.runs()[0].lock(), pytest.raises(UsageError, match=r"cannot change \(seeds: .*\) while process \d+ on"):
        study(make(methods=SEVERAL, seeds=[0, 1]), there, engine=Local(1))


def test_removing_a_run_while_a_command_executes_it_stops_the_command(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "s"

    def hear(event: Event) -> None:
        if event.kind == "ended":
            config = yaml.safe_load((out / "study.yaml").read_text())
            (out / "study.yaml").write_text(yaml.safe_dump(config | {"seeds": [0]}))

    with pytest.raises(ForgettingError, match=r"its configuration changed while this command ran, and run"):
        study(make(seeds=[0, 1]), out, engine=Local(1), on_event=hear)
    assert [run["status"] for run in (json.loads(f.read_text()) for f in out.glob("runs/*/run.json"))] == ["done"]


@pytest.mark.slow
def test_flags_add_to_a_study_and_a_plan_says_which(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, corpora: Path
) -> None:
    out = tmp_path / "my study"
    methods = [{"name": "lora", "rank": [1, 2, 3, 4, 6, 8], "alpha": 8}]
    training = {"learning_rate": 3e-3, "warmup_steps": 0}
    study(make(methods=methods, steps=12, training=training, measure={"start": 2, "every": 1}), out, engine=Local(1))
    code, output, error = command(capsys, "plan", out, "--budget", "0.2", "--next-run", "--rank", "2", "--rank", "5")
    assert code == 0, error
    (add,) = re.findall(r"add the first of them: `forgetting (.*)` \(1 run to do\)", output)
    assert shlex.split(add) == ["study", str(out), "--rank", "5"]
    code, _, error = command(capsys, *shlex.split(add))
    assert code == 0, error
    assert "methods[0].rank: there [1, 2, 3, 4, 6, 8], now [1, 2, 3, 4, 6, 8, 5]; 1 run more" in caplog.text
    ranks = [1, 2, 3, 4, 5, 6, 8]
    assert sorted(run.read()["method"]["rank"] for run in StudyFolder.open(out).runs()) == ranks

    code, _, error = command(capsys, "study", out, "--steps", 1)
    assert code == 2
    assert "training.steps: the study has 12, got 1; stored runs cannot be shortened" in error

    more = ("--seed", 1, "--train", corpora / "chat.jsonl", "--steps", 13, "--method", "full", "--prepare")
    code, output, error = command(capsys, "study", out, *more)
    assert code == 0, error
    assert len(output.split()) == 2 * 2 * (len(ranks) + 1)
    found = with_commands(out, [NextRun(rank, 1.0, 13.2, 1.0, 0.5, 0.5) for rank in (2.0, 16.0, 2.5)])
    assert [one.command and shlex.split(one.command)[3:] for one in found] == [
        ["--seed", "2", "--steps", "14"],
        ["--rank", "16", "--steps", "14"],
        None,
    ]
    assert [one.adds for one in found] == [2 * 3 * (len(ranks) + 1), 2 * 2 * (len(ranks) + 2), 0]  # none has them yet
