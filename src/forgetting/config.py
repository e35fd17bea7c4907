"""A study's configuration: pydantic models, YAML in and out, overrides by flag, and run ids that are content hashes.

Every error names the field, what came and what is allowed. Unknown fields are errors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from .errors import UsageError, did_you_mean

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A name that becomes part of a file name: no separators, so that no path leaves the study folder."""


class Section(BaseModel):
    """Base of every section: immutable, unknown fields forbidden."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The base model: any causal language model of transformers."""

    source: str = Field(min_length=1, description="a directory, a Hub id, or `miniature`")
    revision: str | None = Field(None, description="Hub revision (commit, tag or branch)")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="`auto` keeps the dtype in which the weights are stored"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="`auto` is the first GPU, else the CPU; choose among GPUs with CUDA_VISIBLE_DEVICES"
    )
    trust_remote_code: bool = Field(False, description="run Python code shipped with the model: only if you trust it")


class TextConfig(Section):
    """Where text comes from and what a document is."""

    source: str = Field(min_length=1, description="a .txt, .jsonl or .parquet file, a Hub id, or `miniature:NAME`")
    subset: str | None = Field(None, description="Hub data set configuration, e.g. `wikitext-103-raw-v1`")
    split: str | None = Field(None, description="Hub data set split (default `train`)")
    revision: str | None = Field(None, description="Hub revision")
    streaming: bool = Field(False, description="stream from the Hub; needs `max_documents`")
    format: Literal["auto", "text", "chat", "completion"] = Field(
        "auto", description="`auto` reads it from the columns: text, messages, or prompt and completion"
    )
    documents: Literal["auto", "wikitext", "paragraphs", "sections", "rows"] = Field(
        "auto",
        description="where plain text is cut into documents: at ` = Title = ` lines (wikitext), at blank lines "
        "(paragraphs), into blocks of whole paragraphs of about 4,000 characters (sections), or one a row",
    )
    text_column: str = Field("text", description="column of plain text")
    messages_column: str = Field("messages", description="column of chat messages, a list of {role, content}")
    prompt_column: str = Field("prompt", description="column of prompts")
    completion_column: str = Field("completion", description="column of answers; the loss is on these alone")
    max_documents: int | None = Field(None, ge=1, description="read no more than these many documents")

    @model_validator(mode="after")
    def _streaming_is_bounded(self) -> Self:
        if self.streaming and self.max_documents is None:
            raise ValueError("streaming: true needs max_documents, the number of documents to read")
        return self


class DatasetConfig(TextConfig):
    """A fine-tuning data set; a part of its documents is held out for the fine-tuning loss."""

    heldout: float = Field(0.1, gt=0, lt=1, description="share of documents held out, by content hash")


class MethodConfig(BaseModel):
    """How the model is made trainable. The method's own options stand beside `name`.

    A list for an option that takes one value is a grid: `rank: [8, 64]` is two methods.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options, unvalidated: the method's room validates them."""
        return dict(self.__pydantic_extra__ or {})


class TrainingConfig(Section):
    """The recipe, shared by all runs. Defaults after the paper's setup, where it states one."""

    steps: int = Field(260, ge=1, description="update steps")
    batch_size: int = Field(32, ge=1, description="windows an update step")
    micro_batch_size: int | None = Field(
        None, ge=1, description="windows a forward pass; gradients accumulate up to batch_size"
    )
    optimizer: Literal["adafactor", "adamw"] = Field("adafactor", description="Adafactor as in the paper, or AdamW")
    learning_rate: float = Field(2e-4, gt=0, lt=10, description="peak learning rate; the paper states none")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="constant: each measured step stands for a run that stopped there"
    )
    warmup_steps: int = Field(10, ge=0, description="steps of linear warm-up; fewer than steps")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    gradient_checkpointing: bool = Field(False, description="less memory, more time")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be fewer than steps {self.steps}")
        return self


class MeasureConfig(Section):
    """When and on how much text the losses are measured."""

    start: int = Field(50, ge=1, description="first measured step after step 0; earlier steps are left out of fits")
    every: int = Field(10, ge=1, description="steps between measurements; the last step is always measured")
    text_tokens: int | None = Field(
        None, ge=1, description="measure on whole documents of the general text up to about these many tokens"
    )
    heldout_tokens: int | None = Field(None, ge=1, description="the same for the held-out fine-tuning data")
    batch_tokens: int = Field(8192, ge=1, description="tokens a forward pass; memory only")


