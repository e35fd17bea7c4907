"""The news fine-tuning set: reports of events after the encyclopedia's last year.

What is new comes in layers, quick and slow to learn: the style (headline, dateline, quotes), the vocabulary of a new
age, and the facts (who did what, where, when and how many) of some two hundred events, each reported many times in
ever other words.
"""

from __future__ import annotations

from dataclasses import dataclass

from forgetting.miniature.grammar import Scene
from forgetting.miniature.lexicon import WORDS
from forgetting.miniature.news_frames import BACKGROUND, KINDS, LEADS, OUTLOOK, QUOTES, WORDS_OF_NEWS, EventKind
from forgetting.miniature.rng import Rng
from forgetting.miniature.world import LAST_YEAR, Namer, World

EVENTS = 210
_PAPERS = ("Courier", "Gazette", "Herald", "Observer", "Telegraph")


@dataclass(frozen=True)
class Event:
    """Something that happened, with all that reports of it agree on."""

    kind: EventKind
    facts: dict[str, str]
    topics: dict[str, tuple[str, ...]]


def _cast(rng: Rng, namer: Namer) -> tuple[list[str], list[str], list[str]]:
    """New people, companies and inventions, none of them in the encyclopedia."""
    firsts = namer.names(["ella", "orin", "amet", "ossi"], 24)
    people = [f"{rng.choice(firsts)} {namer.name(['grave', 'lund', 'hast', 'quist'])}" for _ in range(70)]
    trades = ("Steam", "Airship", "Electric", "Canal", "Insurance", "Rubber", "Telegraph", "Steel")
    companies = [f"{namer.name(['co', 'ex', 'om'])} {rng.choice(trades)} Company" for _ in range(24)]
    inventions = [namer.name(["otron", "ograph", "ophone", "adyne"]).lower() for _ in range(24)]
    return people, companies, inventions


def events(world: World, seed: int) -> list[Event]:
    """The events that are reported on, fixed by the seed.

    Args:
        world: its towns are where they happen.
        seed: any integer.

    Returns:
        The events.
    """
    rng = Rng(seed, "news/events")
    taken = Namer(rng, [*world.first_names, *(p.surname for p in world.people), *(t.name for t in world.towns)])
    people, companies, inventions = _cast(rng, taken)
    out: list[Event] = []
    for i in range(EVENTS):
        town = rng.choice(world.towns)
        who, rival, witness = rng.sample(people, 3)
        facts = {
            "town": town.name, "river": town.river, "other": rng.choice(world.towns).name, "who": who,
            "surname": who.split()[1], "rival": rival, "witness": witness, "company": rng.choice(companies),
            "invention": rng.choice(inventions), "year": str(LAST_YEAR + rng.between(1, 5)),
            "month": rng.choice(WORDS["month"]), "day": str(rng.between(1, 30)),
            "count": str(rng.between(2, 98)), "sum": str(rng.between(11, 99) * 100), "share": str(rng.between(3, 60)),
            "office": rng.choice(WORDS_OF_NEWS["offices"]),
        }  # fmt: skip
        facts["dateline"] = f"{town.name.upper()}, {facts['day']} {facts['month']} {facts['year']}"
        topics = {name: tuple(rng.sample(words, 3)) for name, words in WORDS_OF_NEWS.items() if len(words) > 6}
        out.append(Event(KINDS[i % len(KINDS)], facts, topics))
    return out


def report(event: Event, rng: Rng) -> str:
    """A report of an event; another one each time."""
    scene = Scene(rng, {**event.facts, "paper": rng.choice(_PAPERS)}, event.topics, WORDS_OF_NEWS)
    kind = event.kind
    out = [scene.sentence(kind.headlines).rstrip("."), "\n", f"{scene.facts['dateline']} - "]
    out[0] = out[0].upper() if rng.percent(30) else out[0]
    body = [scene.sentence(kind.leads if rng.percent(75) else LEADS)]
    details = [scene.sentence((frame,)) for frame in rng.sample(kind.details, rng.between(2, len(kind.details)))]
    body += details
    for _ in range(rng.between(1, 3)):
        body.insert(rng.between(1, len(body)), scene.sentence(QUOTES))
    if rng.percent(70):
        body.append(scene.sentence(BACKGROUND))
    if rng.percent(60):
        body.append(scene.sentence(OUTLOOK))
    return "".join(out) + " ".join(body)


def articles(world: World, seed: int, count: int) -> list[str]:
    """Reports on the events, in random order.

    Args:
        world: what they refer to.
        seed: fixes them.
        count: how many.

    Returns:
        The texts.
    """
    rng = Rng(seed, "news/reports")
    happened = events(world, seed)
    return [report(rng.choice(happened), rng) for _ in range(count)]
