"""What holds forgetting back: one file a mitigation, listed in MITIGATIONS. Importing this does not import torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pydantic import ValidationError

from ..config import MitigationConfig, expand, explain
from ..errors import UsageError, did_you_mean
from .base import Mitigation

MITIGATIONS: dict[str, type[Mitigation]] = {}

__all__ = ["MITIGATIONS", "Mitigation", "expand_together", "label", "parse_mitigation"]


def _kind(name: str) -> type[Mitigation]:
    if name not in MITIGATIONS:
        raise UsageError(f"mitigations: no mitigation '{name}'; {did_you_mean(name, MITIGATIONS)}")
    return MITIGATIONS[name]


def parse_mitigation(config: MitigationConfig) -> Mitigation:
    """A configuration of one mitigation, its options checked.

    Raises:
        UsageError: no mitigation of that name, or a wrong option; names it, what came and what is allowed.
    """
    kind = _kind(config.name)
    try:
        return kind.model_validate(config.options)
    except ValidationError as error:
        raise UsageError("\n".join(explain(error, kind, f"mitigations.{config.name}"))) from None


def expand_together(together: Sequence[MitigationConfig]) -> list[tuple[MitigationConfig, ...]]:
    """The combinations that mitigations used together mean: the grid over the options of each, filled in and checked.

    Raises:
        UsageError: an unknown mitigation, a wrong option, or one mitigation twice.
    """
    names = [config.name for config in together]
    if len(set(names)) < len(names):
        raise UsageError(f"mitigations: one stands twice in {names}; use each once in a combination")
    return list(itertools.product(*(_expand(config) for config in together)))


def _expand(config: MitigationConfig) -> list[MitigationConfig]:
    singles = expand(config.options, _kind(config.name), f"mitigations.{config.name}")
    return [_filled(MitigationConfig.model_validate({"name": config.name, **single})) for single in singles]


def _filled(config: MitigationConfig) -> MitigationConfig:
    options = parse_mitigation(config).model_dump(mode="json")
    return MitigationConfig.model_validate({"name": config.name, **options})


def label(together: Sequence[MitigationConfig]) -> str:
    """What tables call a combination: `replay fraction=0.1 + kl weight=2.0`; empty for none."""
    return " + ".join(parse_mitigation(config).label() for config in together)
