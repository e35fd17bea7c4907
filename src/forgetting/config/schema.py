"""A study's configuration: pydantic models, grids of options, and run ids that are content hashes.

Every error names the field and says what came and what is allowed. Unknown fields are errors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from .. import files
from ..errors import UsageError
from .explaining import explain
from .section import Name as Name
from .section import Section as Section
from .section import as_stored
from .section import with_exponent as with_exponent
from .texts import AnyText as AnyText
from .texts import DatasetConfig as DatasetConfig
from .texts import ProbeConfig as ProbeConfig
from .texts import TextConfig as TextConfig
from .texts import is_probe as is_probe

M = TypeVar("M", bound=BaseModel)
TrackerName = Literal["wandb", "trackio", "mlflow", "tensorboard"]


class VariantOptions(Section):
    """Base of everything chosen by name, such as a method: its fields are its options."""

    model_config = ConfigDict(allow_inf_nan=False)  # a study could not store them: JSON has no such numbers
    name: ClassVar[str]


class ModelConfig(Section):
    """The base model: any causal language model that transformers can load."""

    source: str = Field(min_length=1, description="a directory, a Hub id, or `miniature`")
    revision: str | None = Field(default=None, description="Hub revision (commit, tag or branch)")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="dtype of the weights; `auto` keeps the one they are stored in"
    )
    device: str = Field(
        default="auto",
        min_length=1,
        description="torch device, e.g. cpu, cuda:1, mps; `auto` is the first GPU, or the CPU if there is none",
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code shipped with the model; only if you trust it"
    )
    bits: Literal[4, 8] | None = Field(
        default=None,
        description="quantise the linear layers with bitsandbytes on loading: 4 (NF4, computed in `dtype`; QLoRA) or 8",
    )
    reference: Literal["quantised", "full"] = Field(
        default="quantised",
        description="with `bits`, the model that forgetting is measured against: the `quantised` one that is "
        "fine-tuned, or the `full` one in `dtype`; with `full`, step 0 is the forgetting from quantising alone",
    )

    @model_validator(mode="after")
    def _reference_of_quantised(self) -> Self:
        if self.reference != "quantised" and self.bits is None:
            raise ValueError(f"reference: {self.reference} needs bits; without bits, the model itself is the reference")
        return self

    def measured_against(self) -> ModelConfig:
        """The model that forgetting is measured against: this one, or with `reference: full` this one without bits."""
        return self if self.reference != "full" else self.model_copy(update={"bits": None, "reference": "quantised"})


class Variant(BaseModel):
    """Something chosen by name, with its options next to `name`.

    A list for an option that takes one value is a grid: `rank: [8, 64]` is two methods.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _as_stored(cls, value: Any) -> Any:
        """Options have no types here: a tuple would differ from the stored list each time the study is resumed."""
        return as_stored(value)

    @property
    def options(self) -> dict[str, Any]:
        """Its options, not yet validated; the package that defines it validates them."""
        return dict(self.__pydantic_extra__ or {})


class MitigationConfig(Variant):
    """A mitigation: what reduces forgetting in a run, such as replay."""


