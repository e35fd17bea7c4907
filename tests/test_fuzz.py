"""Random configurations, tables, lines and formulas: each works or gives one clear error; no traceback, no hang.

A hundred of each in the normal suite; `pytest -m slow tests/test_fuzz.py` tries 10,000 of each.
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forgetting import files
from forgetting.analysis.fit import fit_law, load_fits
from forgetting.analysis.laws import FormulaLaw
from forgetting.analysis.tables import read_table, read_tables
from forgetting.capabilities.items import read_items
from forgetting.capabilities.prompts import read_prompts
from forgetting.config.files import deep_merge, load_preset, parse_yaml, presets
from forgetting.config.schema import StudyConfig, TextConfig, validate
from forgetting.data.documents import load_corpus
from forgetting.data.tokenizing import tokenize
from forgetting.errors import ForgettingError
from forgetting.store.folder import StudyFolder
from forgetting.store.table import load_table
from forgetting.store.table_cache import read_rows
from forgetting.tuning.grid import expand_runs

FEW, MANY = 100, 10_000
STUDY = load_preset("miniature").to_yaml()
Check = Callable[[Any], None]


def trial(function: Callable[[], Any]) -> Any:
    """The user gets a result, or one short error of ours that does not contain a traceback."""
    try:
        return function()
    except ForgettingError as error:
        text = str(error)
        assert text.strip()
        assert "Traceback" not in text
        assert all(len(line) < 4000 for line in text.splitlines())
        return None


def fuzz(strategy: Any, check: Check, count: int) -> None:
    """Run `count` examples of a strategy; one that never ends hangs the test."""

    @settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(strategy)
    def each(example: Any) -> None:
        check(example)

    each()


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from([0, -1, 1e308, 2**63, 10**400, "miniature", "lora", "auto", "../x", "\x00", "\u2028", "<script>"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12) | scalars.filter(bool), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = sorted(
    {name for section in (StudyConfig, TextConfig) for name in section.model_fields}
    | {"source", "rank", "steps", "label", "mitigations", "every", "start", "batch_size", "heldout", "limit", "suites"}
)
BASE = load_preset("miniature").model_dump(mode="json")


def paths(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    if isinstance(node, dict):
        found += [p for k, v in node.items() for p in paths(v, (*at, k))]
    elif isinstance(node, list):
        found += [p for k, v in enumerate(node) for p in paths(v, (*at, k))]
    return found


@st.composite
def configs(draw: Any) -> Any:
    """The preset with a few of its fields, anywhere in it, replaced, added or taken away."""
    made = json.loads(json.dumps(BASE))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths(made)[1:]))
        holder = made
        for key in path[:-1]:
            holder = holder[key]
        match draw(st.sampled_from(["set", "drop", "add", "near"])):
            case "set":
                holder[path[-1]] = draw(values)
            case "drop":
                del holder[path[-1]]
            case "near" if isinstance(holder[path[-1]], int | float) and holder[path[-1]]:
                holder[path[-1]] = holder[path[-1]] * draw(st.sampled_from([-1, 0, 0.5, 2, 1000]))
            case _:
                if isinstance(holder, dict):
                    holder[draw(st.sampled_from(FIELDS) | st.text(max_size=8))] = draw(values)
        if not paths(made)[1:]:
            break
    return made


def check_config(fields: Any) -> None:
    config = trial(lambda: validate(fields, where="fuzz"))
    if config is None:
        return
    again = validate(parse_yaml(config.to_yaml(), where="again"), where="again")
    assert again.to_yaml() == config.to_yaml()
    if config.training.steps / config.measure.every < 1e4 and len(config.seeds) * len(config.methods) < 100:
        runs = trial(lambda: expand_runs(config))
        if runs is not None:
            assert again == config
            assert [run.run_id() for run in runs] == [run.run_id() for run in expand_runs(again)]
        for run in runs or []:
            assert "/" not in run.run_id()
            assert StudyFolder(Path("x")).run(run.run_id()).path.parent == Path("x/runs")


def check_yaml(text: str) -> None:
    fields = trial(lambda: parse_yaml(text, where="fuzz.yaml"))
    if fields is not None:
        trial(lambda: validate(fields, where="fuzz.yaml"))
        trial(lambda: validate(deep_merge(BASE, fields), where="fuzz.yaml"))


yamls = (
    st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!|>'\"\n #?,%@`0123456789.~<= \t")), max_size=60)
    | values.map(lambda v: json.dumps(v, default=str))
    | configs().map(lambda c: yaml.safe_dump(json.loads(json.dumps(c, default=str))))
    | st.text(max_size=60)
)

cells = scalars.map(str) | st.sampled_from(
    ["1", "2.5", "nan", "inf", "", "1e999", "0x10", "1_000", '"', "a,b", "\n", "done"]
)
COLUMNS = [
    "step",
    "run_id",
    "status",
    "trainable_params",
    "finetune_loss",
    "forgetting_loss",
    "dataset",
    "Step",
    "a - b",
    "c - b",
]
names = st.sampled_from(COLUMNS) | st.text(max_size=8)


@st.composite
def tables(draw: Any) -> tuple[str, bytes]:
    """A file name and its content, which is almost a table."""
    suffix = draw(st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", ".jsonl.gz", ".txt.zst"]))
    if draw(st.booleans()):
        return suffix, draw(st.binary(max_size=200))
    header = draw(st.lists(names, min_size=1, max_size=6))
    body = [draw(st.lists(cells, min_size=len(header), max_size=len(header))) for _ in range(draw(st.integers(0, 6)))]
    if suffix == ".csv":
        return suffix, "\n".join(",".join(row) for row in [header, *body]).encode("utf-8", "replace")
    rows = [dict(zip(header, row, strict=True)) for row in body] + draw(st.lists(values, max_size=2))
    lines = [json.dumps(row, default=str, skipkeys=True) for row in rows]
    text = "\n".join(lines) if suffix == ".jsonl" else "[" + ",".join(lines) + "]"
    return suffix, text.encode("utf-8", "replace")


def in_file(made: tuple[str, bytes], read: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"fuzz{made[0]}"
        path.write_bytes(made[1])
        return trial(lambda: read(path))


def check_table(made: tuple[str, bytes]) -> None:
    table = in_file(made, read_table)
    if table is None:
        return
    assert len({len(column) for column in table.values()}) <= 1
    trial(lambda: fit_law("linear", table, bootstrap=0))
    in_file(made, lambda path: read_tables([path, path]))


def check_corpus(made: tuple[str, bytes]) -> None:
    in_file(made, lambda path: load_corpus(TextConfig(source=str(path))))
    in_file(made, lambda path: load_corpus(TextConfig(source=str(path), format="chat")))
    if made[0] in (".csv", ".jsonl", ".txt"):
        in_file(made, lambda path: read_prompts(str(path)))
    if made[0] == ".jsonl":
        in_file(made, read_items)


@st.composite
def lines(draw: Any) -> tuple[str, bytes]:
    """JSONL that is almost a corpus, items or conversations."""
    field = st.sampled_from(["text", "messages", "prompt", "completion", "answer", "choices", "id", "category"])
    turn = st.dictionaries(
        st.sampled_from(["role", "content"]), st.sampled_from(["user", "assistant", "hi", "", 3, None])
    )
    value = values | st.lists(turn, max_size=3) | st.text(max_size=20)
    rows = draw(st.lists(st.dictionaries(field, value, max_size=4) | values, min_size=1, max_size=5))
    text = "\n".join(json.dumps(row, default=str, skipkeys=True) for row in rows)
    cut = draw(st.integers(0, len(text)))
    return ".jsonl", (text[:cut] if draw(st.booleans()) else text).encode("utf-8", "replace")


CHAT_FIELDS = [
    *("messages", "conversations", "prompt", "completion", "chosen", "instruction", "input", "output", "question"),
    *("response", "answer", "system", "history", "tools", "images", "chat_template_kwargs", "id", "text"),
]
content = st.sampled_from(
    ["hi", "", " ", "\ud800", "<think>\nhm\n</think>\n\nso", None, 3, "<|end|>", "a\r\nb", "\ufeff"]
)
calls = st.lists(
    st.sampled_from([{"function": {"name": "look", "arguments": {"q": 1}}}, {"function": None}, {}, "x", None]),
    max_size=2,
)
turns = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "assistant", None, 1]),
        "content": content
        | st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]), "text": content})),
        "from": st.sampled_from(["human", "gpt", "function_call", "robot"]),
        "value": content | st.just('{"name": "look"}'),
        "tool_calls": calls | values,
        "reasoning_content": content,
    },
)
exchanges = st.lists(st.sampled_from([("user", "q"), ("assistant", "a"), ("system", "s")]), min_size=1, max_size=5).map(
    lambda pairs: [{"role": role, "content": content} for role, content in pairs]
)


@st.composite
def chats(draw: Any) -> tuple[str, bytes]:
    """JSONL that is almost conversations, in one of the common formats."""
    names = draw(st.lists(st.sampled_from(CHAT_FIELDS), min_size=1, max_size=4, unique=True))
    cell = exchanges | st.lists(turns, max_size=4) | content | values
    rows = [{name: draw(cell) for name in names} for _ in range(draw(st.integers(1, 4)))]
    mark = draw(st.sampled_from(["", "\ufeff"]))
    return ".jsonl", (mark + "\r\n".join(json.dumps(row, default=str, skipkeys=True) for row in rows)).encode()


TEMPLATES = [
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "{{ messages|length }}{% for m in messages %}{{ m.role }} {{ m.content | trim }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content[0].text }}{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content + ' ' }}"
    "{% if loop.last %}{{ m.tool_calls[0].function.name }}{% endif %}{% endfor %}<think>",
    None,
]


@functools.cache
def tokenizers() -> list[Any]:
    """A tokenizer of bytes with each of the templates."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = []
    for template in TEMPLATES:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        raw = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.append(PreTrainedTokenizerFast(tokenizer_object=raw))
        made[-1].chat_template = template
    return made


