"""Attacks: each is refused with one clear error, and its payload does not run.

Every payload creates a file; `test_the_payload_is_live` shows that it does if nothing prevents it.
"""

from __future__ import annotations

import ast
import errno
import functools
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from forgetting import files
from forgetting.analysis.fit import fit_law
from forgetting.analysis.laws import FormulaLaw
from forgetting.analysis.laws.formula import parse
from forgetting.analysis.tables import read_table
from forgetting.cli import main
from forgetting.config.files import parse_yaml, read_fields
from forgetting.config.schema import ModelConfig, TextConfig, Variant
from forgetting.data.sources import read_rows
from forgetting.errors import ForgettingError, UsageError
from forgetting.models.attaching import adapter_config, attach
from forgetting.models.loading import load_base
from forgetting.models.sources import find
from forgetting.store.folder import StudyFolder
from forgetting.store.table import load_table

pytestmark = pytest.mark.full

ATTACK = "<script>window.pwned=1</script><img src=x onerror=window.pwned=1>\"'><svg onload=window.pwned=1>"


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    return tmp_path / "planted"


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["forgetting", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    output = capsys.readouterr()
    return int(stopped.value.code or 0), output.out + output.err


def test_the_payload_is_live(planted: Path) -> None:
    pickle.loads(pickle.dumps(Payload(planted)))
    assert planted.exists()


# pickles


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_planted_as_a_model_is_refused(tiny_model: Path, tmp_path: Path, planted: Path, name: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Payload(planted)))
    with pytest.raises(UsageError, match="pickled weights are refused"):
        load_base(ModelConfig(source=str(model)))
    # the same next to safetensors that are not the model's
    (model / "other.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes())
    with pytest.raises(UsageError):
        load_base(ModelConfig(source=str(model)))
    assert not planted.exists()


@functools.cache
def _saved_adapter(tiny_model: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    model = load_base(ModelConfig(source=str(tiny_model))).model
    folder = tiny_model.with_name("adapter-of-tiny")
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(folder)
    return folder


def _adapter(tiny_model: Path, folder: Path) -> Path:
    """A new adapter, for the test to damage."""
    return shutil.copytree(_saved_adapter(tiny_model), folder, dirs_exist_ok=True)


def test_a_pickle_planted_as_an_adapter_is_refused(tiny_model: Path, tmp_path: Path, planted: Path) -> None:
    adapter = _adapter(tiny_model, tmp_path / "adapter")
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Payload(planted)))
    base = load_base(ModelConfig(source=str(tiny_model)))
    attach(base.model, find(str(adapter)))  # it is not read if there are safetensors
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match="pickled weights are refused"):
        adapter_config(find(str(adapter)))
    assert not planted.exists()


def test_a_pickle_on_the_hub_is_refused(
    tiny_model: Path, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's cache contains a repository with adapter_model.bin and without safetensors."""
    import huggingface_hub
    from huggingface_hub import constants

    snapshot = tmp_path / "hub" / "models--evil--adapter" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    (snapshot / "adapter_model.bin").write_bytes(pickle.dumps(Payload(planted)))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = huggingface_hub.hf_hub_download("evil/adapter", "adapter_model.bin", cache_dir=str(tmp_path / "hub"))
    assert Path(found).exists()
    with pytest.raises(UsageError, match="pickled weights are refused"):
        attach(load_base(ModelConfig(source=str(tiny_model))).model, find("evil/adapter"))
    assert not planted.exists()


def test_an_adapter_that_names_code_to_import_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapter = _adapter(tiny_model, tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text()) | {"megatron_config": {"x": 1}, "megatron_core": "antigravity"}
    file.write_text(json.dumps(config))
    with pytest.raises(UsageError, match="names code to import"):
        adapter_config(find(str(adapter)))
    assert "antigravity" not in sys.modules


@pytest.mark.full
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_planted_into_a_checkpoint_does_not_run_on_resume(
    tiny_model: Path, tmp_path: Path, planted: Path, name: str
) -> None:
    """What the Trainer reads when it resumes: it must load tensors only, under the oldest versions as the newest."""
    import torch
    from transformers import Trainer, TrainingArguments

    def trainer() -> Any:
        model = load_base(ModelConfig(source=str(tiny_model))).model
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=2, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
        )
        rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8
        return Trainer(model=model, args=arguments, train_dataset=rows)

    trainer().train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    (checkpoint / name).write_bytes(pickle.dumps(Payload(planted)))
    with pytest.raises(pickle.UnpicklingError):
        trainer().train(resume_from_checkpoint=str(checkpoint))
    assert not planted.exists()


# code of a model


def _with_code(tiny_model: Path, folder: Path, planted: Path) -> Path:
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "architectures": ["Evil"]}
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(
        f"import os\nos.makedirs({str(planted)!r}, exist_ok=True)\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class EvilConfig(LlamaConfig):\n    model_type = 'evil'\n"
        "class Evil(LlamaForCausalLM):\n    config_class = EvilConfig\n"
    )
    return folder


