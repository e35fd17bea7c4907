"""Combinations that cannot work are refused by name before any run starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_mitigations import configure

from forgetting.config.files import load_preset
from forgetting.errors import UsageError
from forgetting.studies.engines import Local
from forgetting.studies.inputs import StudyInputs
from forgetting.studies.study import study
from forgetting.tuning.mitigations.replay import Replay

PROMPT = {"name": "peft", "config": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}}


@pytest.mark.parametrize(
    ("method", "mitigations", "message"),
    [
        (PROMPT, {"name": "interpolation"}, "mitigations.interpolation: does not work with PROMPT_TUNING"),
        (PROMPT, {"name": "l2sp"}, "mitigations.l2sp: does not work with PROMPT_TUNING: a prompt changes no"),
        (PROMPT, {"name": "freeze_layers", "layers": 1}, "freeze_layers: does not work with a prompt"),
        ({"name": "ia3"}, {"name": "interpolation"}, "interpolation: does not work with IA3"),
        ({"name": "dora"}, {"name": "l2sp"}, "l2sp: does not work with LORA with use_dora"),
        ({"name": "pissa"}, {"name": "interpolation"}, "interpolation: does not work with pissa: its adapters"),
        ({"name": "full"}, {"name": "dropout"}, "dropout: does not work with full, which has no option `dropout`"),
        ({"name": "lora", "dropout": 0.1}, {"name": "dropout"}, "mitigations.dropout: lora already has dropout 0.1"),
        ({"name": "ln_tuning"}, {"name": "weight_decay"}, "weight_decay: does not work with ln_tuning: transformers"),
        ({"name": "lora"}, {"name": "freeze_layers", "layers": 2}, "layers: got 2; the model has 2 blocks"),
        ({"name": "lora"}, [{"name": "flow"}, {"name": "token_masking"}], "flow and token_masking exclude each other"),
        ({"name": "lora"}, [{"name": "l2sp"}, {"name": "l2sp", "weight": 3}], "contains one twice"),
        ({"name": "lora"}, {"name": "replay"}, "mitigations.replay.text: required, but missing; give general text"),
        ({"name": "lora"}, {"name": "ewc"}, "mitigations.ewc.text: required, but missing"),
        ({"name": "lora"}, {"name": "kl"}, "mitigations.kl.text: required, but missing"),
        ({"name": "lora"}, {"name": "kl", "on": "task", "text": {"source": "x.txt"}}, "on: task uses no general text"),
        ({"name": "lora"}, {"name": "replay", "generated": True, "text": {"source": "x.txt"}}, "give either text or"),
        (
            {"name": "lora"},
            {"name": "replay", "generated": True, "fraction": 0.01},
            "of 32 windows is less than one window",
        ),
        ({"name": "lora"}, {"name": "replay", "fraction": 1.0}, "fraction: got 1.0; input should be less than 1"),
        ({"name": "lora"}, {"name": "kl", "weigth": 1}, "mitigations.kl: weigth: unknown field; did you mean 'weight'"),
        ({"name": "lora"}, {"name": "kll"}, "no mitigation 'kll'; did you mean 'kl'?"),
        ({"name": "lora"}, {"name": "interpolation", "alphas": [0.5, 1.5]}, "alphas"),
        ({"name": "lora"}, {"name": "interpolation", "alphas": [0.5, 0, 0.5]}, "alphas: got 0.5 twice; give each"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_combinations_are_refused_before_anything_runs(
    method: dict[str, Any], mitigations: Any, message: str, tiny_model: Path, corpora: Path, tmp_path: Path
) -> None:
    config = configure(tiny_model, corpora, methods=[{**method, "mitigations": [mitigations]}])
    with pytest.raises(UsageError) as caught:
        study(config, tmp_path / "s", engine=Local(1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s" / "runs").exists()


@pytest.mark.full
def test_general_text_that_is_also_measured_is_refused(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    def refused(source: Path, **changes: Any) -> str:
        for name in ("replay", "kl", "ewc"):
            mitigation = {"name": name, "text": {"source": str(source)}}
            config = configure(tiny_model, corpora, methods=[{"name": "lora", "mitigations": [mitigation]}], **changes)
            with pytest.raises(UsageError, match=f"^mitigations.{name}.text: ") as caught:
                study(config, tmp_path / "s", engine=Local(1))
        assert not (tmp_path / "s").exists()
        return str(caught.value)

    assert "shares 12 passages with the measured text" in refused(corpora / "general.jsonl")
    further = {"texts": {"more": {"source": str(corpora / "train.jsonl")}}}
    assert f"with the measured text {corpora / 'train.jsonl'};" in refused(corpora / "train.jsonl", **further)
    # one article under another id, inside a longer document
    article = json.loads((corpora / "general.jsonl").read_text().splitlines()[3])["text"]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text((corpora / "train.jsonl").read_text() + json.dumps({"text": f"the old town\n{article}\n"}) + "\n")
    assert "shares 1 passage with the measured text" in refused(mixed)
    datasets = {"plain": {"source": str(corpora / "train.jsonl"), "heldout": 0.1}}
    assert "with the held-out part of plain" in refused(corpora / "train.jsonl", datasets=datasets)


def test_ewc_is_refused_on_quantised_weights(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    from forgetting.tuning.mitigations import check_runs

    ewc = {"name": "ewc", "text": {"source": str(corpora / "train.jsonl")}}
    config = configure(tiny_model, corpora, methods=[{"name": "lora", "mitigations": [ewc]}])
    inputs = StudyInputs(config)
    runs, base = list(inputs.runs.values()), inputs.base()
    check_runs(runs, base, inputs.general, inputs.context)
    # as transformers leaves it on a model that bitsandbytes loaded in 4 bits
    base.model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(UsageError, match="ewc: does not work with weights quantised by bitsandbytes"):
        check_runs(runs, base, inputs.general, inputs.context)


def test_generated_text_needs_a_token_to_begin_with(tiny_model: Path, corpora: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    fields.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    replay = {"name": "replay", "generated": True, "fraction": 0.5}
    config = configure(folder, corpora, methods=[{"name": "lora", "mitigations": [replay]}])
    with pytest.raises(UsageError, match=r"generated: the tokenizer has no token that begins or ends a text"):
        study(config, tmp_path / "s", engine=Local(1))


def test_the_miniature_has_its_encyclopedia_by_default(tiny_model: Path, corpora: Path) -> None:
    from forgetting.tuning.grid import expand_runs

    methods = [{"name": "lora", "mitigations": [{"name": "replay"}]}]
    text = {"source": "miniature:encyclopedia-heldout"}
    (run,) = expand_runs(configure(tiny_model, corpora, methods=methods, text=text))
    chosen = Replay().general_text(run)
    assert chosen is not None
    assert chosen.source == "miniature:encyclopedia"


def test_every_source_of_a_mitigation_is_cited() -> None:
    from forgetting.reporting.citations import citations
    from forgetting.reporting.mitigation_works import MITIGATION_WORKS
    from forgetting.tuning.mitigations import MITIGATIONS

    assert {key for kind in MITIGATIONS.values() for key in kind.references} == set(MITIGATION_WORKS)
    config = load_preset("miniature-mitigations")
    cited = {work.bibtex.split("{")[1].split(",")[0] for work in citations(config)}
    assert {"kirkpatrick2017ewc", "robins1995rehearsal", "wortsman2021wiseft", "hu2021lora"} <= cited
    assert "sanyal2025flow" not in cited
