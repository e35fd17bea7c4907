"""The encoding of text files: UTF-8, or UTF-16 with a byte order mark, read as the bytes of UTF-8 without a mark.

Windows PowerShell writes UTF-16 with `>`. Without the mark, such a file is also valid UTF-8, with a null character
after each letter. It would be measured as other text, so it is refused.
"""

from __future__ import annotations

import codecs
import io
from typing import BinaryIO, cast

from .errors import UsageError

MARK = codecs.BOM_UTF8
MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
"""Byte order marks of UTF-16."""
MARKS_OF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
LOOKED_AT = 4096
"""How many bytes of a file without a mark are searched for null characters."""
NULLS = 8
"""If more than one byte in this many is null, the text is UTF-16, where each Latin letter, digit, space and line break
contains one; null characters are rare in UTF-8."""
PIECE = 2**20
"""How many bytes are converted at a time."""


def unmarked(file: BinaryIO, where: str) -> BinaryIO:
    """The text of a file as the bytes of UTF-8, without a byte order mark; UTF-16 is converted while it is read.

    Args:
        file: positioned at its start; has `peek`, like files that Python opens or unpacks.
        where: its name, for messages.

    Raises:
        UsageError: it begins like UTF-16 without a mark, or like UTF-32; while reading: damaged UTF-16.
    """
    start = cast("io.BufferedReader", file).peek(LOOKED_AT)[:LOOKED_AT]
    if start.startswith(MARKS_OF_32):
        raise UsageError(f"{where}: text in UTF-32; convert it to UTF-8")
    if start.startswith(MARK):
        file.read(len(MARK))
        return file
    for mark, encoding in MARKS.items():
        if start.startswith(mark):
            file.read(len(mark))
            return io.BufferedReader(_Converted(file, encoding, where))
    nulls = (start[::2].count(0), start[1::2].count(0))
    if min(nulls) == 0 and max(nulls) > max(1, len(start) // NULLS):  # a single one is a control character
        raise UsageError(f"{where}: it looks like UTF-16 without a byte order mark; convert it to UTF-8")
    return file


class _Converted(io.RawIOBase):
    """The text of a file as UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str, where: str) -> None:
        self._file, self._where, self._decoder = file, where, codecs.getincrementaldecoder(encoding)()
        self._ready, self._ended = b"", False

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as the next piece goes; 0 at the end of the file."""
        while not self._ready and not self._ended:
            piece = self._file.read(PIECE)
            self._ended = not piece
            try:
                self._ready = self._decoder.decode(piece, final=self._ended).encode()
            except UnicodeDecodeError as error:
                raise UsageError(f"{self._where}: damaged UTF-16 text ({error.reason})") from None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count
