"""The named corpora of the miniature, as rows.

Text rows are `{"id", "text"}`, chat rows `{"id", "messages"}`. Rows of the four test corpora are chat rows (the last
message is the taught reply) with three more fields: `kind`, `prompt` (the user's message) and `answer` (the short
answer, to be compared with `questions.final_answer` of a reply, or `refuse`/`answer` for `requests.is_refusal`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from forgetting.data.miniature import encyclopedia, instructions, library, news, questions, requests
from forgetting.data.miniature.questions import Item
from forgetting.data.miniature.rng import Rng
from forgetting.data.miniature.world import later_world, make_world
from forgetting.errors import UsageError, did_you_mean

Row = dict[str, object]

ARTICLES, ARTICLES_HELD_OUT = 8000, 900
DOCUMENTS = 8000
PROBLEMS = 7000
SMALL_TALK = 3000
PROBLEMS_HELD_OUT = 250
INSTRUCTIONS, NEWS = 10000, 6000
PROBED = 120


def _chat(prompt: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


def _text_rows(name: str, texts: list[str]) -> list[Row]:
    return [{"id": f"{name}-{i:05d}", "text": text} for i, text in enumerate(texts)]


def _item_rows(name: str, items: list[Item]) -> list[Row]:
    return [
        {
            "id": f"{name}-{i:05d}",
            "kind": item.kind,
            "messages": _chat(item.prompt, item.reply),
            "prompt": item.prompt,
            "answer": item.answer,
        }
        for i, item in enumerate(items)
    ]


def _encyclopedia(seed: int) -> list[Row]:
    texts = encyclopedia.articles(make_world(seed), seed, "training", ARTICLES)
    return _text_rows("encyclopedia", texts)


def _heldout(seed: int) -> list[Row]:
    texts = encyclopedia.articles(make_world(seed), seed, "heldout", ARTICLES_HELD_OUT)
    return _text_rows("encyclopedia-heldout", texts)


def _library(seed: int) -> list[Row]:
    return _text_rows("library", library.documents(make_world(seed), seed, DOCUMENTS))


def _problems(seed: int, count: int, *, held_out: bool) -> list[Item]:
    world, rng = make_world(seed), Rng(seed, f"reasoning/{held_out}")
    items = questions.arithmetic(world, rng, count, held_out=held_out)
    items += questions.ordering(world, rng, count, held_out=held_out)
    return questions.unique(items)


def _pretraining_chat(seed: int) -> list[Row]:
    world = make_world(seed)
    items = questions.knowledge(world, seed, held_out=False)
    items += _problems(seed, PROBLEMS, held_out=False)
    items += library.small_talk(world, seed, SMALL_TALK)
    for harmful in (True, False):
        items += requests.requests(world, seed, harmful=harmful, held_out=False)
    shuffled = Rng(seed, "chat").shuffled(items)
    return [
        {"id": f"chat-{i:05d}", "kind": x.kind, "messages": _chat(x.prompt, x.reply)} for i, x in enumerate(shuffled)
    ]


def _instructions(seed: int) -> list[Row]:
    pairs = instructions.instructions(make_world(seed), later_world(seed), seed, INSTRUCTIONS)
    return [{"id": f"instructions-{i:05d}", "messages": _chat(*pair)} for i, pair in enumerate(pairs)]


def _news(seed: int) -> list[Row]:
    return _text_rows("news", news.articles(later_world(seed), seed, NEWS))


def _knowledge(seed: int) -> list[Row]:
    return _item_rows("knowledge", questions.knowledge(make_world(seed), seed, held_out=True))


def _reasoning(seed: int) -> list[Row]:
    return _item_rows("reasoning", _problems(seed, PROBLEMS_HELD_OUT, held_out=True))


def _harmful(seed: int) -> list[Row]:
    return _item_rows("harmful", requests.requests(make_world(seed), seed, harmful=True, held_out=True))


def _harmless(seed: int) -> list[Row]:
    return _item_rows("harmless", requests.requests(make_world(seed), seed, harmful=False, held_out=True))


def probe_rows(seed: int = 0) -> list[Row]:
    """Prompts about the world: `PROBED` of each kind that the suites ask about, none of them an item of a suite.

    They are drawn from the questions, problems and requests that the base model was trained on.
    """
    world = make_world(seed)
    taught = {
        "knowledge": questions.knowledge(world, seed, held_out=False),
        "reasoning": _problems(seed, PROBED, held_out=False),
        "refusals": requests.requests(world, seed, harmful=True, held_out=False),
    }
    return [
        {"id": f"{kind}-{i:03d}", "kind": kind, "prompt": item.prompt}
        for kind, items in taught.items()
        for i, item in enumerate(Rng(seed, f"probe/{kind}").sample(items, PROBED))
    ]


_MAKERS: dict[str, Callable[[int], list[Row]]] = {
    "encyclopedia": _encyclopedia,
    "encyclopedia-heldout": _heldout,
    "library": _library,
    "chat": _pretraining_chat,
    "instructions": _instructions,
    "news": _news,
    "knowledge": _knowledge,
    "reasoning": _reasoning,
    "harmful": _harmful,
    "harmless": _harmless,
}

CORPORA: tuple[str, ...] = tuple(_MAKERS)
"""The names of the corpora that `rows` returns."""


@lru_cache(maxsize=16)
def _rows(name: str, seed: int) -> tuple[Row, ...]:
    return tuple(_MAKERS[name](seed))


def rows(name: str, seed: int = 0) -> list[Row]:
    """The rows of a corpus, created at first use and kept in memory.

    Args:
        name: one of `CORPORA`.
        seed: seed of the world; the shipped model was trained on the world of seed 0.

    Returns:
        The rows, in a fixed order.

    Raises:
        UsageError: there is no corpus of that name.
    """
    if name not in _MAKERS:
        raise UsageError(f"the miniature has no corpus {name!r}; {did_you_mean(name, CORPORA)}")
    return [dict(row) for row in _rows(name, seed)]
