"""Runs with several processes each: reads an accelerate configuration and checks that a study can use it.

Every process trains on its share of each batch and holds the whole model (DDP) or a shard of every weight (FSDP2). A
step is the same as with one process, except for the order in which gradients are summed. Anything that would give
different numbers is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from .. import files
from ..config.schema import StudyConfig
from ..errors import UsageError
from ..models import processes, transformers_internals
from ..models.loading import Base
from ..store.folder import StudyFolder
from ..tuning.grid import expand_runs
from ..tuning.methods import METHODS
from ..tuning.mitigations import MITIGATIONS, parse_together
from . import provenance

T = TypeVar("T")
DEVICES = {"MULTI_GPU": "cuda", "MULTI_CPU": "cpu", "FSDP": "cuda"}
"""accelerate's distributed types and the device of their processes; FSDP shards the weights."""
ALLOWED = "allowed: MULTI_GPU and MULTI_CPU, where every process has the whole model, and FSDP with fsdp_version 2"
"""Ends the messages on a wrong distributed type."""
READ = (
    "distributed_type",
    "fsdp_config",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "num_processes",
    "use_cpu",
    "gpu_ids",
    "mixed_precision",
)
"""Fields of an accelerate configuration that `read_launch` reads."""
IDLE = (
    *("compute_environment", "debug", "downcast_bf16", "main_training_function", "rdzv_backend", "same_network"),
    *("tpu_env", "tpu_name", "tpu_use_cluster", "tpu_use_sudo", "tpu_vm", "tpu_zone", "command_file", "commands"),
)
"""Fields that are ignored: they have no effect here."""
OFF: tuple[Any, ...] = (None, False, "", "no", "NO", {}, [])
"""Values that leave a field unset; any other field must have one of these."""


def read_launch(path: Path, machine: int | None = None) -> processes.Launch:
    """Read an accelerate configuration file, as `accelerate config` writes it.

    Args:
        path: the file.
        machine: index of this machine; None takes it from the environment or the file.

    Raises:
        UsageError: not such a file, or a field that is not supported; names the field, what came and what is allowed.
    """
    fields = files.parse_yaml(files.read_text(path, limit=files.MAX_CONFIG), str(path))
    if not isinstance(fields, Mapping):
        raise UsageError(f"{path}: not an accelerate configuration: must be a mapping, got {type(fields).__name__}")
    kind = fields.get("distributed_type")
    if kind == "DEEPSPEED":
        raise UsageError(
            f"{path}: distributed_type DEEPSPEED: weights sharded by DeepSpeed cannot be measured; {ALLOWED}: "
            "TRL's fsdp2.yaml saves as much memory as its zero3.yaml"
        )
    if not isinstance(kind, str) or kind not in DEVICES:
        more = ": this means one process; leave out --accelerate-config" if kind in ("NO", False) else ""
        raise UsageError(f"{path}: distributed_type {kind!r}{more}; {ALLOWED}")
    for name, value in fields.items():
        if name not in (*READ, *IDLE) and not any(type(value) is type(off) and value == off for off in OFF):
            raise UsageError(f"{path}: {name}: unsupported field; remove it")
    use_cpu = _field(path, fields, "use_cpu", bool, kind == "MULTI_CPU", lambda _: True, "true or false")
    count = _field(path, fields, "num_processes", int, None, lambda n: 2 <= n <= 1024, "a number of at least 2")
    fields = {**fields, "mixed_precision": fields.get("mixed_precision") or "no"}  # YAML reads a bare no as false
    precision = _field(
        path, fields, "mixed_precision", str, "no", ("no", "fp16", "bf16").__contains__, "no, fp16 or bf16"
    )
    given = fields.get("gpu_ids")
    gpus = None if given in (None, "all") else str(given).replace(" ", "")
    device = "cpu" if use_cpu else DEVICES[kind]
    content = {"distributed_type": kind, "num_processes": count, "use_cpu": use_cpu, "gpu_ids": gpus or "all"}
    sharding = _sharding(path, fields) if kind == "FSDP" else None
    if sharding is not None:
        content["fsdp"] = {**asdict(sharding), "layers": list(sharding.layers)}
    elif (set_fields := fields.get("fsdp_config")) not in OFF:
        raise UsageError(f"{path}: fsdp_config {str(set_fields)[:60]}: only with distributed_type FSDP; leave it out")
    launch = processes.Launch(count, device, gpus, {**content, "mixed_precision": precision}, sharding)
    launch = _on_machines(path, fields, launch, machine)
    here = len(launch.local)
    if gpus is not None and (not all(map(str.isdecimal, gpus.split(","))) or len(set(gpus.split(","))) < here):
        raise UsageError(f"{path}: gpu_ids {str(given)[:60]!r}; give all, or at least {here} numbers such as 0,1")
    return launch


