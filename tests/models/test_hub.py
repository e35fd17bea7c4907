"""Hub ids in every command: models, adapters and data sets, resolved once to a commit, offline and from a server."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from forgetting.cli import main
from forgetting.config.schema import ModelConfig, TextConfig
from forgetting.data import hub
from forgetting.data.hub_rows import hub_rows
from forgetting.data.sources import read_rows
from forgetting.errors import ForgettingError, UsageError
from forgetting.measuring.measure import measure
from forgetting.models import sources
from forgetting.models.loading import Placement, load_base, load_tokenizer, max_context
from forgetting.models.pair import open_pair
from hub_twin import HubCache, HubServer, contents, hub_cache, hub_server

pytestmark = pytest.mark.full

__all__ = ["hub_cache", "hub_server"]
BASE, TUNED, ADAPTER, TEXT = "org/base", "org/tuned", "org/adapter", "org/text"


def disturbed(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def folders(tiny_model: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The contents of the repositories: a base model, two models tuned from it, an adapter, a data set."""
    at = tmp_path_factory.mktemp("repos")
    made = {"base": tiny_model}
    for seed, name in ((1, "tuned"), (2, "second")):
        shutil.copytree(tiny_model, at / name)
        disturbed(AutoModelForCausalLM.from_pretrained(tiny_model), seed).save_pretrained(at / name)
        made[name] = at / name
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, target_modules="all-linear")
    )
    disturbed(adapted, 3).save_pretrained(at / "adapter")
    config = json.loads((at / "adapter" / "adapter_config.json").read_text())
    (at / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": BASE}))
    made["adapter"] = at / "adapter"
    (at / "text").mkdir()
    shutil.copy(corpora / "general.jsonl", at / "text" / "test.jsonl")
    shutil.copy(corpora / "train.jsonl", at / "text" / "train.jsonl")
    made["text"] = at / "text"
    return made


@pytest.fixture
def cached(hub_cache: HubCache, folders: dict[str, Path]) -> HubCache:
    """All of them in an offline cache; the base model has a main branch, and a branch `other` with another model."""
    for name, key in ((BASE, "base"), (TUNED, "tuned"), (ADAPTER, "adapter")):
        hub_cache.add(name, folders[key])
    hub_cache.add(BASE, folders["second"], ref="other")
    hub_cache.add(TEXT, folders["text"], kind="dataset")
    return hub_cache


class Shown(str):
    """Standard output and error of a command."""

    code: int
    err: str


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Shown:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["forgetting", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
    output = capsys.readouterr()
    found = Shown(output.out)
    found.code, found.err = int(stopped.value.code or 0), output.err
    return found


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    monkeypatch.setenv("FORGETTING_CACHE", str(tmp_path / "targets"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    return


def local_forgetting(folders: dict[str, Path], base: str, tuned: str) -> float:
    row = measure(
        str(folders[base]), str(folders[tuned]), text=str(folders["text"] / "test.jsonl"), cache_dir=None
    ).to_dict()
    return float(row["forgetting"])


# every command, offline


@pytest.mark.full
def test_measure_by_id_gives_the_numbers_of_the_folders(
    cached: HubCache, folders: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = tmp_path / "general.jsonl"
    shutil.copy(folders["text"] / "test.jsonl", text)
    for tuned, key in ((TUNED, "tuned"), (ADAPTER, "adapter")):
        output = command(capsys, "measure", BASE, tuned, "--text", text, "--no-probe", "--json")
        assert output.code == 0, output.err
        assert json.loads(output)["forgetting"] == pytest.approx(local_forgetting(folders, "base", key), abs=1e-6)
    other = command(capsys, "measure", BASE, TUNED, "--revision", "other", "--text", text, "--no-probe", "--json")
    assert json.loads(other)["forgetting"] == pytest.approx(local_forgetting(folders, "second", "tuned"), abs=1e-6)
    assert json.loads(other)["forgetting"] > 0.01
    assert len(list((tmp_path / "targets").glob("targets-*.safetensors"))) == 2  # one per base model


def test_check_and_a_data_set_by_id(cached: HubCache, capsys: pytest.CaptureFixture[str]) -> None:
    output = command(capsys, "check", BASE, TUNED, "--text", TEXT, "--budget", "0.0001", "--no-cache")
    assert (output.code, "over" in output) == (3, True), output.err


def test_evaluate_by_id_stores_under_the_commit(
    cached: HubCache, folders: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    items = tmp_path / "mine.jsonl"
    rows = [
        {"id": str(i), "prompt": f"the {w} went", "choices": ["town", "river"], "answer": 0}
        for i, w in enumerate(("old", "new"))
    ]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["evaluate", BASE, ADAPTER, "--suite", items, "--out", tmp_path / "answers", "--json"]
    output = command(capsys, *asked)
    assert output.code == 0, output.err
    keys = {
        name: json.loads((tmp_path / "answers" / name / "meta.json").read_text())["key"] for name in ("base", "tuned")
    }
    assert keys == {"base": hub.find(BASE).commit, "tuned": hub.find(ADAPTER).commit}
    assert json.loads(command(capsys, *asked))["seconds"] == 0  # stored
    moved = command(capsys, *asked, "--revision", "other")
    assert (moved.code, "another base model" in moved.err) == (2, True), moved.err


@pytest.mark.full
def test_study_by_id_and_its_adapter_names_the_id_and_commit(
    cached: HubCache, folders: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = f"--model {BASE} --train {TEXT} --text {folders['text'] / 'test.jsonl'} --context 32 --jobs 1"
    recipe = "--steps 12 --batch-size 4 --learning-rate 3e-3 --measure-start 6 --measure-every 6 --rank 2"
    out = tmp_path / "out"
    output = command(capsys, "study", *flags.split(), *recipe.split(), "--out", out, "--json")
    assert output.code == 0, output.err
    commit = hub.find(BASE).commit
    (run,) = (out / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["base"] == commit
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (BASE, commit)
    assert "snapshots" not in (run / "adapter" / "README.md").read_text()

    measured = command(
        capsys, "measure", BASE, run / "adapter", "--text", folders["text"] / "test.jsonl", "--no-cache", "--json"
    )
    assert json.loads(measured)["notices"] == []
    wrong = command(capsys, "measure", BASE, run / "adapter", "--revision", "other", "--text", TEXT, "--no-cache")
    assert wrong.code == 2
    assert f"give revision {commit} (--revision)" in wrong.err


def test_plan_counts_the_parameters_of_an_id(cached: HubCache, capsys: pytest.CaptureFixture[str]) -> None:
    output = command(capsys, "plan", "kalajdzievski2024/openorca", "--model", BASE, "--budget", "0.85", "--json")
    assert output.code == 0, output.err
    wrong = command(capsys, "plan", "kalajdzievski2024/openorca", "--model", "org/typo", "--budget", "0.85")
    assert (wrong.code, "model 'org/typo': no such file or folder here" in wrong.err) == (2, True)


# one commit


def test_everything_comes_from_the_commit_found_first(cached: HubCache, folders: dict[str, Path]) -> None:
    """The branch moves after the source was found: model, tokenizer and key stay those of the first commit."""
    config = ModelConfig(source=BASE)
    found = sources.find(BASE)
    cached.add(BASE, folders["second"])
    base = load_base(config, found)
    assert (base.revision, base.key) == (found.commit, f"{found.commit}/float32")
    local = load_base(ModelConfig(source=str(folders["base"]))).model.state_dict()
    assert all(torch.equal(value, local[name]) for name, value in base.model.state_dict().items())
    assert load_base(config).revision == hub.find(BASE, "other").commit != found.commit


def test_a_tag_a_branch_with_a_slash_and_a_whole_commit_name_a_revision(
    cached: HubCache, folders: dict[str, Path]
) -> None:
    commit = cached.add(BASE, folders["second"], ref="refs/pr/1")
    for revision in ("other", "refs/pr/1", commit):
        assert hub.find(BASE, revision).commit == commit
    assert max_context(ModelConfig(source=BASE, revision=commit)) == 64


def test_an_adapter_of_a_renamed_repository_fits_if_the_commit_is_the_same(
    cached: HubCache, folders: dict[str, Path]
) -> None:
    cached.add("org/new-name", folders["base"])
    pair = open_pair("org/new-name", ADAPTER, settings=ModelConfig(source="-"), placement=Placement())
    assert pair.notices == []
    with pytest.raises(UsageError, match="made for 'org/base', not for 'org/tuned'"):
        open_pair(TUNED, ADAPTER, settings=ModelConfig(source="-"), placement=Placement())


# errors: one line, at once


def test_wrong_names_give_a_one_line_error(cached: HubCache, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ((TUNED + "x", TUNED), "model 'org/tunedx': no such file or folder here, and not in the Hub's cache"),
        ((BASE, "org/adaptr"), "model 'org/adaptr': no such file or folder here, and not in the Hub's cache"),
        ((BASE, TUNED, "--revision", "nope"), "model 'org/base' at revision 'nope': no such file or folder"),
        (("a base", TUNED), "model 'a base': no such file or folder here, and not a Hub id"),
        ((ADAPTER, ADAPTER), "an adapter, not a base model"),
        ((BASE, TUNED, "--text", "org/nope"), "data set 'org/nope': no such file or folder here, and not in the Hub's"),
    ):
        output = command(capsys, "measure", *arguments, "--no-cache")
        assert (output.code, output.err.count("\n")) == (2, 1), output.err
        assert message in output.err


def test_a_revision_of_a_folder_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="a local folder, which has no revisions; leave out revision 'v1'"):
        load_base(ModelConfig(source=str(tiny_model), revision="v1"))


def test_pickles_alone_are_refused_before_they_are_fetched(hub_cache: HubCache, folders: dict[str, Path]) -> None:
    model = contents(folders["base"])
    weights = model.pop("model.safetensors")
    hub_cache.add("org/pickled", {**model, "pytorch_model.bin": weights})
    with pytest.raises(UsageError, match=r"has no \*.safetensors weights .*pickled weights are refused"):
        load_base(ModelConfig(source="org/pickled"))
    adapter = contents(folders["adapter"])
    adapter["adapter_model.bin"] = pickle.dumps(adapter.pop("adapter_model.safetensors"))
    hub_cache.add("org/pickled-adapter", adapter)
    with pytest.raises(UsageError, match=r"has no adapter_model\.safetensors .*pickled weights are refused"):
        open_pair(str(folders["base"]), "org/pickled-adapter", settings=ModelConfig(source="-"), placement=Placement())


def test_an_incomplete_cache_is_reported(cached: HubCache, folders: dict[str, Path]) -> None:
    cached.drop(TUNED, "model.safetensors")
    with pytest.raises(UsageError, match=r"this repository, as far as it is cached, has no .*safetensors weights"):
        load_base(ModelConfig(source=TUNED))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = contents(folders["base"])
    files["model-00001-of-00002.safetensors"] = files.pop("model.safetensors")
    cached.add("org/sharded", {**files, "model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(UsageError, match=r"names model-00002-of-00002\.safetensors, which this repository"):
        load_base(ModelConfig(source="org/sharded"))


# data sets, offline


def test_rows_of_a_data_set_in_the_cache(cached: HubCache, folders: dict[str, Path]) -> None:
    expected = [json.loads(line) for line in (folders["text"] / "test.jsonl").read_text().splitlines()]
    assert list(hub_rows(TEXT, split="test")) == expected
    assert len(read_rows(TextConfig(source=TEXT))[0]) == 60
    assert list(hub_rows(TEXT, split="test", streaming=True)) == expected
    older = cached.add(TEXT, {"train.jsonl": b'{"text": "older"}\n'}, ref="v1", kind="dataset")
    assert list(hub_rows(TEXT, revision="v1")) == list(hub_rows(TEXT, revision=older)) == [{"text": "older"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, 'Unknown split "validation"'),
        ({"subset": "small"}, "BuilderConfig 'small' not found"),
        ({"revision": "v9"}, "at revision 'v9': no such file or folder here, and not in the Hub's cache"),
    ],
)
def test_wrong_choices_of_a_data_set_give_a_one_line_error(
    cached: HubCache, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=f"data set '{TEXT}'") as caught:
        hub_rows(TEXT, **options)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_part_of_a_split_is_not_used_as_the_whole(hub_cache: HubCache) -> None:
    row = b'{"text": "x"}\n'
    files = {f"train-{i:05d}-of-00003.jsonl": row for i in range(3)}
    hub_cache.add("org/whole", files, kind="dataset")
    assert len(list(hub_rows("org/whole"))) == 3
    hub_cache.add("org/part", {name: data for name, data in files.items() if "00001-of" not in name}, kind="dataset")
    with pytest.raises(UsageError, match=r"has 2 of the 3 files train-\*-of-00003.jsonl"):
        hub_rows("org/part")


def prepare(tmp_path: Path, name: str, commit: str, text: str) -> None:
    """The content of the cache of `datasets` after loading a data set of one row from the Hub."""
    import datasets

    made = datasets.Dataset.from_list([{"text": text}], split="train")
    folder = tmp_path / "prepared" / name.replace("/", "___") / "default" / "0.0.0" / commit
    builder = datasets.DatasetDict({"train": made})
    builder.save_to_disk(str(tmp_path / "scratch"))
    folder.mkdir(parents=True)
    (source,) = (tmp_path / "scratch" / "train").glob("data-*.arrow")
    shutil.copy(source, folder / f"{name.split('/')[1]}-train.arrow")
    info = {
        "features": {"text": {"dtype": "string", "_type": "Value"}},
        "builder_name": "json",
        "dataset_name": name.split("/")[1],
        "config_name": "default",
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
        "splits": {"train": {"name": "train", "num_bytes": 1, "num_examples": 1, "dataset_name": name.split("/")[1]}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_data_prepared_by_datasets_is_used_only_at_the_requested_commit(hub_cache: HubCache, tmp_path: Path) -> None:
    commit = hub_cache.add("org/once", {"README.md": b"card"}, kind="dataset")
    prepare(tmp_path, "org/once", commit, "prepared")
    assert list(hub_rows("org/once")) == [{"text": "prepared"}]
    hub_cache.add("org/once", {"README.md": b"a later card"}, kind="dataset")
    with pytest.raises(
        UsageError, match=f"prepared commit {commit[:12]} of it, not .* as requested; give revision {commit}"
    ):
        hub_rows("org/once")
    assert list(hub_rows("org/once", revision=commit)) == [{"text": "prepared"}]
    prepare(tmp_path, "org/alone", "b" * 40, "no cache of the Hub")
    assert list(hub_rows("org/alone")) == [{"text": "no cache of the Hub"}]


# a Hub that answers


def test_only_the_files_that_are_read_are_downloaded_at_one_commit(
    hub_server: HubServer, folders: dict[str, Path]
) -> None:
    files = contents(folders["base"])
    beside = {"pytorch_model.bin": b"pickle", "consolidated.safetensors": b"other", "code.py": b"raise SystemExit"}
    commit = hub_server.add(BASE, {**files, **beside})
    load_tokenizer(ModelConfig(source=BASE))
    assert not any("safetensors" in request for request in hub_server.requests)
    base = load_base(ModelConfig(source=BASE))
    assert base.revision == commit
    fetched = {request.split("/")[-1] for request in hub_server.requests if request.startswith("GET /org")}
    assert "model.safetensors" in fetched
    assert not fetched & set(beside)
    hub_server.requests.clear()
    load_base(ModelConfig(source=BASE))
    assert hub_server.requests == ["GET /api/models/org/base"]  # cached files are not requested again


def test_shards_are_those_of_the_index(hub_server: HubServer, folders: dict[str, Path], tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folders["base"]).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    shutil.copy(folders["base"] / "tokenizer.json", tmp_path / "sharded")
    shutil.copy(folders["base"] / "tokenizer_config.json", tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    hub_server.add(BASE, tmp_path / "sharded")
    base = load_base(ModelConfig(source=BASE)).model.state_dict()
    local = load_base(ModelConfig(source=str(folders["base"]))).model.state_dict()
    assert all(torch.equal(value, local[name]) for name, value in base.items())

    # of two sets, the one file is fetched and read, as from a folder
    shutil.copy(folders["base"] / "model.safetensors", tmp_path / "sharded")
    hub_server.add("org/both", tmp_path / "sharded")
    hub_server.requests.clear()
    both = load_base(ModelConfig(source="org/both")).model.state_dict()
    assert all(torch.equal(value, local[name]) for name, value in both.items())
    assert not [request for request in hub_server.requests if "model-0" in request]


@pytest.mark.parametrize(
    ("name", "revision", "error", "message"),
    [
        ("org/typo", None, UsageError, "no such repository on the Hub; if it is private, log in"),
        (BASE, "v9", UsageError, "exists on the Hub, but has no commit, tag or branch 'v9'"),
        ("org/gated", None, UsageError, "gated; accept its conditions at https://huggingface.co/org/gated"),
    ],
)
def test_the_hubs_refusals_are_one_line_after_one_request(
    hub_server: HubServer,
    folders: dict[str, Path],
    name: str,
    revision: str | None,
    error: type[ForgettingError],
    message: str,
) -> None:
    hub_server.add(BASE, folders["base"])
    hub_server.add("org/gated", folders["base"])
    hub_server.gated.add("org/gated")
    with pytest.raises(error) as caught:
        load_base(ModelConfig(source=name, revision=revision))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if name != "org/gated":
        assert len(hub_server.requests) == 1


def test_an_unreachable_hub_is_reported_and_the_cache_used_with_a_notice(
    hub_server: HubServer, hub_cache: HubCache, folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    commit = hub_cache.add(BASE, folders["base"])
    hub_server.broken = True
    with pytest.raises(ForgettingError, match=r"the Hub returned an error \(503\); try again later"):
        hub.find("org/else")
    with caplog.at_level(logging.WARNING, "forgetting"):
        assert load_base(ModelConfig(source=BASE)).revision == commit
    assert f"the Hub cannot be reached; using commit {commit[:12]}" in caplog.text
    assert len(hub_server.requests) == 2


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_without_a_network_a_name_fails_after_one_try(
    hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch, kind: hub.Kind, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ForgettingError, match=r"no such file or folder here, and the Hub cannot be reached"):
        sources.find("org/typo") if kind == "model" else hub_rows("org/typo")
    assert "Retrying" not in caplog.text


def test_what_a_study_reads_comes_from_one_commit(cached: HubCache, folders: dict[str, Path]) -> None:
    """The branch moves while a study runs: its tokenizer, model and copies stay at the first commit."""
    from forgetting.config.schema import validate
    from forgetting.studies.inputs import StudyInputs

    fields = {"model": {"source": BASE}, "text": {"source": TEXT}, "datasets": {"d": {"source": TEXT}}}
    inputs = StudyInputs(validate({**fields, "methods": [{"name": "lora", "rank": 2}], "context": 32}, where="test"))
    first = hub.find(BASE).commit
    assert inputs.tokenizer.is_fast
    cached.add(BASE, folders["second"])
    base = inputs.base()
    assert base.revision == first
    assert load_base(base.pinned(inputs.config.model)).revision == first