def check_chats(made: tuple[str, bytes]) -> None:
    """A conversation is read completely and its answers are targets, or one error says why not."""
    corpus = in_file(made, lambda path: load_corpus(TextConfig(source=str(path))))
    for tokenizer in tokenizers() if corpus else ():
        windows = trial(lambda tokenizer=tokenizer: tokenize(corpus, tokenizer, 64))
        if windows is not None:
            assert windows.lengths.max() <= 64
            assert windows.n_predicted > 0
            assert not windows.predicted[windows.offsets[:-1]].any()
            assert len(windows.first_copy) in (0, len(corpus))


@st.composite
def texts(draw: Any) -> tuple[str, str, bytes]:
    """A text of lines as they come, and the bytes of a file of it with the line breaks and mark of some system."""
    line = st.sampled_from(
        ["", " = One = ", " = = Part = = ", "a b c", "= x =", " ", "\u2028", "long " * 900]
    ) | st.text(st.characters(exclude_characters="\r\n\ufeff", exclude_categories=["Cs"]), max_size=12)
    lines = draw(st.lists(line, max_size=12))
    mark, end = draw(st.sampled_from(["", "\ufeff"])), draw(st.sampled_from(["\n", "\r\n"]))
    return draw(st.sampled_from([".txt", ".md"])), "\n".join(lines), (mark + end.join(lines)).encode()


