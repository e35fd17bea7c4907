"""Exports of other tools as tables of runs: PEFT's method comparison, W&B charts and runs, MLflow."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forgetting.analysis.selection import DONE, is_blank
from forgetting.analysis.table_files import Table
from forgetting.config.arguments import from_records
from forgetting.errors import UsageError

FINISHED = ("done", "success", "finished", "completed")
"""Other tools' names for the status of a finished run, in lower case."""
STEP = re.compile(r"(^|[/_ ])(steps?|iterations?|updates?)$", re.IGNORECASE)
"""Names of an x axis that counts update steps: `Step`, `_step`, `train/global_step`, `trainer/global_step`."""
PEFT_FIXED = datetime.datetime(2026, 7, 14, 13, 22, 56, tzinfo=datetime.UTC)
"""When PEFT's pull request 3419 fixed how its method comparison measures forgetting."""
INVALID = "forgetting measured before PEFT's fix of 2026-07-14"
KINDS_OF_MISS = ("bat", "mini")
"""Variants of MiSS, as its `init_weights` names them."""
OWN_OPTIMIZERS = ("lora-fa", "lora+", "riemannian")
"""Optimisers in PEFT's comparison that count as methods; the others are torch's."""
NOT_MEASURED = "forgetting not measured"
_CHART = re.compile(r"^(?P<run>.+) - (?P<metric>.+?)(?P<band>__MIN|__MAX)?$")


def peft_table(found: Sequence[tuple[Path, Any]]) -> Table:
    """One row per result of PEFT's method_comparison: its last measurement, or the failure.

    Forgetting in results from before the fix of 2026-07-14 is invalid: labels were not shifted, and the "before" was
    measured on adapters that need not be the identity (PEFT pull request 3419). Their `status` says so, so that no fit
    or comparison mixes them with valid ones.

    `label` distinguishes variants of one `peft_type` (for LORA: DoRA, rsLoRA, LoRA-FA and others) by the
    configuration's flags, its initialisation, and the optimiser.

    Args:
        found: files and their contents.

    Raises:
        UsageError: not PEFT's format, or all results with forgetting are from before the fix.
    """
    rows = [_peft_row(path, content) for path, content in found]
    measured = [row for row in rows if row["forgetting"] is not None]
    if measured and all(row["status"] == INVALID for row in measured):
        raise UsageError(
            f"{found[0][0].parent}: the forgetting in these results is invalid: PEFT measured it wrongly until its "
            "pull request 3419, merged on 2026-07-14; rerun its method comparison, or use later results"
        )
    for row in rows if measured else ():
        if row["status"] == "done" and row["forgetting"] is None:
            row["status"] = NOT_MEASURED
    return from_records(rows)


def _peft_row(path: Path, content: Any) -> dict[str, Any]:
    try:
        run, train = content["run_info"], content["train_info"]
        config = run["peft_config"] or {}
        last = train["metrics"][-1] if train["metrics"] else {}
        status = str(train["status"])
    except (KeyError, TypeError, IndexError) as error:
        raise UsageError(f"{path}: not a PEFT result: {error} is missing") from None
    status = "done" if status.lower() in FINISHED else status
    if last.get("forgetting") is not None and not _after_the_fix(run):
        status = INVALID
    training = run.get("train_config") or {}
    return {
        "dataset": path.parent.parent.name or "peft",
        "method": str(config.get("peft_type") or "full").lower(),
        "label": _peft_label(config, training),
        "peft_type": config.get("peft_type"),
        **{name: config.get(name) for name in ("use_dora", "use_rslora", "init_lora_weights", "lora_alpha")},
        "target_modules": _joined(config.get("target_modules")),
        "optimizer": training.get("optimizer_type"),
        "learning_rate": (training.get("optimizer_kwargs") or {}).get("lr"),
        "rank": config.get("r"),
        "run_id": run.get("experiment_name") or path.stem,
        "seed": training.get("seed"),
        "status": status,
        "step": last.get("step"),
        "trainable_params": train.get("num_trainable_params"),
        "finetune_loss": last.get("train loss"),
        "test_accuracy": last.get("test accuracy"),
        "forgetting": last.get("forgetting"),
    }


def _after_the_fix(run: Mapping[str, Any]) -> bool:
    """Whether a result's date is after the fix; False without a valid date."""
    try:
        made = datetime.datetime.fromisoformat(str(run.get("created_at")))
    except ValueError:
        return False
    return (made if made.tzinfo else made.replace(tzinfo=datetime.UTC)) > PEFT_FIXED


