"""The Python API: public names, types for checkers, arguments of every kind, display of results."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import forgetting
from forgetting.analysis.fit import fit_from_published
from forgetting.errors import UsageError

ROOT = Path(__file__).parent.parent
FUNCTIONS = ("study", "pilot", "measure", "check", "evaluate", "fit", "predict", "plan", "compare", "report", "table")
LAW = "kalajdzievski2024/openorca"


@pytest.mark.full
def test_importing_forgetting_is_light() -> None:
    heavy = "{'torch', 'pandas', 'numpy', 'plotly', 'pydantic'}"
    code = f"import sys, forgetting; dir(forgetting); sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_names_are_the_same_for_readers_checkers_and_python() -> None:
    tree = ast.parse((ROOT / "src" / "forgetting" / "__init__.py").read_text(encoding="utf-8"))
    branch = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in branch.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname: f"{node.module}" for node in imports for alias in node.names}
    assert typed == forgetting._PLACES
    assert sorted(typed) == sorted(forgetting.__all__)
    assert set(forgetting.__all__) <= set(dir(forgetting))
    assert set(FUNCTIONS) <= set(forgetting.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = forgetting.fitt


@pytest.mark.parametrize("name", [*FUNCTIONS, "ForgettingCallback"])
def test_functions_have_signatures_and_docstrings(name: str) -> None:
    function = getattr(forgetting, name)
    assert inspect.isclass(function) if name == "ForgettingCallback" else inspect.isfunction(function)
    parameters = inspect.signature(function).parameters.values()
    assert parameters
    assert all(p.annotation is not p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
    described = inspect.getdoc(function) or ""
    for p in parameters:
        assert p.name in described or name == "check", f"{name}: {p.name} is not described"
    assert not any(inspect.ismodule(getattr(forgetting, one)) for one in forgetting.__all__)


GOOD = """
from pathlib import Path

import forgetting
from forgetting import (
    CheckResult, Comparison, Evaluation, Fit, ForgettingCallback, ForgettingError, GroupedFits, Measurement, Plan,
    Plans, Predictions, StudyConfig, StudyResult, TextConfig, UsageError, check, compare, evaluate, fit, measure, plan,
    predict, report, study, table,
)


def one(adapter: Path) -> float:
    found: Measurement = measure("base", adapter, text=["a", "b"], tolerance=0.005)
    judged: CheckResult = check("base", str(adapter), budget=0.1, text=TextConfig(source="x.txt"))
    asked: Evaluation = evaluate("base", adapter, suites="knowledge", out=Path("out"), limit=3)
    found.figure("frequency")
    print(judged.verdict, judged.measurement.forgetting.se, judged.exit_code(strict=True), asked.to_frame().shape)
    return found.forgetting.value


def runs(config: StudyConfig) -> Plan:
    done: StudyResult = study(config, "studies/mine")
    again: StudyResult = report(done.folder)
    rows = table(again.folder)
    line: Fit = fit(rows, "linear", dataset="news", bootstrap=0)
    grouped: GroupedFits = fit(rows, "linear", by="rank", bootstrap=0)
    made: Predictions = predict(done, ranks=[8, 64], steps=200)
    plans: Plans = plan(line, budget=0.1)
    compared: Comparison = compare({"label": ["a"], "step": [1]}, "a")
    print(line.parameters["c_fft"].low, made.to_frame(), compared.to_dict(), len(done.failed), again.report.name)
    print(grouped.groups)
    return plans["news"]


callback = ForgettingCallback("general.txt", every=50, budget=0.1)
problem: type[ForgettingError] = UsageError
print(forgetting.__version__, [row["step"] for row in callback.rows])
"""

BAD = """
import forgetting
from forgetting import measure