def check_text(made: tuple[str, str, bytes]) -> None:
    """No text is lost, however it is split: apart from white space, its characters are those of its documents."""
    suffix, text, content = made
    for mode in ("auto", "wikitext", "paragraphs", "sections"):
        corpus = in_file(
            (suffix, content), lambda path, mode=mode: load_corpus(TextConfig(source=str(path), documents=mode))
        )
        if corpus is not None:
            assert "".join("".join(d.text for d in corpus).split()) == "".join(text.split())
            assert len({d.id for d in corpus}) == len(corpus)


def check_rows(content: bytes) -> None:
    """An edited run of a study: bulk reading and line-by-line reading agree, or it is damaged."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study.yaml").write_text(STUDY)
        run = StudyFolder(folder).run("a-s0-1")
        run.update(status="done", dataset="a", method={"name": "lora", "rank": 4}, seed=0)
        (run.path / "measurements.jsonl").write_bytes(content)
        lines = trial(run.measurements)
        table = trial(lambda: load_table(folder))
        assert table is not None
        assert (table["status"] == "damaged").any() == bool(run.flaw())
        if run.flaw():
            assert (len(table), table["finetune_loss"].notna().any()) == (1, False)
        else:
            assert lines is not None
            assert len(table) == len(lines)
            found = [None if v != v else v for v in table["finetune_loss"].tolist()]
            assert found == [None if (v := row.get("finetune_loss")) is None else float(v) for row in lines]
        trial(lambda: read_rows(folder, {"step": int}))
        (run.path / "run.json").write_bytes(content)
        trial(run.read)
        trial(lambda: load_table(folder))


row = st.dictionaries(
    st.sampled_from(["step", "finetune_loss", "agreement", "x"]),
    st.none() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | values,
    max_size=4,
)
contents = st.lists(
    row.map(lambda r: json.dumps(r, default=str, skipkeys=True)) | st.text(max_size=10), max_size=4
).map(lambda rows: "".join(f"{line}\n" for line in rows).encode("utf-8", "replace")) | st.binary(max_size=60)

tokens = st.sampled_from(
    [
        "a",
        "b",
        "N",
        "D",
        "+",
        "-",
        "*",
        "/",
        "**",
        "(",
        ")",
        "exp",
        "log",
        "1",
        "2.5",
        "=",
        "loss",
        " ",
        "^",
        ",",
        "1e9",
        ".",
    ]
)
formulas = st.lists(tokens, max_size=14).map("".join).map(lambda body: f"loss = a*N+{body}") | st.text(max_size=40)


def check_formula(text: str) -> None:
    law = trial(lambda: FormulaLaw(text, ["N", "D"]))
    if law is None:
        return
    assert law.from_spec(json.loads(json.dumps(law.spec))).formula == law.formula
    with np.errstate(all="ignore"):
        x = {"N": np.array([1.0, 2.0, 7.0]), "D": np.array([3.0, 1.0, 2.0])}
        theta = np.ones((2, len(law.parameters)))
        assert law.values(theta, x).shape == (2, 1, 3)
        assert law.gradient(theta, x).shape == (2, 1, 3, len(law.parameters))


def check_fits(value: Any) -> None:
    text = json.dumps({"format": 1, "fits": value}, default=str, skipkeys=True)
    in_file((".json", text.encode("utf-8", "replace")), load_fits)


fit_like = st.fixed_dictionaries(
    {"law": st.sampled_from(["linear", "shifted_power", "x"]) | values, "parameters": values, "format": st.just(1)},
    optional=dict.fromkeys(("label", "objective", "r2", "draws", "spec", "measured_range", "n_points"), values),
)


def check_redacted(value: Any) -> None:
    assert json.dumps(files.redact_all(json.loads(json.dumps(value, default=str, skipkeys=True))))


TOURS: dict[str, tuple[Any, Check]] = {
    "configs": (configs() | values, check_config),
    "yaml": (yamls, check_yaml),
    "tables": (tables(), check_table),
    "corpora": (tables() | lines(), check_corpus),
    "chats": (chats(), check_chats),
    "texts": (texts(), check_text),
    "rows": (contents, check_rows),
    "formulas": (formulas, check_formula),
    "fits": (fit_like | values, check_fits),
    "redacted": (values, check_redacted),
}


@pytest.mark.full
@pytest.mark.parametrize("tour", TOURS)
def test_random_input_works_or_says_why(tour: str) -> None:
    fuzz(*TOURS[tour], FEW)


@pytest.mark.slow
@pytest.mark.parametrize("tour", TOURS)
def test_ten_thousand_random_inputs_work_or_say_why(tour: str) -> None:
    fuzz(*TOURS[tour], MANY)


LONG = "1" + "0" * 320
FOUND: list[tuple[str, Any]] = [
    ("configs", BASE | {"model": BASE["model"] | {"source": "a\x85b"}}),
    ("rows", f'{{"step": {LONG}}}\n'.encode()),
    ("rows", f'{{"finetune_loss": {LONG}}}\n'.encode()),
    ("rows", b'{"finetune_loss": 1e999}\n'),
    ("rows", b'{"finetune_loss": NaN}\n'),
    ("rows", b"null\n"),  # these three ended the process
    ("rows", b"null\n\x0b\n"),
    ("rows", b' null\n{"step": 1}\n'),
]
"""Inputs like those that failed among 10,000 random ones, and similar ones."""


@pytest.mark.parametrize(("tour", "example"), FOUND, ids=lambda value: str(value)[:30])
def test_earlier_failures_stay_fixed(tour: str, example: Any) -> None:
    TOURS[tour][1](example)


@pytest.mark.parametrize("number", [LONG, f"-{LONG}", "1e999", "NaN", "-Infinity"])
@pytest.mark.parametrize(("field", "needed"), [("step", "a whole number"), ("finetune_loss", "a finite number")])
def test_a_number_beyond_a_floats_range_is_a_damaged_row(tmp_path: Path, field: str, needed: str, number: str) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    run = StudyFolder(tmp_path).run("a-s0-1")
    run.update(status="done", dataset="a", method={"name": "lora", "rank": 4}, seed=0)
    (run.path / "measurements.jsonl").write_text(f'{{"step": 1}}\n{{"{field}": {number}}}\n')
    assert load_table(tmp_path)["status"].tolist() == ["damaged"]
    assert re.search(rf"line 2: {field} is .{{1,40}} where {needed} is needed", run.flaw())


@pytest.mark.parametrize("name", presets())
def test_every_preset_round_trips(name: str) -> None:
    config = load_preset(name)
    assert validate(parse_yaml(config.to_yaml(), where="x"), where="x") == config
    assert [run.run_id() for run in expand_runs(validate(json.loads(config.model_dump_json()), where="x"))] == [
        run.run_id() for run in expand_runs(config)
    ]
