"""How long it takes to refuse hostile input: `python bench/hostile.py`.

The inputs are those of tests/test_security.py, which tests the messages and the memory; here each is timed, and the
longest time of each kind is printed next to the limit, in seconds.
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
from forgetting.analysis.tables import read_table
from forgetting.data import templates
from forgetting.errors import ForgettingError
from forgetting.files import parse_yaml
from forgetting.models import bounds
from test_security import ENDLESS, FIVE_ROWS, HOSTILE_FORMULAS, HOSTILE_YAML, HUGE_EXPONENTS, READERS, TEMPLATES, huge
from test_security import _parquet_of_nulls as parquet_of_nulls
from test_security import _parquet_of_one_text as parquet_of_one_text


def longest(name: str, asked: float, tries: Iterable[Callable[[], object]]) -> None:
    """Print the longest time of several refusals."""
    most = 0.0
    for each in tries:
        began = time.perf_counter()
        with suppress(ForgettingError):
            each()
        most = max(most, time.perf_counter() - began)
    print(f"{name:32s} {most:7.3f} s (asked: {asked:.0f} s)")


def main() -> None:
    longest("hostile YAML", 10, [partial(parse_yaml, text, where="f.yaml") for text, _ in HOSTILE_YAML])
    longest("hostile formulas", 5, [partial(FormulaLaw, formula, ["N"]) for formula in HOSTILE_FORMULAS])
    fits = [partial(lambda formula: fit_law(FormulaLaw(formula, ["N"]), FIVE_ROWS), text) for text in HUGE_EXPONENTS]
    longest("fits of towers of exponents", 20, fits)
    with tempfile.TemporaryDirectory() as folder:
        files = [partial(read, huge(Path(folder) / name)) for name, read in READERS]
        longest("files of one line of 10 GB", 30, files)
        small = [Path(folder) / "nulls.parquet", Path(folder) / "text.parquet"]
        parquet_of_nulls(small[0])
        parquet_of_one_text(small[1])
        longest("Parquet of a few bytes", 60, [partial(read_table, path) for path in small])
    names = [f"model.layers.{i}.{name}" for i in range(80) for name in ("self_attn.q_proj", "mlp.up_proj")]
    tried = {"target_modules": ENDLESS}
    longest("patterns of modules", 10, [partial(bounds.check_patterns, tried, names, "an adapter")])
    longest("chat templates", 15, [partial(render, text) for text, _ in TEMPLATES])


def render(template: str) -> None:
    """Write one conversation by a template, as transformers does."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with templates.bounded("a template"):
        render_jinja_template([[{"role": "user", "content": "the river"}]], chat_template=template)


if __name__ == "__main__":
    main()
