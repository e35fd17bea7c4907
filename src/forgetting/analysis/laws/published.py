"""Fitted laws from the literature, by name, in the authors' gauge and without intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from forgetting.analysis.laws.base import Law
from forgetting.analysis.laws.chinchilla import Chinchilla
from forgetting.analysis.laws.shifted_power import ShiftedPower
from forgetting.config.registry import Registry


@dataclass(frozen=True)
class Published:
    """A law as its authors fitted and printed it.

    Attributes:
        name: `author-year/what`.
        law: its functional form.
        parameters: values by name, as printed.
        measured_range: smallest and largest value that the authors measured, by variable.
        r2: their coefficients of determination, by output; empty if they gave none.
        source: citation, with the table or equation.
        note: what a reader should know about the numbers.
        constants: facts needed to use the law, for example trainable parameters of LoRA rank 1.
    """

    name: str
    law: Law
    parameters: Mapping[str, float]
    measured_range: Mapping[str, tuple[float, float]]
    r2: Mapping[str, float]
    source: str
    note: str
    constants: Mapping[str, float]


PARAMS_PER_RANK = 2_498_560  # LoRA on every linear attention and MLP module of Llama 2 7B
_TABLE_1 = "Kalajdzievski (2024), arXiv:2401.05605, Table 1"
_NOTE = (
    "printed with c_ft as fitted by the authors, to 3-5 digits; c_fft and s_fft are those of their line (Eq. 4); "
    "no intervals were published"
)


def _table_1(name: str, data: str, values: Mapping[str, float], r2: tuple[float, float]) -> Published:
    return Published(
        name=name,
        law=ShiftedPower(),
        parameters=values,
        measured_range={"trainable_params": (8.0 * PARAMS_PER_RANK, 256.0 * PARAMS_PER_RANK), "step": (50.0, 260.0)},
        r2={"forgetting_loss": r2[1]},
        source=f"{_TABLE_1}: Llama 2 7B chat, LoRA ranks 8 to 256 on {data}",
        note=_NOTE,
        constants={"params_per_rank": float(PARAMS_PER_RANK), "batch": 32.0, "context": 512.0, "r2_of_line": r2[0]},
    )


_OPENORCA = {
    "a_f": 0.0388e7,
    "a_ft": 0.0007e7,
    "b_f": 23.6418,
    "b_ft": 72.9186,
    "c_ft": 0.0020,
    "c_fft": 1.7334,
    "s_ft": 0.6126,
    "s_fft": 2.0481,
    "alpha_f": 0.0351,
    "alpha_ft": 0.0424,
    "beta_f": 0.1468,
    "beta_ft": 0.1219,
    "rho": 7.6885,
}
_NEWS = {
    "a_f": 0.0011e7,
    "a_ft": 0.0022e7,
    "b_f": 97.8466,
    "b_ft": 54.8678,
    "c_ft": 0.0028,
    "c_fft": 1.0615,
    "s_ft": 1.9253,
    "s_fft": 3.1285,
    "alpha_f": 0.0458,
    "alpha_ft": 0.0383,
    "beta_f": 0.1044,
    "beta_ft": 0.1161,
    "rho": 7.5996,
}

PUBLISHED: Registry[Published] = Registry(
    "published law",
    (
        _table_1("kalajdzievski2024/openorca", "OpenOrca", _OPENORCA, (0.9450, 0.9598)),
        _table_1("kalajdzievski2024/news", "100 news articles", _NEWS, (0.9736, 0.9769)),
        Published(
            name="besiroglu2024/chinchilla",
            law=Chinchilla(),
            parameters={"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
            measured_range={"N": (5.7e7, 1.62e10), "D": (2.5e8, 3.2e11)},
            r2={},
            source="Besiroglu et al. (2024), arXiv:2404.10102: a refit of Hoffmann et al. (2022), arXiv:2203.15556",
            note="245 points read from a figure, 5 of them left out as outliers; the measured range here is rounded",
            constants={},
        ),
    ),
)
