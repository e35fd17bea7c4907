"""Configurations: presets parse, YAML round-trips, and errors name the field, its value and what is allowed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from forgetting.config import files as f
from forgetting.config import schema as c
from forgetting.config.growing import with_more
from forgetting.errors import UsageError
from forgetting.store.folder import StudyFolder
from forgetting.tuning.grid import expand_runs, runs_by_id
from forgetting.tuning.methods import default_rank


@pytest.mark.parametrize("name", f.presets())
def test_presets_parse_and_round_trip(name: str) -> None:
    study = f.load_preset(name)
    assert c.validate(f.parse_yaml(study.to_yaml(), where="x"), where="x") == study
    assert expand_runs(study)


def test_paper_presets_hold_the_papers_setup() -> None:
    for name in ("paper-openorca", "paper-news"):
        study = f.load_preset(name)
        assert study.model.source == "meta-llama/Llama-2-7b-chat-hf"
        assert study.text.source == "Salesforce/wikitext"
        assert study.text.split == "test"
        assert study.context == 512
        assert study.training.steps == 260
        assert study.training.batch_size == 32
        assert study.training.optimizer == "adafactor"
        runs = expand_runs(study)
        assert [run.method.options["rank"] for run in runs] == [8, 16, 32, 64, 128, 256]
        assert {run.method.options["scaling"] for run in runs} == {"rank-stabilized"}
        assert {run.method.options["target_modules"] for run in runs} == {"all-linear"}
        assert study.measured_steps() == [0, *range(50, 261, 10)]


def test_runs_of_many_seeds_are_those_that_were_validated_one_by_one():
    study = c.validate(f.deep_merge(f.preset_fields("paper-openorca"), {"seeds": [3, 1, 2]}), where="x")
    runs = expand_runs(study)
    assert [run.seed for run in runs[:3]] == [3, 1, 2]
    assert [c.RunConfig.model_validate(run.model_dump(mode="json")) for run in runs] == runs
    assert len({run.run_id() for run in runs}) == len(runs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"stepz": 3}}, "training.stepz: unknown field; did you mean 'steps'?"),
        ({"training": {"steps": 0}}, "training.steps: got 0; input should be greater than or equal to 1"),
        ({"training": {"steps": "many"}}, "training.steps: got 'many'; give a whole number"),
        ({"modl": 1}, "modl: unknown field; did you mean 'model'?"),
        ({"datasets": {"../x": {"source": "a"}}}, "datasets.../x: got '../x'; allowed: letters, digits"),
        ({"datasets": {"x": {"source": "a", "sorce": "a"}}}, "datasets.x.sorce: unknown field; did you mean 'source'?"),
        ({"measure": {"start": 1000}}, "measure.start 1000 is after the last step, training.steps 260"),
        ({"training": {"optimizer": "adam"}}, "training.optimizer: got 'adam'; did you mean 'adamw'?"),
        ({"training": {"micro_batch_size": 5}}, "micro_batch_size 5 does not divide batch_size 32"),
        ({"training": {"warmup_steps": 260}}, "warmup_steps 260 must be fewer than steps 260"),
        ({"seeds": [1, 1]}, "seeds contains a value twice: [1, 1]"),
        ({"text": {"streaming": True}}, "streaming: true needs max_documents"),
        (
            {"model": {"dtype": "float8"}},
            "model.dtype: got 'float8'; did you mean 'float32'? (choices: auto, float32, bfloat16, float16)",
        ),
    ],
)
def test_wrong_fields_are_named(change: dict[str, Any], message: str) -> None:
    fields = f.deep_merge(f.preset_fields("paper-openorca"), change)
    with pytest.raises(UsageError) as caught:
        c.validate(fields, where="my.yaml")
    assert f"my.yaml: {message}" in str(caught.value).replace("my.yaml: training: ", "my.yaml: ").replace(
        "my.yaml: text: ", "my.yaml: "
    )


def test_several_wrong_fields_are_one_error_with_a_line_each() -> None:
    fields = f.deep_merge(f.preset_fields("paper-openorca"), {"context": 1, "training": {"steps": -1}})
    with pytest.raises(UsageError) as caught:
        c.validate(fields, where="my.yaml")
    assert str(caught.value).splitlines() == [
        "my.yaml: 2 fields are wrong",
        "  context: got 1; input should be greater than or equal to 8",
        "  training.steps: got -1; input should be greater than or equal to 1",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"steps": "12"}}, "my.yaml: training.steps: got '12'; give a whole number"),
        ({"training": {"steps": True}}, "my.yaml: training.steps: got True; give a whole number"),
        ({"training": {"steps": 300.0}}, "my.yaml: training.steps: got 300.0; give a whole number"),
        ({"training": {"learning_rate": "0.1"}}, "my.yaml: training.learning_rate: got '0.1'; give a number"),
        ({"training": {"gradient_checkpointing": 1}}, "training.gradient_checkpointing: got 1; give true or false"),
        ({"training": None}, "my.yaml: training: got None; give fields by name"),
        ({"model": {"source": 3}}, "my.yaml: model.source: got 3; give a string"),
        ({"seeds": [True]}, "my.yaml: seeds.0: got True; give a whole number"),
        ({"seeds": 3}, "my.yaml: seeds: got 3; give a list"),
        ({"methods": ["lora"]}, "my.yaml: methods.0: got 'lora'; give fields by name"),
        ({"methods": [{"name": "lora", "rank": True}]}, "methods.lora: rank: got True; give a whole number"),
        ({"methods": [{"name": "lora", "rank": ["8", 16]}]}, "methods.lora: rank: got '8'; give a whole number"),
        ({"methods": [{"name": "lora", "target_modules": [1]}]}, "got 1; give all-linear, attention, or a list"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused_and_never_converted(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        expand_runs(c.validate(f.deep_merge(f.preset_fields("paper-openorca"), change), where="my.yaml"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_tuples_and_exponents_without_a_dot_are_taken() -> None:
    text = "training: {learning_rate: 2e-5, weight_decay: 1}\nmethods: [{name: lora, alpha: 1e1}]"
    change = f.deep_merge(
        f.parse_yaml(text, where="x"), {"training": {"steps": np.int64(300)}, "seeds": (np.int64(1),)}
    )
    config = c.validate(f.deep_merge(f.preset_fields("paper-openorca"), change), where="x")
    assert (config.training.learning_rate, config.training.steps, config.seeds) == (2e-5, 300, (1,))
    assert (config.training.weight_decay, type(config.training.weight_decay)) == (1.0, float)
    assert expand_runs(config)[0].method.options["alpha"] == 10.0


def test_keys_are_read_as_they_are_written() -> None:
    text = "on: task\n2024: a\n2024-01-02: b\nno: {yes: on}\n"
    assert f.parse_yaml(text, where="x") == {"on": "task", "2024": "a", "2024-01-02": "b", "no": {"yes": True}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "loar"}, "no method 'loar'; did you mean 'lora'?"),
        ({"name": "lora", "rank": 0}, "methods.lora: rank: got 0"),
        ({"name": "lora", "rank": []}, "methods.lora.rank: an empty list"),
        ({"name": "lora", "rank": [8, 8]}, "methods.lora.rank: the list contains a value twice"),
        ({"name": "lora", "rnk": 8}, "rnk: unknown field; did you mean 'rank'?"),
        ({"name": "lora", "target_modules": "all"}, "got 'all'; give all-linear, attention, or a list"),
        ({"name": "lora", "layers": "upper"}, "methods.lora: layers: got 'upper'; give a list of layer numbers"),
        ({"name": "lora", "layers": [0, 0]}, "methods.lora: layers: got [0, 0]; give each layer once"),
        ({"name": "lora", "learning_rate": 0}, "methods.lora: learning_rate: got 0; input should be greater than 0"),
        ({"name": "pissa", "dropout": 0.1}, "methods.pissa: dropout: unknown field"),
        ({"name": "corda"}, "methods.corda: keep: knowledge needs calibration, a general text"),
        ({"name": "corda", "keep": "nothing", "calibration": {"source": "x"}}, "keep: nothing reads no text"),
        ({"name": "corda", "calibration": {"sorce": "x"}}, "calibration.sorce: unknown field; did you mean 'source'?"),
        ({"name": "ia3", "target_modules": ["k_proj"]}, "give both target_modules and feedforward_modules"),
        (
            {"name": "ia3", "target_modules": ["k_proj"], "feedforward_modules": ["fc"]},
            "feedforward_modules: 'fc' is not in target_modules",
        ),
        ({"name": "osf", "frozen": 1.0}, "methods.osf: frozen: got 1.0; input should be less than 1"),
        ({"name": "top_layer"}, "no method 'top_layer'; did you mean 'top_layers'?"),
        ({"name": "peft"}, "methods.peft: config: required, but missing"),
        ({"name": "peft", "config": {"r": 8}}, "methods.peft: config: needs peft_type"),
        ({"name": "lora", "scaling": "clasic"}, "scaling: got 'clasic'; did you mean 'classic'?"),
        ({"name": "full", "rank": 8}, "methods.full: rank: unknown field"),
    ],
)
def test_wrong_methods_are_named(options: dict[str, Any], message: str) -> None:
    study = c.validate({**f.preset_fields("paper-openorca"), "methods": [options]}, where="my.yaml")
    with pytest.raises(UsageError) as caught:
        expand_runs(study)
    assert message in str(caught.value)


def test_a_list_is_a_grid_only_for_an_option_that_takes_one_value() -> None:
    entry = {"name": "lora", "rank": [1, 2], "dropout": [0.0, 0.1], "target_modules": ["q_proj", "v_proj"]}
    study = c.validate({**f.preset_fields("paper-openorca"), "methods": [entry]}, where="x")
    options = [run.method.options for run in expand_runs(study)]
    assert [(o["rank"], o["dropout"]) for o in options] == [(1, 0.0), (1, 0.1), (2, 0.0), (2, 0.1)]
    assert all(o["target_modules"] == ["q_proj", "v_proj"] for o in options)


def test_the_same_run_twice_is_refused() -> None:
    entries = [{"name": "lora", "rank": 8}, {"name": "lora", "rank": [8, 16]}]
    study = c.validate({**f.preset_fields("paper-openorca"), "methods": entries}, where="x")
    with pytest.raises(UsageError, match="the same run occurs twice: openorca-lora-r8-s0-"):
        expand_runs(study)


def test_run_id_depends_only_on_what_affects_numbers() -> None:
    def ids(change: dict[str, Any]) -> str:
        return expand_runs(c.validate(f.deep_merge(f.preset_fields("paper-openorca"), change), where="x"))[0].run_id()

    same = ids({})
    assert ids({"name": "other"}) == same
    assert ids({"model": {"device": "cpu"}}) == same
    assert ids({"measure": {"batch_tokens": 99}}) == same
    assert len({same, ids({"context": 256}), ids({"training": {"steps": 300}}), ids({"seeds": [7]})}) == 4


def test_the_last_step_is_always_measured() -> None:
    fields = f.deep_merge(f.preset_fields("paper-openorca"), {"training": {"steps": 99}, "measure": {"every": 20}})
    assert c.validate(fields, where="x").measured_steps() == [0, 50, 70, 90, 99]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "line 1"),
        ("- 1\n- 2\n", "needs a mapping of fields, got list"),
        ("", "needs a mapping of fields, got NoneType"),
        ("x: !!python/object/apply:os.system ['true']\n", "line 1: could not determine a constructor"),
    ],
)
def test_wrong_yaml_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        f.read_fields(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_relative_sources_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    fields = {
        "text": {"source": "mine.txt"},
        "model": {"source": "some/hub-id"},
        "datasets": {"a": {"source": "mine.txt"}},
    }
    resolved = f.resolve_sources(fields, tmp_path)
    assert resolved["text"]["source"] == str(tmp_path / "mine.txt") == resolved["datasets"]["a"]["source"]
    assert resolved["model"]["source"] == "some/hub-id"


@pytest.mark.parametrize("flag", ["text", "model"])
def test_an_empty_source_is_refused_and_is_not_the_current_folder(flag: str) -> None:
    flags = {
        "model": {"source": "m"},
        "text": {"source": "t"},
        "datasets": {"a": {"source": "a"}},
        flag: {"source": ""},
    }
    with pytest.raises(UsageError, match=rf"{flag}\.source: got ''"):
        f.with_flags(flags, None, None)


@pytest.mark.parametrize("source", ["~nosuchuser/x.txt", "a" * 5000, "a\0b"])
def test_a_source_that_cannot_be_a_path_is_left_as_it_is(source: str, tmp_path: Path) -> None:
    assert f.resolve_sources({"text": {"source": source}}, tmp_path)["text"]["source"] == source


def test_further_texts_probes_and_items_are_relative_to_the_file_too(tmp_path: Path) -> None:
    for name in ("mine.txt", "prompts.jsonl", "items.jsonl", "default", "knowledge"):
        (tmp_path / name).write_text("x")
    fields = {
        "texts": {"a": {"source": "mine.txt"}, "b": {"probe": "prompts.jsonl"}, "c": {"probe": "default"}},
        "capabilities": {"suites": ["knowledge", "items.jsonl"], "harmful": "mine.txt", "harmless": "some/hub-id"},
    }
    resolved = f.resolve_sources(fields, tmp_path)
    assert resolved["texts"] == {
        "a": {"source": str(tmp_path / "mine.txt")},
        "b": {"probe": str(tmp_path / "prompts.jsonl")},
        "c": {"probe": "default"},
    }
    assert resolved["capabilities"] == {
        "suites": ["knowledge", str(tmp_path / "items.jsonl")],
        "harmful": str(tmp_path / "mine.txt"),
        "harmless": "some/hub-id",
    }


def test_the_texts_that_methods_name_are_relative_to_the_file_too(tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text("x")
    methods = [{"name": "corda", "calibration": {"source": "general.txt"}, "mitigations": [[{"name": "kl"}]]}]
    resolved = f.resolve_sources({"methods": methods}, tmp_path)
    assert resolved["methods"][0]["calibration"]["source"] == str(tmp_path / "general.txt")
    assert resolved["methods"][0]["mitigations"] == [[{"name": "kl"}]]


def test_micro_batches_of_a_preset_are_those_of_its_own_batches() -> None:
    assert f.with_flags({}, None, "miniature").training.micro_batch_size == 8
    assert f.with_flags({"training": {"batch_size": 12}}, None, "miniature").training.micro_batch_size is None


def test_ranks_by_flag_leave_the_other_options_of_a_file(tmp_path: Path) -> None:
    """Before, `--rank 12` silently replaced a file's LoRA on two layers with alpha 64 by one on all layers."""
    study = f.load_preset("miniature-methods").model_dump(mode="json")
    study["methods"] = [
        {"name": "full"},
        {"name": "lora", "rank": [4, 8], "target_modules": ["q_proj"], "alpha": 64},
        {"name": "lora", "label": "wide", "rank": 192},
    ]
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump(study))

    def methods(**chosen: Any) -> list[tuple[str, Any, Any]]:
        made = f.with_flags({}, file, None, **chosen).methods
        return [(one.label or one.name, one.options.get("rank"), one.options.get("alpha")) for one in made]

    assert methods(ranks=[12]) == [("full", None, None), ("lora", 12, 64), ("wide", 192, None)]
    assert methods(method="lora") == [("lora", [4, 8], 64)]
    assert methods(method="wide", ranks=[12]) == [("wide", 12, None)]
    assert methods(method="dora", ranks=[1, 2]) == [("dora", [1, 2], None)]
    assert [one.options["scaling"] for one in f.with_flags({}, None, None, ranks=[3]).methods] == ["rank-stabilized"]
    file.write_text(yaml.safe_dump(study | {"methods": [{"name": "full"}, {"name": "dora"}]}))
    assert methods(ranks=[12], default_rank=default_rank) == [("full", None, None), ("dora", 12, None)]
    file.write_text(yaml.safe_dump(study | {"methods": [{"name": "full"}]}))
    with pytest.raises(
        UsageError, match=r"--rank: no method in .*my.yaml has a rank; choose one that does with --method"
    ):
        methods(ranks=[12])