RANKS = ("NODE_RANK", "GROUP_RANK", "SLURM_NODEID")
"""Environment variables with the index of this machine, in order of preference."""


def _on_machines(
    path: Path, fields: Mapping[str, Any], launch: processes.Launch, machine: int | None
) -> processes.Launch:
    """The launch with the number of machines, and this machine's index, address and port.

    Raises:
        UsageError: a field that several machines need is missing or wrong.
    """
    number = _field(path, fields, "num_machines", int, 1, lambda n: 1 <= n <= 1024, "a number of at least 1")
    if number == 1:
        if machine not in (None, 0):
            raise UsageError(f"--machine-rank {machine}: {path} has num_machines 1; leave it out")
        return launch
    if launch.processes % number:
        raise UsageError(
            f"{path}: num_processes {launch.processes}: counts the processes of all {number} machines; give a "
            f"multiple of {number}"
        )
    named = next((name for name in RANKS if os.environ.get(name, "").isdecimal()), None)
    mine = machine if machine is not None else int(os.environ[named]) if named else fields.get("machine_rank", 0)
    where = "--machine-rank" if machine is not None else named or f"{path}: machine_rank"
    if type(mine) is not int or not 0 <= mine < number:
        raise UsageError(f"{where}: got {str(mine)[:60]!r}; give the index of this machine, 0 to {number - 1}")
    address = fields.get("main_process_ip") or os.environ.get("MASTER_ADDR")
    port = fields.get("main_process_port") or os.environ.get("MASTER_PORT")
    if not isinstance(address, str):
        raise UsageError(
            f"{path}: main_process_ip: got {str(address)[:60]!r}; give the first machine's address (or MASTER_ADDR)"
        )
    if not str(port).isdecimal() or not 0 < int(str(port)) < 65536:
        raise UsageError(
            f"{path}: main_process_port: got {str(port)[:60]!r}; give a free port of the first machine (or MASTER_PORT)"
        )
    content = {**launch.content, "num_machines": number}
    return replace(launch, machines=number, machine=mine, address=address, port=int(str(port)), content=content)


FSDP_VALUES: dict[str, tuple[Any, ...]] = {
    "fsdp_version": (2,),
    "fsdp_auto_wrap_policy": ("TRANSFORMER_BASED_WRAP",),
    "fsdp_offload_params": (False,),
    "fsdp_cpu_ram_efficient_loading": (True, False),
    "fsdp_state_dict_type": ("FULL_STATE_DICT", "SHARDED_STATE_DICT"),
    "fsdp_reshard_after_forward": (True, False),
    "fsdp_activation_checkpointing": (True, False),
}
"""Fields of `fsdp_config` and their allowed values, the most common first. Two fields have no effect:
`fsdp_cpu_ram_efficient_loading`, as each process always keeps its shard of memory-mapped weights, and
`fsdp_state_dict_type`, as checkpoints always store shards and the tuned weights are always saved whole."""
LAYERS = "fsdp_transformer_layer_cls_to_wrap"


def _sharding(path: Path, fields: Mapping[str, Any]) -> processes.Sharding:
    """Read `fsdp_config`.

    Raises:
        UsageError: FSDP version 1, or an unsupported field or value.
    """
    given = fields.get("fsdp_config")
    if not isinstance(given, Mapping):
        raise UsageError(f"{path}: fsdp_config: got {str(given)[:60]!r}; give its fields, as TRL's fsdp2.yaml does")
    version = given.get("fsdp_version", 1)
    if type(version) is not int or version != 2:
        raise UsageError(
            f"{path}: fsdp_config.fsdp_version: got {str(version)[:60]!r}; give 2 (`accelerate to-fsdp2` converts "
            "a file)"
        )
    for name, value in given.items():
        allowed = FSDP_VALUES.get(name)
        if allowed is None and name != LAYERS and not any(type(value) is type(off) and value == off for off in OFF):
            raise UsageError(f"{path}: fsdp_config.{name}: unsupported field; remove it")
        if allowed is not None and not any(type(value) is type(one) and value == one for one in allowed):
            raise UsageError(
                f"{path}: fsdp_config.{name}: got {str(value)[:60]!r}; give {' or '.join(map(_as_yaml, allowed))}"
            )
    return processes.Sharding(
        reshard_after_forward=given.get("fsdp_reshard_after_forward", True),
        layers=tuple(filter(None, (name.strip() for name in str(given.get(LAYERS) or "").split(",")))),
        checkpointing=given.get("fsdp_activation_checkpointing", False),
    )


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _field(
    path: Path,
    fields: Mapping[str, Any],
    name: str,
    kind: type[T],
    default: T | None,
    fits: Callable[[T], bool],
    say: str,
) -> T:
    """A field's value, checked for its type and by `fits`; `say` names the allowed values in the error."""
    value = fields.get(name, default)
    if type(value) is not kind or not fits(value):
        came = "required, but missing" if name not in fields else f"got {str(value)[:60]!r}"
        raise UsageError(f"{path}: {name}: {came}; give {say}")
    return value


