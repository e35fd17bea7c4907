"""Arguments and options of the commands that deal in studies, each with its help text."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    """Allowed --dtype."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Device(StrEnum):
    """Allowed --device."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class EngineName(StrEnum):
    """Allowed --engine."""

    local = "local"
    ray = "ray"


Study = Annotated[Path, typer.Argument(help="A study folder.")]
Config = Annotated[
    Path | None, typer.Argument(help="A study's YAML, or a study folder to resume. Neither: the embedded miniature.")
]
Preset = Annotated[str | None, typer.Option(help="A shipped configuration: miniature, paper-openorca, paper-news.")]
Out = Annotated[Path | None, typer.Option(help="The study folder. Default: studies/NAME.")]
Model = Annotated[str | None, typer.Option(help="Base model: a folder or Hub id.")]
Train = Annotated[
    list[str] | None,
    typer.Option(help="Fine-tuning data: a .txt, .jsonl or .parquet file or Hub id; repeat for several."),
]
Text = Annotated[str | None, typer.Option(help="General text that forgetting is measured on: a file or Hub id.")]
Method = Annotated[str | None, typer.Option(help="Fine-tuning method: lora or full.")]
Rank = Annotated[list[int] | None, typer.Option(help="LoRA rank; repeat for several.")]
Seed = Annotated[list[int] | None, typer.Option(help="Seed; repeat for several.")]
Steps = Annotated[int | None, typer.Option(help="Update steps of each run.")]
BatchSize = Annotated[int | None, typer.Option(help="Windows an update step.")]
Context = Annotated[int | None, typer.Option(help="Tokens a window.")]
LearningRate = Annotated[float | None, typer.Option(help="Learning rate.")]
MeasureStart = Annotated[int | None, typer.Option(help="First measured step after step 0.")]
MeasureEvery = Annotated[int | None, typer.Option(help="Steps between measurements.")]
DtypeOption = Annotated[Dtype | None, typer.Option("--dtype", help="Dtype of the base model.")]
DeviceOption = Annotated[Device | None, typer.Option("--device", help="Where to run.")]
EngineOption = Annotated[EngineName, typer.Option("--engine", help="Where runs run: this machine, or a Ray cluster.")]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Runs at a time on this machine. Default: one a core for a small model on a CPU, else 1."),
]
AccelerateConfig = Annotated[
    Path | None,
    typer.Option(
        "--accelerate-config",
        metavar="FILE",
        help="An accelerate configuration: each run by several processes of this machine, one GPU each.",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="A Ray cluster: HOST:PORT, or auto for this machine's. Default: RAY_ADDRESS, or start one here."),
]
RunCpus = Annotated[int | None, typer.Option(min=1, help="CPU cores of a run on Ray. Default: 1.")]
RunGpus = Annotated[
    float | None,
    typer.Option(min=0, help="GPUs of a run on Ray, or a fraction of one. Default: 1 where the cluster has any."),
]
RunMemory = Annotated[float | None, typer.Option(min=0.001, help="GB of memory that Ray keeps for a run.")]
Prepare = Annotated[
    bool,
    typer.Option("--prepare", help="Only make the study folder, compute what runs share, and list the runs to do."),
]
Repeat = Annotated[
    str | None,
    typer.Option(
        metavar="RUN_ID", help="Do this finished run of a study folder again and compare every number; 1 if it differs."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
