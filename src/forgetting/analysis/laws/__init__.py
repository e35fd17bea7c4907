"""Laws by name. A new one is one file and one row in `LAWS`; the contract test checks the rest."""

from __future__ import annotations

from typing import Any

from forgetting.analysis.laws.base import Adapted, Law, Parameter, Variable
from forgetting.analysis.laws.chinchilla import Chinchilla
from forgetting.analysis.laws.custom import FormulaLaw, FunctionLaw, LostFunctionLaw
from forgetting.analysis.laws.dcpt import DCPT
from forgetting.analysis.laws.injection import Injection
from forgetting.analysis.laws.linear import Linear
from forgetting.analysis.laws.log_linear import LogLinear
from forgetting.analysis.laws.mitigated import MITIGATED
from forgetting.analysis.laws.multiplicative import Multiplicative
from forgetting.analysis.laws.published import PUBLISHED, Published
from forgetting.analysis.laws.rectified import Rectified
from forgetting.analysis.laws.shifted_power import ShiftedPower, ShiftedPowerSingle
from forgetting.config.registry import Registry

LAWS: Registry[Law] = Registry(
    "law",
    (
        Linear(),
        ShiftedPower(),
        ShiftedPowerSingle("shifted_power_ft", "finetune_loss", 1),
        ShiftedPowerSingle("shifted_power_f", "forgetting_loss", -1),
        Chinchilla(),
        Multiplicative(),
        DCPT(),
        Injection(),
        Rectified(),
        LogLinear(),
        *MITIGATED.values(),
    ),
    hint="or give a formula: 'loss = E + A/N**alpha'",
)


def law_from_spec(name: str, spec: dict[str, Any]) -> Law:
    """The law of a stored fit: by name, or rebuilt from the description that a user's law stored.

    Raises:
        UsageError: no law has this name.
    """
    if not spec:
        return LAWS.find(name)
    if "function" in spec:
        return LostFunctionLaw(spec)
    return FormulaLaw.from_spec(spec)


__all__ = [
    "LAWS",
    "PUBLISHED",
    "Adapted",
    "FormulaLaw",
    "FunctionLaw",
    "Law",
    "Parameter",
    "Published",
    "Variable",
    "law_from_spec",
]