class MethodConfig(Variant):
    """How the model is made trainable, and what reduces forgetting during training."""

    label: Name | None = Field(
        default=None, description="name of this entry in tables and reports; default: the method's name"
    )
    mitigations: tuple[tuple[MitigationConfig, ...], ...] = Field(
        default=(),
        description="one run for each item, instead of the plain run: a mitigation, or a list of them combined",
    )

    @field_validator("mitigations", mode="before")
    @classmethod
    def _alternatives(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple((one,) if isinstance(one, Mapping) else one for one in value)


class TrainingConfig(Section):
    """The training recipe, shared by all runs. Defaults follow the paper where it states a value."""

    steps: int = Field(default=260, ge=1, description="update steps")
    batch_size: int = Field(default=32, ge=1, description="windows per update step")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="windows per forward pass; gradients accumulate up to batch_size"
    )
    optimizer: Literal["adafactor", "adamw"] = Field(
        default="adafactor", description="Adafactor, as in the paper, or AdamW"
    )
    learning_rate: float = Field(default=2e-4, gt=0, lt=10, description="peak learning rate; the paper states none")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="with constant, each measured step equals a run that stopped there"
    )
    warmup_steps: int = Field(
        default=10,
        ge=0,
        description="steps of linear warm-up, fewer than steps; defaults to steps/10 if steps is 10 or less",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, more time"
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """The default warm-up would not be allowed with so few steps: use a tenth of them."""
        steps = value.get("steps") if isinstance(value, Mapping) else None
        if (
            type(steps) is int
            and 1 <= steps <= cls.model_fields["warmup_steps"].default
            and "warmup_steps" not in value
        ):
            return {**value, "warmup_steps": steps // 10}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be fewer than steps {self.steps}")
        return self


class MeasureConfig(Section):
    """When the losses are measured, and on how much text."""

    start: int = Field(
        default=50, ge=1, description="first measured step after step 0; earlier steps are left out of fits"
    )
    every: int = Field(default=10, ge=1, description="steps between measurements; the last step is always measured")
    text_tokens: int | None = Field(
        default=None,
        ge=1,
        description="measure on about this many tokens of the general text, in randomly chosen windows",
    )
    heldout_tokens: int | None = Field(default=None, ge=1, description="the same for the held-out fine-tuning data")
    batch_tokens: int = Field(
        default=8192, ge=1, description="tokens per forward pass when measuring; affects memory, not results"
    )


class CapabilitiesConfig(Section):
    """Questions that the tuned models are asked during the runs; the report shows the answers with the losses."""

    suites: tuple[str, ...] = Field(
        default=("knowledge", "reasoning", "safety"),
        min_length=1,
        strict=False,
        description="`knowledge`, `reasoning`, `safety`, a .jsonl file of items, an lm-eval .yaml, or an lm-eval task",
    )
    steps: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, min_length=1, strict=False, description="measured steps at which to ask; default: the last one"
    )
    datasets: tuple[Name, ...] | None = Field(default=None, strict=False, description="only runs on these data sets")
    ranks: tuple[int, ...] | None = Field(default=None, strict=False, description="only runs of these ranks")
    seeds: tuple[int, ...] | None = Field(default=None, strict=False, description="only runs of these seeds")
    limit: int | None = Field(default=None, ge=1, description="use only this many items of each task, from the first")
    max_new_tokens: int = Field(default=64, ge=1, description="maximum tokens of a reply to a local item or prompt")
    harmful: str | None = Field(
        default=None, description="harmful prompts of `safety`: a .csv, .txt or .jsonl file or Hub id"
    )
    harmless: str | None = Field(
        default=None, description="harmless look-alike prompts of `safety`: same kinds of source"
    )
    keep_completions: bool = Field(default=False, description="store the replies to harmful prompts")

    def asks(self, run: RunConfig, last: int) -> frozenset[int]:
        """The steps at which a run is asked, by default its `last`; empty if the run is not chosen."""
        rank = run.method.options.get("rank")
        chosen = ((self.datasets, run.dataset_name), (self.ranks, rank), (self.seeds, run.seed))
        if any(allowed is not None and value not in allowed for allowed, value in chosen):
            return frozenset()
        return frozenset(self.steps or (last,))


class StudyConfig(Section):
    """A whole study: one model, general text, and the grid of data sets x methods x seeds."""

    version: Literal[1] = Field(default=1, description="version of this schema")
    name: Name = Field(default="study", description="name of the study; its default folder is studies/NAME")
    model: ModelConfig = Field(description="the base model")
    text: TextConfig = Field(description="general text that forgetting is measured on; never trained on")
    texts: dict[Name, AnyText] = Field(
        default={},
        description="further general texts by name, measured at the same steps: the fields of `text`, or `probe` for "
        "the base model's own answers; the laws are fitted to `text` only",
    )
    datasets: dict[Name, DatasetConfig] = Field(min_length=1, description="fine-tuning data sets by name")
    methods: tuple[MethodConfig, ...] = Field(
        min_length=1, strict=False, description="fine-tuning methods; the laws are fitted to the runs of the first one"
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        default=(0,), min_length=1, strict=False, description="seeds of initialisation and data order; one run for each"
    )
    context: int = Field(default=512, ge=8, description="window length in tokens, for training and for measuring")
    training: TrainingConfig = TrainingConfig()
    measure: MeasureConfig = MeasureConfig()
    capabilities: CapabilitiesConfig | None = Field(
        default=None, description="questions that the tuned models are asked during the runs"
    )

    tracking: tuple[TrackerName, ...] = Field(
        default=(),
        strict=False,
        description="trackers that show each run from its stored rows; their own environment variables say where; "
        "may change when a study is resumed, since it affects no number",
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """The default first measured step would not be allowed with so few steps: use a fifth of them."""
        if not isinstance(value, Mapping):
            return value
        training, measure = value.get("training"), value.get("measure", {})
        steps = training.get("steps") if isinstance(training, Mapping) else None
        if type(steps) is not int or not 1 <= steps < MeasureConfig.model_fields["start"].default:
            return value
        if isinstance(measure, Mapping) and "start" not in measure:
            return {**value, "measure": {**measure, "start": max(1, steps // 5)}}
        return value

    @model_validator(mode="after")
    def _capabilities_fit(self) -> Self:
        asked = self.capabilities
        if asked is None:
            return self
        grid = self.measured_steps()
        beside = [step for step in asked.steps or () if step not in grid]
        if beside:
            raise ValueError(f"capabilities.steps: {beside[0]} is not a measured step; measured steps: {grid[1:]}")
        unknown = [name for name in asked.datasets or () if name not in self.datasets]
        if unknown:
            raise ValueError(
                f"capabilities.datasets: '{unknown[0]}' is not a data set of this study; choices: {list(self.datasets)}"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds contains a value twice: {list(self.seeds)}")
        if len(set(self.tracking)) < len(self.tracking):
            raise ValueError(f"tracking contains a name twice: {list(self.tracking)}")
        if self.measure.start > self.training.steps:
            raise ValueError(
                f"measure.start {self.measure.start} is after the last step, training.steps {self.training.steps}"
            )
        return self

    @property
    def reference_label(self) -> str:
        """What tables call the first method. The laws are fitted to its runs, and the others are compared with it."""
        return self.methods[0].label or self.methods[0].name

    def measured_steps(self) -> list[int]:
        """The grid of measured steps: 0 (the base model), then start, start + every, ..., and the last step."""
        return measured_steps(self.training.steps, self.measure.start, self.measure.every)

    def is_same(self, other: StudyConfig) -> bool:
        """Whether this is the same study, apart from the trackers that show it."""
        return self.model_copy(update={"tracking": other.tracking}) == other

    def to_yaml(self) -> str:
        """The resolved configuration as YAML; `files.parse_yaml` and `validate` give an equal object."""
        return files.dump_yaml(self.model_dump(mode="json"))


class RunConfig(Section):
    """One run of a study: everything that affects its numbers, and nothing else."""

    model: ModelConfig
    text: TextConfig
    texts: dict[Name, AnyText] = Field(default={})
    dataset_name: Name
    dataset: DatasetConfig
    method: MethodConfig
    mitigations: tuple[MitigationConfig, ...] = Field(default=(), strict=False)
    seed: int
    context: int
    training: TrainingConfig
    measure: MeasureConfig

    def run_id(self) -> str:
        """`<dataset>-<label>-<rank>-<mitigations>-s<seed>-<hash>`; the hash covers everything that affects numbers."""
        digest = digest_of(self.model_dump(mode="json"))
        rank = self.method.options.get("rank")
        parts = [
            self.dataset_name,
            self.method.label or self.method.name,
            *([f"r{rank}"] if rank is not None else []),
            *(mitigation.name for mitigation in self.mitigations),
            f"s{self.seed}",
        ]
        return "-".join([*parts, digest])


def digest_of(run: Mapping[str, Any]) -> str:
    """The hash in a run's id, over everything in its configuration that affects numbers.

    Args:
        run: a RunConfig as plain JSON values, of this version or as another version stored it.
    """
    content = {**run, "model": {**run["model"]}, "method": {**run["method"]}, "measure": {**run["measure"]}}
    content["model"].pop("device", None)
    if content["model"].get("bits") is None:  # hash as versions without these fields did
        content["model"].pop("bits", None)
        content["model"].pop("reference", None)
    content["method"].pop("label", None)
    content["method"].pop("mitigations", None)
    content["measure"].pop("batch_tokens", None)
    for name in ("mitigations", "texts"):
        if not content.get(name):
            content.pop(name, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def measured_steps(last: int, start: int, every: int) -> list[int]:
    """The grid of measured steps: 0 (the base model), then start, start + every, ..., and the last step."""
    grid = [0, *range(start, last + 1, every)]
    return grid if grid[-1] == last else [*grid, last]


def validate(fields: Mapping[str, Any], *, where: str) -> StudyConfig:
    """A mapping as a StudyConfig.

    Raises:
        UsageError: as `validated`.
    """
    return validated(StudyConfig, fields, where)


def validated(model: type[M], fields: Mapping[str, Any], where: str) -> M:
    """A mapping as a section.

    Raises:
        UsageError: names `where`, the wrong field, what came and what is allowed; several errors are listed.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise UsageError(*explain(error, model, where)) from None


def expand(options: Mapping[str, Any], kind: type[Section], where: str) -> list[dict[str, Any]]:
    """The variants that one entry's options stand for: a list, for an option that takes one value, gives one each.

    Args:
        options: as configured.
        kind: the variant's model; its fields say which options take one value.
        where: names the variant in errors.

    Raises:
        UsageError: a list is empty or repeats a value.
    """
    grid = [dict(options)]
    for option, value in options.items():
        field = kind.model_fields.get(option)
        if field is None or not isinstance(value, list | tuple) or _takes(field.annotation, list(value)):
            continue
        if not value:
            raise UsageError(f"{where}.{option}: an empty list; give at least one value")
        if len(set(map(repr, value))) < len(value):
            raise UsageError(f"{where}.{option}: the list contains a value twice: {list(value)}")
        grid = [{**given, option: single} for given in grid for single in value]
    return grid


def _takes(annotation: Any, value: list[Any]) -> bool:
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True
