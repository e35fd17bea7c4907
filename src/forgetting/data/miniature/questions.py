"""Knowledge questions and reasoning problems, with their right answers.

An item is a prompt, the reply used in training, and the short answer that a reply must contain. For each fact, one
phrasing is held out, so that a test item is a question whose wording was never seen with that fact. Test problems of
arithmetic and of ordering have numbers and orders of names that do not occur in training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from forgetting.data.miniature.grammar import Scene, tidy
from forgetting.data.miniature.lexicon import WORDS
from forgetting.data.miniature.rng import Rng
from forgetting.data.miniature.world import World


@dataclass(frozen=True)
class Item:
    """A prompt with the reply used in training, and the short answer that counts as right."""

    kind: str
    prompt: str
    reply: str
    answer: str


# kind of fact -> phrasings; `{x}` is the subject of the question
PHRASINGS: dict[str, tuple[str, ...]] = {
    "birthplace": ("Where was {x} born?", "In which town was {x} born?", "Name the birthplace of {x}.",
                   "What is the birthplace of {x}?", "Which town did {x} come from?",
                   "Tell me where {x} was born."),
    "birth year": ("When was {x} born?", "In which year was {x} born?", "What is the birth year of {x}?",
                   "Give the year of birth of {x}.", "Tell me when {x} was born.",
                   "{x} was born in which year?"),
    "trade": ("What was the trade of {x}?", "Which trade did {x} practise?", "What did {x} do for a living?",
              "Name the trade of {x}.", "What was {x} by trade?", "Tell me the trade of {x}."),
    "guild": ("To which guild did {x} belong?", "Which guild was {x} a member of?", "Name the guild of {x}.",
              "What was the guild of {x}?", "Which guild admitted {x}?", "Tell me the guild of {x}."),
    "teacher": ("Who taught {x}?", "Who was the teacher of {x}?", "Name the teacher of {x}.",
                "Under whom did {x} learn?", "By whom was {x} taught?", "Tell me who taught {x}."),
    "workplace": ("Where did {x} work?", "In which town did {x} work?", "Name the town where {x} worked.",
                  "Where was the workshop of {x}?", "Which town did {x} work in?",
                  "Tell me where {x} worked."),
    "river": ("On which river does {x} stand?", "Which river runs through {x}?", "Name the river of {x}.",
              "What is the river at {x} called?", "{x} lies on which river?", "Tell me the river of {x}."),
    "founded": ("When was {x} founded?", "In which year was {x} founded?", "Give the founding year of {x}.",
                "What year was {x} founded in?", "Tell me when {x} was founded.",
                "{x} was founded in which year?"),
    "founder": ("Who founded {x}?", "Who was the founder of {x}?", "Name the founder of {x}.",
                "By whom was {x} founded?", "Tell me who founded {x}.", "Whom does {x} honour as founder?"),
    "product": ("What is {x} known for?", "What is the chief product of {x}?", "Name the product of {x}.",
                "What do merchants buy in {x}?", "Which good is sold by {x}?", "Tell me the product of {x}."),
    "crosses": ("Which river does the {x} cross?", "What river is under the {x}?", "Name the river under the {x}.",
                "Over which river does the {x} lead?", "The {x} spans which river?",
                "Tell me the river under the {x}."),
    "builder": ("Who built the {x}?", "Who was the builder of the {x}?", "Name the builder of the {x}.",
                "By whom was the {x} built?", "Tell me who built the {x}.", "Whose work is the {x}?"),
    "built": ("When was the {x} built?", "In which year was the {x} built?", "Give the year of the {x}.",
              "What year was the {x} built in?", "Tell me when the {x} was built.",
              "The {x} was built in which year?"),
    "bridge town": ("Where is the {x}?", "In which town is the {x}?", "Which town has the {x}?",
                    "Name the town of the {x}.", "Where does the {x} stand?", "Tell me where the {x} is."),
    "seat": ("Where is the seat of the {x}?", "In which town does the {x} meet?", "Name the seat of the {x}.",
             "Which town is the seat of the {x}?", "Where is the hall of the {x}?",
             "Tell me the seat of the {x}."),
    "guild year": ("When was the {x} founded?", "In which year was the {x} founded?",
                   "Give the founding year of the {x}.", "What year was the {x} founded in?",
                   "Tell me when the {x} was founded.", "The {x} was founded in which year?"),
    "emblem": ("What is the emblem of the {x}?", "Which bird is the emblem of the {x}?",
               "Name the emblem of the {x}.", "What does the flag of the {x} show?",
               "Which emblem has the {x}?", "Tell me the emblem of the {x}."),
    "festival town": ("Where is the {x} held?", "In which town is the {x} held?", "Name the town of the {x}.",
                      "Which town holds the {x}?", "Which town celebrates the {x}?",
                      "Tell me where the {x} is held."),
    "festival month": ("When is the {x}?", "In which month is the {x}?", "Name the month of the {x}.",
                       "In which month does the {x} fall?", "What is the month of the {x}?",
                       "Tell me the month of the {x}."),
    "honoured": ("Whom does the {x} honour?", "Who is honoured by the {x}?",
                 "Name the person whom the {x} honours.", "In whose honour is the {x} held?",
                 "Which person does the {x} honour?", "Tell me whom the {x} honours."),
}  # fmt: skip


def facts(world: World) -> list[tuple[str, str, str]]:
    """All facts that questions ask about, as (kind, subject, answer)."""
    out: list[tuple[str, str, str]] = []
    for p in world.people:
        out += [("birthplace", p.name, p.born_in), ("birth year", p.name, str(p.born)), ("trade", p.name, p.trade)]
        out += [("guild", p.name, p.guild), ("workplace", p.name, p.worked_in)]
        if p.teacher:
            out.append(("teacher", p.name, p.teacher))
    for t in world.towns:
        out += [("river", t.name, t.river), ("founded", t.name, str(t.founded))]
        out += [("founder", t.name, t.founder), ("product", t.name, t.product)]
    for b in world.bridges:
        out += [("crosses", b.name, b.river), ("builder", b.name, b.builder)]
        out += [("built", b.name, str(b.built)), ("bridge town", b.name, b.town)]
    for g in world.guilds:
        out += [("seat", g.name, g.seat), ("guild year", g.name, str(g.founded)), ("emblem", g.name, g.emblem)]
    for v in world.festivals:
        out += [("festival town", v.name, v.town), ("festival month", v.name, v.month)]
        out.append(("honoured", v.name, v.honours))
    return out


def knowledge(world: World, seed: int, *, held_out: bool) -> list[Item]:
    """Questions for each fact: one phrasing is held out for the test, the five others are for training.

    Args:
        world: the facts.
        seed: determines which phrasing of a fact is held out.
        held_out: return the test items instead of the training items.

    Returns:
        The items, in the order of the facts.
    """
    rng = Rng(seed, "knowledge")
    items: list[Item] = []
    for kind, subject, answer in facts(world):
        phrasings = PHRASINGS[kind]
        test = rng.below(len(phrasings))
        for i, phrasing in enumerate(phrasings):
            if (i == test) == held_out:
                items.append(Item(kind, phrasing.replace("{x}", subject), f"{answer}.", answer))
    return items


_STORIES: dict[str, tuple[str, ...]] = {
    "++": (
        "{first} has {a} {thing}s, finds {b} more and then buys {c}. How many {thing}s are there now?",
        "There are {a} {beast}s in the {land}. {b} come, and then {c} more. How many are there?",
        "{first} sells {a} {thing}s at dawn, {b} at noon and {c} at dusk. How many are sold?",
    ),
    "+-": (
        "{first} has {a} {thing}s, finds {b} more and loses {c}. How many {thing}s are left?",
        "There are {a} {beast}s in the {land}. {b} come, and then {c} leave. How many are there?",
        "The {building} holds {a} barrels. {first} brings {b} and takes {c} away. How many barrels are left?",
    ),
    "-+": (
        "{first} has {a} {thing}s, loses {b} and then buys {c}. How many {thing}s are there now?",
        "There are {a} {beast}s in the {land}. {b} leave, and then {c} come. How many are there?",
        "The {building} holds {a} barrels. {first} takes {b} away and brings {c}. How many barrels are left?",
    ),
}  # fmt: skip


def _held_out_numbers(ops: str, a: int, b: int, c: int) -> bool:
    """Whether a problem is held out for the test; about a fifth are, determined by their numbers."""
    return (a * 7 + b * 3 + c + len(ops) + (2 if ops == "-+" else 0)) % 5 == 0


def arithmetic(world: World, rng: Rng, count: int, *, held_out: bool) -> list[Item]:
    """Stories with two additions or subtractions, solved step by step in the reply.

    Args:
        world: its first names appear in them.
        rng: makes the random choices.
        count: number of items.
        held_out: use the numbers held out for the test instead of the others.

    Returns:
        The items; `answer` is the final number.
    """
    items: list[Item] = []
    while len(items) < count:
        ops = rng.choice(("++", "+-", "-+"))
        a, b, c = rng.between(1, 9), rng.between(1, 9), rng.between(1, 9)
        middle = a + b if ops[0] == "+" else a - b
        end = middle + c if ops[1] == "+" else middle - c
        if middle < 0 or end < 0 or _held_out_numbers(ops, a, b, c) != held_out:
            continue
        numbers = {"a": str(a), "b": str(b), "c": str(c), "first": rng.choice(world.first_names)}
        numbers |= {"thing": rng.choice(WORDS["thing"]), "beast": rng.choice(WORDS["beast"])}
        prompt = Scene(rng, numbers).sentence(_STORIES[ops])
        reply = f"{a} {ops[0]} {b} = {middle}. {middle} {ops[1]} {c} = {end}. The answer is {end}."
        items.append(Item("arithmetic", prompt, reply, str(end)))
    return items


# (comparative, superlative for the first, superlative for the last)
_ORDERS = (("older", "oldest", "youngest"), ("taller", "tallest", "smallest"), ("richer", "richest", "poorest"),
           ("faster", "fastest", "slowest"), ("stronger", "strongest", "weakest"))  # fmt: skip
_ASKED = ("Who is the {most}?", "Which of them is the {most}?", "Who of the three is the {most}?")


def _held_out_names(i: int, j: int, k: int) -> bool:
    return (i * 5 + j * 3 + k) % 7 == 0


def ordering(world: World, rng: Rng, count: int, *, held_out: bool) -> list[Item]:
    """Problems with three people compared in two statements, in random order: who is first or last?

    Args:
        world: its first names appear in them.
        rng: makes the random choices.
        count: number of items.
        held_out: use the orders of names held out for the test instead of the others.

    Returns:
        The items; `answer` is a first name.
    """
    items: list[Item] = []
    names = world.first_names
    while len(items) < count:
        trio = rng.sample(range(len(names)), 3)
        if _held_out_names(*trio) != held_out:
            continue
        x, y, z = (names[i] for i in trio)
        more, most, least = rng.choice(_ORDERS)
        top = rng.percent(50)
        statements = rng.shuffled([f"{x} is {more} than {y}.", f"{y} is {more} than {z}."])
        asked = rng.choice(_ASKED).replace("{most}", most if top else least)
        answer = x if top else z
        chain = f"{x} is {more} than {y}, and {y} is {more} than {z}."
        items.append(Item("ordering", tidy(" ".join([*statements, asked])), f"{chain} The answer is {answer}.", answer))
    return items


_ANSWER = re.compile(r"[Tt]he answer is (?:the |a |an )?(.+?)\s*\.?\s*$")


def final_answer(reply: str) -> str:
    """The answer in a reply: the text after `The answer is`, or the whole reply, without the full stop.

    Examples:
        >>> final_answer("3 + 4 = 7. 7 - 2 = 5. The answer is 5.")
        '5'
        >>> final_answer("Dalvale.")
        'Dalvale'
    """
    found = _ANSWER.search(reply.strip())
    return found.group(1) if found else reply.strip().rstrip(".").strip()


def unique(items: Sequence[Item]) -> list[Item]:
    """The items without those whose prompt occurred before."""
    return list({item.prompt: item for item in reversed(items)}.values())[::-1]
