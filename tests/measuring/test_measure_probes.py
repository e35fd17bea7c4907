"""Probes: batched answers equal those of single prompts, and forgetting is measured on their tokens only."""

from __future__ import annotations

import copy
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_measure_command import call, save_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import forgetting
from forgetting.cli.texts import ProbeOptions
from forgetting.config.schema import ProbeConfig
from forgetting.data.probes import Prompt, beside, by_kind, encode_prompts, kinds_beside, kinds_of, read_probe
from forgetting.errors import UsageError
from forgetting.measuring import own_answers, probes
from forgetting.measuring.probes import probe_windows
from forgetting.models.generation import differing_settings, end_tokens, generate, length_as_asked

SAID = ["the old town", "a", "north south river guild", "new bread", "iron came", "a baker went", "boat", "the the the"]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tiny_model, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in SAID])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one_by_one(model: Any, prompt: Any, ends: list[int], most: int, choose: Any) -> list[int]:
    """The plain loop: the whole text again at each token."""
    ids = [int(token) for token in prompt]
    answer: list[int] = []
    while len(answer) < most:
        with torch.no_grad():
            logits = model(torch.tensor([ids + answer])).logits[0, -1].numpy()
        answer.append(int(choose(logits)))
        if answer[-1] in ends:
            break
    return answer


def test_a_template_that_leaves_the_prompts_out_is_refused(tokenizer: Any, prompts: Path) -> None:
    silent = copy.deepcopy(tokenizer)
    silent.chat_template = "{% for m in messages %}<|user|>the old town<|assistant|>{% endfor %}"
    asked = read_probe(ProbeConfig(probe=str(prompts)))
    with pytest.raises(UsageError, match=f"does not render the prompts: it gives the same text for all {len(asked)}; "):
        encode_prompts(asked, silent)
    assert len(encode_prompts(asked[:1], silent)[0]) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_padded_batches_give_the_answers_of_single_prompts(
    model: Any, tokenizer: Any, prompts: Path, temperature: float
) -> None:
    ids, _ = encode_prompts(read_probe(ProbeConfig(probe=str(prompts))), tokenizer)
    ends = end_tokens(model, tokenizer)
    how: dict[str, Any] = {"ends": ends, "max_new_tokens": 12, "temperature": temperature, "seed": 3}
    before = (model.generation_config, torch.random.get_rng_state())
    found = [answer.tolist() for answer in generate(model, ids, batch=5, **how)]
    assert model.generation_config is before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    for place, prompt in enumerate(ids):
        stream = np.random.default_rng([3, place])

        def choose(logits: Any, stream: Any = stream) -> Any:
            if not temperature:
                return logits.argmax()
            return (logits / np.float32(temperature) + stream.gumbel(size=len(logits)).astype(np.float32)).argmax()

        assert found[place] == one_by_one(model, prompt, ends, 12, choose)
    assert [answer.tolist() for answer in generate(model, ids, batch=2, **how)] == found
    assert temperature == 0 or any(answer[-1] in ends for answer in found)


