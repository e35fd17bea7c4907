"""Registries of methods, mitigations and laws: lookup by name, and suggestions for unknown names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from forgetting.analysis.laws import LAWS, PUBLISHED
from forgetting.config.registry import Registry
from forgetting.config.schema import MethodConfig, MitigationConfig
from forgetting.errors import UsageError
from forgetting.tuning.methods import METHODS
from forgetting.tuning.mitigations import MITIGATIONS


@pytest.mark.parametrize("registry", [METHODS, MITIGATIONS, LAWS, PUBLISHED], ids=lambda found: next(iter(found)))
def test_entries_are_found_by_name_and_typos_get_a_suggestion(registry: Registry[Any]) -> None:
    assert len(registry) == len(list(registry)) > 2
    for name, thing in registry.items():
        assert thing.name == name
        assert registry.find(name) is thing is registry[name]
    last = list(registry)[-1]
    with pytest.raises(UsageError) as refused:
        registry.find(last + "z")
    assert f"'{last}z'; did you mean '{last}'? (choices: {', '.join(registry)})" in str(refused.value)


def test_what_an_error_says_in_full() -> None:
    with pytest.raises(UsageError, match=r"^no law 'lineal'; did you mean 'linear'\? \(choices: .*; or give a formula"):
        LAWS.find("lineal")
    with pytest.raises(UsageError, match=r"^mitigations: no mitigation 'zzz'; choices: replay, kl, "):
        MITIGATIONS.find("zzz")


def test_names_are_unique() -> None:
    with pytest.raises(ValueError, match="two laws are called a"):
        Registry("law", [SimpleNamespace(name="a"), SimpleNamespace(name="b"), SimpleNamespace(name="a")])


def test_options_are_checked_and_lists_are_grids() -> None:
    grid = METHODS.grid(MethodConfig.model_validate({"name": "lora", "rank": [1, 8], "alpha": [2.0, 4.0]}))
    assert [(one.rank, one.alpha) for one in grid] == [(1, 2.0), (1, 4.0), (8, 2.0), (8, 4.0)]  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"^methods\.lora: rank: got 0; input should be greater than or equal to 1$"):
        METHODS.grid(MethodConfig.model_validate({"name": "lora", "rank": [1, 0]}))
    with pytest.raises(UsageError, match=r"^mitigations\.replay: share: unknown field; "):
        MITIGATIONS.parse(MitigationConfig.model_validate({"name": "replay", "share": 0.1}))
