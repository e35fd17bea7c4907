"""Chat templates of real models: which tokens of a conversation are answers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgetting.data.documents import Document
from forgetting.data.tokenizing import tokenize
from forgetting.data.windows import Windows
from forgetting.errors import UsageError

TURNS = (
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Alpha."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Beta."},
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}"
    "<|Assistant|>{{ m.content.split('</think>')[-1] }}<|eos|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|eos|>{% endif %}"
)
MARKED = (
    "{{ messages|length }}{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
)
VISION = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{{ part.text }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DATED = "Today: {{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d') }}\n" + CHATML
TOOLS = (
    "{% for tool in tools or [] %}<|tool|>{{ tool.function.name }}{% endfor %}{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.content is none %}NULL{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}CALL {{ call.function.name }} {{ call.function.arguments | tojson }}"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {"q": "x"}}}]}


def tokenizer_of(template: str | None, *, eos: str | None = "<|eos|>") -> Any:
    """A tokenizer of bytes, with what looks like a special token in the template as one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    roles = {f"<|{role}|>" for role in ("user", "assistant", "system", "tool", "eos")}
    raw.add_special_tokens(sorted(roles | set(re.findall(r"<\|\w+\|>|</?think>", template or ""))))
    made: Any = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos)
    made.chat_template = template
    return made


def encoded(template: str | None, *messages: Any, **fields: Any) -> tuple[list[tuple[str, str]], Windows]:
    """(text, answers) of each window of a conversation."""
    tokenizer = tokenizer_of(template)
    windows = tokenize([Document(id="d", messages=tuple(messages), **fields)], tokenizer, 10_000)
    found = [windows.window(i) for i in range(len(windows))]
    return [(tokenizer.decode(ids), tokenizer.decode(ids[mask])) for ids, mask in found], windows


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (CHATML, ["Alpha.<|im_end|>\nBeta.<|im_end|>\n"]),
        (R1, ["Alpha.<|eos|>Beta.<|eos|>"]),
        (PHI3, ["Alpha.<|end|>\nBeta.<|end|>\n<|eos|>"]),
        (MARKED, ["Alpha.<|end|>Beta.<|end|>"]),
        (VISION, ["Alpha.<|end|>Beta.<|end|>"]),
        (QWEN3, ["<think>\n\n</think>\n\nBeta.<|im_end|>\n", "<think>\n\n</think>\n\nAlpha.<|im_end|>\n"]),
    ],
    ids=["chatml", "r1", "phi3", "marked", "vision", "qwen3"],
)
def test_answers_are_found_whatever_the_template_does_to_earlier_turns(template: str, answers: list[str]) -> None:
    windows, _ = encoded(template, *TURNS)
    assert [answer for _, answer in windows] == answers
    assert all("One?" in text for text, _ in windows)


@pytest.mark.parametrize(
    "template", [CHATML, R1, MARKED, VISION, QWEN3], ids=["chatml", "r1", "marked", "vision", "qwen3"]
)
def test_a_turn_marked_as_not_trained_on_is_no_target(template: str) -> None:
    plain, _ = encoded(template, *TURNS)
    windows, _ = encoded(template, TURNS[0], {**TURNS[1], "weight": 0}, *TURNS[2:])
    assert windows[0][0] == plain[0][0]  # still part of the conversation
    assert "".join(answer for _, answer in windows).count("Beta.") == 1
    assert not any("Alpha." in answer for _, answer in windows)


def test_a_turn_that_the_template_rewrites_later_is_measured_where_it_is_the_last() -> None:
    windows, found = encoded(QWEN3, *({**turn, "reasoning_content": "hm"} for turn in TURNS))
    rendered = [tokenizer_of(QWEN3).apply_chat_template(list(TURNS[:n]), tokenize=False) for n in (4, 2)]
    assert [text.replace("hm", "") for text, _ in windows] == rendered
    assert [answer for _, answer in windows] == [
        "<think>\nhm\n</think>\n\nBeta.<|im_end|>\n",
        "<think>\nhm\n</think>\n\nAlpha.<|im_end|>\n",
    ]
    assert found.documents.tolist() == [0, 0]
    assert found.notices == (
        "in 1 of 1 conversation the chat template renders an earlier turn differently from the last one, for example "
        "without its thinking; such an answer gets its own window, as its last turn",
    )


def test_thinking_that_the_template_adds_or_drops_is_reported() -> None:
    thinking = ({"role": "user", "content": "One?"}, {"role": "assistant", "content": "<think>hm</think>Alpha."})
    windows, found = encoded(R1, *thinking)
    assert windows == [("<|User|>One?<|Assistant|>Alpha.<|eos|>", "Alpha.<|eos|>")]
    assert "the chat template begins 1 answer differently from its generation prompt" in found.notices[0]
    assert "leaves out or changes part of an answer, such as its thinking, in 1 of 1" in found.notices[1]


