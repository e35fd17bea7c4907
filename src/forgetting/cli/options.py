"""Arguments and options shared by commands, with their help texts; lists in help texts come from the code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from ..errors import UsageError


class Dtype(StrEnum):
    """Allowed --dtype."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Bits(StrEnum):
    """Allowed --bits."""

    four = "4"
    eight = "8"


class DeviceMap(StrEnum):
    """Allowed --device-map."""

    auto = "auto"


class EngineName(StrEnum):
    """Allowed --engine."""

    local = "local"
    ray = "ray"


Study = Annotated[Path, typer.Argument(help="A study folder.")]
Config = Annotated[
    Path | None,
    typer.Argument(help="A study's YAML file, or a study folder to resume or extend. Default: the embedded miniature."),
]
Preset = Annotated[str | None, typer.Option(help="Start from a shipped configuration: {presets}.")]
Out = Annotated[Path | None, typer.Option(help="The study folder. Default: studies/NAME.")]
Model = Annotated[str | None, typer.Option(help="Base model: a folder or Hub id.")]
Train = Annotated[
    list[str] | None,
    typer.Option(help="Fine-tuning data: a {files} file, a folder of them, or a Hub id. Repeat for several."),
]
Text = Annotated[
    str | None, typer.Option(help="General text that forgetting is measured on: a file, a folder, or a Hub id.")
]
Method = Annotated[str | None, typer.Option(help="Fine-tuning method: {methods}.")]
Rank = Annotated[
    list[int] | None,
    typer.Option(
        help="Rank of the method, or of the first method with a rank. Repeat for several. Other options stay the same."
    ),
]
Seed = Annotated[list[int] | None, typer.Option(help="Seed of initialisation and data order. Repeat for several runs.")]
Steps = Annotated[int | None, typer.Option(help="Update steps of each run.")]
BatchTokens = Annotated[
    int | None, typer.Option(help="Tokens per forward pass when measuring; halved if memory runs out.")
]
WindowTokens = Annotated[int | None, typer.Option(help="Tokens per window. Default: 512.")]
Revision = Annotated[str | None, typer.Option(help="Hub revision of the base model.")]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda, cuda:1, mps, ... Default: the first GPU, or the CPU if there is none."),
]
SpreadOver = Annotated[
    DeviceMap | None,
    typer.Option("--device-map", help="Spread each model over all devices, for models larger than one GPU."),
]
TrustRemoteCode = Annotated[
    bool | None,
    typer.Option("--trust-remote-code", help="Run Python code shipped with the models; only if you trust it."),
]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder to cache base targets and tokens of large texts in. Default: the user's cache."),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Cache nothing.")]
EngineOption = Annotated[
    EngineName, typer.Option("--engine", help="Where to execute runs: on this machine, or on a Ray cluster.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Runs at the same time on this machine. Default: one per core for a small model on a CPU, otherwise 1.",
    ),
]
AccelerateConfig = Annotated[
    Path | None,
    typer.Option(
        "--accelerate-config",
        metavar="FILE",
        help="An accelerate configuration, to execute each run with several processes, one GPU each.",
    ),
]
MachineRank = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Index of this machine, if the accelerate configuration has num_machines above 1. Default: "
        "NODE_RANK, GROUP_RANK, SLURM_NODEID, or the file's machine_rank.",
    ),
]
Prepare = Annotated[
    bool,
    typer.Option(
        "--prepare",
        help="Only create the study folder, compute what the runs share, and list the runs to do; for schedulers.",
    ),
]
Tracking = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Also show each run in a tracker: {trackers}. Repeat for several."),
]
Repeat = Annotated[
    str | None,
    typer.Option(
        metavar="RUN_ID",
        help="Repeat this finished run of a study folder and compare every number; exit code 1 if any differs.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@dataclass(frozen=True)
class ModelOptions:
    """How a command's models are loaded: flags shared by all commands that load models, except `chain`.

    A flag that was not given is None, so that a study file keeps its value.
    """

    revision: Revision = None
    dtype: Annotated[Dtype | None, typer.Option(help="Dtype to load the models in. Default: as stored.")] = None
    device: Device = None
    trust_remote_code: TrustRemoteCode = None
    bits: Annotated[
        Bits | None,
        typer.Option(help="Quantise the base model on loading with bitsandbytes: 4 bits (NF4) or 8. Default: no."),
    ] = None

    def given(self) -> dict[str, Any]:
        """The fields of `model` that were given, as in a configuration."""
        chosen = asdict(self) | {"dtype": self.dtype and self.dtype.value, "bits": self.bits and int(self.bits.value)}
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True)
class RecipeOptions:
    """Flags of the recipe and of measuring, shared by `study` and `pilot`; a flag that was not given is None."""

    batch_size: Annotated[int | None, typer.Option(help="Windows per update step.")] = None
    context: Annotated[int | None, typer.Option(help="Tokens per window.")] = None
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate.")] = None
    measure_start: Annotated[int | None, typer.Option(help="First measured step after step 0.")] = None
    measure_every: Annotated[int | None, typer.Option(help="Steps between measurements.")] = None
    batch_tokens: BatchTokens = None

    def given(self, models: ModelOptions, *, model: str | None, text: str | None, steps: int | None) -> dict[str, Any]:
        """The fields of a study's configuration that were given.

        Args:
            models: the command's flags on loading models.
            model, text, steps: its flags of these names.
        """
        training = present(steps=steps, batch_size=self.batch_size, learning_rate=self.learning_rate)
        measure = present(start=self.measure_start, every=self.measure_every, batch_tokens=self.batch_tokens)
        return present(
            model=present(source=model, **models.given()) or None,
            text=present(source=text) or None,
            context=self.context,
            training=training or None,
            measure=measure or None,
        )


def places(device: str | None, device_map: DeviceMap | None, cache: Path | None, no_cache: bool) -> dict[str, Any]:
    """The arguments `device_map` and `cache_dir` of `measure` and functions like it.

    Raises:
        UsageError: flags that exclude each other.
    """
    if cache is not None and no_cache:
        raise UsageError("give --cache or --no-cache, not both")
    if device_map is not None and device not in (None, "auto"):
        raise UsageError("give --device or --device-map, not both")
    return {
        "device_map": None if device_map is None else device_map.value,
        "cache_dir": None if no_cache else (cache or "auto"),
    }


def present(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {key: value for key, value in fields.items() if value is not None}


@dataclass(frozen=True)
class RayOptions:
    """Flags of the engine `ray`; a flag that was not given is None."""

    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster: HOST:PORT, or auto for this machine's. Default: RAY_ADDRESS, or start one here."
        ),
    ] = None
    run_cpus: Annotated[int | None, typer.Option(min=1, help="CPU cores per run on Ray. Default: 1.")] = None
    run_gpus: Annotated[
        float | None,
        typer.Option(
            min=0, help="GPUs per run on Ray; may be a fraction. Default: 1 if the cluster has GPUs, otherwise 0."
        ),
    ] = None
    run_memory: Annotated[float | None, typer.Option(min=0.001, help="GB of memory that Ray reserves per run.")] = None

    def given(self) -> dict[str, Any]:
        """The given flags, as arguments of `Ray`."""
        named = {"address": self.ray_address, "cpus": self.run_cpus, "gpus": self.run_gpus, "memory": self.run_memory}
        return {name: value for name, value in named.items() if value is not None}


