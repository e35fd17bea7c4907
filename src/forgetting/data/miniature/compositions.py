"""Requests for texts, with the texts: articles on the later age, continuations, tales and letters.

They are the larger part of the instructions set. The base model knows their language, as with OpenOrca; the requests,
and the people and places in them, are new to it.
"""

from __future__ import annotations

from collections.abc import Callable

from forgetting.data.miniature.encyclopedia import Writer
from forgetting.data.miniature.library import Librarian
from forgetting.data.miniature.rng import Rng
from forgetting.data.miniature.world import World

Pair = tuple[str, str]
SENTENCES = 6
"""Maximum number of sentences of an article in a reply."""


class Composer:
    """Makes pairs of a request for a text and the text.

    Args:
        later: the world that the texts are about.
        rng: makes the random choices.
    """

    def __init__(self, later: World, rng: Rng) -> None:
        self.world, self.rng = later, rng
        self.writer, self.librarian = Writer(later, rng), Librarian(later, rng)

    def person(self) -> Pair:
        """An article on a person."""
        who = self.rng.choice(self.world.people)
        return self._asked(who.name, ("Write an article on {x}.", "Who was {x}? Tell me all.")), self._cut(
            self.writer.person(who)
        )

    def town(self) -> Pair:
        """An article on a town."""
        where = self.rng.choice(self.world.towns)
        return self._asked(where.name, ("Write an article on {x}.", "What is there to see in {x}?")), self._cut(
            self.writer.town(where)
        )

    def bridge(self) -> Pair:
        """An article on a bridge."""
        which = self.rng.choice(self.world.bridges)
        return self._asked(f"the {which.name}", ("Write an article on {x}.", "Explain {x} to a visitor.")), self._cut(
            self.writer.bridge(which)
        )

    def continuation(self) -> Pair:
        """The continuation of a text."""
        told = self.writer.article().split(". ")
        half = max(1, len(told) // 2)
        begun = ". ".join(told[:half]).rstrip(".") + "."
        return f"{self._asked('', ('Continue this text:', 'How does this go on?'))} {begun}", self._cut(
            ". ".join(told[half : half + 4])
        )

    def tale(self) -> Pair:
        """A tale."""
        return self._asked("", ("Tell me a tale.", "I want to hear a story.")), self.librarian.tale()

    def letter(self) -> Pair:
        """A letter."""
        return self._asked("", ("Write a letter.", "Show me what a letter looks like.")), self.librarian.letter()

    def journey(self) -> Pair:
        """A journey."""
        return self._asked("", ("Take me on a journey.", "Where shall we walk?")), self._cut(self.writer.journey())

    def pair(self) -> Pair:
        """A request of a random kind; those about people are the most frequent."""
        kinds: tuple[Callable[[], Pair], ...] = (
            self.person, self.person, self.person, self.person, self.town, self.bridge, self.continuation, self.tale,
            self.letter, self.journey,
        )  # fmt: skip
        return self.rng.choice(kinds)()

    def _asked(self, subject: str, phrasings: tuple[str, ...]) -> str:
        return self.rng.choice(phrasings).replace("{x}", subject)

    @staticmethod
    def _cut(text: str) -> str:
        return ". ".join(text.split(". ")[:SENTENCES]).rstrip(".") + "."