forgetting.mesure("base", "tuned")
measure("base", "tuned").forgeting
measure("base", "tuned", tolerence=0.1)
forgetting.fit("runs.csv", bootstrap="many")
forgetting.check("base", "tuned", budget=0.1).verdit
"""


@pytest.mark.slow
def test_a_type_checker_accepts_a_right_script_and_finds_misspelt_names(tmp_path: Path) -> None:
    """As for a user who installed the package: without our settings and plugins, and only errors in the scripts."""
    pytest.importorskip("mypy")
    for name, text in (("good_script", GOOD), ("bad_script", BAD)):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    large = ("torch", "transformers", "peft", "accelerate", "datasets", "plotly", "lm_eval", "pyarrow", "ray", "scipy")
    sections = [f"[mypy-{name}.*]\nfollow_imports = skip\nignore_missing_imports = True\n" for name in large]
    sections += [f"[mypy-forgetting.*]\nfollow_imports = silent\n\n[mypy]\nmypy_path = {ROOT / 'src'}\n"]
    (tmp_path / "mypy.ini").write_text("\n".join(sections), encoding="utf-8")
    scripts = [str(tmp_path / name) for name in ("good_script.py", "bad_script.py")]
    options = [
        "--strict",
        "--config-file",
        str(tmp_path / "mypy.ini"),
        "--cache-dir",
        str(ROOT / ".mypy_cache" / "user"),
    ]
    command = [sys.executable, "-m", "mypy", *options, *scripts]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert all("bad_script.py" in line for line in errors), done.stdout
    expected = {
        5: 'Module has no attribute "mesure"',
        6: '"Measurement" has no attribute "forgeting"',
        7: 'Unexpected keyword argument "tolerence"',
        8: 'No overload variant of "fit" matches argument types "str", "str"',
        9: '"CheckResult" has no attribute "verdit"',
    }
    for line, message in expected.items():
        assert any(f"bad_script.py:{line}: error: {message}" in error for error in errors), (line, done.stdout)


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: forgetting.study(3), r"study: got int 3; allowed: a StudyConfig, .* a preset"),
    (lambda: forgetting.study("no.yaml"), r"no\.yaml: no such configuration file"),
    (lambda: forgetting.study("miniature", 7), "out: got int 7; allowed: a string, a path, None"),
    (lambda: forgetting.measure(3, "x"), "base: got int 3; allowed: a folder, a Hub id"),
    (lambda: forgetting.measure("x", None), "tuned: got None; allowed"),
    (lambda: forgetting.measure("x", "y", text=4), "text: got int 4; allowed: a file"),
    (lambda: forgetting.measure("x", "y", text=[]), "text: an empty list; give at least one text"),
    (lambda: forgetting.measure("x", "y", text=["a", 3]), r"text\[1\]: got int 3"),
    (lambda: forgetting.measure("x", "y", text={"text": "a"}), r"text\['text'\]: got str 'a'; allowed: a list"),
    (lambda: forgetting.measure("x", "y", tolerance="0.1"), "tolerance: got str '0.1'; allowed: a number, None"),
    (lambda: forgetting.measure("x", "y", bits=5), "bits: got int 5; allowed: 4, 8, None"),
    (lambda: forgetting.measure("x", "y", tolerence=1), "measure: no argument 'tolerence'; did you mean 'tolerance'"),
    (lambda: forgetting.check("x", "y", budget=None), "budget: got None; allowed: a number"),
    (lambda: forgetting.check("x", "y", budget=True), "budget: got bool True; allowed: a number"),
    (lambda: forgetting.evaluate("x", 3), "tuned: got int 3; allowed: a folder"),
    (lambda: forgetting.evaluate("x", "y", suites=[1]), r"suites\[0\]: got int 1; allowed: a string"),
    (lambda: forgetting.evaluate("x", "y", judge=3), "judge: got int 3; allowed: a model's name, a judge"),
    (lambda: forgetting.fit(3), "table: got int 3; allowed: the path of a table or study folder"),
    (lambda: forgetting.fit({"a": 3}), r"table\['a'\]: got int 3; allowed: a list"),
    (lambda: forgetting.fit({"a": [1], "b": []}), "table: columns of different lengths: a 1, b 0"),
    (lambda: forgetting.fit([{"a": 1}, 3]), "table, row 2: got int 3; allowed: a dictionary"),
    (lambda: forgetting.fit({"a": [1]}, 3), "law: got int 3; allowed: a law's name"),
    (
        lambda: forgetting.fit({"a": [1]}, "y = a*b", start={"b": "x"}),
        r"start\['b'\]: got str 'x'; allowed: a number, a pair of numbers",
    ),
    (lambda: forgetting.fit(datasets.DatasetDict()), "table: a DatasetDict has several splits"),
    (lambda: forgetting.predict([LAW]), "law: got list; allowed: a fit"),
    (lambda: forgetting.predict(LAW, ranks="8"), "ranks: got str '8'; allowed: a number, a list of numbers, None"),
    (lambda: forgetting.predict(LAW, steps=[]), "steps: it has no value"),
    (lambda: forgetting.predict(LAW, at={"step": 1}, steps=2), r"at\['step'\]: it is also given by another argument"),
    (lambda: forgetting.plan(LAW, budget="1"), "budget: got str '1'; allowed: a number, None"),
    (lambda: forgetting.plan(LAW), "give either budget or target_loss"),
    (lambda: forgetting.compare(None), "table: got None; allowed"),
    (lambda: forgetting.report(3), "study: got int 3; allowed: a string, a path"),
    (lambda: forgetting.table(None), "study: got None; allowed: a string, a path"),
    (lambda: forgetting.ForgettingCallback(3), "text: got int 3; allowed"),
    (lambda: forgetting.ForgettingCallback(every="5"), "every: got str '5'; allowed: a whole number, None"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_wrong_argument_gives_a_one_line_error(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_each_wrong_field_of_a_study_is_a_line() -> None:
    with pytest.raises(UsageError, match="nam: unknown field; did you mean 'name'") as caught:
        forgetting.study({"nam": "x"})
    heading, *lines = str(caught.value).splitlines()
    assert heading == f"study: {len(lines)} fields are wrong"
    assert [line.split(":")[0] for line in lines] == ["  model", "  text", "  datasets", "  methods", "  nam"]


def runs() -> dict[str, list[Any]]:
    """A table of three runs on the published surface."""
    law = fit_from_published(LAW)
    rows = [(f"r{rank}", 2_498_560 * rank, step) for rank in (8, 64, 256) for step in range(50, 261, 30)]
    columns: dict[str, list[Any]] = {
        "run_id": [run for run, _, _ in rows],
        "trainable_params": [size for _, size, _ in rows],
        "step": [step for _, _, step in rows],
    }
    for output in ("finetune_loss", "forgetting_loss"):
        columns[output] = [float(law.predict(output, trainable_params=p, step=n).value) for _, p, n in rows]
    return columns


def test_a_table_of_every_kind_is_fitted_to_the_same_line(tmp_path: Path) -> None:
    columns = runs()
    frame = pd.DataFrame(columns)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    kinds: list[Any] = [columns, frame, frame.to_dict("records"), datasets.Dataset.from_dict(columns)]
    kinds += [tmp_path / "runs.csv", str(tmp_path / "runs.csv"), [tmp_path / "runs.csv"]]
    lines = [forgetting.fit(table, "linear", bootstrap=0) for table in kinds]
    assert lines[0].r2["forgetting_loss"] > 0.99
    slopes = [line.parameters["c_fft"].value for line in lines]
    assert slopes == pytest.approx([slopes[0]] * len(kinds), rel=1e-12)
    halves = frame.assign(dataset=["a", "b"] * (len(frame) // 2))
    with pytest.raises(UsageError, match="several data sets; give dataset=, one of a, b"):
        forgetting.fit(halves, "linear")
    assert forgetting.fit(halves, "linear", dataset="a", bootstrap=0).n_points == len(frame) // 2


def test_a_fit_shows_its_curve_over_the_rows_that_it_was_fitted_to() -> None:
    columns = runs()
    line = forgetting.fit(columns, "linear", bootstrap=0)
    points = [trace for trace in line.figure().data if trace.mode == "markers"]
    assert list(points[0].x) == pytest.approx(columns["finetune_loss"], rel=1e-8)
    assert list(points[0].y) == pytest.approx(columns["forgetting_loss"], rel=1e-8)
    surface = fit_from_published(LAW).figure("finetune_loss")
    solid = [trace for trace in surface.data if trace.line.dash == "solid"]
    assert len(solid) == 6  # ranks across the measured range
    at = {"trainable_params": 2_498_560 * 8.0, "step": 50.0}
    first = dict(zip(solid[0].x, solid[0].y, strict=True))
    assert first[50.0] == pytest.approx(float(fit_from_published(LAW).predict("finetune_loss", **at).value), rel=1e-6)
    assert "var(--" not in surface.to_json()


def test_predictions_and_plans_take_a_fit_fits_or_a_name() -> None:
    law = fit_from_published(LAW)
    sources: list[Any] = [LAW, law, {law.law: law}, {LAW: {law.law: law}}]
    made = [forgetting.predict(source, ranks=[8, 64], steps=200).to_frame()["forgetting_loss"] for source in sources]
    exact = [float(law.predict("forgetting_loss", trainable_params=2_498_560 * r, step=200).value) for r in (8, 64)]
    assert all(list(one) == pytest.approx(exact, rel=1e-12) for one in made)
    plans = [forgetting.plan(source, budget=0.85, ranks=[8, 64]) for source in sources]
    assert all(list(one) == [LAW] for one in plans)
    steps = plans[0].to_frame()["step"]
    assert list(steps) == [choice.steps.value for choice in plans[1][LAW].frontier]
    json.dumps(plans[0].to_dict(), allow_nan=False)
    by_target = forgetting.plan(law, target_loss=0.68, ranks=8)
    assert by_target[LAW].frontier[0].steps.value > 0


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.full
def test_text_of_every_kind_measures_the_same(tiny_model: Path, adapter: Path, corpora: Path) -> None:
    rows = [json.loads(line) for line in (corpora / "general.jsonl").read_text().splitlines()]
    frame, texts = pd.DataFrame(rows), [row["text"] for row in rows]
    kinds: list[Any] = [corpora / "general.jsonl", forgetting.TextConfig(source=str(corpora / "general.jsonl"))]
    kinds += [texts, tuple(texts), frame, datasets.Dataset.from_list(rows), rows, {"text": texts}]
    found = [forgetting.measure(tiny_model, adapter, text=text, cache_dir=None) for text in kinds]
    assert found[0].forgetting.value > 0
    assert all(one.means == found[0].means for one in found)
    assert all(one.documents_in_text == len(rows) for one in found)
    verdict = forgetting.check(tiny_model, adapter, budget=1e-6, text=texts, cache_dir=None)
    assert (verdict.verdict, verdict.exit_code()) == ("over", 3)
    assert verdict.measurement.means == found[0].means
    assert verdict.to_dict()["forgetting"] == found[0].forgetting.value
    bars = verdict.measurement.figure("frequency").data[0]
    assert list(bars.x) == [group.label for group in found[0].where().by_frequency]
    assert list(bars.y) == pytest.approx([group.change.value for group in found[0].where().by_frequency], rel=1e-6)


HOSTILE = "<img src=x onerror=alert(1)>"


def shown(result: Any) -> str:
    """A notebook's view of a result, with every tag known."""
    page = result._repr_html_()
    tags = set(re.findall(r"<(/?[a-z]+)", page))
    allowed = {"div", "p", "strong", "br", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert {tag.removeprefix("/") for tag in tags} <= allowed
    assert "onerror=alert" not in page.replace("&lt;img src=x onerror=alert(1)&gt;", "")
    return str(page)


@pytest.fixture(scope="module")
def finished(tiny_model: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    fields = {
        "name": "two",
        "model": {"source": str(tiny_model)},
        "text": {"source": str(corpora / "general.jsonl")},
        "datasets": {"chat": {"source": str(corpora / "chat.jsonl")}},
        "methods": [{"name": "lora", "rank": [1, 2]}, {"name": "full"}],
        "context": 32,
        "training": {"steps": 4, "batch_size": 4, "learning_rate": 0.02, "warmup_steps": 1},
        "measure": {"start": 2, "every": 1},
    }
    return forgetting.study(fields, tmp_path_factory.mktemp("studies") / "two")


@pytest.mark.full
def test_study_takes_fields_and_report_returns_the_same_result(finished: Any) -> None:
    assert len(finished.table) == 3 * 4
    assert finished.fits["chat"]["linear"].n_points == 6
    assert finished.comparison.reference == "lora"
    assert finished.report.read_text(encoding="utf-8").rstrip().endswith("</html>")
    again = forgetting.report(str(finished.folder))
    pd.testing.assert_frame_equal(again.table, forgetting.table(finished.folder))
    assert again.fits["chat"]["linear"] == finished.fits["chat"]["linear"]
    assert forgetting.study(finished.folder).skipped != ()  # resumed: nothing is left
    json.dumps(finished.to_dict(), allow_nan=False)
    assert forgetting.fit(finished.table, "linear").parameters == finished.fits["chat"]["linear"].parameters
    assert forgetting.fit(finished, "linear").parameters == finished.fits["chat"]["linear"].parameters
    assert forgetting.compare(finished).reference == "lora"
    with pytest.raises(UsageError, match="figure: no chart 'lines'; did you mean 'line'"):
        finished.figure(kind="lines")


@pytest.mark.full
def test_figures_are_those_of_the_report(finished: Any) -> None:
    page = finished.report.read_text(encoding="utf-8")
    blocks = re.findall(r'class="payload" data-panel="(\w+)">(.*?)</script>', page, re.S)
    payload = {name: json.loads(text) for name, text in blocks}
    for chart in payload["d0"]["charts"]:
        figure = finished.figure("chat", kind=chart["kind"])
        assert len(figure.data) == len(chart["spec"]["data"])
        for drawn, expected in zip(figure.data, chart["spec"]["data"], strict=True):
            assert list(drawn.x) == expected["x"]
            assert list(drawn.y) == expected["y"]
        assert "var(--" not in figure.to_json()
    plane = finished.comparison.figure()
    expected = payload["c0"]["charts"][0]["spec"]["data"]
    assert [list(trace.y) for trace in plane.data] == [trace["y"] for trace in expected]


@pytest.mark.full
def test_results_show_tables_and_escape_every_name(finished: Any, tiny_model: Path, adapter: Path) -> None:
    columns = runs() | {"dataset": [HOSTILE] * 24, "label": [HOSTILE] * 8 + ["other"] * 16}
    line = forgetting.fit(columns, "linear", bootstrap=0)
    plans = forgetting.plan({HOSTILE: {"shifted_power": fit_from_published(LAW)}}, budget=0.85)
    compared = forgetting.compare(columns, "other")
    measured = forgetting.check(tiny_model, adapter, budget=1, text=["the old town", "the new bread"] * 40, context=2)
    predictions = forgetting.predict({HOSTILE: {"linear": line}}, at={"finetune_loss": [0.7, 0.8]})
    for result in (line, plans, plans[HOSTILE], compared, predictions):
        assert "&lt;img" in shown(result)
        assert str(result)
        assert not result.to_frame().empty
    for result in (finished, measured, measured.measurement):
        shown(result)
        assert not result.to_frame().empty
    for figure in (line.figure(), compared.figure()):
        assert HOSTILE not in str(figure.to_dict())
    assert "lora" in str(finished)
