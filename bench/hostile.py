"""How long hostile input takes to be refused: `python bench/hostile.py`.

The inputs are those of tests/test_security.py, which tests what is said and how much memory that takes; here each is
timed, in seconds of this process, and the longest of its kind is printed beside what is asked.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from forgetting.analysis.fit import fit_law
from forgetting.analysis.laws import FormulaLaw
from forgetting.errors import ForgettingError
from forgetting.files import parse_yaml
from test_security import FIVE_ROWS, HOSTILE_FORMULAS, HOSTILE_YAML, HUGE_EXPONENTS, READERS, huge


def longest(name: str, asked: float, tries: Iterable[Callable[[], object]]) -> None:
    """Print the longest of some refusals."""
    most = 0.0
    for each in tries:
        began = time.process_time()
        with suppress(ForgettingError):
            each()
        most = max(most, time.process_time() - began)
    print(f"{name:32s} {most:7.3f} s (asked: {asked:.0f} s)")


def main() -> None:
    longest("hostile YAML", 10, [partial(parse_yaml, text, where="f.yaml") for text, _ in HOSTILE_YAML])
    longest("hostile formulas", 5, [partial(FormulaLaw, formula, ["N"]) for formula in HOSTILE_FORMULAS])
    fits = [partial(lambda formula: fit_law(FormulaLaw(formula, ["N"]), FIVE_ROWS), text) for text in HUGE_EXPONENTS]
    longest("fits of towers of exponents", 20, fits)
    with tempfile.TemporaryDirectory() as folder:
        files = [partial(read, huge(Path(folder) / name)) for name, read in READERS]
        longest("files of one line of 10 GB", 30, files)


if __name__ == "__main__":
    main()
