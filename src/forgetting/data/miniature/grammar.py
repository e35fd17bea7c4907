"""Sentence frames with choices and slots, rendered with random words.

A frame is text with two kinds of marks, which can be nested:

    [a|b|c]   one of the alternatives, at random; an empty alternative makes the clause optional
    {slot}    a fact of the scene (`{name}`), or else a random word of that category of the lexicon (`{bird}`)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from forgetting.data.miniature.lexicon import PLURALS, WORDS
from forgetting.data.miniature.rng import Rng

# A parsed frame: literal text, ("slot", name) or a tuple of alternatives, each parsed in turn.
_Node = str | tuple[str, str] | list["_Frame"]
_Frame = tuple[_Node, ...]

_MARK = re.compile(r"[\[\]|{}]")
_A_VOWEL = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])")
_PLURAL = re.compile(r"\b(" + "|".join(PLURALS) + r")\b")
_SPACES = re.compile(r" {2,}")
_SPACE_MARK = re.compile(r" (?=[,.;:?!])")


def _parse_run(frame: str, at: int, nested: bool) -> tuple[list[_Frame], int]:
    """The alternatives from `at` to the closing bracket (or the end), and the position after it."""
    alternatives: list[_Frame] = []
    nodes: list[_Node] = []
    while True:
        found = _MARK.search(frame, at)
        if found is None or (not nested and found.group() in "|]"):
            if nested:
                raise ValueError(f"frame has an unclosed [: {frame!r}")
            nodes.append(frame[at:] if found is None else frame[at : found.end()])
            if found is None:
                return [*alternatives, tuple(nodes)], len(frame)
            at = found.end()
            continue
        mark = found.group()
        if found.start() > at:
            nodes.append(frame[at : found.start()])
        at = found.end()
        if mark == "[":
            inner, at = _parse_run(frame, at, nested=True)
            nodes.append(inner)
        elif mark == "{":
            end = frame.index("}", at)
            nodes.append(("slot", frame[at:end]))
            at = end + 1
        else:  # | or ]
            alternatives.append(tuple(nodes))
            nodes = []
            if mark == "]":
                return alternatives, at


@lru_cache(maxsize=4096)
def _parse(frame: str) -> _Frame:
    return _parse_run(frame, 0, nested=False)[0][0]


class Scene:
    """The facts and words that fill the slots of a text.

    Args:
        rng: makes the random choices.
        facts: slot -> text.
        favourites: lexicon category -> a few words; half of the words of the category are drawn from them.
        words: further categories, or replacements of those of the lexicon.
    """

    def __init__(
        self,
        rng: Rng,
        facts: Mapping[str, str],
        favourites: Mapping[str, Sequence[str]] | None = None,
        words: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.rng = rng
        self.facts = dict(facts)
        self.favourites = favourites or {}
        self.words = words or {}

    def word(self, category: str) -> str:
        """A fact, or a random word of the category."""
        fact = self.facts.get(category)
        if fact is not None:
            return fact
        known_for = self.favourites.get(category)
        if known_for and self.rng.percent(50):
            return self.rng.zipf(known_for)
        # a trailing digit means another word of the same category: {herb} and {herb2}
        name = category.rstrip("23")
        return self.rng.zipf(self.words[name] if name in self.words else WORDS[name])

    def render(self, frame: str) -> str:
        """The frame as text, with its choices made and its slots filled."""
        parts: list[str] = []
        self._fill(_parse(frame), parts)
        return tidy("".join(parts))

    def sentence(self, frames: Sequence[str]) -> str:
        """One of the frames, rendered and capitalised."""
        return capital(self.render(self.rng.zipf(frames)))

    def _fill(self, frame: _Frame, parts: list[str]) -> None:
        for node in frame:
            if isinstance(node, str):
                parts.append(node)
            elif isinstance(node, list):
                self._fill(self.rng.choice(node), parts)
            else:
                parts.append(self.word(node[1]))


def capital(text: str) -> str:
    """The text with its first letter capitalised, also after an opening quotation mark."""
    at = 1 if text.startswith('"') else 0
    return text[:at] + text[at : at + 1].upper() + text[at + 1 :]


def tidy(text: str) -> str:
    """The text without double spaces, with irregular plurals corrected, and with `an` before a vowel."""
    text = _PLURAL.sub(lambda found: PLURALS[found.group()], text)
    text = _SPACE_MARK.sub("", _SPACES.sub(" ", text)).strip()
    return _A_VOWEL.sub(r"\1n ", text)
