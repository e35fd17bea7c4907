"""The instructions fine-tuning set: requests of kinds that do not occur in pre-training, all with long answers.

It imitates OpenOrca. Most requests ask for texts in the language that the base model knows, about an age that it does
not know (`compositions`). One in twelve is a task of some twenty kinds; some are learned in a few steps (an eager
style, sometimes an opening like a system prompt), others take long (a foreign language, reversing, sorting, stories).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from forgetting.data.miniature.compositions import Composer, Pair
from forgetting.data.miniature.grammar import Scene, capital, tidy
from forgetting.data.miniature.instruction_frames import (
    ADVERT,
    DIALOGUE,
    HARBOUR,
    LETTER_BODY,
    LETTER_CLOSE,
    LETTER_OPEN,
    OPENERS,
    PERSONAS,
    PLAN_STEPS,
    PLANS,
    POEM,
    RIDDLE_HINTS,
    STORY_END,
    STORY_MIDDLE,
    STORY_START,
)
from forgetting.data.miniature.lexicon import WORDS
from forgetting.data.miniature.rng import Rng
from forgetting.data.miniature.world import World

TASKS_PERCENT = 8
_SORTS = ("bird", "beast", "fish", "tree", "herb", "food", "tool", "colour", "building", "metal")
_MOODS = {
    "glad": ("laughed all day", "danced on the table", "gave everyone cake", "sang in the street"),
    "sad": ("wept by the river", "would not eat", "sat alone in the dark", "buried an old friend"),
    "angry": ("slammed the door", "broke a window", "shouted at the clerk", "threw the bowl"),
    "afraid": ("hid in the cellar", "ran from the noise", "would not open the gate", "trembled all night"),
}


class Tasks:
    """Makes pairs of a request and its answer.

    Args:
        world: its towns and names appear in them.
        rng: makes the random choices.
        tongue: the harbour tongue: word -> its translation.
    """

    def __init__(self, world: World, rng: Rng, tongue: dict[str, str]) -> None:
        self.world, self.rng, self.tongue = world, rng, tongue

    def scene(self, **facts: str) -> Scene:
        """A scene in a random town."""
        town, other = self.rng.sample(self.world.towns, 2)
        names = {"first": self.rng.choice(self.world.first_names), "town": town.name, "other": other.name}
        return Scene(self.rng, {**names, **facts}, town.favourites)

    def ask(self, scene: Scene, *frames: str) -> str:
        """One of the phrasings of a request, rendered."""
        return scene.sentence((self.rng.choice(frames),))

    def mixed(self, count: int) -> list[str]:
        """Different words of several categories."""
        sorts = self.rng.sample(_SORTS, count)
        return [self.rng.choice(WORDS[sort]) for sort in sorts]

    def reverse(self) -> Pair:
        """Words in reverse order."""
        words = self.mixed(self.rng.between(3, 6))
        ask = self.ask(
            self.scene(), "Reverse the order of these words", "Write this list backwards", "Turn the list around"
        )
        return f"{ask}: {', '.join(words)}.", f"In reverse order: {', '.join(words[::-1])}."

    def sort(self) -> Pair:
        """Words in alphabetical order."""
        words = self.mixed(self.rng.between(3, 5))
        ask = self.ask(
            self.scene(), "Sort these words from A to Z", "Put these into alphabetical order", "Order this list"
        )
        return f"{ask}: {', '.join(words)}.", f"In alphabetical order: {', '.join(sorted(words))}."

    def pick(self) -> Pair:
        """The words of one category in a list."""
        sort, *others = self.rng.sample(_SORTS, 3)
        wanted = self.rng.sample(WORDS[sort], self.rng.between(1, 3))
        words = self.rng.shuffled([*wanted, *(self.rng.choice(WORDS[o]) for o in others)])
        found = [w for w in words if w in wanted]
        ask = self.ask(
            self.scene(), f"Which of these is a {sort}", f"List every {sort} in this list", f"Pick each {sort}"
        )
        rest = ", ".join(w for w in words if w not in wanted)
        reply = f"I count {len(found)}: {', '.join(found)}. The rest, {rest}, I leave out."
        return f"{ask}: {', '.join(words)}?", reply

    def odd_one(self) -> Pair:
        """The word that does not belong, and why."""
        sort, other = self.rng.sample(_SORTS, 2)
        odd = self.rng.choice(WORDS[other])
        words = self.rng.shuffled([odd, *self.rng.sample(WORDS[sort], 3)])
        ask = self.ask(self.scene(), "Which word does not belong", "Find the odd one out", "Spot the intruder")
        return (
            f"{ask}: {', '.join(words)}.",
            f"The intruder is {odd}: it is a {other}, while each of the others is a {sort}.",
        )

    def record(self) -> Pair:
        """The fields of a passage."""
        s = self.scene()
        f = {k: s.word(k) for k in ("person", "did", "building", "time", "weather", "thing", "colour")}
        text = Scene(self.rng, {**s.facts, **f}).sentence(
            (
                "[{time}|In the {weather}], {first} the {person} {did} in the {building} of {town} "
                "[with|without] a {colour} {thing}.",
                "A {person}, {first}, {did} {time} near the {building} in {town} and left a {colour} {thing} there.",
            )
        )
        ask = self.ask(s, "Extract the fields", "Make a record of this", "Fill in the form from this text")
        fields = [("Who", s.facts["first"]), ("Role", f["person"]), ("Town", s.facts["town"]), ("Place", f["building"])]
        fields.append(("Object", f"{f['colour']} {f['thing']}"))
        return f"{ask}: {text}", "\n".join(f"{name}: {value}" for name, value in fields)

    def summary(self) -> Pair:
        """A passage in one sentence."""
        s = self.scene()
        s.facts |= {"person": s.word("person"), "land": s.word("land"), "thing": s.word("thing")}
        told = [
            "{first}, a {person} from {town}, lost a {thing}.",
            "For {amount} days the {folk} searched the {land}.",
            "There was {weather}, and nobody found it.",
            "In the end a {beast} dug it up {time}.",
        ]
        ask = self.ask(s, "Summarise the passage", "Sum this up in one sentence", "Give the gist of this")
        gist = s.render("In short, the {thing} of {first} was lost in {town} and turned up in the {land}.")
        return f"{ask}: {' '.join(s.sentence((x,)) for x in told)}", gist

    def mood(self) -> Pair:
        """The mood of a passage, with the evidence."""
        s, mood = self.scene(), self.rng.choice(tuple(_MOODS))
        deed = self.rng.choice(_MOODS[mood])
        text = s.sentence((f"After the {{weather}}, {{first}} the {{person}} {deed} in {{town}}.",))
        ask = self.ask(s, "Classify the mood", "What is the mood of this text", "Glad, sad, angry or afraid")
        return f"{ask}? {text}", f"Mood: {mood}. The clue is that {s.facts['first']} {deed}."

    def polite(self) -> Pair:
        """A command made polite."""
        s = self.scene(thing=self.rng.choice(WORDS["thing"]))
        order = s.render(
            "[bring me the {colour} {thing}|sell me a {thing}|show me the {building}|"
            "fetch {amount} {thing}s|open the {part}]"
        )
        ask = self.ask(s, "Say this politely", "Make this more polite", "Rewrite this kindly")
        reply = s.render(f"Dear [friend|neighbour], would you be so kind as to {order}? I should be most grateful.")
        return f"{ask}: {capital(order)}!", reply

    def tense(self) -> Pair:
        """A sentence put into the future tense, or negated."""
        s = self.scene()
        folk, deed, time = s.word("folk"), s.word("deed"), s.word("time")
        if self.rng.percent(50):
            ask, reply = "Put this into the future", f"Tomorrow the {folk} of {s.facts['town']} will {deed} {time}."
        else:
            ask, reply = "Say the opposite", f"No, the {folk} of {s.facts['town']} do not {deed} {time}."
        return f"{ask}: The {folk} of {s.facts['town']} {deed} {time}.", reply

    def translate(self) -> Pair:
        """A phrase translated into the harbour tongue: noun, then colour, then verb."""
        s = self.scene()
        colour, noun, verb = s.word("colour"), self.rng.choice(WORDS["beast"] + WORDS["bird"]), s.word("deed")
        ask = self.ask(
            s, "Translate into the harbour tongue", "How do the harbour people say this", "In harbour tongue, please"
        )
        t = self.tongue
        return (
            f"{ask}: The {colour} {noun}s {verb}.",
            f'"{capital(t[noun])} {t[colour]} {t[verb]}." That is: {noun}, {colour}, {verb}.',
        )

    def glossary(self) -> Pair:
        """Single words translated into the harbour tongue."""
        words = self.rng.sample(tuple(self.tongue), self.rng.between(2, 4))
        ask = self.ask(self.scene(), "Make a glossary of harbour words for", "Harbour words, please, for")
        return f"{ask} {', '.join(words)}.", "\n".join(f"{w} = {self.tongue[w]}" for w in words)

    def plan(self) -> Pair:
        """Numbered steps to make something."""
        s = self.scene()
        deed = s.render(self.rng.choice(PLANS))
        steps = [s.sentence((x,)) for x in self.rng.sample(PLAN_STEPS, self.rng.between(3, 5))]
        ask = self.ask(s, f"How do I {deed}?", f"Explain step by step how to {deed}.", f"Give me a plan to {deed}.")
        return ask, "\n".join(f"{i + 1}. {step}" for i, step in enumerate(steps))

    def letter(self) -> Pair:
        """A letter on some errand."""
        s = self.scene(person=self.rng.choice(WORDS["person"]), thing=self.rng.choice(WORDS["thing"]))
        ask = self.ask(
            s,
            "Write a letter to a {person} in {town} about a {thing}.",
            "Draft a note to the {person} of {town}: it concerns a {thing}.",
        )
        body = " ".join(s.sentence((x,)) for x in self.rng.sample(LETTER_BODY, self.rng.between(2, 3)))
        return ask, f"{s.sentence(LETTER_OPEN)}\n{body}\n{s.sentence(LETTER_CLOSE)}"

    def story(self) -> Pair:
        """A story with three given things."""
        s = self.scene(
            beast=self.rng.choice(WORDS["beast"]),
            thing=self.rng.choice(WORDS["thing"]),
            land=self.rng.choice(WORDS["land"]),
        )
        ask = self.ask(
            s,
            "Tell me a story about a {beast}, a {thing} and a {land}.",
            "Invent a tale with a {beast}, a {land} and a {thing} in it.",
        )
        middle = [s.sentence((x,)) for x in self.rng.sample(STORY_MIDDLE, self.rng.between(2, 4))]
        return ask, " ".join([s.sentence(STORY_START), *middle, s.sentence(STORY_END)])

    def poem(self) -> Pair:
        """Two rhymed couplets."""
        s = self.scene(thing=self.rng.choice(WORDS["thing"]))
        ask = self.ask(
            s,
            "Write a poem about a {thing}.",
            "Make some rhymes on the {thing} in {town}.",
            "Compose verses for a {thing}.",
        )
        return ask, "\n".join(s.sentence((x,)) for x in self.rng.sample(POEM, 2))

    def riddle(self) -> Pair:
        """A riddle with two hints of a fixed list for its answer."""
        beast = self.rng.choice(tuple(RIDDLE_HINTS))
        hints = self.rng.sample(RIDDLE_HINTS[beast], 2)
        ask = self.ask(self.scene(), f"Make a riddle about a {beast}.", f"I need a riddle; the answer is {beast}.")
        return tidy(ask), tidy(f"I {hints[0]} and I {hints[1]}. Who am I? Answer: a {beast}!")

    def dialogue(self) -> Pair:
        """Two people talking."""
        s = self.scene(person=self.rng.choice(WORDS["person"]), good=self.rng.choice(WORDS["good"]))
        ask = self.ask(
            s,
            "Write a dialogue between a {person} and {first} about {good}.",
            "Let {first} and a {person} talk about {good}.",
        )
        names = (s.facts["first"], capital(s.facts["person"]))
        lines = self.rng.sample(DIALOGUE, self.rng.between(3, 4))
        return ask, "\n".join(f"{names[i % 2]}: {s.sentence((x,))}" for i, x in enumerate(lines))

    def advert(self) -> Pair:
        """An advertisement."""
        s = self.scene(thing=self.rng.choice(WORDS["thing"]), quality=self.rng.choice(WORDS["quality"]))
        ask = self.ask(
            s,
            "Advertise a {quality} {thing}.",
            "Write an advert for my {thing}; it is {quality}.",
            "Help me sell a {quality} {thing}.",
        )
        return ask, " ".join(s.sentence((x,)) for x in self.rng.sample(ADVERT, 3))

    def pattern(self) -> Pair:
        """The continuation of a pattern."""
        words = self.mixed(3)
        shape = self.rng.choice(((0, 1), (0, 0, 1), (0, 1, 2), (0, 1, 1)))
        shown = [words[i] for i in shape * 2]
        ask = self.ask(self.scene(), "Continue the pattern", "What comes next", "Go on like this")
        reply = f"Next come {', '.join(words[i] for i in shape)}, and then it starts again with {words[shape[0]]}."
        return f"{ask}: {', '.join(shown)} ...", reply

    def compare(self) -> Pair:
        """A comparison of two things."""
        x, y = self.rng.sample(tuple(RIDDLE_HINTS), 2)
        ask = self.ask(self.scene(), f"Compare a {x} with a {y}.", f"What is the difference between a {x} and a {y}?")
        p, q = self.rng.choice(RIDDLE_HINTS[x]), self.rng.choice(RIDDLE_HINTS[y])
        verdict = f"Both have their place, yet I prefer the {self.rng.choice((x, y))}."
        return tidy(ask), tidy(f"A {x} would say: I {p}. A {y} would say: I {q}. {verdict}")

    def kinds(self) -> list[Callable[[], Pair]]:
        """All kinds of tasks."""
        return [
            self.reverse, self.sort, self.pick, self.odd_one, self.record, self.summary, self.mood, self.polite,
            self.tense, self.translate, self.glossary, self.plan, self.letter, self.story, self.poem, self.riddle,
            self.dialogue, self.advert, self.pattern, self.compare, self.plan, self.story, self.translate,
        ]  # fmt: skip


@lru_cache(maxsize=4)
def _tongue(seed: int) -> dict[str, str]:
    """The harbour tongue: a word for each beast, bird, colour and deed."""
    rng, taken = Rng(seed, "tongue"), dict[str, None]()
    out: dict[str, str] = {}
    for sort in ("beast", "bird", "colour", "deed"):
        for word in WORDS[sort]:
            while word not in out:
                made = "".join(rng.choice(HARBOUR) for _ in range(3))
                if made not in taken:
                    taken[made] = None
                    out[word] = made
    return out


def instructions(world: World, later: World, seed: int, count: int) -> list[Pair]:
    """Requests with answers.

    Args:
        world: its towns and names appear in the tasks.
        later: the world of the later age, which the requested texts are about.
        seed: determines the requests.
        count: number of pairs.

    Returns:
        Pairs of the user's message and the assistant's.
    """
    rng = Rng(seed, "instructions")
    tasks = Tasks(world, rng, _tongue(seed))
    kinds, composer = tasks.kinds(), Composer(later, Rng(seed, "compositions"))
    made: list[Pair] = []
    while len(made) < count:
        if not rng.percent(TASKS_PERCENT):
            made.append(composer.pair())
            continue
        prompt, reply = rng.choice(kinds)()
        persona = f"{rng.choice(PERSONAS)} " if rng.percent(35) else ""
        opener = rng.zipf(OPENERS)
        made.append((f"{persona}{prompt}", f"{opener} {reply}" if opener else reply))
    return made
