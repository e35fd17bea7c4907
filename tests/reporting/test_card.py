"""Model cards: read back by huggingface_hub, rewritten identically, and only for the same weights."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import forgetting
from forgetting.cli import app
from forgetting.errors import UsageError
from forgetting.reporting.card import BEGIN, END, write_card

CARD = """---
license: mit
tags:
- small
model-index:
- name: mine
  results:
  - task:
      type: text-generation
    dataset:
      name: GSM8K
      type: openai/gsm8k
    metrics:
    - type: accuracy
      value: 0.4
---

# Mine

Words of my own.
"""


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, target_modules=["q_proj"]))
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chain(tiny_model: Path, adapter: Path, corpora: Path) -> dict[str, Any]:
    steps = [f"base={tiny_model}".replace("base=", "same="), f"tuned={adapter}"]
    text = str(corpora / "general.jsonl")
    return forgetting.chain(tiny_model, steps, text=text, context=32, cache_dir=None).to_dict()


@pytest.fixture
def folder(adapter: Path, tmp_path: Path) -> Path:
    shutil.copytree(adapter, tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text(CARD, encoding="utf-8")
    return tmp_path / "mine"


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["forgetting", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


@pytest.mark.full
def test_the_hub_reads_what_is_written(folder: Path, chain: dict[str, Any]) -> None:
    written = write_card(folder, chain, "chain.json", dataset="org/held-out", task="forgetting")
    assert written.files == (folder / "README.md", folder / ".eval_results" / "forgetting.yaml")
    card = ModelCard.load(folder / "README.md")
    name, results = model_index_to_eval_results(metadata_load(folder / "README.md")["model-index"])
    assert (name, card.data.license, card.data.tags) == ("mine", "mit", ["small"])
    assert [one.metric_type for one in results] == ["accuracy", "forgetting", "kl", "agreement"]
    step = chain["steps"][1]
    assert results[1].metric_value == pytest.approx(step["forgetting"], rel=1e-5)
    assert results[1].metric_args["standard_error"] == pytest.approx(step["forgetting_se"], rel=1e-5)
    assert results[1].dataset_name == chain["text"]
    (entry,) = parse_eval_result_entries(yaml.safe_load((folder / ".eval_results" / "forgetting.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id) == ("org/held-out", "forgetting")
    assert entry.value == results[1].metric_value
    assert step["sha256"]["adapter_model.safetensors"] in entry.notes
    text = (folder / "README.md").read_text()
    assert "Words of my own." in text
    assert step["sha256"]["adapter_model.safetensors"] in text
    assert f"| **`tuned`** | adapter on base | {step['forgetting']:.4f} ± " in text
    before = {path: path.read_bytes() for path in written.files}
    write_card(folder, chain, "chain.json", dataset="org/held-out")
    assert {path: path.read_bytes() for path in written.files} == before
    assert text.count(BEGIN) == text.count(END) == 1


@pytest.mark.full
def test_the_command_measures_or_takes_a_result(
    tiny_model: Path, folder: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "README.md").unlink()
    how = ("--base", tiny_model, "--text", corpora / "general.jsonl", "--context", 32, "--no-cache")
    code, out, err = run(monkeypatch, capsys, "card", folder, *how)
    assert (code, out.split()) == (0, [str(folder / "README.md")]), err
    assert "no .eval_results/forgetting.yaml" in err
    first = (folder / "README.md").read_bytes()
    assert b"# mine" in first
    code, out, err = run(monkeypatch, capsys, "measure", tiny_model, folder, *how[2:], "--json")
    row = json.loads(out)
    (folder / "r.json").write_text(out)
    assert run(monkeypatch, capsys, "card", folder, folder / "r.json")[0] == 0
    assert (folder / "README.md").read_bytes() == first
    results = model_index_to_eval_results(metadata_load(folder / "README.md")["model-index"])[1]
    assert results[0].metric_value == pytest.approx(row["forgetting"], rel=1e-5)
    for arguments, message in (((), "give either RESULT"), ((folder / "r.json", "--text", "x"), "only with --base")):
        code, _, err = run(monkeypatch, capsys, "card", folder, *arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err


@pytest.mark.full
def test_what_is_refused(folder: Path, chain: dict[str, Any]) -> None:
    def refused(result: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            write_card(folder, result, "r.json")
        assert (folder / "README.md").read_text() == CARD

    tuned = chain["steps"][1]
    shared = {name: chain[name] for name in ("base", "text", "text_tokens", "text_documents")}
    refused({"loss": 1}, "it has no field forgetting")
    refused({**shared, **tuned, "forgetting": None}, "forgetting: got None; allowed: a number")
    refused({**shared, **tuned, "sha256": {"adapter_model.safetensors": "0" * 64}}, "has another SHA-256")
    refused({**shared, **tuned, "sha256": {"../x": "0" * 64}}, "sha256: allowed")
    refused({**chain, "steps": chain["steps"][:1]}, r"none of its steps \(same\) has the weights")
    (folder / "README.md").write_text(f"{CARD}\n{END}\n{BEGIN}\n")
    with pytest.raises(UsageError, match="must occur exactly once each"):
        write_card(folder, chain, "r.json")
    (folder / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(UsageError, match="its metadata cannot be read"):
        write_card(folder, chain, "r.json")


@pytest.mark.full
def test_markup_in_names_is_escaped(folder: Path, chain: dict[str, Any]) -> None:
    forged = f"x|y`\n{END} <script> @all"
    step = {**chain["steps"][1], "name": forged, "kind": forged, "notices": [forged]}
    write_card(folder, {**chain, "text": forged, "steps": [step]}, "r.json")
    text = (folder / "README.md").read_text()
    body = ModelCard.load(folder / "README.md").text
    assert (body.count(BEGIN), body.count(END)) == (1, 1)
    assert "<script>" not in re.sub(r"`[^`\n]*`", "", body)  # except as code
    assert body.count("@<!-- -->all") == 2
    write_card(folder, {**chain, "text": forged, "steps": [step]}, "r.json")
    assert (folder / "README.md").read_text() == text