def test_a_model_that_reads_padding_answers_one_prompt_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    """RWKV in transformers 5 includes padding in its state, and shares one state among all prompts of a batch."""
    from transformers import RwkvConfig, RwkvForCausalLM

    torch.manual_seed(0)
    how: dict[str, Any] = {"hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 48, "vocab_size": 90}
    model = RwkvForCausalLM(RwkvConfig(num_hidden_layers=2, **how)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    prompts = [np.arange(3, 3 + n, dtype=np.int32) for n in (3, 7, 12)]
    with caplog.at_level(logging.WARNING):
        found = [answer.tolist() for answer in generate(model, prompts, ends=[], max_new_tokens=5)]
    assert "answered one at a time" in caplog.text
    assert found == [one_by_one(model, prompt, [], 5, lambda logits: logits.argmax()) for prompt in prompts]


def test_the_model_s_own_penalties_are_not_used(model: Any, tokenizer: Any, prompts: Path) -> None:
    from transformers import GenerationConfig

    ids, _ = encode_prompts(read_probe(ProbeConfig(probe=str(prompts))), tokenizer)
    how: dict[str, Any] = {"ends": end_tokens(model, tokenizer), "max_new_tokens": 8}
    plain = [answer.tolist() for answer in generate(model, ids, **how)]
    own = model.generation_config
    model.generation_config = GenerationConfig(repetition_penalty=9.0, do_sample=True, no_repeat_ngram_size=1, top_k=1)
    try:
        assert [answer.tolist() for answer in generate(model, ids, **how)] == plain
    finally:
        model.generation_config = own


def test_settings_that_change_greedy_answers_are_reported_if_two_models_differ(model: Any) -> None:
    from transformers import GenerationConfig

    class Other:
        generation_config = GenerationConfig(eos_token_id=2, temperature=0.3, do_sample=True, max_new_tokens=5)

    class Same:
        generation_config = GenerationConfig(eos_token_id=2, max_length=99)

    assert differing_settings(Same, Other) == []
    Other.generation_config.repetition_penalty = 1.1
    (notice,) = differing_settings(Same, Other)
    assert notice.endswith("(repetition_penalty: None and 1.1)")
    with length_as_asked(Other):
        assert Other.generation_config.max_new_tokens is None
        assert Other.generation_config.repetition_penalty == 1.1
    assert Other.generation_config.max_new_tokens == 5


def test_numbers_are_those_of_a_loop_over_prompts(
    tiny_model: Path, adapter: Path, prompts: Path, tokenizer: Any
) -> None:
    """Full logits of each prompt with its answer, log-softmax in float64; only the answer's tokens count."""
    text = ProbeConfig(probe=str(prompts), max_new_tokens=8)
    result = forgetting.measure(str(tiny_model), str(adapter), text=text, context=48, cache_dir=None)
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter).eval()
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    forgot, kl, owners = [], [], []
    for place, prompt in enumerate(encode_prompts(read_probe(text), tokenizer)[0]):
        answer = one_by_one(base, prompt, end_tokens(base, tokenizer), 8, lambda logits: logits.argmax())
        ids = torch.tensor([[*map(int, prompt), *answer]])
        with torch.no_grad():
            b, t = (m(ids).logits[0].double().log_softmax(-1)[len(prompt) - 1 : -1] for m in (base, tuned))
        top = b.argmax(-1, keepdim=True)
        forgot += (b.gather(-1, top) - t.gather(-1, top))[:, 0].tolist()
        kl += (b.exp() * (b - t)).sum(-1).tolist()
        owners += [place] * len(answer)
    assert result.forgetting.value == pytest.approx(np.mean(forgot), abs=1e-6)
    assert result.means["kl"].value == pytest.approx(np.mean(kl), abs=1e-6)
    assert (result.forgetting.n_tokens, result.forgetting.n_documents) == (len(forgot), len(SAID))
    sums = np.bincount(owners, np.asarray(forgot) - np.mean(forgot))
    se = np.sqrt((sums**2).sum() * len(SAID) / (len(SAID) - 1)) / len(forgot)
    assert result.forgetting.se == pytest.approx(se, rel=1e-4)
    assert result.text == f"answers to {prompts}"
    assert result.where().passages  # the page's parts can be made


def test_answers_are_cached_and_generated_again_for_other_settings(
    model: Any, tokenizer: Any, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(probes, "generate", lambda *a, **k: calls.append(k) or generate(*a, **k))
    how: dict[str, Any] = {"key": "k", "context": 48, "cache_dir": tmp_path / "cache"}

    def made(**changes: Any) -> tuple[str, int]:
        config = ProbeConfig(probe=str(prompts), **{"max_new_tokens": 5, **changes.pop("config", {})})
        windows = probe_windows(model, tokenizer, config, **{**how, **changes})
        return windows.fingerprint(), len(calls)

    first, count = made()
    assert made() == (first, count) == (first, 1)
    assert made(config={"temperature": 1.0})[1] == 2
    assert made(config={"temperature": 1.0, "seed": 1})[1] == 3
    assert made(config={"max_new_tokens": 6})[1] == 4
    assert made(key="other")[1] == 5
    write(prompts, [{"prompt": text} for text in SAID[:-1]])
    assert made()[1] == 6
    assert made(key=None)[1] == 7
    (stored, *_) = sorted((tmp_path / "cache").glob("answers-*.jsonl"))
    row = json.loads(stored.read_text().splitlines()[1])
    assert tokenizer.decode(row["answer_ids"]) == row["answer"]
    assert row["prompt"] == SAID[0]
    assert stored.read_text().isascii()
    whole = {file: file.read_text() for file in (tmp_path / "cache").glob("answers-*.jsonl")}
    for file in whole:
        file.write_text("not json\n")
    assert made()[1] == 8
    assert sum(file.read_text() == text for file, text in whole.items()) == 1


def test_what_is_left_out_is_counted(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": text} for text in [*SAID[:4], "town " * 60]])
    answers = [[7, 8, 2], [2], [7] * 4, [8, 2]]
    monkeypatch.setattr(probes, "generate", lambda *a, **k: [np.array(one, np.int32) for one in answers])
    how: dict[str, Any] = {"key": None, "context": 40, "cache_dir": None}
    windows = probe_windows(model, tokenizer, ProbeConfig(probe=str(file), max_new_tokens=4), **how)
    assert windows.notices == (
        "1 of 5 prompts is left out: longer than the 36 tokens that answers of 4 leave in a context of 40",
        "1 of 4 answers is empty and left out",
        "1 of 4 answers was cut at 4 tokens",
    )
    assert windows.document_ids == ("1", "3", "4")
    assert windows.n_predicted == 3 + 4 + 2
    answers = [[2]] * 4
    with pytest.raises(UsageError, match="gives only empty answers to 4 prompts"):
        probe_windows(model, tokenizer, ProbeConfig(probe=str(file), max_new_tokens=4), **how)
    with pytest.raises(UsageError, match="no prompt is short enough: answers of 39 tokens leave 1 in a context of 40"):
        probe_windows(model, tokenizer, ProbeConfig(probe=str(file), max_new_tokens=39), **how)
    with pytest.raises(UsageError, match="an answer of 600 tokens does not fit a context of 40; lower --probe-tokens"):
        probe_windows(model, tokenizer, ProbeConfig(probe=str(file), max_new_tokens=600), **how)


def test_empty_rows_and_copies_are_counted_and_one_answer_has_no_error(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": ""}, {"prompt": "boat", "kind": "a"}, {"messages": []}, {"prompt": "boat", "kind": "a"}, {}]
    file = write(tmp_path / "p.jsonl", [*rows, {"prompt": "boat", "kind": "b"}])
    monkeypatch.setattr(probes, "generate", lambda *a, **k: [np.array([7, 2], np.int32)])
    config = ProbeConfig(probe=str(file), kind="a", max_new_tokens=4)
    windows = probe_windows(model, tokenizer, config, key=None, context=40, cache_dir=None)
    assert [notice for notice in windows.notices if "template" not in notice] == [
        "3 of 6 rows are empty and left out",
        "1 of 2 prompts is a copy of another one and left out",
        "one answer, so no standard error can be given; give more prompts",
    ]
    assert windows.document_ids == ("2",)
    assert list(by_kind("p", config.model_copy(update={"kind": None}))) == ["p-a", "p-b"]  # the copy is of this kind


@pytest.mark.parametrize(
    ("name", "content", "asked"),
    [
        ("a.jsonl", '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}]}', "hi"),
        ("a.jsonl", '{"instruction": "sort", "input": "b a"}', "sort\n\nb a"),
        ("a.jsonl", '\n{"id": 7, "kind": "k", "question": "why"}\n', "why"),
        ("a.csv", 'type,prompt\nk,"one, two"\n', "one, two"),
        ("a.txt", "\ufefffirst\r\n\r\n", "first"),
        ("a.json", '[{"prompt": "p"}]', "p"),
        ("a.csv", "Prompt,Category\n,,\nhi,k\n", "hi"),
        ("a.csv", "kind;Prompt\nk;one, two\n", "one, two"),
        ("a.tsv", 'Type\tQUESTION\nk\twhy, "so"\n', 'why, "so"'),
        (
            "a.jsonl",
            '{"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}',
            "q",
        ),
        ("a.jsonl", '{"category": "k", "turns": ["first", "then"]}', "first"),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": [{"type": "input_text", "text": "q"}]},'
            ' {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]}]}',
            "q",
        ),
    ],
)
def test_prompts_in_the_formats_that_people_have(tmp_path: Path, name: str, content: str, asked: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    (prompt,) = read_probe(ProbeConfig(probe=str(tmp_path / name)))
    assert prompt.text == asked
    assert prompt.kind in ("", "k")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": 3}', r"a\.jsonl, line 2: prompt: got 3; give a string"),
        ("a.jsonl", '{"Prompt": "a", "PROMPT": "b"}', r"line 1: columns Prompt and PROMPT differ in case only"),
        ("a.csv", 'prompt\na\n"b\nc\n', r"a\.csv, after line 2: not read as a table: unexpected end of data"),
        ("a.csv", "prompt\na,b\n", r"a\.csv, line 2: more fields than the header"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt"', r"a\.jsonl, line 2"),
        ("a.jsonl", '{"answer": "a"}', r"a\.jsonl, line 1: no prompt; fields: answer; give one of messages, prompt"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "x"}]}', r"line 1: messages: no turn of the user"),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}',
            r"line 1: messages: a message has a part of type 'input_image'; only text, input_text, output_text are",
        ),
        ("a.jsonl", '{"messages": "x"}', r"line 1: messages: got 'x'; a list of \{role, content\}"),
        ("a.jsonl", '{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}', r"2 prompts have the id '1'"),
        ("a.csv", "prompt,kind\n,\n \n", r"a\.csv: no prompt in it: 2 rows, none with text"),
        ("a.txt", "\n", r"a\.txt: no prompt in it"),
    ],
)
def test_wrong_prompts_are_named_by_file_and_line(tmp_path: Path, name: str, content: str, why: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=why):
        read_probe(ProbeConfig(probe=str(tmp_path / name)))


