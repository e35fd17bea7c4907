"""The result of a fit: estimates with intervals, predictions with bands, and warnings."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetting.analysis.fit import show
from forgetting.analysis.fit.bootstrap import finite_interval, student, widening
from forgetting.analysis.fit.data import Data
from forgetting.analysis.fit.estimate import NAN, Estimate, Prediction
from forgetting.analysis.fit.figure import fit_chart
from forgetting.analysis.fit.information import Information
from forgetting.analysis.fit.objective import LOGARITHMIC
from forgetting.analysis.fit.rivals import Rival, own_share, spanned
from forgetting.analysis.laws import Law, law_from_spec
from forgetting.analysis.laws.base import SIZES, Array, incomputable
from forgetting.analysis.laws.mitigated import CentredMitigated, centred_from_spec
from forgetting.analysis.laws.shifted_power import Centred
from forgetting.config.arguments import checked
from forgetting.display.charts import plotly_figure
from forgetting.display.numbers import plain, several
from forgetting.display.tables import Result, Shown
from forgetting.errors import UsageError, did_you_mean
from forgetting.files import parse_json, read_text, write_atomically

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from rich.console import RenderableType

FORMAT = 1
LOSSES = ("finetune_loss", "forgetting_loss")


@dataclass(frozen=True)
class Fitted:
    """The best fit in fitted coordinates.

    The reported parameters (such as a_f of the shifted power law, in the gauge c_ft = 1) may exceed the range of
    floating-point numbers even if the surface is well determined; these coordinates do not.

    Attributes:
        law: the law in fitted coordinates.
        theta: [K] parameter values.
    """

    law: Centred | CentredMitigated
    theta: NDArray[np.float64]


@dataclass(frozen=True)
class Fit(Result):
    """A fitted law.

    Attributes:
        law: the law's name.
        label: name of the fit, for example the data set's.
        parameters: estimates by name, in the law's order.
        objective: `least-squares`, `log-least-squares`, `huber`, `huber-log`, `errors-in-both`, or `published`.
        objective_value: the summed objective at the estimate.
        r2: 1 - SS_res / SS_tot by output, from residuals in the output's unit and with equal weight for every row,
            as in the paper.
        n_points: number of fitted rows.
        n_runs: number of runs that these are from.
        measured_range: smallest and largest fitted value of each variable.
        confidence: nominal coverage of intervals and bands.
        warnings: sentences that a reader of the fit must know.
        diagnostics: share of starts that reached the best fit, condition, flat directions, bounds, standard errors, ...
        draws: [B, K] bootstrap refits, in fitted coordinates if the law has them, else in the order of `parameters`;
            empty without intervals.
        fitted: the fit in fitted coordinates, if the law has them; predictions and plans use these.
        rivals: laws that fit about as well; outside the measured range, bands include their draws.
        information: the table's information about the parameters, for laws that plans use; else None.
        widen: factor on the distance of percentiles from the estimate (Student's over the normal quantile).
        spec: description that rebuilds a law written by the user; empty for a named law.
        instance: the law of a Python function, which a file cannot store; None for other laws.
        data: the fitted rows, or an evenly spaced sample of many; None if the fit was loaded or published.
    """

    law: str
    label: str
    parameters: dict[str, Estimate]
    objective: str
    objective_value: float
    r2: dict[str, float]
    n_points: int
    n_runs: int
    measured_range: dict[str, tuple[float, float]]
    confidence: float
    warnings: list[str]
    diagnostics: dict[str, Any]
    draws: list[list[float]] = field(default_factory=list, repr=False)
    widen: float = 1.0
    spec: dict[str, Any] = field(default_factory=dict)
    fitted: Fitted | None = None
    rivals: tuple[Rival, ...] = field(default=(), repr=False, compare=False)
    information: Information | None = field(default=None, repr=False, compare=False)
    instance: Law | None = field(default=None, repr=False, compare=False)
    data: Data | None = field(default=None, repr=False, compare=False)

    @property
    def law_object(self) -> Law:
        """The law."""
        return self.instance or law_from_spec(self.law, self.spec)

    @property
    def theta(self) -> NDArray[np.float64]:
        """[K] parameter values in the law's order."""
        return np.array([e.value for e in self.parameters.values()])

    @property
    def table_size(self) -> tuple[int, int]:
        """Numbers of rows and runs in the whole table, even if only a sample was fitted."""
        whole = self.diagnostics.get("sampled_from")
        return (self.n_points, self.n_runs) if whole is None else (int(whole["points"]), int(whole["runs"]))

    def support(self, noun: str) -> str:
        """How much was fitted, such as `60 points of 6 runs`; for a sample also the size of the whole table."""
        said = f"{several(self.n_points, noun)} of {several(self.n_runs, 'run')}"
        if groups := self.diagnostics.get("groups"):
            said += f" in {several(self.units, 'group')} (by {' and '.join(groups['by'])})"
        points, runs = self.table_size
        return said if points == self.n_points else f"{said} (a sample of {several(points, noun)} of {runs:,})"

    @property
    def units(self) -> int:
        """Number of units that are resampled: groups of runs if these were asked for, else runs."""
        groups = self.diagnostics.get("groups")
        return self.n_runs if groups is None else int(groups["count"])

    @property
    def no_bands(self) -> str:
        """Why the fit has no intervals; empty if it has them."""
        if self.draws:
            return ""
        if self.objective == "published":
            return "it was published without intervals"
        start = "no intervals: "
        why = [warning.removeprefix(start) for warning in self.warnings if warning.startswith(start)]
        return "; ".join(why) or "it was fitted without resamples (--bootstrap 0)"

    def model(self) -> tuple[Law, Array, Array]:
        """The law, its parameters [K] and draws [B, K], in fitted coordinates if the law has them."""
        law, theta = (self.law_object, self.theta) if self.fitted is None else (self.fitted.law, self.fitted.theta)
        return law, theta, np.asarray(self.draws, dtype=float).reshape(-1, theta.size)

    def predict(self, output: str, **variables: ArrayLike) -> Prediction:
        """Predict one output at values of the law's variables.

        Args:
            output: one of the law's outputs, for example `forgetting_loss`.
            **variables: every variable of the law by name; numbers or arrays that broadcast together.

        Returns:
            Values, bands, and which points are outside the measured range.

        Raises:
            UsageError: an unknown output or variable, or a value that the law does not allow.
        """
        law = self.law_object
        x, shape = check_variables(law, variables)
        if output not in law.outputs:
            raise UsageError(f"law '{self.law}' has no output '{output}'; {did_you_mean(output, law.outputs)}")
        which = law.outputs.index(output)
        inner, theta, draws = self.model()
        with np.errstate(all="ignore"):
            value = inner.values(theta[None], x)[0, which]
            every = inner.values(draws, x)[:, which] if len(draws) else np.empty((0, value.size))
        low, high, lost = np.full(value.shape, NAN), np.full(value.shape, NAN), np.zeros(value.shape, np.int64)
        if len(draws):
            low, high, lost = finite_interval(value, every, self.confidence, self.widen)
        outside: Array = self.outside(x)
        if self.rivals and outside.any():
            mixed = spanned(every[:, outside], self.rivals, {k: v[outside] for k, v in x.items()}, which)
            ends = finite_interval(value[outside], mixed, self.confidence, self.widen)
            low[outside], high[outside], lost[outside] = ends
        run_low, run_high = self.new_run(output, value, low, high)
        if output in LOSSES:  # a cross-entropy is not negative
            low, run_low = (np.where((end < 0) & (value >= 0), 0.0, end) for end in (low, run_low))
        return Prediction(*(array.reshape(shape) for array in (value, low, high, outside, lost, run_low, run_high)))

    def outside(self, x: Mapping[str, Array]) -> NDArray[np.bool_]:
        """[n] whether any variable is outside the measured range."""
        out = np.zeros(np.shape(next(iter(x.values()))), dtype=bool)
        for name, (smallest, largest) in self.measured_range.items():
            slack = 1e-9 * max(abs(smallest), abs(largest))
            out |= (x[name] < smallest - slack) | (x[name] > largest + slack)
        return out

    def band_laws(self, *, extrapolated: bool = True) -> dict[str, float]:
        """The laws that a band inside or outside (`extrapolated`) the measured range draws from, with their shares."""
        if not self.draws or not extrapolated:
            return {self.law: 1.0} if self.draws else {}
        shares = {self.law: own_share(len(self.draws), self.rivals)}
        shares |= {rival.law.name: len(rival.draws) for rival in self.rivals}
        return {name: share / len(self.draws) for name, share in shares.items()}

    def new_run(self, output: str, value: Array, low: Array, high: Array) -> tuple[Array, Array]:
        """The band of one new run around the law's mean; NaN if the scatter of runs is unknown.

        The errors of the mean and of the run are independent, so their half widths are added in quadrature (of
        logarithms, if these were fitted). The sum is better known than the error of the mean alone: its degrees of
        freedom are the number of runs (or groups of runs) minus 1, or those of the residuals for independent rows.

        Args:
            output: name of the output.
            value, low, high: [n] the law's mean and its band.
        """
        less, half = self.run_scales(output)
        if self.objective == LOGARITHMIC:
            with np.errstate(all="ignore"):
                down, up = np.hypot(less * np.log(value / low), half), np.hypot(less * np.log(high / value), half)
            return np.minimum(value * np.exp(-down), low), np.maximum(value * np.exp(up), high)
        down, up = np.hypot(less * (value - low), half), np.hypot(less * (high - value), half)
        return np.minimum(value - down, low), np.maximum(value + up, high)  # never narrower than the mean's band

    def run_scales(self, output: str) -> tuple[float, float]:
        """The two parts of a new run's band: the factor on the mean's band, and the half width of a run's scatter."""
        told = self.diagnostics.get("bootstrap") or {}
        degrees = self.diagnostics["freedom"] if told.get("scheme") == "normal" else self.units - 1
        spread = (self.diagnostics.get("scatter") or {}).get(output)
        half = NAN if spread is None else student(self.confidence, degrees) * float(spread)
        less = widening(degrees, self.confidence) / self.widen if self.units > 1 else NAN
        return less, half

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; NaN becomes null."""
        out: dict[str, Any] = {
            "format": FORMAT,
            "law": self.law,
            "label": self.label,
            "formula": self.law_object.formula,
            "source": self.law_object.source,
            "parameters": {k: asdict(e) for k, e in self.parameters.items()},
            "objective": self.objective,
            "objective_value": self.objective_value,
            "r2": self.r2,
            "n_points": self.n_points,
            "n_runs": self.n_runs,
            "measured_range": {k: list(v) for k, v in self.measured_range.items()},
            "confidence": self.confidence,
            "warnings": list(self.warnings),
            "diagnostics": self.diagnostics,
            "widen": self.widen,
            "spec": self.spec,
            "fitted": None if self.fitted is None else {**self.fitted.law.spec, "theta": self.fitted.theta},
            "draws": self.draws,
            "band_laws": self.band_laws(),
            "rivals": [rival.to_dict() for rival in self.rivals],
            "information": None if self.information is None else self.information.to_dict(),
        }
        return {k: plain(v) for k, v in out.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            UsageError: the data are not a fit, or have another format.
        """
        if data.get("format") != FORMAT:
            raise UsageError(f"not a fit of format {FORMAT}: format is {data.get('format')!r}")
        try:
            fit = cls(
                law=data["law"],
                label=data["label"],
                parameters={
                    k: Estimate(
                        # JSON has no infinity, and a value is never NaN
                        math.inf if e["value"] is None else float(e["value"]),
                        _number(e["low"]),
                        _number(e["high"]),
                        str(e.get("identified", "")),
                    )
                    for k, e in data["parameters"].items()
                },
                objective=data["objective"],
                objective_value=_number(data["objective_value"]),
                r2={k: _number(v) for k, v in data["r2"].items()},
                n_points=int(data["n_points"]),
                n_runs=int(data["n_runs"]),
                measured_range={k: (float(v[0]), float(v[1])) for k, v in data["measured_range"].items()},
                confidence=float(data["confidence"]),
                warnings=list(data["warnings"]),
                diagnostics=dict(data["diagnostics"]),
                draws=[[_number(v) for v in row] for row in data["draws"]],
                widen=float(data["widen"]),
                spec=dict(data["spec"]),
                fitted=_fitted(data.get("fitted")),
                rivals=tuple(Rival.from_dict(rival) for rival in data.get("rivals", ())),
                information=None if (known := data.get("information")) is None else Information.from_dict(known),
            )
            fit._check()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UsageError(f"not a fit: {error} is missing or malformed") from None
        return fit

    def _check(self) -> None:
        """Check that a stored fit has the parameters of its law.

        Raises:
            UsageError: no such law.
            ValueError: parameters, draws or rivals do not match the law.
        """
        names = self.law_object.names
        if tuple(self.parameters) != names and names:  # a lost Python function has none
            raise ValueError(f"one of law '{self.law}', which has {', '.join(names)},")
        size = len(self.parameters) if self.fitted is None else len(self.fitted.law.parameters)
        if any(len(row) != size for row in self.draws) or (self.fitted is not None and self.fitted.theta.size != size):
            raise ValueError("draws")
        if own_share(len(self.draws), self.rivals) < 0 or any(
            r.law.outputs != self.law_object.outputs for r in self.rivals
        ):
            raise ValueError("rivals")

    def shown(self) -> list[Shown]:
        """The law, the parameters with intervals, and the warnings."""
        law = self.law_object
        heading = [f"{law.title}: {self.label}" if self.label else str(law.title), str(law.formula)]
        heading += [f"read as: {law.reading}"] if law.reading else []
        heading.append(f"source: {law.source}")
        if self.objective != "published":
            alone = bool(self.diagnostics.get("iid"))
            points = several(self.n_points, "point") if alone else self.support("point")
            points += "; intervals treat every point as independent" if alone else ""
            heading.append(f"{points}, {self.objective}, objective {self.objective_value:.8g}")
        if self.r2:
            unknown = self.objective != "published" and all(map(math.isnan, self.r2.values()))
            few = unknown and self.n_points <= len(self.parameters)
            why = " (as many parameters as measured values: every law fits them)" if few else ""
            heading.append("R2: " + ", ".join(f"{k} {show.number(v)}" for k, v in self.r2.items()) + why)
        meaning = {p.name: p.meaning for p in law.parameters}
        ranges = ", ".join(f"{k} {show.span(*ends)}" for k, ends in self.measured_range.items())
        notes = [f"measured range: {ranges}"] if ranges else []
        notes += [f"gauge: {note}" for note in self.diagnostics.get("gauge", [])]
        notes += [show.spans(self.band_laws())] if self.rivals else []
        columns = ("parameter", "value", f"{self.confidence:.0%} interval", "meaning")
        scales = {p.name for p in law.parameters if p.log}
        rows = [
            (name, show.value(e, scale=name in scales), show.ends(e), meaning.get(name, ""))
            for name, e in self.parameters.items()
        ]
        return [Shown(heading, columns, rows, notes + [f"warning: {w}" for w in self.warnings])]

    def __rich__(self) -> RenderableType:
        """The fit as a rich table."""
        return self.shown()[0].rich()

    def to_frame(self) -> pd.DataFrame:
        """One row per parameter: value, low, high, identified."""
        import pandas as pd

        rows = {name: (e.value, e.low, e.high, e.identified) for name, e in self.parameters.items()}
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high", "identified"])
        return frame.rename_axis("parameter")

    def to_latex(self) -> str:
        """The parameters as a LaTeX table (booktabs)."""
        return show.latex(self.shown()[0], self.r2)

    @checked
    def figure(self, output: str | None = None) -> go.Figure:
        """The law with its bands and the fitted rows, as a Plotly figure.

        Args:
            output: the output to draw; default `forgetting_loss` if the law has it, else its first.

        Raises:
            UsageError: the law has no such output, or no measured range.
        """
        law = self.law_object
        chosen = output or ("forgetting_loss" if "forgetting_loss" in law.outputs else law.outputs[0])
        if chosen not in law.outputs:
            raise UsageError(f"law '{self.law}' has no output '{chosen}'; {did_you_mean(chosen, law.outputs)}")
        if not self.measured_range:
            raise UsageError(f"law '{self.law}' of '{self.label}' has no measured range to draw")
        chart, names, colours = fit_chart(self, chosen)
        return plotly_figure(chart, names=names, colours=colours)


def check_variables(law: Law, variables: Mapping[str, ArrayLike]) -> tuple[dict[str, Array], tuple[int, ...]]:
    """All variables of a law as flat arrays of equal length, and the shape of the results.

    Raises:
        UsageError: a variable is missing, unknown, outside its domain, or of a shape that does not broadcast.
    """
    for name in variables:
        if name not in law.variable_names:
            raise UsageError(f"law '{law.name}' has no variable '{name}'; {did_you_mean(name, law.variable_names)}")
    missing = [name for name in law.variable_names if name not in variables]
    if missing:
        raise UsageError(f"law '{law.name}' also needs {', '.join(missing)}")
    arrays = {name: np.asarray(variables[name], dtype=float) for name in law.variable_names}
    for variable in law.variables:
        values = arrays[variable.name]
        fine = variable.allows(values)
        if not fine.all():
            bad = float(values[~fine].ravel()[0])
            raise UsageError(f"{variable.name} is {bad:g} where {variable.allowed} is needed")
        if (wrong := incomputable(values)).any():
            raise UsageError(f"{variable.name} is {float(values[wrong].ravel()[0]):g} where {SIZES}")
    try:
        together = np.broadcast_arrays(*arrays.values())
    except ValueError:
        shapes = ", ".join(f"{k} {v.shape}" for k, v in arrays.items())
        raise UsageError(f"variables do not broadcast together: {shapes}") from None
    flat = {k: np.ascontiguousarray(v).ravel() for k, v in zip(arrays, together, strict=True)}
    return flat, together[0].shape


def _fitted(data: Mapping[str, Any] | None) -> Fitted | None:
    if data is None:
        return None
    return Fitted(centred_from_spec(data), np.array([_number(v) for v in data["theta"]]))


def _number(value: float | None) -> float:
    return NAN if value is None else float(value)


def save_fits(fits: Any, path: str | os.PathLike[str]) -> None:
    """Write a fit, or dictionaries of fits nested to any depth, to a JSON file, atomically."""
    content = json.dumps({"format": FORMAT, "fits": _pack(fits)}, indent=1, allow_nan=False)
    write_atomically(Path(path), content + "\n")


def _pack(fits: Any) -> Any:
    return fits.to_dict() if isinstance(fits, Fit) else {str(k): _pack(v) for k, v in fits.items()}


def load_fits(path: str | os.PathLike[str]) -> Any:
    """Read a file that `save_fits` wrote, with the same nesting.

    Raises:
        UsageError: the file is missing or does not contain fits.
    """
    data = parse_json(read_text(Path(path)), str(path))
    if not isinstance(data, dict) or data.get("format") != FORMAT or "fits" not in data:
        raise UsageError(f"{path}: not a file of fits of format {FORMAT}")
    return _unpack(data["fits"])


def _unpack(data: Any) -> Any:
    if not isinstance(data, Mapping):
        raise UsageError(f"not a file of fits: got {type(data).__name__} instead of a fit")
    return Fit.from_dict(data) if "parameters" in data and "law" in data else {k: _unpack(v) for k, v in data.items()}