def test_the_key_of_a_base_model_covers_its_code(
    tiny_model: Path, tmp_path: Path, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise base targets that the code gave before it was changed would be compared with what it gives now."""
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = _with_code(tiny_model, tmp_path / "model", planted)
    config = ModelConfig(source=str(model), trust_remote_code=True)
    first, again = load_base(config), load_base(config)
    (model / "evil.py").write_text((model / "evil.py").read_text() + "# changed\n")
    changed = load_base(config)
    assert first.key == again.key == first.reference_key != changed.key
    assert first.revision == changed.revision


def test_code_of_a_model_runs_only_with_its_flag_and_is_recorded(
    tiny_model: Path, tmp_path: Path, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = _with_code(tiny_model, tmp_path / "model", planted)
    with pytest.raises(UsageError, match="trust_remote_code"):
        load_base(ModelConfig(source=str(model)))
    assert not planted.exists()
    load_base(ModelConfig(source=str(model), trust_remote_code=True))
    assert planted.exists()
    from scale_study import one_run

    trusting = one_run(model, trust=True)
    assert trusting.model_dump(mode="json")["model"]["trust_remote_code"] is True  # what run.json holds as `config`
    assert trusting.run_id() != one_run(model, trust=False).run_id()


def _native_with_code(tiny_model: Path, folder: Path, planted: Path) -> Path:
    """A Llama whose configuration also names code: transformers knows the model, and asks whether to run the code."""
    shutil.copytree(tiny_model, folder)
    shipped = f"import os\nos.makedirs({str(planted)!r}, exist_ok=True)\n"
    (folder / "evil.py").write_text(
        shipped + "from transformers import LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Evil(LlamaForCausalLM):\n    pass\nclass EvilTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    for name, added in (
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "evil.Evil", "AutoModel": "evil.Evil"}}),
        (
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}, "tokenizer_class": "EvilTokenizer"},
        ),
    ):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | added))
    return folder


class Yes(io.StringIO):
    """A terminal that answers yes to every question."""

    asked = 0

    def isatty(self) -> bool:
        return True

    def readline(self, *_: Any) -> str:
        self.asked += 1
        return "y\n"


@pytest.fixture(params=["a terminal that says yes", "closed"])
def terminal(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Yes | None:
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    typed = Yes() if request.param != "closed" else None
    monkeypatch.setattr(sys, "stdin", typed)
    return typed


def test_a_library_that_is_not_told_asks_and_runs_code(
    tiny_model: Path, tmp_path: Path, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.dynamic_module_utils as modules
    from transformers import AutoTokenizer

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "stdin", typed := Yes())
    AutoTokenizer.from_pretrained(str(_native_with_code(tiny_model, tmp_path / "model", planted)))
    assert typed.asked == 1
    assert planted.exists()


def test_planning_for_a_model_runs_none_of_its_code(
    tiny_model: Path,
    tmp_path: Path,
    planted: Path,
    terminal: Yes | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = _native_with_code(tiny_model, tmp_path / "model", planted)
    _, output = run(monkeypatch, capsys, "plan", "kalajdzievski2024/openorca", "--budget", 0.8, "--model", model)
    evil = _with_code(tiny_model, tmp_path / "evil", planted)
    from forgetting.analysis.plan.count import count_model

    with pytest.raises(UsageError, match="is not run just to count parameters") as caught:
        count_model(str(evil))
    assert "\n" not in str(caught.value)
    assert count_model(str(model)) == count_model(str(tiny_model))
    assert terminal is None or not terminal.asked
    assert not planted.exists(), output


@pytest.mark.parametrize("kind", ["a full model", "an adapter"])
def test_a_tuned_models_tokenizer_runs_no_code(
    tiny_model: Path,
    corpora: Path,
    tmp_path: Path,
    planted: Path,
    terminal: Yes | None,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tuned = _native_with_code(tiny_model, tmp_path / "tuned", planted)
    if kind == "an adapter":
        (tuned / "config.json").unlink()
        (tuned / "model.safetensors").unlink()
        _adapter(tiny_model, tuned)
    how = ("--text", corpora / "general.jsonl", "--context", 32, "--no-cache")
    code, output = run(monkeypatch, capsys, "measure", tiny_model, tuned, *how)
    assert terminal is None or not terminal.asked
    assert not planted.exists()
    assert "Traceback" not in output
    assert code in (0, 2), output


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"peft_type": "SHADOW", "shadow_model": "{evil}"}, "shadow_model: names another model"),
        (
            {"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "{evil}/x.bin"},
            "prompt_tuning_init_state_dict_path: names another model",
        ),
        ({"peft_type": "XLORA", "adapters": {"0": "{evil}"}}, "adapters: names other adapters"),
        ({"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}}, "tokenizer_kwargs"),
    ],
)
def test_an_adapter_loads_no_other_model(
    tiny_model: Path,
    tmp_path: Path,
    planted: Path,
    terminal: Yes | None,
    fields: dict[str, Any],
    says: str,
    context: Any,
) -> None:
    from forgetting.tuning.methods import METHODS

    evil = _native_with_code(tiny_model, tmp_path / "evil", planted)
    given = json.loads(json.dumps(fields).replace("{evil}", str(evil)))
    adapter = _adapter(tiny_model, tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | given))
    with pytest.raises(UsageError, match=says):
        adapter_config(find(str(adapter)))
    base = load_base(ModelConfig(source=str(tiny_model))).model
    with pytest.raises(UsageError, match=f"methods.peft.config: {says}"):
        METHODS.parse(Variant(name="peft", config=given)).prepare(base, context)
    assert terminal is None or not terminal.asked
    assert not planted.exists()


def test_a_prompt_from_text_asks_nothing(
    tiny_model: Path, tmp_path: Path, planted: Path, terminal: Yes | None, context: Any
) -> None:
    """PEFT loads the tokenizer that the configuration names, and does not say whether its code may run."""
    from forgetting.tuning.methods import METHODS

    evil = _native_with_code(tiny_model, tmp_path / "evil", planted)
    given = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "prompt_tuning_init": "TEXT"}
    given |= {"prompt_tuning_init_text": "the old river", "tokenizer_name_or_path": str(evil)}
    base = load_base(ModelConfig(source=str(tiny_model))).model
    with pytest.raises(UsageError, match=r"methods\.peft\.config"):
        METHODS.parse(Variant(name="peft", config=given)).prepare(base, context)
    assert terminal is None or not terminal.asked
    assert not planted.exists()


LOADERS = ("from_pretrained", "from_config")
OURS = ("PeftConfig", "PeftModel")
"""Classes of PEFT, which know no such flag: their configurations are checked first."""


def test_every_call_that_may_load_a_model_says_whether_its_code_may_run() -> None:
    source = Path(files.__file__).parent
    found, silent = 0, []
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            calls = [node.func, *node.args] if isinstance(node, ast.Call) else []
            for called in calls:  # as an argument it is called by `load_pretrained`, with the options beside it
                if not isinstance(called, ast.Attribute) or called.attr not in LOADERS:
                    continue
                if isinstance(called.value, ast.Name) and called.value.id in OURS:
                    continue
                found += 1
                options = [word.arg for word in node.keywords]  # type: ignore[attr-defined]
                if not {"trust_remote_code", None} & {*options}:
                    silent.append(f"{path.relative_to(source)}:{node.lineno}")  # type: ignore[attr-defined]
    assert not silent
    assert found >= 6


# YAML


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir ['{planted}']",
        "name: !!python/object/new:os.mkdir ['{planted}']",
        "name: !!python/name:os.system",
        "name: !!python/module:os",
    ],
)
def test_yaml_that_would_run_code_is_refused(text: str, planted: Path) -> None:
    with pytest.raises(UsageError, match="could not determine a constructor"):
        parse_yaml(text.format(planted=planted), where="f.yaml")
    assert not planted.exists()


def laughs(levels: int) -> str:
    rows = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(rows)


HOSTILE_YAML = [
    (laughs(30), "more than 100,000 values with its aliases written out"),
    ("a: &a [*a]", "an alias that contains itself"),
    ("a: &a\n  b: *a", "an alias that contains itself"),
    pytest.param("[" * 5000, "nested too deeply", marks=pytest.mark.full),
    ("a: " + "{a: " * 5000, "nested too deeply"),
    ("name: x\nname: y", "'name' occurs twice"),
    ("a: " + "x" * 2**22, "a configuration may have at most 4,194,304"),
    ("a: 2001-99-99", "a value cannot be read"),
    ("a: " + "9" * 5000, "a value cannot be read"),
    ("? [1]\n: 2", "unhashable"),
    ("a: \x00", "special characters are not allowed"),
]


@pytest.mark.parametrize(("text", "says"), HOSTILE_YAML)
def test_hostile_yaml_is_one_error(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_yaml(text, where="f.yaml")
    assert str(caught.value).startswith("f.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_honest_aliases_and_merges_are_read() -> None:
    text = "base: &b {steps: 5}\none: *b\ntwo:\n  <<: *b\n  x: 1"
    assert parse_yaml(text, where="f") == {"base": {"steps": 5}, "one": {"steps": 5}, "two": {"steps": 5, "x": 1}}


# paths


@pytest.fixture
def many(tmp_path: Path) -> Path:
    from scale_study import make

    make(tmp_path / "many", 6, measurements=6)
    return tmp_path / "many"


@pytest.mark.parametrize(
    "name", ["../../out", "/tmp/out", "a/b", "..", ".", "", "a\0b", "a\nb", "x" * 300, "-rf", ".git"]
)
def test_a_run_id_cannot_leave_the_folder(many: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not a run id"):
        StudyFolder.open(many).run(name)


@pytest.mark.full
@pytest.mark.parametrize("where", ["name", "dataset", "label", "method", "mitigation"])
@pytest.mark.parametrize("bad", ["../../out", "/tmp/out", "a/b", "..", ATTACK])
def test_names_in_a_hand_edited_study_cannot_leave_the_folder(
    many: Path, where: str, bad: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = many / "study.yaml"
    fields = yaml.safe_load(file.read_text())
    if where == "name":
        fields["name"] = bad
    elif where == "dataset":
        fields["datasets"] = {bad: fields["datasets"]["news"]}
    elif where == "label":
        fields["methods"][0]["label"] = bad
    elif where == "method":
        fields["methods"][0]["name"] = bad
    else:
        fields["methods"][0]["mitigations"] = [{"name": bad}]
    file.write_text(yaml.safe_dump(fields))
    before = sorted(many.parent.rglob("*"))
    code, output = run(monkeypatch, capsys, "study", many)
    assert code == 2, output
    assert "Traceback" not in output
    assert sorted(many.parent.rglob("*")) == before


def test_a_hand_edited_run_record_leads_nowhere_and_is_escaped(many: Path) -> None:
    from forgetting.studies.conclude import conclude

    victim = StudyFolder.open(many).runs()[0]
    record = json.loads((victim.path / "run.json").read_text())
    evil = record | {"run_id": "../../../out", "why": ATTACK, "notices": [ATTACK], "base": ATTACK, "label": ATTACK}
    evil |= {"versions": {ATTACK: ATTACK}, "hardware": {ATTACK: ATTACK}, "started": ATTACK, "mitigation": ATTACK}
    evil |= {"dataset": ATTACK, "status": ATTACK}
    (victim.path / "run.json").write_text(json.dumps(evil))
    before = set(many.parent.rglob("*"))
    check_page(conclude(many).report.read_text(encoding="utf-8"))
    assert {path.parent for path in set(many.parent.rglob("*")) - before} <= {many, many / "cache"}


@pytest.mark.parametrize("name", ["measurements.jsonl", "lock"])
def test_a_link_in_a_runs_folder_is_not_written_through(many: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    folder = StudyFolder.open(many).runs()[0]
    (folder.path / name).unlink(missing_ok=True)
    (folder.path / name).symlink_to(victim)

    def write() -> None:
        if name == "lock":
            with folder.lock():
                pass
        else:
            folder.append({"step": 1})

    with pytest.raises(ForgettingError, match="symbolic link"):
        write()
    assert victim.read_text() == "precious"


LINKED = [
    "runs",
    "runs/{run}",
    "runs/{run}/run.json",
    "runs/{run}/measurements.jsonl",
    "runs/{run}/checkpoints",
    "runs/{run}/checkpoints/checkpoint-5",
    "runs/{run}/adapter",
    "runs/{run}/adapter.partial",
    "cache",
    "cache/rows.parquet",
    "capabilities",
    "report.html",
    "fits.json",
]


def _moved_behind_a_link(study: Path, where: str, elsewhere: Path) -> Path:
    """Move a part of a study elsewhere, and leave a link to it."""
    link = study / where.format(run=StudyFolder.open(study).runs()[0].id)
    target = elsewhere / link.name
    elsewhere.mkdir()
    if link.exists():
        shutil.move(link, target)
    elif link.suffix:
        link.parent.mkdir(exist_ok=True)
        target.write_text("precious")
    else:
        (target / "checkpoint-3").mkdir(parents=True)
        (target / "checkpoint-3" / "precious.txt").write_text("precious")
        link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    return link


def _content(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("where", LINKED)
def test_a_link_inside_a_study_is_refused_and_its_target_is_unchanged(many: Path, tmp_path: Path, where: str) -> None:
    link = _moved_behind_a_link(many, where, tmp_path / "elsewhere")
    run_id = "-".join(link.parts[link.parts.index("runs") + 1 :][:1]) if "{run}" in where else None
    before = _content(tmp_path / "elsewhere")

    def work() -> None:
        study = StudyFolder.open(many)
        one = study.run(run_id) if run_id else study.runs()[0]
        load_table(many)
        with one.lock():
            pass

    with pytest.raises(UsageError, match="a symbolic link out of the folder") as caught:
        work()
    assert str(caught.value).startswith(f"{link}: ")
    assert _content(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("where", ["checkpoints", "checkpoints/checkpoint-3"])
def test_checkpoints_behind_a_link_are_not_deleted(tmp_path: Path, where: str) -> None:
    from forgetting.tuning import checkpoints

    outside = tmp_path / "outside" / "checkpoint-3"
    outside.mkdir(parents=True)
    (outside / "precious.txt").write_text("precious")
    (tmp_path / "run" / where).parent.mkdir(parents=True)
    (tmp_path / "run" / where).symlink_to(outside if "3" in where else outside.parent)
    folder = tmp_path / "run" / "checkpoints"
    for call in (checkpoints.newest, checkpoints.drop_unfinished, lambda f: checkpoints.mark(f / "checkpoint-3")):
        with pytest.raises(UsageError, match="symbolic link"):
            call(folder)
    assert (outside / "precious.txt").read_text() == "precious"
    (folder if where == "checkpoints" else folder / "checkpoint-3").unlink()
    shutil.copytree(outside, folder / "checkpoint-3", dirs_exist_ok=True)
    checkpoints.newest(folder)
    assert not (folder / "checkpoint-3").exists()  # an unfinished checkpoint of the run itself is deleted


@pytest.mark.full
def test_a_resumed_study_writes_and_deletes_nothing_behind_links(
    tiny_model: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--model {tiny_model} --train {corpora / 'train.jsonl'} --text {corpora / 'general.jsonl'} --context 32"
    flags += " --steps 12 --batch-size 4 --measure-start 2 --measure-every 10"
    out = tmp_path / "study"
    code, output = run(monkeypatch, capsys, "study", *flags.split(), "--out", out)
    assert code == 0, output
    folder = StudyFolder.open(out).runs()[0]
    folder.update(status="running")
    outside = tmp_path / "outside"
    (outside / "checkpoint-2").mkdir(parents=True)
    (outside / "checkpoint-2" / "precious.txt").write_text("precious")
    (folder.path / "checkpoints").rename(tmp_path / "own")
    (folder.path / "checkpoints").symlink_to(outside)
    code, output = run(monkeypatch, capsys, "study", out)
    assert code in (1, 2)
    assert output.count("error: ") == 1
    assert f"{folder.path / 'checkpoints'}: a symbolic link" in output
    assert _content(outside) == {str(outside / "checkpoint-2" / "precious.txt"): b"precious"}
    (folder.path / "checkpoints").unlink()
    (tmp_path / "own").rename(folder.path / "checkpoints")
    (tmp_path / "way").symlink_to(out)  # the study folder itself may be reached through a link
    code, output = run(monkeypatch, capsys, "study", tmp_path / "way")
    assert code == 0, output


def test_answers_behind_a_link_are_not_written(tmp_path: Path) -> None:
    from forgetting.capabilities.answers import AnswerStore

    store = AnswerStore(tmp_path / "answers")
    (tmp_path / "outside").mkdir()
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "base").symlink_to(tmp_path / "outside")
    for call in (
        lambda: store.write("base", "key", "suite", {}, []),
        lambda: store.read("base", "suite"),
        lambda: store.suites("base"),
    ):
        with pytest.raises(UsageError, match="symbolic link"):
            call()
    assert not list((tmp_path / "outside").iterdir())


# pages


class Page(HTMLParser):
    """The elements of a page as a browser's parser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def check_page(text: str) -> None:
    """A page runs only the scripts that its policy names and uses no network, whatever was planted in it."""
    page = Page()
    page.feed(text)
    (policy,) = [a["content"] or "" for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert all(source.startswith("'sha256-") for source in rules.get("script-src", "'sha256-").split())
    scripts = [a for tag, a in page.tags if tag == "script"]
    assert all(set(a) <= {"type", "class", "data-panel"} for a in scripts)
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "embed", "base", "form")]
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        link = (attributes.get("href") or "").lower()
        assert not link or link.startswith(("#", "https://", "data:,"))
    assert "window.pwned" not in text or "&lt;script&gt;" in text or "\\u003cscript" in text