@pytest.mark.parametrize(
    ("measure", "start", "every"),
    [({}, 3, 3), ({"start": 2}, 2, 20), ({"every": 4}, 3, 4)],  # a given `start` has always worked
)
def test_few_steps_by_flags_alone_are_measured_five_times(measure: dict[str, int], start: int, every: int) -> None:
    flags = {"model": {"source": "m"}, "text": {"source": "t.txt"}, "datasets": {"d": {"source": "d.jsonl"}}}
    made = f.with_flags({**flags, "training": {"steps": 15}, "measure": measure}, None, None)
    assert (made.measure.start, made.measure.every) == (start, every)
    assert made.training.warmup_steps == 10


def stored(folder: Path, **changes: Any) -> Path:
    fields = f.preset_fields("miniature") | {"methods": [{"name": "lora"}]} | changes
    (folder / "study.yaml").write_text(yaml.safe_dump(fields))
    return folder


@pytest.mark.parametrize(
    ("methods", "ranks", "grown"),
    [
        ([{"name": "lora"}], [8, 16], [[8, 16]]),
        ([{"name": "lora", "rank": 8}], [8], [8]),
        ([{"name": "lora"}, {"name": "lora", "rank": [16]}], [8, 16, 32], [[8, 32], [16]]),
        ([{"name": "vera"}], [16], [[256, 16]]),
        ([{"name": "full"}, {"name": "lora"}], [16], [None, [8, 16]]),
    ],
)
def test_ranks_added_to_a_study_join_those_that_it_has_also_by_default(
    methods: list[dict[str, Any]], ranks: list[int], grown: list[Any], tmp_path: Path
) -> None:
    config = with_more(stored(tmp_path, methods=methods), {}, default_rank=default_rank, ranks=ranks)
    assert [one.options.get("rank") for one in config.methods] == grown
    assert runs_by_id(StudyFolder(tmp_path).config()).keys() <= runs_by_id(config).keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": None}, "training: got None"),
        ({"datasets": ["a"]}, "datasets: got .'a'.; give fields by name"),
        ({"datasets": {"a": "x"}}, "datasets.a: got 'x'"),
        ({"methods": ["lora"]}, "methods.0: got 'lora'"),
        ({"seeds": 0}, "seeds: got 0; give a list"),
    ],
)
def test_a_study_that_was_edited_wrongly_is_refused_when_it_is_extended(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"study.yaml: {message}"):
        with_more(stored(tmp_path, **changes), {"seeds": [1]}, default_rank=default_rank, ranks=[16])


