"""Trackers: each row arrives once, also after an interruption. No tracker ends a run or changes a number."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from forgetting.config.schema import StudyConfig, TrackerName
from forgetting.errors import UsageError
from forgetting.store.folder import StudyFolder
from forgetting.studies import tracking
from forgetting.studies.conclude import study
from forgetting.studies.trackers import TRACKERS, Opening, Outcome, Tracker
from forgetting.tuning import stopping
from forgetting.tuning.grid import runs_by_id
from short_study import configure
from small_study import command, numbers

SECRET = "hf_" + "plantedplantedplantedplantedplanted"


class Memory(Tracker):
    """A tracker that stores what it gets and fails at a chosen step."""

    name = package = "memory"
    runs: ClassVar[dict[str, dict[str, Any]]] = {}
    fails_at: int | None = None

    def __init__(self, opening: Opening) -> None:
        self.run = self.runs.setdefault(opening.id, {"rows": [], "opening": opening, "openings": 0, "outcomes": []})
        self.run["openings"] += 1

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        import random

        random.random()
        print("what a tracker prints")
        if step == self.fails_at:
            raise ConnectionError(f"server said no to {SECRET}\nand more")
        self.run["rows"].append((step, dict(numbers)))

    def close(self, outcome: Outcome) -> None:
        self.run["outcomes"].append(outcome)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> type[Memory]:
    """Replaces TensorBoard, whose package is installed."""
    monkeypatch.setitem(TRACKERS._things, "tensorboard", Memory)
    monkeypatch.setattr(Memory, "runs", {})
    monkeypatch.setattr(Memory, "fails_at", None)
    pytest.importorskip("tensorboard")
    return Memory


def configured(tiny_model: Path, corpora: Path, *names: str, **changes: Any) -> StudyConfig:
    texts = {"more": {"source": str(corpora / "train.jsonl"), "max_documents": 4}}
    steps = {"training": {"steps": 8, "batch_size": 4, "warmup_steps": 1, "learning_rate": 1e-2}}
    return configure(
        tiny_model, corpora, texts=texts, measure={"start": 2, "every": 2}, tracking=list(names), **steps, **changes
    )


def sent(memory: type[Memory]) -> dict[str, dict[str, Any]]:
    return {run["opening"].name: run for run in memory.runs.values()}


@pytest.fixture(scope="module")
def plain(tiny_model: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study without a tracker."""
    out = tmp_path_factory.mktemp("tracking") / "plain"
    study(configured(tiny_model, corpora, seeds=[0, 1]), out)
    return out


def test_the_names_are_those_of_the_configuration() -> None:
    assert set(TRACKERS) == set(TrackerName.__args__)