def test_the_check_of_pages_finds_what_is_not_escaped() -> None:
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'"
    page = f'<meta http-equiv="Content-Security-Policy" content="{policy}"><p>%s</p>'
    check_page(page % "fine")
    for bad in (ATTACK, "<b onclick=x>", "<a href='javascript:x'>", "<script src=x></script>"):
        with pytest.raises(AssertionError):
            check_page(page % bad)


def test_text_planted_in_documents_reaches_the_measurement_page_escaped(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = tmp_path / "<script>window.pwned=1<"
    evil.mkdir()
    text = evil / "general.jsonl"
    words = "the old river went south " * 20
    text.write_text("".join(json.dumps({"id": f"{ATTACK}{i}", "text": f"{words}{ATTACK}"}) + "\n" for i in range(6)))
    out = tmp_path / "page.html"
    arguments = ("measure", tiny_model, tiny_model, "--text", text, "--context", 32, "--no-cache", "--html", out)
    code, output = run(monkeypatch, capsys, *arguments)
    assert code == 0, output
    check_page(out.read_text(encoding="utf-8"))
    assert "&lt;script&gt;window.pwned" in out.read_text(encoding="utf-8")


# configurations that ask for endless work

ENDLESS = r"(.*.*.*.*.*.*.*.*.*.*.*.*)*z"
"""A pattern that takes exponential time on names without a z."""


def _configured(tiny_model: Path, folder: Path, **fields: Any) -> Path:
    adapter = _adapter(tiny_model, folder)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return adapter


def _opened(tiny_model: Path, adapter: Path) -> Any:
    from forgetting.models.loading import Placement
    from forgetting.models.pair import open_pair

    settings = ModelConfig(source="-")
    return open_pair(str(tiny_model), str(adapter), settings=settings, placement=Placement())


@pytest.mark.full
@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ENDLESS},
        {"exclude_modules": ENDLESS},
        {"rank_pattern": {ENDLESS: 4}},
        {"alpha_pattern": {ENDLESS: 4}},
        {"modules_to_save": [ENDLESS]},
        {"layers_to_transform": [0], "layers_pattern": ENDLESS, "target_modules": ["q_proj"]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_pattern_with_catastrophic_backtracking_is_refused(
    tiny_model: Path, tmp_path: Path, fields: dict[str, Any], context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forgetting.models import bounds
    from forgetting.tuning.methods import METHODS

    monkeypatch.setattr(bounds, "PATTERN_SECONDS", 1)
    field = "layers_pattern" if "layers_pattern" in fields else next(iter(fields))
    says = f"{field}: the pattern .* takes more than 1 s"
    with pytest.raises(UsageError, match=says):
        _opened(tiny_model, _configured(tiny_model, tmp_path / "adapter", **fields))
    base = load_base(ModelConfig(source=str(tiny_model))).model
    method = METHODS.parse(Variant(name="peft", config={"peft_type": "LORA", "target_modules": ["q_proj"], **fields}))
    with pytest.raises(UsageError, match=says):
        method.check(base, context)


def test_honest_patterns_are_tried_and_used(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    pattern = r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)|.*\.layers\.[\d]{1,}\.mlp\.up_proj"
    model = load_base(ModelConfig(source=str(tiny_model))).model
    config = LoraConfig(r=2, target_modules=pattern, rank_pattern={r"layers\.0\.mlp\.up_proj": 4})
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    found = _opened(tiny_model, tmp_path / "adapter").tuned
    ranks = [module.r["default"] for _, module in found.named_modules() if hasattr(module, "lora_A")]
    assert ranks == [4, 2]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"r": 2**31}, r"r: got 2,147,483,648; at most 65,536"),
        ({"r": 10**5000}, "a number has thousands of digits"),
        ({"lora_alpha": 10**30}, "lora_alpha: got a number of more than 15 digits"),
        ({"rank_pattern": {"q_proj": 10**9}}, "rank_pattern.q_proj: got 1,000,000,000"),
        ({"init_lora_weights": "pissa_niter_1000000"}, "at most 1,000 iterations"),
        ({"trainable_token_indices": [10**9]}, "trainable_token_indices: got 1,000,000,000"),
        ({"trainable_token_indices": [10**8]}, r"needs 100,000,001 rows of the vocabulary; the base model has"),
        ({"trainable_token_indices": {"embed_tokens": [10**8]}}, "needs 100,000,001 rows"),
        ({"layer_replication": [[0, 2]] * 10**4}, "layer_replication: requests more than 4,096 layers"),
        ({"target_modules": "a|" * 20_000}, "a pattern of 40,000 characters"),
        ({"target_modules": "(" * 5000}, "cannot be used"),
    ],
)
def test_an_adapter_that_asks_for_too_much_is_refused(
    tiny_model: Path, tmp_path: Path, bounded: None, fields: dict[str, Any], says: str
) -> None:
    adapter = _configured(tiny_model, tmp_path / "adapter", **({} if "r" in fields else fields))
    if "r" in fields:
        file = adapter / "adapter_config.json"
        file.write_text(
            file.read_text().replace('"r": 2', '"r": 1' + "0" * 5000 if fields["r"] > 2**40 else '"r": 2147483648')
        )
    with pytest.raises(UsageError, match=says) as caught:
        _opened(tiny_model, adapter)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: got 1,000,000,000; at most 4,096"),
        ({"vocab_size": 2**31}, r"its config.json asks for [\d,]+ numbers, but its files contain [\d,]+ bytes"),
        ({"intermediate_size": 2**40}, "its config.json asks for"),
        ({"num_local_experts": 10**9}, "num_local_experts: got"),
        ({"text_config": {"num_hidden_layers": 4000, "num_experts": 4000}}, "4,000 layers of 4,000 experts"),
        ({"attn_implementation": "evil/kernel"}, "names a kernel on the Hub, 'evil/kernel'; it is code"),
    ],
)
def test_a_model_that_asks_for_too_much_is_refused(
    tiny_model: Path, tmp_path: Path, bounded: None, fields: dict[str, Any], says: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(UsageError, match=says) as caught:
        load_base(ModelConfig(source=str(model)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json", "adapter_config.json"],
)
def test_deep_json_beside_a_model_is_one_error(tiny_model: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    if name == "adapter_config.json":
        folder = _adapter(tiny_model, tmp_path / "adapter")
    (folder / name).write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(UsageError) as caught:
        _opened(tiny_model, folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_panic_in_a_rust_library_is_one_error(
    tiny_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A panic in a Rust library raises a BaseException, after printing its location."""
    from tokenizers import Tokenizer

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AQA="}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BaseException, match="charsmap") as raised:
        Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert not isinstance(raised.value, Exception)
    assert "panicked" in capfd.readouterr().err
    with pytest.raises(UsageError, match="its tokenizer cannot be read: Precompiled") as caught:
        load_base(ModelConfig(source=str(folder)))
    assert "\n" not in str(caught.value)
    assert "panicked" not in capfd.readouterr().err
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    _adapter(tiny_model, folder)
    with pytest.raises(UsageError, match="its tokenizer cannot be read: Precompiled"):
        _opened(tiny_model, folder)


TEMPLATES = [
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than 0.5 s"),
    ("{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(60) }}", "takes more than 0.5 s"),
    ("{{ 'a' * 10**10 }}", "bytes of memory"),
    ("{{ 'a'.ljust(10**10) }}", "bytes of memory"),
    ("{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "memory|0.5 s"),
    ("{{ 'a' * 10**6 }}", "writes 1,000,000 characters"),
    (
        "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "takes more than 0.5 s",
    ),
]


@pytest.mark.full
@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize(("template", "says"), TEMPLATES)
def test_an_endless_template_is_stopped(
    tiny_model: Path, template: str, says: str, threaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forgetting.capabilities.rendering import chat_template
    from forgetting.data import templates
    from forgetting.data.documents import Document
    from forgetting.data.tokenizing import tokenize
    from forgetting.models.loading import load_tokenizer

    if threaded and "n.x * n.x" in template:
        pytest.skip("a signal alone stops a computation with large numbers")
    if sys.platform != "linux" and "0.5 s" not in says:
        pytest.skip("memory is bounded on Linux alone")
    monkeypatch.setattr(templates, "SECONDS", 0.5)
    monkeypatch.setattr(files, "MAX_LINE", 10**5)
    tokenizer = load_tokenizer(ModelConfig(source=str(tiny_model)))
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": "the river"}, {"role": "assistant", "content": "went"}]
    refusals: list[str] = []

    def work() -> None:
        for call in (
            lambda: tokenize([Document("a", "", messages=tuple(messages))], tokenizer, 32),
            lambda: chat_template(tokenizer)(messages),
        ):
            with pytest.raises(UsageError, match=says) as caught:
                call()
            refusals.append(str(caught.value))

    if threaded:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    else:
        work()
    assert len(refusals) == 2
    assert not [text for text in refusals if "\n" in text]
    tokenizer.chat_template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    assert "river" in chat_template(tokenizer)(messages)  # and the bounds are removed


# terminals

FORGED = "x\nerror: all is lost\r\x1b[2J\x1b]0;title\x07\u202e\x85error: gone"
ROWS = {"N": [1.0, 2.0, 3.0, 4.0], "y": [1.0, 2.0, 3.0, 4.5], "run_id": ["a", "b", "c", "d"]}


def check_shown(text: str) -> None:
    """A text has no effect on a terminal, and none of its lines looks like one of ours."""
    assert not [
        character for character in text.replace("\n", "") if not character.isprintable() and character != "\xa0"
    ]
    assert not [line for line in text.splitlines() if line.startswith(("error: all", "error: gone"))]


def test_the_check_of_terminals_finds_what_is_not_escaped() -> None:
    check_shown("error: one line \u2013 of ours\n")
    for bad in (FORGED, "a\x1b[31m", "a\rb", "a\nerror: all is lost", "a\u202eb", "a\x9b2J"):
        with pytest.raises(AssertionError):
            check_shown(bad)


def test_an_error_is_one_line_whatever_it_contains(monkeypatch: pytest.MonkeyPatch) -> None:
    error = UsageError(f"file '{FORGED}': wrong")
    check_shown(str(error))
    assert len(str(error).splitlines()) == 1
    assert str(UsageError("one", "two")) == "one\ntwo"
    assert str(pickle.loads(pickle.dumps(UsageError("one", FORGED)))) == str(UsageError("one", FORGED))


@pytest.mark.parametrize("what", ["column", "cell", "file", "label", "map"])
def test_names_in_a_table_are_shown_escaped(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ROWS | {"label": ["a"] * 4}
    if what == "column":
        rows = {(FORGED if name == "y" else name): values for name, values in rows.items()}
    elif what == "cell":
        rows["y"] = [1.0, FORGED, 3.0, 4.0]
    elif what == "label":
        rows |= {"label": [FORGED] * 4, "dataset": [FORGED] * 4}
    file = tmp_path / ((FORGED.replace("/", "") if what == "file" else "t") + ".json")
    file.write_text(
        json.dumps(rows and [dict(zip(rows, cells, strict=True)) for cells in zip(*rows.values(), strict=True)])
    )
    more = ["--map", f"y={FORGED}"] if what == "map" else []
    for out in ([], ["--latex"]):
        _, output = run(monkeypatch, capsys, "fit", file, "--law", "y = a * N", "--bootstrap", 0, *more, *out)
        check_shown(output)
    assert output


def test_names_and_notices_of_a_measurement_are_shown_escaped(
    tiny_model: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = _adapter(tiny_model, tmp_path / FORGED)
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": f"/{FORGED}", FORGED: FORGED}
    file.write_text(json.dumps(config))
    page = tmp_path / "comment.md"
    how = ("--text", corpora / "general.jsonl", "--context", 32, "--no-cache")
    code, output = run(monkeypatch, capsys, "measure", tiny_model, adapter, *how)
    assert code == 0, output
    assert "made for" in output
    check_shown(output)
    code, output = run(
        monkeypatch, capsys, "check", tiny_model, adapter, *how, "--budget", 1, "--allow-undecided", "--markdown", page
    )
    assert code == 0, output
    check_shown(output)
    check_shown(page.read_text(encoding="utf-8"))
    check_shown(run(monkeypatch, capsys, "measure", tiny_model, tmp_path / f"{FORGED}-none", *how)[1])


def test_text_in_markdown_stays_text() -> None:
    from forgetting.display.markdown import code, escaped

    assert escaped("a [x](http://evil) <b> `c` @all *d* | # ![i](j)") == (
        r"a \[x\](http://evil) &lt;b&gt; \`c\` @<!-- -->all \*d\* \| \# \!\[i\](j)"
    )
    assert code("a`b|c\n# d") == r"`a'b/c\n# d`"


def test_answers_and_file_names_in_notices_are_shown_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    from forgetting.cli.printing import OneLine, print_shown, say
    from forgetting.display.tables import Shown

    say(FORGED)
    record = logging.LogRecord("forgetting", logging.WARNING, "", 0, "%s", (FORGED,), None)
    table = Shown([FORGED], (FORGED, "b"), [(FORGED, "1")], [FORGED])
    print_shown([table])
    check_shown("".join([*capsys.readouterr(), OneLine("notice: %(message)s").format(record), table.text()]))


# weights that are no numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["base", "tuned", "adapter", "live", "study"])
def test_weights_that_are_not_numbers_are_named(
    tiny_model: Path,
    corpora: Path,
    tmp_path: Path,
    where: str,
    value: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    file, name = broken / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    if where == "adapter":
        _adapter(tiny_model, tmp_path / "adapter")
        file, name = tmp_path / "adapter" / "adapter_model.safetensors", "layers.1.mlp.up_proj.lora_A"
    weights = load_file(file)
    next(weight for key, weight in weights.items() if name in key)[0, 0] = value
    save_file(weights, file, {"format": "pt"})
    whose = "the base model's" if where in ("base", "study") else "the tuned model's"
    says = f"{whose} weights contain {'NaN' if value != value else 'infinities'}: "
    if where == "live":
        from transformers import AutoModelForCausalLM

        from forgetting import measure

        one, other = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tiny_model, broken))
        with pytest.raises(UsageError, match=says):
            measure(one, other, tokenizer=None, text="x")
        return
    how: tuple[Any, ...] = ("--text", corpora / "general.jsonl", "--context", 32)
    if where == "study":
        flags = f"--model {broken} --train {corpora / 'train.jsonl'} --steps 12 --measure-start 2 --measure-every 10"
        code, output = run(monkeypatch, capsys, "study", *flags.split(), *how, "--out", tmp_path / "out")
    else:
        tuned = {"base": tiny_model, "tuned": broken, "adapter": tmp_path / "adapter"}[where]
        command = ("check", broken if where == "base" else tiny_model, tuned, "--budget", 1, "--no-cache")
        code, output = run(monkeypatch, capsys, *command, *how)
    assert code in (1, 2)
    assert says in output
    assert name in output
    assert "learning_rate" not in output
    assert "Traceback" not in output


# secrets

SECRETS = {
    "HF_TOKEN": "hf_PlantedTokenOfTheHub123",
    "WANDB_API_KEY": "0123456789plantedwandbkey",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret",
    "MY_DB_PASSWORD": "planted-password",
}


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return SECRETS


def test_secrets_are_removed_from_stored_files(secrets: dict[str, str], tmp_path: Path) -> None:
    for value in secrets.values():
        assert value not in files.redact(f"401 for url https://x/?token={value} ({value})")
    assert files.redact("of aaaabbbbcccc", {"A_TOKEN": "aaaabbbb", "B_TOKEN": "aaaabbbbcccc"}) == "of [secret]"
    for text in (
        "Authorization: Bearer abcdef123456",
        "https://me:hunter2@host/x",
        "ghp_" + "a" * 36,
        "sk-" + "b" * 40,
        "sk-ant-api03-" + "b" * 40,
        "github_pat_" + "11ABCDEFG0" + "_" + "c" * 59,
        "gho_" + "d" * 36,
        "ghs_" + "d" * 36,
        "glpat-" + "e" * 20,
        "xoxb-123456789012-" + "f" * 24,
        "xoxp-123456789012-" + "f" * 24,
        "AKIA" + "G" * 16,
        "ASIA" + "G" * 16,
        "AIza" + "h" * 35,
        "hf_" + "i" * 34,
        "gsk_" + "j" * 52,
    ):
        assert files.HIDDEN in files.redact(text, {})
    run_ids = (
        "chat-lora-r8-token_masking-s0-f1c0b26faa",
        "sk-lora-r8-replay-s0-f1c0b26faa",
        "npm-lora-r8-s0-f1c0b26faa",
    )
    texts = ("lora rank 8", "https://huggingface.co/x", "tokens 100", "sha256:abc", "/home/me/task-force/x")
    for text in (*texts, *run_ids):
        assert files.redact(text, {"TOKENIZERS_PARALLELISM": "false"}) == text
    folder = StudyFolder(tmp_path).run("a-s0-1")
    folder.update(why=f"failed with {secrets['HF_TOKEN']}", hardware={"x": [secrets["MY_DB_PASSWORD"]]})
    assert not [v for v in secrets.values() if v in (folder.path / "run.json").read_text()]
    looks_like_one = StudyFolder(tmp_path).run("sk-proj-lora-r8-replay-s0-1")
    looks_like_one.update(status="running", run_id=looks_like_one.path.name)
    assert looks_like_one.read()["status"] == "running"


def test_no_file_of_a_study_contains_a_secret(
    tiny_model: Path,
    corpora: Path,
    tmp_path: Path,
    secrets: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import forgetting.tuning.run

    def leak(*_: object, **__: object) -> None:
        raise RuntimeError(f"401 Client Error for token {SECRETS['HF_TOKEN']} and {SECRETS['AWS_SECRET_ACCESS_KEY']}")

    monkeypatch.setattr(forgetting.tuning.run, "train_run", leak)
    flags = f"--model {tiny_model} --train {corpora / 'train.jsonl'} --text {corpora / 'general.jsonl'} --context 32"
    flags += " --steps 12 --batch-size 4 --measure-start 2 --measure-every 2"
    code, output = run(monkeypatch, capsys, "study", *flags.split(), "--out", tmp_path / "study")
    assert code == 1
    files = [path for path in (tmp_path / "study").rglob("*") if path.is_file()]
    assert [path for path in files if b"401 Client Error" in path.read_bytes()]  # stored, without the secrets
    for value in secrets.values():
        assert not [path for path in files if value.encode() in path.read_bytes()]
        assert value not in output


# formulas


HOSTILE_FORMULAS = [
    "loss = __import__('os').mkdir('{planted}')",
    "loss = open('{planted}', 'w')",
    "loss = a.__class__.__base__.__subclasses__()",
    "loss = (lambda: a)()",
    "loss = [x for x in (1, 2)]",
    "loss = f'{{a}}'",
    "loss = (a := 3) * N",
    "loss = a if N else b",
    "loss = exp(a, b)",
    "loss = exp(*a)",
    "loss = eval(a)",
    "loss = a ^ " + "-" * 1500 + "N",
    "loss = " + "-" * 1900 + "N",
    "loss = " + "(" * 900 + "N" + ")" * 900,
    "loss = " + "exp(" * 300 + "N" + ")" * 300,
    "loss = " + "a+" * 900 + "N",
    "loss = a" + "*N" * 1500,
    "loss = 1e999 * a * N",
    "loss = " + "9" * 1900 + " * a * N",
    "loss = a\0 * N",
    "loss = a * N # x\nimport os",
    "l.x = a * N",
    "loss = 'x' * 10**9",
    "loss = a @ N",
    "loss = a[0] * N",
    "loss = ...",
    "loss =",
    "=",
]


@pytest.mark.parametrize("formula", HOSTILE_FORMULAS)
def test_a_formula_is_parsed_and_never_run(formula: str, planted: Path) -> None:
    with pytest.raises(UsageError):
        FormulaLaw(formula.format(planted=planted), ["N"])
    assert not planted.exists()


HUGE_EXPONENTS = ["y = a * 9**9**9**N", "y = a * N**1e300", "y = exp(exp(exp(exp(a*N))))", "y=a/(N-N)"]
FIVE_ROWS = {"N": [1.0, 2.0, 3.0, 4.0, 5.0], "y": [1.0, 2.0, 3.0, 4.0, 5.0], "run_id": list("abcde")}


@pytest.mark.parametrize("formula", HUGE_EXPONENTS)
def test_huge_exponents_overflow(formula: str) -> None:
    try:
        fit_law(FormulaLaw(formula, ["N"]), FIVE_ROWS)
    except ForgettingError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either it fits or it says why


def test_a_stored_fit_is_data_and_its_formula_is_parsed_again(tmp_path: Path, planted: Path) -> None:
    from forgetting.analysis.fit import load_fits, save_fits

    rows = {"N": [1.0, 2.0, 3.0, 4.0], "y": [1.0, 2.0, 3.0, 4.5], "run_id": list("abcd")}
    file = tmp_path / "fits.json"
    save_fits(fit_law(FormulaLaw("y = a * N", ["N"]), rows, bootstrap=0), file)
    content = json.loads(file.read_text())
    content["fits"]["spec"]["formula"] = f"y = __import__('os').mkdir('{planted}') * a * N"
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError):
        load_fits(file)
    assert not planted.exists()


# sizes


def huge(path: Path) -> Path:
    """A sparse file with one line of 10 GB."""
    with path.open("wb") as file:
        file.truncate(10 * 2**30)
    return path


@pytest.fixture
def bounded() -> Iterator[None]:
    """Bounds the memory of one clear error; bench/hostile.py measures the time."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400e6


READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("a.jsonl", lambda path: read_rows(TextConfig(source=str(path)))),
    ("a.txt", lambda path: read_rows(TextConfig(source=str(path)))),
    ("a.parquet", lambda path: read_rows(TextConfig(source=str(path)))),
    ("a.yaml", read_fields),
    ("a.csv", read_table),
    ("b.jsonl", read_table),
    ("a.json", read_table),
    ("b.parquet", read_table),
]


@pytest.mark.parametrize(("name", "read"), READERS)
def test_a_line_of_10_gb_is_one_error(tmp_path: Path, bounded: None, name: str, read: Any) -> None:
    path = huge(tmp_path / name)
    with pytest.raises(UsageError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_endless_stream_is_cut_off(bounded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="more than 1,000 bytes"):
        files.read_text(Path("/dev/zero"), limit=1000)
    monkeypatch.setattr(files, "MAX_LINE", 1000)
    with pytest.raises(UsageError, match="line 1: longer than 1,000 bytes"):
        list(files.read_lines(Path("/dev/zero")))


def _parquet_of_nulls(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 10**8
    one_row = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.nulls(count, pa.int8()))
    pq.write_table(pa.table({"text": ["a"], "more": one_row}), path, use_dictionary=False, write_statistics=False)


def _parquet_of_one_text(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["b" * 10**6]))
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", write_statistics=False, store_schema=False)


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux alone")
@pytest.mark.parametrize("write", [_parquet_of_nulls, _parquet_of_one_text])
def test_a_small_parquet_of_gigabytes_is_one_error(
    tmp_path: Path, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from forgetting.data import parquet

    monkeypatch.setattr(parquet, "BATCH_MEMORY", 2**29)
    monkeypatch.setattr(parquet, "TABLE_MEMORY", 2**29)
    path = tmp_path / "a.parquet"
    write(path)
    assert path.stat().st_size < 1000
    for read in (lambda: list(read_rows(TextConfig(source=str(path)))), lambda: read_table(path)):
        with pytest.raises(UsageError, match=r"values in one column|bytes of memory") as caught:
            read()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_honest_parquet_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from forgetting.data import parquet

    rows = [{"text": f"text {i}" * (i % 7), "n": i, "more": [i] * (i % 3)} for i in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=300)
    for size in (1, 1000, 2**26):
        monkeypatch.setattr(parquet, "BATCH", size)
        assert list(parquet.rows(tmp_path / "a.parquet")) == rows


# machines


LONG = "a" * 256


@pytest.mark.parametrize(
    "command",
    [
        ("measure", LONG, "miniature"),
        ("measure", "miniature", "miniature", "--text", LONG),
        ("study", "--out", f"{LONG}/x"),
        ("study", LONG),
        ("report", LONG),
        ("table", LONG),
        ("run", LONG, "x"),
        ("fit", LONG),
        ("fit", f"{LONG}.csv"),
        ("predict", LONG, "--rank", 8),
        ("compare", LONG),
        ("evaluate", LONG, "miniature"),
        ("plan", "kalajdzievski2024/openorca", "--budget", 0.8, "--model", LONG),
    ],
)
def test_an_impossible_path_gives_a_one_line_error(
    command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = run(monkeypatch, capsys, *command)
    assert code in (1, 2)
    assert output.count("error: ") == 1
    assert "Traceback" not in output


@pytest.mark.full
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO, errno.ENAMETOOLONG])
def test_a_folder_that_cannot_be_written_gives_a_one_line_error(
    many: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root can write to any folder, so the calls themselves fail here."""

    def refused(*_: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number), str(options.get("dir", many)))

    monkeypatch.setattr(files.tempfile, "mkstemp", refused)
    monkeypatch.setattr(files, "open_own", refused)
    code, output = run(monkeypatch, capsys, "report", many)
    assert code in (1, 2)
    assert output.count("error: ") == 1
    assert os.strerror(number) in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "out of memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (RuntimeError("can't start new thread"), "out of memory"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    ],
)
def test_a_machine_that_is_too_small_gives_a_one_line_error(
    error: Exception, says: str, many: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import forgetting.analysis.study_table

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(forgetting.analysis.study_table, "load_table", fails)
    code, output = run(monkeypatch, capsys, "table", many)
    assert (code, output.count("error: ")) == (1, 1)
    assert says in output


def test_a_defect_of_ours_keeps_its_traceback(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import forgetting.analysis.study_table

    def fails(*_: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr(forgetting.analysis.study_table, "load_table", fails)
    monkeypatch.setattr(sys, "argv", ["forgetting", "table", str(many)])
    with pytest.raises(KeyError):
        main()


def test_measurements_of_10_gb_are_damage(many: Path, bounded: None) -> None:
    run = StudyFolder.open(many).runs()[0]
    with (run.path / "measurements.jsonl").open("r+b") as out:
        out.truncate(10 * 2**30)
    assert "10,737,418,240 bytes" in run.damage()
    table = load_table(many)
    assert set(table["status"][table["run_id"] == run.path.name]) == {"damaged"}


@pytest.mark.slow
def test_a_million_columns_are_one_error(tmp_path: Path, bounded: None) -> None:
    names = [f"c{i}" for i in range(1_000_000)]
    csv = tmp_path / "t.csv"
    csv.write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    rows = tmp_path / "t.jsonl"
    rows.write_text(json.dumps(dict.fromkeys(names, 1)) + "\n")
    for path in (csv, rows):
        with pytest.raises(UsageError, match=r"1,000,000 columns; the limit is 10,000"):
            read_table(path)


def test_deep_json_is_one_error(tmp_path: Path, bounded: None) -> None:
    for name, text in (("t.json", "[" * 10**6), ("t.jsonl", '{"a":' * 10**6), ("u.json", "1" * 10**5)):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(UsageError, match=r"not read|neither a list|nested too deeply|cannot be read"):
            read_table(path)


def test_a_formula_of_any_size_is_refused_by_its_length() -> None:
    with pytest.raises(UsageError, match="at most 2000"):
        parse("a" * 10**7)


@pytest.mark.slow
def test_bitsandbytes_runs_no_program_from_the_hub(tmp_path: Path) -> None:
    """On some CPUs it loads a program from `kernels` during import; the payload here is a fake `kernels`."""
    pytest.importorskip("bitsandbytes")
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__):\n    print('FETCHED')\n    raise RuntimeError\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])

    def printed(code: str) -> str:
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    if "FETCHED" not in printed("import bitsandbytes"):
        pytest.skip("this CPU's bitsandbytes asks for none")
    output = printed("import forgetting.models.adapters, peft.tuners.lora, sys; print('bitsandbytes' in sys.modules)")
    assert output.strip() == "True"