@pytest.mark.parametrize(
    "methods",
    [
        [{"name": "lora"}, {"name": "dora", "label": "lora"}],
        [{"name": "lora", "label": "own"}, {"name": "full", "label": "own"}],
    ],
)
def test_two_methods_with_one_label_are_refused_as_their_runs_would_be_taken_for_one(
    methods: list[dict[str, Any]],
) -> None:
    config = c.validate(f.preset_fields("miniature") | {"methods": methods}, where="x")
    with pytest.raises(UsageError, match=r"methods: lora and (dora|full) are both called '(lora|own)'; give each its"):
        expand_runs(config)
    alike = [{"name": "lora", "rank": 8}, {"name": "lora", "rank": 16, "learning_rate": 1e-4}]
    assert expand_runs(c.validate(f.preset_fields("miniature") | {"methods": alike}, where="x"))


@pytest.mark.parametrize("fields", [{"capabilities": {"steps": []}}, {"methods": []}, {"seeds": []}])
def test_an_empty_list_is_refused_and_does_not_mean_the_default(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"got \[\]; give at least one"):
        c.validate(f.preset_fields("miniature") | fields, where="x")


@pytest.mark.parametrize(
    "method",
    [{"name": "lora", "alpha": math.inf}, {"name": "lora", "mitigations": [{"name": "kl", "weight": math.inf}]}],
)
def test_an_infinite_option_is_refused_as_it_would_be_stored_as_null(method: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"(alpha|weight): got inf; input should be a finite number"):
        expand_runs(c.validate(f.preset_fields("miniature") | {"methods": [method]}, where="x"))


@pytest.mark.parametrize(
    "options",
    [
        {"rank": (8, 16)},
        {"rank": np.arange(8, 10)},
        {"rank": np.int64(8), "alpha": np.float32(0.5)},
        {"target_modules": ("q_proj", "v_proj")},
        {"mitigations": ([{"name": "kl", "weight": (1.0, np.float64(2.0))}],)},
    ],
)
def test_options_given_in_python_are_the_same_when_they_are_read_back(options: dict[str, Any], tmp_path: Path) -> None:
    fields = f.preset_fields("miniature") | {"methods": [{"name": "lora", **options}]}
    config = c.validate(fields, where="x")
    stored = StudyFolder.create_or_resume(tmp_path / "s", config).config()
    assert stored.is_same(config)
    assert runs_by_id(stored).keys() == runs_by_id(config).keys()