def test_the_240_shipped_prompts_have_six_kinds_and_the_miniatures_are_not_items_of_a_suite() -> None:
    from forgetting.data.miniature import rows

    shipped = read_probe(ProbeConfig(probe="default"))
    assert len(shipped) == len({prompt.text for prompt in shipped}) == 240
    kinds = ["facts", "reasoning", "code", "writing", "instructions", "refusals"]
    assert kinds_of(shipped) == kinds == list(by_kind("default", ProbeConfig(probe="default")))
    assert all(len(read_probe(ProbeConfig(probe="default", kind=kind))) == 40 for kind in kinds)
    small = read_probe(ProbeConfig(probe="miniature"))
    assert kinds_of(small) == ["knowledge", "reasoning", "refusals"]
    evaluated = {row["prompt"] for name in ("knowledge", "reasoning", "harmful", "harmless") for row in rows(name)}
    assert not evaluated & {prompt.text for prompt in small}
    with pytest.raises(UsageError, match="no prompt of kind 'fact'; did you mean 'facts'"):
        read_probe(ProbeConfig(probe="default", kind="fact"))


@pytest.mark.parametrize("name", ["z.jsonl.gz", "z.txt.gz", "z.ndjson"])
def test_packed_files_are_read_by_line_and_have_the_name_without_suffixes(tmp_path: Path, name: str) -> None:
    content = b"one\n\ntwo\n" if ".txt" in name else b'{"prompt": "one"}\n\n{"prompt": "two"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    source = str(tmp_path / name)
    assert [(prompt.text, prompt.place) for prompt in read_probe(ProbeConfig(probe=source))] == [
        ("one", "line 1"),
        ("two", "line 3"),
    ]
    assert list(ProbeOptions(probe=[source]).texts(0)) == ["z"]


