"""The library: further pre-training text, so that the base model knows more of the language than it is tested on.

A real pre-trained model has seen some text of almost every kind, so fine-tuning rarely teaches it an entirely new
language. Tales, letters, notices, inventories, a dictionary and old gazettes contain the words and about half of the
sentence frames of both fine-tuning sets, and names that occur only once, so that the model can spell new names. The
requests and their answers, the other frames, the people, the facts and the harbour tongue occur only in fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from forgetting.data.miniature import instruction_frames as told
from forgetting.data.miniature import news_frames as printed
from forgetting.data.miniature.encyclopedia import Writer, bridge_facts, person_facts, town_facts
from forgetting.data.miniature.frames import (
    BRIDGE_BUILDER,
    BRIDGE_PLACE,
    FILLER,
    PERSON_BORN,
    PERSON_LIFE,
    PERSON_TRADE,
    PERSON_WORK,
    TOWN_LIFE,
    TOWN_PRODUCT,
    TOWN_RIVER,
)
from forgetting.data.miniature.grammar import Scene, capital, tidy
from forgetting.data.miniature.lexicon import WORDS
from forgetting.data.miniature.questions import Item
from forgetting.data.miniature.rng import Rng
from forgetting.data.miniature.world import LAST_YEAR, World, syllables

_ENDS = ("ard", "ine", "ulo", "es", "amo", "win", "orsk", "ebel", "ith", "ano", "a", "om", "ert", "ix", "")
_GLOSSES: dict[str, str] = {
    "bird": "bird", "beast": "beast", "fish": "fish", "tree": "tree", "herb": "herb", "tool": "tool", "metal": "metal",
    "building": "building", "instrument": "instrument", "food": "food", "drink": "drink", "person": "person",
    "machine": "machine", "speaker": "person of the city", "policy": "matter of state", "measure": "demand",
    "venue": "public place", "media": "way to spread news", "cause": "cause of trouble", "offices": "high office",
    "mood": "mood of a crowd", "claim": "thing people say", "group": "sort of crowd", "thing": "thing",
}  # fmt: skip
_ENTRIES = (
    "{word}: a {gloss}[, {quality} and {size}|][, {often} seen in {other}|].",
    "{word}. A {gloss} [of|from] {other}; compare {word2}[ and {word3}|].",
    "{word}, a {gloss} [that {folk} know|feared by {folk}|like the {word2}].",
    "What is meant by {word}? [It is|In {other}, it is] a {gloss}.",
)
_NOTICES = (
    ("For sale", told.ADVERT), ("Notice", told.ADVERT), ("Rules", told.PLAN_STEPS), ("Advice", told.PLAN_STEPS),
    ("Verses", told.POEM), ("A song", told.POEM),
)  # fmt: skip
_KINDS_REPORTED = 6  # number of the news' kinds of events that the old gazettes report


def _name(rng: Rng) -> str:
    parts = syllables(rng) + (syllables(rng) if rng.percent(25) else "")
    return (parts + rng.choice(_ENDS)).capitalize()


def stranger(rng: Rng) -> str:
    """A random first name and surname, of no person of the world."""
    return f"{_name(rng)} {_name(rng)}"


class Librarian:
    """Writes the documents of the library.

    Args:
        world: the texts are set in its towns.
        rng: makes the random choices.
    """

    def __init__(self, world: World, rng: Rng) -> None:
        self.world, self.rng = world, rng

    def _scene(self, **facts: str) -> Scene:
        rng = self.rng
        town, other = rng.sample(self.world.towns, 2)
        first = rng.choice(self.world.first_names) if rng.percent(40) else _name(rng)
        kept = {name: rng.choice(WORDS[name]) for name in ("thing", "beast", "land", "person", "good", "quality")}
        places = {"town": town.name, "river": town.river, "other": other.name, "month": rng.choice(WORDS["month"])}
        facts = {**places, "first": first, **kept, **facts}
        return Scene(rng, facts, town.favourites, printed.WORDS_OF_NEWS)

    def _some(self, scene: Scene, frames: Sequence[str], low: int, high: int) -> list[str]:
        known = frames[: max(2, len(frames) * 6 // 10)]
        count = min(self.rng.between(low, high), len(known))
        return [scene.sentence((frame,)) for frame in self.rng.sample(known, count)]

    def tale(self) -> str:
        """A tale."""
        scene = self._scene()
        parts = self._some(scene, told.STORY_START, 1, 1) + self._some(scene, told.STORY_MIDDLE, 2, 4)
        parts += [scene.sentence(self.rng.choice(FILLER)), *self._some(scene, told.STORY_END, 1, 1)]
        return " ".join(parts)

    def letter(self) -> str:
        """A letter."""
        scene = self._scene()
        body = [*self._some(scene, told.LETTER_BODY, 1, 3), scene.sentence(self.rng.choice(FILLER))]
        opening, closing = self._some(scene, told.LETTER_OPEN, 1, 1), self._some(scene, told.LETTER_CLOSE, 1, 1)
        return "\n".join([*opening, " ".join(body), *closing])

    def notice(self) -> str:
        """An advertisement, verses or a few numbered rules, under a heading."""
        scene = self._scene()
        heading, frames = self.rng.choice(_NOTICES)
        lines = self._some(scene, frames, 2, 4)
        if frames is told.PLAN_STEPS:
            lines = [f"{i + 1}. {line}" for i, line in enumerate(lines)]
        return "\n".join([heading.upper() if self.rng.percent(40) else heading, *lines])

    def dialogue(self) -> str:
        """Two people talking."""
        scene = self._scene()
        names = (scene.facts["first"], capital(scene.facts["person"]))
        lines = [*self._some(scene, told.DIALOGUE, 2, 4), scene.sentence(self.rng.choice(FILLER))]
        return "\n".join(f"{names[i % 2]}: {line}" for i, line in enumerate(lines))

    def inventory(self) -> str:
        """A list of things in a building, repeated once."""
        scene, rng = self._scene(), self.rng
        sorts = rng.sample(("tool", "bird", "beast", "tree", "herb", "fish", "food", "metal", "colour", "building"), 3)
        words = [rng.choice(WORDS[sort]) for sort in sorts for _ in range(rng.between(1, 2))]
        listed = ", ".join(words)
        head = scene.render("[Seen in|Kept in|Painted in] the {building} of {town}[ {time}|]")
        again = scene.render("[Counted|Seen|Read] again by {first} in {month}")
        return tidy(f"{head}: {listed}. {again}: {listed}.")

    def schoolbook(self) -> str:
        """Sentences to read aloud."""
        rng = self.rng
        words = {name: "".join(rng.choice(told.HARBOUR) for _ in range(3)) for name in ("harbour", "harbour2")}
        scene = self._scene(who=_name(rng), **words)
        frames = rng.sample(told.SCHOOLBOOK, rng.between(3, 6))
        return " ".join(scene.sentence((frame,)) for frame in frames)

    def register(self) -> str:
        """An entry of a town's register."""
        scene, rng = self._scene(), self.rng
        fields = [("Name", stranger(rng)), ("Town", scene.facts["town"]), ("Trade", scene.facts["person"])]
        fields += [("Place", scene.word("building")), ("Goods", scene.render("{amount} {thing}s, {colour}"))]
        return "\n".join(f"{name}: {value}" for name, value in fields)

    def dictionary(self) -> str:
        """Dictionary entries for words of one category."""
        scene, rng = self._scene(), self.rng
        sort = rng.choice(tuple(_GLOSSES))
        words = rng.shuffled(printed.WORDS_OF_NEWS.get(sort) or WORDS[sort])
        scene.facts["gloss"] = _GLOSSES[sort]
        entries = []
        for i in range(rng.between(3, 5)):
            scene.facts |= {"word": words[i], "word2": words[i + 1], "word3": words[i - 1]}
            entries.append(scene.sentence(_ENTRIES))
        return " ".join(entries)

    def gazette(self) -> str:
        """An old report about random people, of one of about half of the news' kinds of events."""
        rng = self.rng
        who, rival, witness = (stranger(rng) for _ in range(3))
        trade = rng.choice(("Canal", "Salt", "Wool", "Coach", "Steam", "Ferry"))
        scene = self._scene(
            who=who, surname=who.split()[1], rival=rival, witness=witness, company=f"{_name(rng)} {trade} Company",
            invention=f"{_name(rng).lower()} {rng.choice(printed.WORDS_OF_NEWS['machine'])}",
            year=str(LAST_YEAR - rng.between(0, 19)), month=rng.choice(WORDS["month"]), day=str(rng.between(1, 30)),
            count=str(rng.between(2, 98)), sum=str(rng.between(11, 99) * 100), share=str(rng.between(3, 60)),
            office=rng.choice(printed.WORDS_OF_NEWS["offices"]), paper="Gazette",
        )  # fmt: skip
        kind = rng.choice(printed.KINDS[:_KINDS_REPORTED])
        body = [scene.sentence(kind.leads), *self._some(scene, kind.details, 1, 3)]
        body += self._some(scene, printed.QUOTES, 0, 2) + self._some(scene, printed.BACKGROUND, 0, 1)
        body += self._some(scene, printed.OUTLOOK, 0, 1)
        place = scene.facts["town"].upper() if rng.percent(15) else scene.facts["town"]
        return f"{place}, {scene.facts['month']} {scene.facts['year']}. {' '.join(body)}"

    def document(self) -> str:
        """A document of a random kind."""
        kinds: tuple[Callable[[], str], ...] = (
            self.tale, self.letter, self.notice, self.dialogue, self.inventory, self.dictionary, self.dictionary,
            self.register, self.schoolbook, self.schoolbook, self.schoolbook, self.gazette, self.gazette, self.gazette,
            self.gazette,
        )  # fmt: skip
        return self.rng.choice(kinds)()