class CapabilitiesConfig(Section):
    """What the tuned models are asked along the runs; shown in the report beside the losses."""

    suites: tuple[str, ...] = Field(
        ("knowledge", "reasoning", "safety"),
        min_length=1,
        description="`knowledge`, `reasoning`, `safety`, a .jsonl file of items, an lm-eval .yaml, or an lm-eval task",
    )
    steps: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, description="measured steps at which to ask; default the last one"
    )
    datasets: tuple[Name, ...] | None = Field(None, description="only runs on these data sets")
    ranks: tuple[int, ...] | None = Field(None, description="only runs of these ranks")
    seeds: tuple[int, ...] | None = Field(None, description="only runs of these seeds")
    limit: int | None = Field(None, ge=1, description="only the first so many items of each task")
    max_new_tokens: int = Field(64, ge=1, description="tokens of a reply to a local item or prompt")
    harmful: str | None = Field(None, description="harmful prompts of `safety`: a .csv, .txt or .jsonl file or Hub id")
    harmless: str | None = Field(None, description="harmless look-alikes of `safety`: the same")
    keep_completions: bool = Field(False, description="store the replies to harmful prompts")

    def asks(self, run: RunConfig, last: int) -> frozenset[int]:
        """The steps at which a run is asked; none where the run is not chosen."""
        rank = run.method.options.get("rank")
        chosen = ((self.datasets, run.dataset_name), (self.ranks, rank), (self.seeds, run.seed))
        if any(allowed is not None and value not in allowed for allowed, value in chosen):
            return frozenset()
        return frozenset(self.steps or (last,))


class StudyConfig(Section):
    """A whole study: one model, general text, and the grid data sets x methods x seeds."""

    version: Literal[1] = Field(1, description="of this schema")
    name: Name = Field("study", description="names the default folder, studies/NAME")
    model: ModelConfig = Field(description="the base model")
    text: TextConfig = Field(description="general text that forgetting is measured on; never trained on")
    datasets: dict[Name, DatasetConfig] = Field(min_length=1, description="fine-tuning data sets by name")
    methods: tuple[MethodConfig, ...] = Field(
        min_length=1, description="fine-tuning methods; the laws are fitted on the first one's runs"
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        (0,), min_length=1, description="of initialisation and data order: one run each"
    )
    context: int = Field(512, ge=8, description="window length in tokens, for training and for measuring")
    training: TrainingConfig = TrainingConfig()
    measure: MeasureConfig = MeasureConfig()
    capabilities: CapabilitiesConfig | None = Field(None, description="what the tuned models are asked along the runs")

    @model_validator(mode="after")
    def _capabilities_fit(self) -> Self:
        asked = self.capabilities
        if asked is None:
            return self
        grid = self.measured_steps()
        beside = [step for step in asked.steps or () if step not in grid]
        if beside:
            raise ValueError(f"capabilities.steps: {beside[0]} is not a measured step; those are {grid[1:]}")
        unknown = [name for name in asked.datasets or () if name not in self.datasets]
        if unknown:
            raise ValueError(f"capabilities.datasets: '{unknown[0]}' is none of {list(self.datasets)}")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds repeat: {list(self.seeds)}")
        if self.measure.start > self.training.steps:
            raise ValueError(f"measure.start {self.measure.start} lies beyond training.steps {self.training.steps}")
        return self

    def measured_steps(self) -> list[int]:
        """The grid of measured steps: 0 (the base model), then start, start + every, ..., and the last step."""
        last = self.training.steps
        grid = [0, *range(self.measure.start, last + 1, self.measure.every)]
        return grid if grid[-1] == last else [*grid, last]

    def to_yaml(self) -> str:
        """The resolved configuration as YAML; `parse_yaml` reads it back to an equal object."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class RunConfig(Section):
    """One run of a study: everything that decides its numbers, and nothing else."""

    model: ModelConfig
    text: TextConfig
    dataset_name: Name
    dataset: DatasetConfig
    method: MethodConfig
    seed: int
    context: int
    training: TrainingConfig
    measure: MeasureConfig

    def run_id(self) -> str:
        """`<dataset>-<method>-<rank>-s<seed>-<hash>`: the hash, of all fields that decide numbers, makes it unique."""
        content = self.model_dump(mode="json")
        content["model"].pop("device")
        content["measure"].pop("batch_tokens")
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
        rank = self.method.options.get("rank")
        parts = [
            self.dataset_name,
            self.method.name,
            *([f"r{rank}"] if rank is not None else []),
            f"s{self.seed}",
        ]
        return "-".join([*parts, digest])


OWN_FIELDS: dict[str, Any] = {
    "methods": [{"name": "lora", "rank": 8}],
    "training": {"batch_size": 16},
    "measure": {"start": 20, "every": 20, "text_tokens": 100_000, "heldout_tokens": 50_000},
}
"""What a study given by flags alone starts from: measured on a sample of the text, sized for a first answer."""


def presets() -> list[str]:
    """Names of the shipped configurations."""
    folder = resources.files("forgetting") / "presets"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_preset(name: str) -> StudyConfig:
    """A shipped configuration by name.

    Raises:
        UsageError: no preset of that name.
    """
    return validate(preset_fields(name), where=f"preset {name}")


def preset_fields(name: str) -> dict[str, Any]:
    """A preset's YAML as a plain mapping, for overrides before validation."""
    if name not in presets():
        raise UsageError(f"preset: no preset '{name}'; {did_you_mean(name, presets())}")
    text = (resources.files("forgetting") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, where=f"preset {name}")