def test_a_row_whose_first_column_is_empty_is_read_from_the_next(tmp_path: Path) -> None:
    rows = [{"prompt": None, "question": "One?"}, {"prompt": "Two.", "question": None}, {"prompt": "", "question": " "}]
    found = read_probe(ProbeConfig(probe=str(write(tmp_path / "p.jsonl", rows))))
    assert [prompt.text for prompt in found] == ["One?", "Two."]


def test_an_answer_under_another_name_does_not_become_part_of_the_prompt(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "One?"}, {"role": "gpt", "content": "Alpha."}]
    file = write(tmp_path / "p.jsonl", [{"messages": turns}])
    with pytest.raises(UsageError, match="line 1: messages: role 'gpt'; write assistant, or give `conversations`"):
        read_probe(ProbeConfig(probe=str(file)))


def test_by_kind_gives_one_text_per_kind(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"kind": "a b", "prompt": "x"}, {"kind": "c", "prompt": "y"}])
    assert list(by_kind("mine", ProbeConfig(probe=str(file)))) == ["mine-a-b", "mine-c"]
    write(file, [{"kind": "数学", "prompt": "x"}, {"kind": "编程", "prompt": "y"}])
    with pytest.raises(UsageError, match="the kinds '数学' and '编程' give the same name of a text"):
        by_kind("mine", ProbeConfig(probe=str(file)))
    write(file, [{"kind": "a", "prompt": "x"}, {"prompt": "y"}])
    with pytest.raises(UsageError, match=r"p\.jsonl, line 2: no kind, and other prompts have one \(a\)"):
        by_kind("mine", ProbeConfig(probe=str(file)))