@pytest.mark.parametrize("name", ["look", "f", "One", "assistant"])
def test_tool_calls_that_are_left_out_are_reported_whatever_the_tool_is_called(name: str) -> None:
    for call in ({"tool_calls": [{"function": {"name": name, "arguments": {}}}]}, {"function_call": {"name": name}}):
        turns = ({"role": "user", "content": "One? look for it"}, {"role": "assistant", "content": "Alpha.", **call})
        assert encoded(CHATML, *turns)[1].notices == (
            "the chat template leaves out the tool calls that 1 of 1 conversation has",
        )
    both = {"tool_calls": [{"function": {"name": one, "arguments": {}}} for one in (name, name)]}
    turns = (turns[0], {"role": "assistant", "content": None, **both})
    assert encoded(TOOLS, *turns)[1].notices == ()
    assert encoded(TOOLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"), *turns)[1].notices != ()
    earlier = (turns[0], {"role": "assistant", "content": "Alpha.", **call}, *TURNS[2:])
    assert encoded(R1, *earlier)[1].notices != ()


def test_a_thought_that_is_left_out_is_reported_even_if_the_prompt_has_the_same_words() -> None:
    turns = ({"role": "user", "content": "One? hm"}, {"role": "assistant", "content": "Alpha.", "reasoning": "hm"})
    assert "leaves out or changes part of an answer" in encoded(CHATML, *turns)[1].notices[0]
    shown = ({**turns[1], "reasoning_content": "hm"},)
    assert encoded(QWEN3, turns[0], *shown)[1].notices == ()


def test_tool_calls_and_tools_reach_the_template() -> None:
    tools = ({"type": "function", "function": {"name": "look"}},)
    turns = (TURNS[0], CALL, {"role": "tool", "content": "r"}, TURNS[1])
    windows, found = encoded(TOOLS, *turns, tools=tools)
    assert windows[0][0].startswith("<|tool|>look<|user|>One?")
    assert windows[0][1] == 'CALL look {"q": "x"}<|end|>Alpha.<|end|>'
    assert found.notices == ()
    _, found = encoded(CHATML, *turns, tools=tools)
    assert found.notices == (
        "the chat template leaves out the `tools` that 1 of 1 conversation has",
        "the chat template leaves out the tool calls that 1 of 1 conversation has",
    )


def test_messages_of_the_prompt_are_not_targets() -> None:
    for template in (CHATML, MARKED, QWEN3):
        windows, _ = encoded(template, *TURNS, given=3)
        assert "Alpha" not in "".join(answer for _, answer in windows)
        assert "Beta." in windows[0][1]


def test_the_date_is_the_same_on_every_day() -> None:
    windows, found = encoded(DATED, *TURNS[:2])
    assert windows[0][0].startswith("Today: 26 Jul 2024|2024-07-26\n<|im_start|>user\nOne?")
    assert found.notices == ("the chat template writes the date; here it is always 2024-07-26",)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
    ],
)
def test_a_template_that_refuses_is_one_error(template: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        encoded(template, *TURNS)
    assert re.match("document 'd': the model's chat template refuses this conversation: .*" + why, str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_conversation_that_begins_with_an_answer_is_measured_from_the_next() -> None:
    windows, found = encoded(CHATML, TURNS[1], *TURNS[2:])
    assert windows[0][1] == "Beta.<|im_end|>\n"
    assert found.notices == (
        "with this chat template, 1 answer cannot be told from the prompt, and so cannot be measured",
    )


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("answer", ["Hi", "4"])
def test_the_first_word_of_an_answer_is_a_target_if_its_token_has_the_prompts_last_space(
    answer: str, trim: bool
) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, "Hi", "ĠHi"])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[("H", "i"), ("Ġ", "Hi")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.post_processor = processors.ByteLevel(trim_offsets=trim)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<|end|>"])
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=raw)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    turns = ({"role": "user", "content": "q"}, {"role": "assistant", "content": answer})
    ids, mask = tokenize([Document(id="d", messages=turns)], tokenizer, 100).window(0)
    assert tokenizer.decode(ids[mask]) == {"Hi": " Hi<|end|>", "4": "4<|end|>"}[answer]


def test_a_slow_tokenizer_finds_the_same_answers() -> None:
    """Without offsets of characters, answers are found by tokens."""

    class Slow:
        is_fast = False

        def __init__(self, template: str) -> None:
            self.fast = tokenizer_of(template)
            self.chat_template = template

        def __getattr__(self, name: str) -> Any:
            return getattr(self.fast, name)

        def __call__(self, text: str, **options: Any) -> Any:
            assert not options.get("return_offsets_mapping")
            return self.fast(text, **options)

    for template in (CHATML, R1, PHI3, QWEN3):
        slow: Any = Slow(template)
        windows = tokenize([Document(id="d", messages=TURNS)], slow, 10_000)
        assert windows.fingerprint() == encoded(template, *TURNS)[1].fingerprint()