def read_fields(path: Path) -> dict[str, Any]:
    """A user's YAML file as a plain mapping, its relative source paths made absolute (relative to the file).

    Raises:
        UsageError: the file is missing, unreadable, or not a YAML mapping; names the file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such configuration file; write one, or name a preset with --preset ({', '.join(presets())})"
        ) from None
    except IsADirectoryError:
        raise UsageError(f"{path}: a directory, not a configuration file; to resume a study use --out {path}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, *, where: str) -> dict[str, Any]:
    """Safe-loaded YAML that must be a mapping; `where` names it in errors."""
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise UsageError(f"{where}{line}: {problem}") from None
    if not isinstance(fields, dict):
        raise UsageError(
            f"{where}: a mapping of fields is needed, got {type(fields).__name__}; see `forgetting study --help`"
        )
    return fields


def resolve_sources(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Make the relative local sources of a configuration absolute: those that exist under `folder`.

    A source that does not exist there stays as it is (a Hub id, `miniature`, or a path for a clear error later).
    """

    def absolute(section: Any) -> Any:
        if isinstance(section, Mapping) and isinstance(source := section.get("source"), str):
            path = (folder / Path(source).expanduser()).resolve()
            if source != "miniature" and not source.startswith("miniature:") and path.exists():
                return {**section, "source": str(path)}
        return section

    resolved = dict(fields)
    for key in ("model", "text"):
        if key in resolved:
            resolved[key] = absolute(resolved[key])
    if isinstance(datasets := resolved.get("datasets"), Mapping):
        resolved["datasets"] = {name: absolute(section) for name, section in datasets.items()}
    return resolved


def validate(fields: Mapping[str, Any], *, where: str) -> StudyConfig:
    """A mapping as a StudyConfig.

    Raises:
        UsageError: one line a wrong field: its path, what came, what is allowed.
    """
    try:
        return StudyConfig.model_validate(fields)
    except ValidationError as error:
        raise UsageError("\n".join(explain(error, StudyConfig, where))) from None


def explain(error: ValidationError, model: type[BaseModel], where: str) -> list[str]:
    """Each of pydantic's errors as one line: `where: field: got X; what is allowed`."""
    lines = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"] if part != "[key]")
        prefix = f"{where}: {path}: " if path else f"{where}: "
        came = repr(item["input"])
        came = came if len(came) <= 60 else came[:57] + "..."
        match item["type"]:
            case "extra_forbidden":
                allowed = _fields_at(model, item["loc"][:-1])
                lines.append(f"{prefix}unknown field; {did_you_mean(str(item['loc'][-1]), allowed)}")
            case "missing":
                lines.append(f"{prefix}is missing and has no default")
            case "value_error":
                lines.append(prefix + str(item["ctx"]["error"]))
            case "string_pattern_mismatch":
                lines.append(f"{prefix}got {came}; letters, digits, '.', '_' and '-' only, at most 64, no separators")
            case "literal_error":
                choices = item["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
                lines.append(f"{prefix}got {came}; {did_you_mean(str(item['input']), choices)}")
            case _:
                lines.append(f"{prefix}got {came}; {item['msg'][0].lower()}{item['msg'][1:]}")
    return lines


def _fields_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Field names allowed at a path inside `model`, for suggestions."""
    schema: dict[str, Any] = model.model_json_schema()
    node = schema
    for part in path:
        node = _resolve(node, schema)
        properties = node.get("properties", {})
        patterns = list(node.get("patternProperties", {}).values())
        node = properties.get(part) or node.get("items") or (patterns[0] if patterns else {})
    return list(_resolve(node, schema).get("properties", {}))


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node


def deep_merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `override` laid over it, mapping by mapping; lists and values are replaced whole."""
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
