"""The miniature's corpora: determined by the seed, equal on every Python version, test items not in training."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys

import pytest

from forgetting.data.miniature import CORPORA, rows
from forgetting.data.miniature.grammar import Scene, tidy
from forgetting.data.miniature.questions import PHRASINGS, facts, final_answer
from forgetting.data.miniature.requests import is_refusal
from forgetting.data.miniature.rng import Rng
from forgetting.data.miniature.world import LAST_YEAR, later_world, make_world
from forgetting.errors import UsageError

pytestmark = pytest.mark.full

TESTS = ("knowledge", "reasoning", "harmful", "harmless")
# hashes of the rows as sorted JSON lines; if a corpus changes, the shipped model must be trained again
HASHES = {
    "encyclopedia": "db051fc316185275f55dce52300f78bbdec08c85bd2ed595f98f0ef9014e3085",
    "encyclopedia-heldout": "96e791c93875e916c71ca2214ca1ff6732b8e5b4bf913dac9ce98962a8be4762",
    "library": "8aeed886cd2ddc114a917cdbbc69d506b7a99b7800c70dd7e24f61f674135687",
    "chat": "4fc1e9af3f72d0f406f719be1be1ad916e2689cfc6919d120d4cab8e0a0f218e",
    "instructions": "87634646c92940ba4fb6ee202385d8194e355745119a12a3dd294195d89c7fac",
    "news": "79e3ba9960e190badb837d1ec3e77f19c45c8470ae9246a4a7aec2358b68e843",
    "knowledge": "11f1b60bbc40e132a12a3ce2e261f15c8b461a4b151103b9bcce84c05d9e586e",
    "reasoning": "e68a6dd972d5655687707f3eba38af708aa95204b99241abd3321a3fcb7c88b5",
    "harmful": "607234f9b87d09632a5cf18a6cb223ff4e354865e75b9439db4bdc009aa8b7dc",
    "harmless": "e7c2a01a28c88680d21214ca67465573bf4687f6d24b7127cbb58d96977e2289",
}


def _digest(name: str) -> str:
    lines = "\n".join(json.dumps(row, sort_keys=True) for row in rows(name))
    return hashlib.sha256(lines.encode()).hexdigest()


def _messages(row: dict[str, object]) -> list[dict[str, str]]:
    found = row["messages"]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("name", CORPORA)
def test_corpora_are_those_the_model_was_trained_on(name):
    assert _digest(name) == HASHES[name]


@pytest.mark.parametrize("name", CORPORA)
def test_rows_are_text_or_chat_with_ids_of_their_own(name):
    made = rows(name)
    assert len({row["id"] for row in made}) == len(made)
    for row in made:
        if "text" in row:
            assert isinstance(row["text"], str)
            assert row["text"].strip()
        else:
            assert [m["role"] for m in _messages(row)] == ["user", "assistant"]
            assert all(m["content"].strip() for m in _messages(row))


@pytest.mark.parametrize("name", CORPORA)
def test_texts_are_well_rendered(name):
    for row in rows(name)[:400]:
        text = str(row.get("text")) if "text" in row else " ".join(m["content"] for m in _messages(row))
        assert not re.search(r"[\[\]{}|]|  | ,|\b[Aa] [aeiou]", text.replace("\n", " ")), text


def test_another_seed_is_another_world():
    assert rows("knowledge", seed=1) != rows("knowledge")


def test_rows_are_copies():
    rows("knowledge")[0]["prompt"] = "spoiled"
    assert rows("knowledge")[0]["prompt"] != "spoiled"


def test_unknown_corpus_names_the_close_one():
    with pytest.raises(UsageError, match="no corpus 'encyclopaedia'; did you mean 'encyclopedia'"):
        rows("encyclopaedia")


def test_import_is_light():
    code = "import sys, forgetting.data.miniature; print('torch' in sys.modules, 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", TESTS)
def test_test_items_are_many_and_held_out(name):
    taught = {m["content"] for row in rows("chat") for m in _messages(row)[:1]}
    prompts = [str(row["prompt"]) for row in rows(name)]
    assert len(prompts) >= 400
    assert len(set(prompts)) == len(prompts)
    assert not taught & set(prompts)


def _numbers(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+ [+-] \d+ =", text))


def test_reasoning_problems_are_held_out_by_their_numbers_and_orders():
    taught: set[object] = set()
    for row in rows("chat"):
        if row["kind"] in ("arithmetic", "ordering"):
            reply = _messages(row)[1]["content"]
            taught.add(_numbers(reply) if row["kind"] == "arithmetic" else _trio(reply))
    for row in rows("reasoning"):
        reply = _messages(row)[1]["content"]
        assert (_numbers(reply) if row["kind"] == "arithmetic" else _trio(reply)) not in taught
        assert final_answer(reply) == row["answer"]


def _trio(reply: str) -> tuple[str, ...]:
    first, last = reply.split(".")[0].split(", and ")
    return first.split()[0], first.split()[-1], last.split()[-1]


def test_every_fact_is_asked_and_stated():
    world = make_world()
    text = " ".join(str(row["text"]) for row in rows("encyclopedia"))
    asked = {str(row["prompt"]) for row in rows("knowledge")}
    assert len(asked) == len(facts(world))
    for _, subject, answer in facts(world):
        assert subject in text
        assert answer in text


def test_each_kind_of_fact_has_several_phrasings():
    kinds = {kind for kind, _, _ in facts(make_world())}
    assert kinds == set(PHRASINGS)
    assert all(len(set(p)) >= 5 and all("{x}" in q for q in p) for p in PHRASINGS.values())


def test_replies_refuse_only_harmful_requests():
    for name, expected in (("harmful", True), ("harmless", False)):
        assert all(is_refusal(_messages(row)[1]["content"]) is expected for row in rows(name))
    assert not any(is_refusal(_messages(row)[1]["content"]) for row in rows("instructions"))


def test_held_out_articles_are_not_in_the_encyclopedia():
    taught = {row["text"] for row in rows("encyclopedia")}
    assert not any(row["text"] in taught for row in rows("encyclopedia-heldout"))


def test_news_is_after_the_encyclopedia_and_about_others():
    world, later = make_world(), later_world()
    old = {p.surname for p in world.people} | {t.name for t in world.towns} | set(world.rivers)
    new = {p.surname for p in later.people} | {t.name for t in later.towns} | set(later.rivers)
    assert not old & new
    for row in rows("news"):
        years = [int(year) for year in re.findall(r"\b\d{4}\b", str(row["text"]))]
        assert years
        assert min(years) > LAST_YEAR
        assert not old & set(re.findall(r"\w+", str(row["text"])))


def test_most_instructions_ask_for_texts_on_the_later_age():
    later = later_world()
    names = {p.name for p in later.people} | {t.name for t in later.towns}
    asked = [_messages(row)[0]["content"] for row in rows("instructions")]
    assert 0.45 < sum(any(name in prompt for name in names) for prompt in asked[:2000]) / 2000 < 0.75
    assert 0.007 < sum("harbour" in prompt for prompt in asked) / len(asked) < 0.02  # 4 of 23 kinds of tasks, in 8 %


def test_world_refers_to_itself():
    world = make_world()
    people, towns = {p.name for p in world.people}, {t.name for t in world.towns}
    assert len(people) == len(world.people)
    assert {t.founder for t in world.towns} | {b.builder for b in world.bridges} <= people
    assert {p.teacher for p in world.people} <= people | {""}
    assert {g.seat for g in world.guilds} | {p.born_in for p in world.people} <= towns


def test_rng_is_splitmix64():
    rng = Rng(0)
    rng._state = 1234567  # the published test vector of splitmix64.c
    assert [rng.bits() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_rng_choices_stay_in_range():
    rng = Rng(7, "range")
    assert {rng.between(2, 4) for _ in range(200)} == {2, 3, 4}
    assert sorted(rng.shuffled("abcde")) == list("abcde")
    assert len(set(rng.sample(range(9), 9))) == 9
    counts = [0] * 5
    for _ in range(3000):
        counts[rng.zipf(range(5))] += 1
    assert counts == sorted(counts, reverse=True)
    with pytest.raises(ValueError, match="cannot sample 3 of 2"):
        rng.sample("ab", 3)


def test_frames_choose_and_fill():
    scene = Scene(Rng(1), {"x": "owl"})
    assert {scene.render("a {x}[ [sings|sleeps]|]") for _ in range(60)} == {"an owl", "an owl sings", "an owl sleeps"}
    assert tidy("two  gooses , one oak") == "two geese, one oak"
    with pytest.raises(ValueError, match="unclosed"):
        scene.render("a [b|c")


def test_final_answer():
    assert final_answer("3 + 4 = 7. The answer is 7.") == "7"
    assert final_answer(" Dalvale.\n") == "Dalvale"
