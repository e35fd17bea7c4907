"""Cuts one long text into documents, piece by piece: the text need not be in memory as a whole.

Pieces are consecutive parts of the text, cut anywhere; line breaks are line feeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..errors import UsageError
from .readers import line_feeds

WIKITEXT_TITLE = re.compile(r"^ = ([^=\n]+?) = ?\n?$", re.MULTILINE)
BREAK = re.compile(r"\n\s*\n")
SECTION_CHARACTERS = 4000
WORDS = {
    "wikitext": "at ` = Title = ` lines (wikitext)",
    "paragraphs": "at blank lines (paragraphs)",
    "sections": f"into blocks of whole paragraphs of about {SECTION_CHARACTERS:,} characters (sections)",
}
"""What each way of cutting does, in words."""
HOW_TO_CUT = "`documents` sets how text is cut: --text-field documents=paragraphs, or =sections, =wikitext, =rows"


def guessed_cut(texts: Sequence[str]) -> str:
    """Guess how to cut a text.

    A single text with WikiText's titles is WikiText. Many texts are WikiText if each is one line, as in Hub copies, one
    is a title, and some are blank or all end in a line break; otherwise each is a document.
    """
    if len(texts) == 1:
        return guessed_cut_of_one([line_feeds(texts[0])])
    seen = LinesSeen()
    for text in texts:
        seen.add(text)
    return "wikitext" if seen.are_wikitext else "rows"


class LinesSeen:
    """Finds out whether many texts are the lines of WikiText articles."""

    def __init__(self) -> None:
        """Start without texts."""
        self.single = self.all_end = True
        self.title = False
        self.empty = 0

    def add(self, text: str) -> None:
        """Look at the next text."""
        line = text.rstrip("\r\n")
        self.single = self.single and "\n" not in line
        self.all_end = self.all_end and text.endswith("\n")
        self.empty += not line.strip()
        self.title = self.title or bool(WIKITEXT_TITLE.match(line))

    @property
    def are_wikitext(self) -> bool:
        """Whether the texts seen so far are the lines of articles."""
        return self.single and (self.empty > 0 or self.all_end) and self.title


class UniqueNames:
    """Names of documents; a repeated name gets a number."""

    def __init__(self) -> None:
        """Start without names."""
        self._seen: dict[str, int] = {}

    def name(self, name: str) -> str:
        """The next document's name: `a`, then `a#2`, or another one if there is already a document of that name."""
        self._seen[name] = count = self._seen.get(name, 0) + 1
        return name if count == 1 else self.name(f"{name}#{count}")


def guessed_cut_of_one(pieces: Iterable[str]) -> str:
    """How to cut one text: as WikiText if it begins with a title or has two, else into sections."""
    begun, titles = False, 0
    for lines in _whole_lines(pieces):
        if not begun and (first := lines.lstrip("\n")):
            begun = True
            if WIKITEXT_TITLE.match(first):
                return "wikitext"
        titles += sum(1 for _ in WIKITEXT_TITLE.finditer(lines)) if " = " in lines else 0
        if titles > 1:
            return "wikitext"
    return "sections"


def notices_of(mode: str, count: int) -> list[str]:
    """What a reader should know about documents that were cut by a guess."""
    if count == 1:
        return [f"one document, so there is no standard error; {HOW_TO_CUT}"]
    notice = f"{count} documents, cut {WORDS[mode]}"
    if mode == "sections":
        notice += "; neighbouring documents are not independent, so standard errors are somewhat too small"
    return [f"{notice}; {HOW_TO_CUT}"]


def wikitext(pieces: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Articles, each from its ` = Title = ` line to the next; ` = = Section = = ` lines do not start one.

    Text before the first title is also a document.

    Raises:
        UsageError: the text has no title.
    """
    name, parts, titles = "before-the-first-title", list[str](), 0
    for lines in _whole_lines(pieces):
        start = 0
        for match in WIKITEXT_TITLE.finditer(lines):
            yield name, "".join([*parts, lines[start : match.start()]])
            name, parts, start = match.group(1).strip(), [], match.start()
            titles += 1
        parts.append(lines[start:])
    if not titles:
        raise UsageError("documents: wikitext, but the text has no ` = Title = ` line; use paragraphs or sections")
    yield name, "".join(parts)


def paragraphs(pieces: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The texts between blank lines."""
    for i, block in enumerate(_blocks(pieces)):
        yield f"paragraph-{i}", block.strip("\n")


def sections(pieces: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Blocks of whole paragraphs with at least SECTION_CHARACTERS, except the last: for one long text without titles.

    Neighbouring sections are not fully independent, so standard errors over them are a little too small.
    """
    gathered: list[str] = []
    size = count = 0
    for _, block in paragraphs(pieces):
        gathered.append(block)
        size += len(block) + 2
        if size >= SECTION_CHARACTERS:
            yield f"section-{count}", "\n\n".join(gathered)
            gathered, size, count = [], 0, count + 1
    if gathered:
        yield f"section-{count}", "\n\n".join(gathered)


CUTS: dict[str, Callable[[Iterable[str]], Iterator[tuple[str, str]]]] = {
    "wikitext": wikitext,
    "paragraphs": paragraphs,
    "sections": sections,
}
"""How to cut a text: each function yields its documents as (name, text); some texts may be empty."""


def _whole_lines(pieces: Iterable[str]) -> Iterator[str]:
    """The same text in pieces that end at line ends."""
    rest = ""
    for piece in pieces:
        rest += piece
        end = rest.rfind("\n") + 1
        if end:
            yield rest[:end]
            rest = rest[end:]
    yield rest


def _blocks(pieces: Iterable[str]) -> Iterator[str]:
    """The text split at BREAK."""
    rest = ""
    for piece in pieces:
        rest += piece
        start = 0
        for match in BREAK.finditer(rest):
            if match.end() + 1000 > len(rest) and not rest[match.end() :].strip():
                break  # the next piece may extend it
            yield rest[start : match.start()]
            start = match.end()
        rest = rest[start:]
    yield from BREAK.split(rest)
