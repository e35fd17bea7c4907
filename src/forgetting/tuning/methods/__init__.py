"""How a model is made trainable: one file per method, listed in METHODS. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...config.schema import MethodConfig, RunConfig
from ...config.variants import Variants
from ...models import quantised
from .any_peft import Peft
from .base import Context, Method
from .eva import Eva
from .ia3 import Ia3
from .lora import Dora, Lora, Mica
from .orthogonal import Boft, Oft, Osf
from .parts import Bias, Full, LnTuning, TopLayers
from .residual import Corda, Olora, Pissa
from .small import Loha, Lokr, Vera

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHODS: Variants[Method] = Variants(
    "method",
    (
        *(Lora, Dora, Mica, Pissa, Olora, Corda, Eva),
        *(Vera, Loha, Lokr, Ia3, Oft, Boft, Osf),
        *(LnTuning, Bias, TopLayers, Full, Peft),
    ),
    field="methods",
)

__all__ = [
    "METHODS",
    "Context",
    "Method",
    "check_methods",
    "check_quantised",
    "default_rank",
    "expand_grid",
    "rank_notices",
]


def check_quantised(method: Method, how: str, bits: int | None) -> None:
    """Refuse a method that does not work with quantised base weights.

    Args:
        method: the method.
        how: how they are quantised, in words.
        bits: bits by bitsandbytes; None for another quantisation.

    Raises:
        UsageError: names the method, and those that work.
    """
    fit = [name for name, one in METHODS.items() if one.quantised and (bits is None or bits in one.quantised)]
    method.check_quantised(how, bits, [*fit, "peft"])


def default_rank(name: str) -> int | None:
    """The rank of a method if none is configured; None if there is no such method, or it has no rank."""
    field = METHODS[name].model_fields.get("rank") if name in METHODS else None
    return None if field is None else field.default


def expand_grid(config: MethodConfig) -> list[MethodConfig]:
    """The methods that one configuration entry stands for, with all options filled in and checked; no mitigations."""
    given = {"name": config.name, "label": config.label}
    return [
        MethodConfig.model_validate(given | method.model_dump(mode="json", exclude_none=True))
        for method in METHODS.grid(config)
    ]


def rank_notices(runs: Sequence[RunConfig], model: PreTrainedModel) -> list[str]:
    """Notices about the ranks of a study's runs, without repeats; see `Method.notices`."""
    methods = {run.method.model_dump_json(): run.method for run in runs}
    return list(dict.fromkeys(one for method in methods.values() for one in METHODS.parse(method).notices(model)))


def check_methods(runs: Sequence[RunConfig], model: PreTrainedModel, context: Callable[[RunConfig], Context]) -> None:
    """Refuse runs whose method does not fit the model or the data, before any starts.

    Args:
        runs: all runs of a study; of runs that differ only in their seed, only the first is checked.
        model: the base model; not changed.
        context: what a run's method may know about it.

    Raises:
        UsageError: says what came and what this model allows.
    """
    seen = set()
    for run in runs:
        same = run.dataset_name, run.method.model_dump_json(exclude={"label", "mitigations"})
        if same not in seen:
            seen.add(same)
            method = METHODS.parse(run.method)
            if (stored := quantised.method_of(model.config)) is not None:
                check_quantised(method, f"weights quantised by {stored}", quantised.bits_of(model.config))
            method.check(model, context(run))