def _peft_label(config: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """The method of a result: `lora`, `dora`, `rslora+lora-fa`, `miss-bat`, `full`, ..."""
    kind = str(config.get("peft_type") or "full").lower()
    start = config.get("init_lora_weights" if kind == "lora" else "init_weights")
    variant = start.lower().split("_niter")[0] if isinstance(start, str) and start.lower() != "gaussian" else ""
    if kind != "lora" and variant not in KINDS_OF_MISS:
        variant = ""
    optimizer = str(training.get("optimizer_type") or "").lower()
    own = [optimizer] if optimizer in OWN_OPTIMIZERS else []
    if kind != "lora":
        return "+".join([f"{kind}-{variant}" if variant else kind, *own])
    flags = [name.removeprefix("use_") for name, value in config.items() if name.startswith("use_") and value]
    flags += [
        name.removesuffix("_config")
        for name, value in config.items()
        if name.endswith("_config") and value and name not in _ELSEWHERE and name.removesuffix("_config") != variant
    ]
    flags += ["alora"] if config.get("alora_invocation_tokens") else []
    flags += [variant] if variant else []
    return "+".join([*flags, *own]) or kind


_ELSEWHERE = ("megatron_config", "loftq_config", "runtime_config")
"""Parts of a LoRA configuration that are not methods, or that its initialisation already names."""


def _joined(modules: Any) -> Any:
    """Names of modules in one cell."""
    return ",".join(sorted(map(str, modules))) if isinstance(modules, list | tuple | set) else modules


def normalise(table: Table) -> Table:
    """Add our names for MLflow's and W&B's columns of runs, states, metrics and parameters.

    The columns also keep their own names, for use in a formula or `--map`. Values of `status` become lower case, and
    `done` for a finished run; missing ones become empty.

    Raises:
        UsageError: two columns have the same name without `metrics.` or `params.`.
    """
    out: Table = {}
    for name, cells in table.items():
        short = name.removeprefix("metrics.").removeprefix("params.")
        if short in out:
            raise UsageError(f"column '{name}' and another one both mean '{short}'; rename one of them")
        out[short] = cells
    out |= {name: cells for name, cells in table.items() if name not in out}
    renames = (("Run ID", "run_id"), ("Status", "status"), ("State", "status"), ("Name", "run_id"), ("Step", "step"))
    for theirs, ours in renames:
        if theirs in out and ours not in out and not is_chart(table):
            out[ours] = out[theirs]
    if "status" in out:
        out["status"] = [
            "" if is_blank(s) else DONE if str(s).lower() in FINISHED else str(s).lower() for s in out["status"]
        ]
    return out


def is_chart(table: Table) -> bool:
    """Whether a table is an export of a W&B chart: an x axis, and columns named `RUN - METRIC`."""
    names = list(table)
    return len(names) > 1 and not _CHART.match(names[0]) and all(_CHART.match(name) for name in names[1:])


def join_charts(charts: Sequence[Table], runs: Sequence[Table]) -> Table:
    """Join W&B charts into one table, one row per run and step, with the columns of the runs table repeated.

    A column of the runs table that is also a metric of a chart is left out: it has each run's last value, which would
    fill the steps at which the chart has none.

    Args:
        charts: exports of charts, with columns `RUN - METRIC`; their `__MIN` and `__MAX` columns are left out.
        runs: exports of the runs table, joined by the run's name.

    Raises:
        UsageError: a chart is not over steps, another table is not the runs table, two runs have the same name, or a
            run is not in the runs table.
    """
    about = _by_name(runs)
    found: dict[tuple[str, str | float], dict[str, Any]] = {}
    charted: set[str] = set()
    for table in charts:
        names = list(table)
        if not STEP.search(names[0]):
            raise UsageError(
                f"the x axis of a W&B chart is '{names[0]}', not steps; set it to Step in the chart and export it again"
            )
        for name in names[1:]:
            parts = _CHART.match(name)
            if parts is None or parts["band"]:
                continue
            charted.add(parts["metric"])
            for step, cell in zip(table[names[0]], table[name], strict=True):
                if cell not in ("", None):
                    row = found.setdefault((parts["run"], _step(step)), {"run_id": parts["run"], "step": step})
                    row[parts["metric"]] = cell
    if runs:
        missing = sorted({run for run, _ in found} - set(about))
        if missing:
            raise UsageError(f"run '{missing[0]}' of a chart is not in the export of the runs table")
    about = {name: {k: v for k, v in row.items() if k not in charted} for name, row in about.items()}
    return from_records([about.get(row["run_id"], {}) | row for row in found.values()])


def _step(cell: Any) -> str | float:
    """A step to join charts by: a number, which one chart may write as `20` and another as `20.0`; else its text."""
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return str(cell)


def _by_name(runs: Sequence[Table]) -> dict[str, dict[str, Any]]:
    """The rows of the runs tables by the run's name, by which alone a chart identifies runs."""
    about: dict[str, dict[str, Any]] = {}
    for table in runs:
        if "run_id" not in table:
            raise UsageError("with W&B charts, only the export of the runs table can be combined; it has a column Name")
        for i, name in enumerate(table["run_id"]):
            if str(name) in about:
                raise UsageError(
                    f"two runs are named '{name}' in the export of the runs table, and a chart identifies runs only by "
                    "name; rename one in W&B and export both again"
                )
            about[str(name)] = {k: cells[i] for k, cells in table.items()}
    return about
