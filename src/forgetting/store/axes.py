"""Options of mitigations that a law may depend on, such as the share of replay, and the runs that vary only those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Axis:
    """One option of one mitigation.

    Attributes:
        name: name of the mitigation, of the law over the option, and of the argument that gives the option's values.
        option: the option's name in the mitigation.
        column: its column in a study's table; 0 for runs without the mitigation.
        what, value: the option, and one value of it, in sentences.
        title, axis_title: its name above a column of values, and at the axis of a chart.
        mitigation: the mitigation's name in sentences.
        below: exclusive upper limit of its values.
        slower: whether the mitigation makes extra passes, so that a step takes longer.
        moved: a mitigation that applies this one and changes the option during a run; its runs have no value.
    """

    name: str
    option: str
    column: str
    what: str
    value: str
    title: str
    axis_title: str
    mitigation: str
    below: float = np.inf
    slower: bool = False
    moved: str = ""

    @property
    def flag(self) -> str:
        """The argument in Python and on the command line."""
        return f"{self.name} (--{self.name})"

    def holds(self, value: float) -> bool:
        """Whether a number is in its domain."""
        return bool(np.isfinite(value) and 0 <= value < self.below)

    @property
    def domain(self) -> str:
        """Its domain in words."""
        return f"a {self.value} from 0 to below {self.below:g}" if np.isfinite(self.below) else f"a {self.value} from 0"

    def set_in(self, choice: Any) -> float:
        """Its value in an object with an attribute of its column; 0 if that is None."""
        return float(getattr(choice, self.column) or 0.0)

    def of(self, mitigations: Iterable[Any]) -> Any:
        """Its value in configured mitigations: 0 without the mitigation, None if there is no single one."""
        for one in mitigations:
            if isinstance(one, Mapping) and one.get("name") in (self.name, self.moved):
                return one.get(self.option) if one.get("name") == self.name else None
        return 0.0

    def alone(self, table: pd.DataFrame) -> pd.Series[bool]:
        """Mask of the rows of runs with this mitigation alone.

        If its other options differ between runs of a data set, only those rows whose other options occur with the most
        values there, in finished runs if there are any.
        """
        import pandas as pd

        nothing = pd.Series(False, index=table.index)
        if not {"mitigation", self.column} <= set(table):
            return nothing
        if "dataset" in table and len(table["dataset"].unique()) > 1:
            parts = [self.alone(part) for _, part in table.groupby("dataset", sort=False, dropna=False)]
            return pd.concat(parts).reindex(table.index)
        # the column `mitigation` has the value, unless it is the default, and then the other options
        pattern = f"^{self.name}(?: {self.option}=[^ ]+)?((?: (?!\\+ )[^ ]+)*)$"
        kind = table["mitigation"].astype(str).str.strip().str.extract(pattern, expand=False)
        done = table["status"] == "done" if "status" in table else nothing
        counted = done & kind.notna()
        values = table[self.column].where(counted if counted.any() else kind.notna()).groupby(kind).nunique()
        return nothing if values.empty else kind == values.idxmax()


REPLAY = Axis(
    "replay", "fraction", "replay_fraction", "the share of replay", "share", "replay", "share of replay p", "replay",
    below=1.0,
)  # fmt: skip
KL = Axis(
    "kl", "weight", "kl_weight", "the weight of KL", "weight", "KL weight", "weight of KL w", "KL",
    slower=True, moved="budget",
)  # fmt: skip
AXES = {axis.name: axis for axis in (REPLAY, KL)}
"""The options by the name of their law."""