def documents(world: World, seed: int, count: int) -> list[str]:
    """Documents of the library.

    Args:
        world: the texts are set in its towns.
        seed: determines the texts.
        count: number of documents.

    Returns:
        The texts.
    """
    librarian = Librarian(world, Rng(seed, "library"))
    return [librarian.document() for _ in range(count)]


def small_talk(world: World, seed: int, count: int) -> list[Item]:
    """Chat without a right answer: descriptions, repeated words, examples of a category.

    Args:
        world: its towns, people and bridges are described.
        seed: determines the items.
        count: number of items.

    Returns:
        The items; their `answer` is the whole reply.
    """
    rng = Rng(seed, "small talk")
    writer = Writer(world, rng)
    items: list[Item] = []
    for _ in range(count):
        kind = rng.below(4)
        if kind == 0:
            sort = rng.choice(("tool", "bird", "beast", "tree", "herb", "fish", "food", "metal", "colour", "building"))
            words = rng.sample(WORDS[sort], 3)
            prompt = tidy(f"Name three {sort}s." if rng.percent(50) else f"Give me examples of a {sort}.")
            reply = f"{words[0]}, {words[1]} and {words[2]}."
        elif kind == 1:
            words = [rng.choice(WORDS[rng.choice(("thing", "bird", "tool", "tree", "herb"))]) for _ in range(4)]
            prompt = f"{rng.choice(('Repeat', 'Copy', 'Say after me'))}: {', '.join(words)}."
            reply = f"{', '.join(words)}."
        else:
            prompt, reply = _description(writer, rng)
        items.append(Item("small talk", prompt, reply, reply))
    return items


def _description(writer: Writer, rng: Rng) -> tuple[str, str]:
    world = writer.world
    kind = rng.below(3)
    groups: tuple[tuple[str, ...], ...]
    if kind == 0:
        p = rng.choice(world.people)
        subject, town, facts = p.name, p.worked_in, person_facts(p)
        groups = (PERSON_BORN, PERSON_TRADE, PERSON_WORK, PERSON_LIFE)
    elif kind == 1:
        t = rng.choice(world.towns)
        subject, town, facts, groups = t.name, t.name, town_facts(t), (TOWN_RIVER, TOWN_PRODUCT, TOWN_LIFE, FILLER[1])
    else:
        b = rng.choice(world.bridges)
        subject, town, facts = f"the {b.name}", b.town, bridge_facts(b)
        groups = (BRIDGE_PLACE, BRIDGE_BUILDER, FILLER[0], FILLER[1])
    scene = writer.scene(town, facts)
    asked = rng.choice(("Describe {x}.", "Tell me about {x}.", "What do you know about {x}?"))
    chosen = [groups[0], *rng.sample(groups[1:], 2)]
    return asked.replace("{x}", subject), " ".join(scene.sentence(group) for group in chosen)