def test_prompts_and_completions_are_joined_without_a_template() -> None:
    turns = ({"role": "user", "content": "2 + 2 = "}, {"role": "assistant", "content": "4"})
    windows, found = encoded(None, *turns, pair=True)
    assert windows == [("2 + 2 = 4<|eos|>", "4<|eos|>")]
    assert found.notices == ("no chat template: prompts and completions are joined directly, with the end token",)
    with pytest.raises(
        UsageError, match="document 'd': a conversation, but the model's tokenizer has no chat template"
    ):
        encoded(None, *turns)


def test_joined_pairs_are_those_of_trl() -> None:
    """TRL trains on the tokens of prompt + completion + end mark from the first that differs from the prompt's."""
    tokenizer = tokenizer_of(None)
    for prompt, completion in (("One? ", "Alpha"), ("", "Alpha"), ("One?", "Alpha<|eos|>")):
        turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": completion})
        ids, mask = tokenize([Document(id="d", messages=turns, pair=True)], tokenizer, 100).window(0)
        whole = tokenizer(prompt + completion.removesuffix("<|eos|>") + "<|eos|>")["input_ids"]
        before = tokenizer(prompt)["input_ids"]
        start = next((i for i, token in enumerate(before) if token != whole[i]), len(before))
        assert ids.tolist() == whole
        assert mask.tolist() == [start <= i and i > 0 for i in range(len(whole))]


def test_a_tokenizer_that_ends_texts_itself_gives_a_joined_pair_one_end_token() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_of(None)
    end = int(tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|eos|>", special_tokens=[("<|eos|>", end)]
    )
    for completion in ("4", "4<|eos|>"):
        turns = ({"role": "user", "content": "2 + 2 = "}, {"role": "assistant", "content": completion})
        ids, mask = tokenize([Document(id="d", messages=turns, pair=True)], tokenizer, 100).window(0)
        assert tokenizer.decode(ids[mask]) == "4<|eos|>"


def test_copies_are_one_document_in_standard_errors() -> None:
    from forgetting.measuring.estimate import clustered_mean

    texts = ["the old river", "a new town", "the old  river\n", "bread and iron"]
    windows = tokenize([Document(id=str(i), text=text) for i, text in enumerate(texts)], tokenizer_of(None), 8)
    assert set(windows.token_documents().tolist()) == {0, 1, 3}
    assert windows.notices == ("1 of 4 documents is a copy of another, so it is not independent",)
    values = np.random.default_rng(0).normal(size=windows.n_predicted)
    assert clustered_mean(values, windows.token_documents()).n_documents == 3
    both = windows.joined(windows)
    assert set(both.token_documents().tolist()) == {0, 1, 3, 4, 5, 7}
    assert set(windows.select([4]).token_documents().tolist()) <= {0, 1, 3}


@pytest.mark.full
def test_templates_of_real_models_keep_answers_and_prompts_apart() -> None:
    """TRL ships the templates of some sixty models: every answer is a target, no prompt is, or one error says why."""
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        pytest.skip("needs trl")
    folder = Path(found.origin).parent / "chat_templates"
    if not folder.is_dir():
        pytest.skip("needs a newer trl")
    turns = ({"role": "user", "content": "One?"}, {"role": "assistant", "content": "Alpha."}, *TURNS[2:])
    read = 0
    for path in sorted(folder.glob("*.jinja")):
        for messages in (turns, turns[:2], ({"role": "system", "content": "Brief."}, *turns)):
            try:
                windows, _ = encoded(path.read_text(), *messages)
            except UsageError:
                continue
            read += 1
            answers = "".join(answer for _, answer in windows)
            assert not {"One?", "Two?", "Brief."} & set(re.findall(r"\w+[?.]", answers)), path.name
            assert all(turn["content"] in answers for turn in messages if turn["role"] == "assistant"), path.name
    assert read > 2 * len(list(folder.glob("*.jinja")))


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("encyclopedia-heldout", "050f7b10a1d67148"),
        ("instructions", "a0aa50445bd63cca"),
        ("news", "291cd1f6570756d1"),
    ],
)
def test_the_default_study_reads_the_same_tokens_as_before(name: str, fingerprint: str) -> None:
    """No number of the default study may change because of the reading of texts and chats."""
    from forgetting.config.schema import ModelConfig, TextConfig
    from forgetting.data.documents import load_corpus
    from forgetting.models.loading import load_tokenizer

    corpus = load_corpus(TextConfig(source=f"miniature:{name}", max_documents=200))
    windows = tokenize(corpus, load_tokenizer(ModelConfig(source="miniature")), 128)
    assert windows.fingerprint().startswith(fingerprint)


@pytest.mark.parametrize("has", [True, False])
def test_a_base_model_without_a_template_is_told_what_to_do(has: bool) -> None:
    from forgetting.measuring.reading import read_windows

    other = tokenizer_of(CHATML)
    other.chat_template = CHATML if has else None
    bare = tokenizer_of(CHATML)
    bare.chat_template = None
    with pytest.raises(UsageError, match=r"no chat template; give plain text .* add a chat_template\.jinja") as caught:
        read_windows([{"messages": list(TURNS)}], bare, [], 64, other)
    assert ("the tuned model has one, so add that and give the copy as BASE" in str(caught.value)) == has