def test_every_row_arrives_and_no_number_changes(
    memory: type[Memory], plain: Path, tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tracked"
    config = configured(tiny_model, corpora, "tensorboard", seeds=[0, 1])
    made = study(config, out)
    assert numbers(out) == numbers(plain)  # run ids, too
    runs = sent(memory)
    laws = runs.pop("laws")
    assert set(runs) == set(runs_by_id(config))
    for run in StudyFolder.open(out).runs():
        rows, got = run.measurements(), runs[run.id]
        assert [step for step, _ in got["rows"]] == [row["step"] for row in rows] == [0, 2, 4, 6, 8]
        last, stored = got["rows"][-1][1], rows[-1]
        assert last["forgetting/forgetting"] == stored["forgetting"]
        assert last["forgetting/more/forgetting_se"] == stored["forgetting[more]_se"]
        assert len(last) == sum(value is not None for value in stored.values()) - 1
        opening = got["opening"]
        assert opening.tags == {"dataset": "chat", "method": "lora", "rank": "4", "seed": str(run.read()["seed"])}
        assert opening.config["training.steps"] == 8
        assert opening.config["run_id"] == run.id
        assert opening.group == opening.config["study"] == "tracked"
        assert got["outcomes"] == ["done"]
    (step, summary), fit = laws["rows"][0], made.fits["chat"]["linear"]
    assert step == fit.n_points == summary["laws/chat/linear/rows"]
    assert summary["laws/chat/linear/c_fft"] == fit.parameters["c_fft"].value
    assert summary["laws/chat/linear/r2_forgetting_loss"] == fit.r2["forgetting_loss"]
    study(config, out)  # nothing is left to do or to send
    assert all(run["openings"] == 1 for run in memory.runs.values())


def test_an_interrupted_run_resumes_in_its_tracker_run(
    memory: type[Memory], plain: Path, tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    out, config = tmp_path / "cut", configured(tiny_model, corpora, "tensorboard", seeds=[0, 1])

    def stop_at_5(event: Any) -> None:
        if event.step == 5:
            stopping.request(2)

    with pytest.raises(stopping.StoppedError):
        study(config, out, on_event=stop_at_5)
    (cut,) = memory.runs.values()
    assert (cut["outcomes"], len(cut["rows"])) == (["stopped"], 3)
    study(config, out)
    assert numbers(out) == numbers(plain)
    assert [step for step, _ in cut["rows"]] == [0, 2, 4, 6, 8]
    assert (cut["openings"], cut["outcomes"]) == (2, ["stopped", "done"])
    assert len(memory.runs) == 3  # two runs and the laws


def test_a_finished_study_can_be_sent_later(
    memory: type[Memory], tiny_model: Path, corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "later"
    study(configured(tiny_model, corpora), out)
    assert command(capsys, "study", out, "--tracking", "tensorboard", "--json")[0] == 0
    assert StudyFolder.open(out).config().tracking == ("tensorboard",)
    assert [step for step, _ in sent(memory)[next(iter(numbers(out)))]["rows"]] == [0, 2, 4, 6, 8]


def test_a_tracker_that_fails_is_a_warning_once(
    memory: type[Memory],
    monkeypatch: pytest.MonkeyPatch,
    plain: Path,
    tiny_model: Path,
    corpora: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(memory, "fails_at", 4)
    out = tmp_path / "failing"
    config = configured(tiny_model, corpora, "tensorboard")
    study(config, out)
    messages = [record.getMessage() for record in caplog.records if "tracking" in record.getMessage()]
    (run,) = StudyFolder.open(out).runs()
    why = "ConnectionError: server said no to [secret]"
    assert messages[0] == f"tracking: tensorboard failed, and run {run.id} continues without it: {why}"
    assert len(messages) == 2  # in the run, and when its missing rows were tried again at the end
    assert messages[0] in run.read()["notices"]
    assert numbers(out)[run.id] == numbers(plain)[run.id]
    assert "what a tracker prints" not in capsys.readouterr().out
    monkeypatch.setattr(memory, "fails_at", None)
    study(config, out)  # only the rows that it lacks are sent
    assert [step for step, _ in sent(memory)[run.id]["rows"]] == [0, 2, 4, 6, 8]


def test_unusable_trackers_are_refused_before_the_study_starts(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^tracking: trackio is not installed; run: pip install trackio$"):
        study(configured(tiny_model, corpora, "trackio"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="tracking contains a name twice"):
        configured(tiny_model, corpora, "mlflow", "mlflow")
    with pytest.raises(UsageError, match=r"'neptune'.*wandb"):
        configured(tiny_model, corpora, "neptune")


def test_wandb_without_a_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    fake = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    fake.api = types.SimpleNamespace(api_key=None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = configured(tiny_model, corpora, "wandb")
    with pytest.raises(UsageError, match=r"^tracking: wandb has no API key; run `wandb login`, or set WANDB_MODE=offl"):
        tracking.check(config)
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking.check(config)


@pytest.fixture
def written(
    tiny_model: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """A study in the tracker that the test names, with a secret in its environment and its configuration."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "MY_SECRET_TOKEN": SECRET,
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_PROJECT", "WANDB_DIR", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    pytest.importorskip(request.param)  # read its variables when it is imported
    out, data = tmp_path / "out", {"source": str(corpora / "chat.jsonl"), "prompt_column": SECRET}
    study(configured(tiny_model, corpora, request.param, datasets={"chat": data}), out)
    files = [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert {file.relative_to(out) for file in files} <= {Path("study.yaml"), Path("report.html")}  # as it was given
    return out


@pytest.mark.parametrize("written", ["tensorboard"], indirect=True)
def test_tensorboard(written: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = StudyFolder.open(written).runs()
    (events,) = (written / "tracking" / "tensorboard").glob(f"{run.id}-*")
    read = EventAccumulator(str(events)).Reload()
    got = {one.step: one.value for one in read.Scalars("forgetting/forgetting")}
    assert got == pytest.approx({row["step"]: row["forgetting"] for row in run.measurements()}, rel=1e-6)


@pytest.mark.parametrize("written", ["mlflow"], indirect=True)
def test_mlflow(written: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("study")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    (stored,) = StudyFolder.open(written).runs()
    run = runs[stored.id]
    assert set(runs) == {stored.id, "laws"}
    assert run.info.status == "FINISHED"
    assert run.data.params["training.steps"] == "8"
    assert (run.data.tags["dataset"], run.data.tags["rank"]) == ("chat", "4")
    history = client.get_metric_history(run.info.run_id, "forgetting/more/forgetting")
    assert {m.step: m.value for m in history} == {r["step"]: r["forgetting[more]"] for r in stored.measurements()}
    assert len(history) == 5


@pytest.mark.parametrize("written", ["wandb"], indirect=True)
def test_wandb(written: Path) -> None:
    files = sorted((written / "tracking" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert any(b"forgetting/more/forgetting" in file.read_bytes() for file in files)
    assert any(b"laws/chat/linear/c_fft" in file.read_bytes() for file in files)


@pytest.mark.parametrize("written", ["trackio"], indirect=True)
def test_trackio(written: Path) -> None:
    import sqlite3

    (stored,) = StudyFolder.open(written).runs()
    with sqlite3.connect(next((written.parent / "trackio").glob("*.db"))) as base:
        rows = base.execute("select run_name, step, metrics from metrics order by step").fetchall()
    got = {step: json.loads(text)["forgetting/forgetting"] for name, step, text in rows if not name.startswith("laws")}
    assert got == {row["step"]: row["forgetting"] for row in stored.measurements()}