def test_the_command_measures_and_judges_each_kind(
    tiny_model: Path, adapter: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = [{"kind": "left" if i % 2 else "right", "prompt": f"new {text}"} for i, text in enumerate(SAID)]
    rows += [{"kind": "right", "prompt": text} for text in SAID]
    file = write(tmp_path / "p.jsonl", rows)
    probe = ("--probe", f"own={file}", "--probe-tokens", "6", "--context", "40", "--no-cache")
    text = ("--text", str(corpora / "general.jsonl"))
    code, out, err = call(monkeypatch, capsys, "measure", tiny_model, adapter, *text, *probe, "--json")
    assert code == 0, err
    found = json.loads(out)["texts"]
    assert list(found) == ["text", "own-right", "own-left"]
    assert found["own-left"]["text"] == f"answers to {file} (left)"
    code, out, err = call(monkeypatch, capsys, "check", tiny_model, adapter, *probe, "--budget", "own-right=9")
    assert code == 0, err
    assert out.startswith("own-right: ")
    for wrong, why in (
        (("--probe", f"own={file}", "--probe", f"own={file}"), "two texts have the name 'own-left'"),
        (("--probe-tokens", "5"), "need --probe"),
        (("--probe", "gone.txt"), "gone.txt: no such file"),
    ):
        code, _, err = call(monkeypatch, capsys, "measure", tiny_model, adapter, *wrong)
        assert code == 2
        assert why in err
        assert len(err.splitlines()) == 1


def test_a_live_model_needs_its_tokenizer(model: Any, prompts: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(UsageError, match="need tokenizer="):
        forgetting.measure(model, model, text=ProbeConfig(probe=str(prompts)))


@pytest.fixture
def short_prompts(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """Prompts that fit the tiny model, instead of the shipped ones: eight of each of two kinds."""
    found = [
        Prompt(f"{kind}-{i}", kind, ({"role": "user", "content": f"{text} {kind}"},), f"line {i}")
        for kind in ("facts", "refusals")
        for i, text in enumerate(SAID)
    ]
    monkeypatch.setattr(own_answers, "beside", lambda source: found)
    return found


def test_own_answers_are_to_equally_many_prompts_of_each_kind() -> None:
    for source, kinds in (("default", 6), ("miniature", 3)):
        chosen, everything = beside(source), read_probe(ProbeConfig(probe=source))
        assert len({prompt.id for prompt in chosen}) == len(chosen) == 48
        assert kinds_of(chosen) == kinds_of(everything) == kinds_beside(source)
        assert [sum(one.kind == kind for one in chosen) for kind in kinds_of(chosen)] == [48 // kinds] * kinds
        each = [one.id for one in everything if one.kind == chosen[0].kind]
        places = [each.index(one.id) for one in chosen if one.kind == chosen[0].kind]
        assert places == [i * len(each) // len(places) for i in range(len(places))]


def test_own_answers_of_a_base_model_with_a_template_do_not_change_the_texts_numbers(
    tiny_model: Path, adapter: Path, corpora: Path, tmp_path: Path, short_prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = (tiny_model, adapter, "--text", str(corpora / "general.jsonl"), "--context", "40", "--cache", tmp_path)
    code, out, err = call(monkeypatch, capsys, "measure", *given, "--json", "--no-probe")
    assert code == 0, err
    assert "own answers" not in err
    plain = json.loads(out)
    code, out, err = call(monkeypatch, capsys, "measure", *given, "--json", "--html", tmp_path / "page.html")
    assert code == 0, err
    assert [line for line in err.splitlines() if "--no-probe" in line] == [
        "notice: the base model has a chat template: forgetting of its own answers to 16 prompts is measured, "
        "too; --no-probe (probes=False) skips them"
    ]
    found = json.loads(out)
    rows = found.pop("probes")
    assert list(rows) == ["facts", "refusals"]
    assert found | {"measure_seconds": 0} == plain | {"measure_seconds": 0}
    assert "own answers: refusals" in (tmp_path / "page.html").read_text()
    file = write(tmp_path / "p.jsonl", [{"kind": p.kind, "prompt": p.text} for p in short_prompts])
    asked = forgetting.profile(
        str(tiny_model), str(adapter), texts={"p": ProbeConfig(probe=str(file), max_new_tokens=32)}, cache_dir=None
    ).to_dict()["texts"]
    for kind, row in rows.items():  # equal to the result if each kind of prompt is requested separately
        same = asked[f"p-{kind}"]
        assert row["text"] == f"answers to default ({kind})"
        assert (row["text_tokens"], row["text_documents"]) == (same["text_tokens"], 8)
        for column in ("forgetting", "forgetting_se", "kl", "p_holm"):
            assert row[column] == pytest.approx(same[column], abs=1e-6)


def test_budgets_judge_only_the_text_unless_they_name_answers(
    tiny_model: Path, adapter: Path, corpora: Path, tmp_path: Path, short_prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = (tiny_model, adapter, "--text", str(corpora / "general.jsonl"), "--cache", tmp_path, "--context", "40")

    def checked(*more: Any) -> tuple[int, str, str]:
        return call(monkeypatch, capsys, "check", *given, *more)

    with_answers = checked("--budget", "9", "--json", "--markdown", tmp_path / "m.md")
    without = checked("--budget", "9", "--json", "--no-probe")
    first, second = json.loads(with_answers[1]), json.loads(without[1])
    assert list(first.pop("probes")) == ["facts", "refusals"]
    assert first | {"measure_seconds": 0} == second | {"measure_seconds": 0}
    assert (with_answers[0], without[0], first["verdict"]) == (0, 0, "within")
    assert "not judged, on the base model's own answers: facts " in (tmp_path / "m.md").read_text()
    code, out, _ = checked("--budget", "9", "--budget", "refusals=0.000001", "--json")
    both = json.loads(out)
    assert (code, both["verdict"], both["texts"]["text"]["verdict"]) == (3, "over", "within")
    assert both["probes"]["refusals"]["budget"] == 0.000001
    assert "verdict" not in both["probes"]["facts"]
    code, out, err = checked("--budget", "refusals=9")
    assert code == 0, err
    assert out.startswith("refusals: within budget")
    assert "not judged, on the base model's own answers: facts " in out
    for wrong, why in (
        (("--budget", "writings=9"), "give a number, or NAME=NATS for the base model's own answers (facts, reasoning"),
        (("--budget", "refusals=9", "--no-probe"), "the only text has no name; give a number"),
        (("--budget", "9", "--no-probe", "--probe", "default"), "give --probe or --no-probe, not both"),
    ):
        code, _, err = checked(*wrong)
        assert code == 2
        assert why in err
        assert len(err.splitlines()) == 1


def test_a_base_model_that_cannot_answer_is_a_one_line_warning_without_a_verdict(
    tiny_model: Path, adapter: Path, corpora: Path, tmp_path: Path, short_prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fails(*_: Any, **__: Any) -> Any:
        raise ValueError("no cache of that kind\nat all")

    monkeypatch.setattr(LlamaForCausalLM, "generate", fails)
    given = (tiny_model, adapter, "--text", str(corpora / "general.jsonl"), "--no-cache", "--context", "40")
    code, out, err = call(monkeypatch, capsys, "measure", *given, "--json")
    assert (code, "probes" in json.loads(out)) == (0, False)
    (line,) = [line for line in err.splitlines() if "own answers" in line]
    assert line.startswith(
        "notice: the base model's own answers are not measured: the base model cannot generate answers: "
    )
    assert "its generate() fails with ValueError: no cache of that kind at all; --no-probe" in line
    code, _, err = call(monkeypatch, capsys, "check", *given, "--budget", "refusals=9")
    assert code == 2
    assert "--budget refusals: the base model's own answers were not measured" in err.splitlines()[-1]
    code, _, err = call(monkeypatch, capsys, "measure", *given, "--probe", "default", "--probe-tokens", "4")
    assert code in (1, 2)
    assert len(err.splitlines()) == 1