def words_of(*groups: Any) -> list[str]:
    """The flags of groups of options that were given, as on the command line.

    Examples:
        >>> words_of(ModelOptions(dtype=Dtype.float32, trust_remote_code=True))
        ['--dtype', 'float32', '--trust-remote-code']
    """
    found = []
    for group in groups:
        for field in fields(group):
            value = getattr(group, field.name)
            if value != field.default:
                found += words(f"--{field.name.replace('_', '-')}", value)
    return found


def words(flag: str, value: Any) -> list[str]:
    """An option as on the command line; a list is repeated, and None is left out."""
    if value is True or value is False:
        return [flag] if value else []
    every = value if isinstance(value, list) else [value]
    return [word for one in every if one is not None for word in (flag, str(one))]


def pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """The values of a NAME=VALUE option, by name.

    Raises:
        UsageError: another form, or a repeated name.
    """
    out = {}
    for name, values in several(given, option).items():
        if len(values) > 1:
            raise UsageError(f"{option} {name}: given {len(values)} times ({', '.join(values)}); give it once")
        out[name] = values[0]
    return out


def several(given: Sequence[str] | None, option: str) -> dict[str, list[str]]:
    """The values of a NAME=VALUE option that allows several values per name.

    Raises:
        UsageError: another form.
    """
    out: dict[str, list[str]] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise UsageError(f"{option} '{text}': give NAME=VALUE")
        out.setdefault(name.strip(), []).append(value.strip())
    return out


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """A command in which each dataclass parameter is replaced by the flags of its fields."""
    parameters = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: given.annotation for name, given in parameters.items() if is_dataclass(given.annotation)
    }
    flags = [
        flag.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, given in parameters.items()
        for flag in (_flags(groups[name]) if name in groups else [given])
    ]

    @wraps(command)
    def call(**given: Any) -> None:
        made = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**made, **given)

    call.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined]
    return call


def _flags(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    named = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(f.name, named, default=f.default, annotation=hints[f.name]) for f in fields(kind)]


class Listing(TyperCommand):
    """A command whose help lists what exists: `{methods}` and the like are filled in when the help is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        for parameter in self.params:
            if isinstance(parameter, TyperArgument | TyperOption) and parameter.help:
                for name, listed in LISTS.items():
                    if name in parameter.help:
                        parameter.help = parameter.help.replace(name, ", ".join(listed()))
        super().format_help(ctx, formatter)


def _methods() -> Iterable[str]:
    from ..tuning.methods import METHODS

    return METHODS


def _presets() -> Iterable[str]:
    from ..config.files import presets

    return presets()


def _laws() -> Iterable[str]:
    from ..analysis.laws import LAWS

    return LAWS


def _objectives() -> Iterable[str]:
    from ..analysis.fit.line import OBJECTIVE
    from ..analysis.fit.objective import OBJECTIVES

    return *OBJECTIVES, OBJECTIVE


def _files() -> list[str]:
    from ..data.readers import READERS

    return list(READERS)


def _trackers() -> Iterable[str]:
    from typing import get_args

    from ..config.schema import TrackerName

    return get_args(TrackerName)


LISTS: dict[str, Callable[[], Iterable[str]]] = {
    "{methods}": _methods,
    "{presets}": _presets,
    "{laws}": _laws,
    "{objectives}": _objectives,
    "{files}": _files,
    "{trackers}": _trackers,
}
"""Lists that help texts may contain; each is imported only when it is shown."""