def check(config: StudyConfig, study: Path, launch: processes.Launch | None, run_id: str | None = None) -> None:
    """Refuse a study that the processes of a launch cannot run, as far as this is known without the model.

    Args:
        config: the whole study.
        study: the study folder, which need not exist yet.
        launch: the launch; None for one process.
        run_id: the run to do; None for all unfinished runs.

    Raises:
        UsageError: says what came and what is allowed.
    """
    processes.refuse_foreign()
    if launch is not None:
        check_device(config, launch)
        check_shares(config, launch.processes)
        if launch.sharding is not None:
            check_shardable(config)
    sharded = launch is not None and launch.sharding is not None
    check_begun(study, 1 if launch is None else launch.processes, run_id, sharded=sharded)


def check_device(config: StudyConfig, launch: processes.Launch) -> None:
    """Refuse a configured device that differs from that of the processes.

    Raises:
        UsageError: names both.
    """
    if config.model.device not in ("auto", launch.device):
        raise UsageError(
            f"model.device: got {config.model.device}; the accelerate configuration is for {launch.device}: "
            f"give auto or {launch.device}"
        )


def check_shares(config: StudyConfig, count: int) -> None:
    """Refuse batches that cannot be divided evenly among the processes.

    Raises:
        UsageError: says what came and what is allowed.
    """
    size, micro = config.training.batch_size, config.training.micro_batch_size
    if size % count:
        fit = [n for n in range(2, size + 1) if size % n == 0]
        raise UsageError(
            f"training.batch_size: got {size}, which {count} processes cannot share evenly; give a multiple of "
            f"{count}, or num_processes of {', '.join(map(str, fit)) or 'none but 1'}"
        )
    share = size // count
    if micro is not None and micro < share and share % micro:
        fit = [n for n in range(1, share + 1) if share % n == 0]
        raise UsageError(
            f"training.micro_batch_size: got {micro}; each process has {share} windows of a batch; give one of "
            f"{', '.join(map(str, fit))}"
        )


def check_shardable(config: StudyConfig) -> None:
    """Refuse what sharded weights do not allow because it needs the whole model in one process.

    Raises:
        UsageError: names it and what is allowed.
    """
    if config.model.bits is not None:
        raise UsageError(f"model.bits: got {config.model.bits}; FSDP cannot shard quantised weights here; leave it out")
    if config.capabilities is not None:
        raise UsageError(
            "capabilities: one process asks the model, but FSDP shards it over several; leave it out, and evaluate the "
            "saved models with `forgetting evaluate`"
        )
    for run in expand_runs(config):
        method, together = METHODS.parse(run.method), parse_together(run)
        if not method.sharded:
            fit = ", ".join(name for name, kind in METHODS.items() if kind.sharded)
            raise UsageError(
                f"methods.{method.name}: needs a whole model, but FSDP shards it over processes; use one of {fit}"
            )
        for mitigation in together:
            if not mitigation.shardable():
                fit = ", ".join(name for name, kind in MITIGATIONS.items() if kind.sharded)
                raise UsageError(
                    f"mitigations.{mitigation.label()}: needs a whole model, but FSDP shards it over processes; "
                    f"use {fit}"
                )


def check_model(base: Base) -> None:
    """Refuse a model whose loss averages over one process's batch: the mean of these means is a different loss.

    Raises:
        UsageError: names the model's class.
    """
    model = base.model
    if not transformers_internals.takes_loss_kwargs(model):
        raise UsageError(
            f"{type(model).__name__}: its loss does not take the number of tokens of the whole batch, so several "
            "processes would train on a different loss; leave out --accelerate-config"
        )


def check_begun(study: Path, count: int, run_id: str | None = None, *, sharded: bool = False) -> None:
    """Refuse to resume with a different number of processes, or sharding, than the study's runs began with.

    Args:
        study: the study folder, which need not exist yet.
        count: number of processes per run now.
        run_id: the run to do; it and the first run that has begun are checked. None: only the latter.
        sharded: whether the processes shard the weights now.

    Raises:
        UsageError: names both settings and a run.
    """
    if not (study / "study.yaml").is_file():
        return
    folder = StudyFolder.open(study)
    first = next((run for run in folder.runs() if "versions" in run.state()), None)
    for run in [first] if run_id is None else [first, folder.run(run_id)]:
        if run is not None and (changed := provenance.other_processes(run.state(), count, sharded=sharded)):
            raise UsageError(
                f"{study}: {changed} since run {run.id} started; sums in another order differ in their last digits; "
                "use the old setting (--accelerate-config, or none), or choose another folder with --out"
            )
