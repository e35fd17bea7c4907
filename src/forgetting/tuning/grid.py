"""The runs of a study: data sets x methods x mitigations x seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pydantic import ValidationError

from ..config.schema import MethodConfig, MitigationConfig, RunConfig, StudyConfig
from ..errors import UsageError
from ..store.folder import RunFolder
from .methods import METHODS, check_quantised, expand_grid
from .mitigations import MITIGATIONS, expand_together


def expand_runs(config: StudyConfig) -> list[RunConfig]:
    """All runs of a study.

    Raises:
        UsageError: an unknown method or mitigation, a wrong option, two entries for the same run, two methods with
            the same label, or something that does not work with `model.bits`.
    """
    return list(runs_by_id(config).values())


def runs_by_id(config: StudyConfig) -> dict[str, RunConfig]:
    """All runs of a study by id; raises as `expand_runs`."""
    _check_labels(config.methods)
    variants = [
        (method, together)
        for entry in config.methods
        for method in expand_grid(entry)
        for alternative in entry.mitigations or ((),)
        for together in expand_together(alternative)
    ]
    if config.model.bits is not None:
        _check_bits(config.model.bits, variants)
    runs: dict[str, RunConfig] = {}
    repeated = set()
    for name, dataset in config.datasets.items():
        for method, together in variants:
            first = RunConfig(
                model=config.model,
                text=config.text,
                texts=config.texts,
                dataset_name=name,
                dataset=dataset,
                method=method,
                mitigations=together,
                seed=config.seeds[0],
                context=config.context,
                training=config.training,
                measure=config.measure,
            )
            for seed in config.seeds:
                run = first.model_copy(
                    update={"seed": seed}
                )  # already validated with the study; there may be thousands
                run_id = run.run_id()
                repeated |= {run_id} & runs.keys()
                runs[run_id] = run
    if repeated:
        raise UsageError(f"methods: the same run occurs twice: {', '.join(sorted(repeated))}")
    return runs


def _check_labels(methods: Sequence[MethodConfig]) -> None:
    """Refuse a label that two methods share: laws and comparisons would take their runs as those of one method.

    Raises:
        UsageError: names both methods and the label.
    """
    named: dict[str, str] = {}
    for entry in methods:
        label = entry.label or entry.name
        if (first := named.setdefault(label, entry.name)) != entry.name:
            raise UsageError(f"methods: {first} and {entry.name} are both called '{label}'; give each its own label")


def _check_bits(bits: int, variants: list[tuple[MethodConfig, tuple[MitigationConfig, ...]]]) -> None:
    """Refuse what does not work on a base model with quantised weights.

    Raises:
        UsageError: names the method or mitigation.
    """
    how = f"model.bits {bits}"
    for method, together in variants:
        check_quantised(METHODS.parse(method), how, bits)
        for mitigation in together:
            MITIGATIONS.find(mitigation.name).check_quantised(how)


def costliest_first(runs: dict[str, RunConfig]) -> list[str]:
    """Ids by descending rank, those without a rank first, so that no worker ends with a large run while others idle."""
    return sorted(runs, key=lambda run_id: -(runs[run_id].method.options.get("rank") or 10**9))


def asked_by(wanted: Mapping[str, RunConfig]) -> Callable[[RunFolder], bool]:
    """A test of whether a stored run is among the runs of a study's configuration (`runs_by_id`).

    If study.yaml was edited by hand, it may ask for runs other than the stored ones. A run is recognised by its id, or
    by its own stored configuration as this version reads it; one without a configuration counts as asked for.
    """

    def asked(run: RunFolder) -> bool:
        if run.id in wanted:
            return True
        record = run.state()
        try:
            return "config" not in record or RunConfig.model_validate(record["config"]).run_id() in wanted
        except ValidationError:
            return False

    return asked
