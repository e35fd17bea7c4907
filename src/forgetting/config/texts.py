"""Sources of text: files, the Hub, the miniature, or the base model's own answers to prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from .section import Section


class TextConfig(Section):
    """Where text comes from, and what counts as a document."""

    source: str = Field(min_length=1, description="a file, a folder of files, a Hub id, or `miniature:NAME`")
    subset: str | None = Field(default=None, description="Hub data set configuration, e.g. `wikitext-103-raw-v1`")
    split: str | None = Field(
        default=None, description="Hub data set split (default `train`); for a folder, its files with this name"
    )
    revision: str | None = Field(default=None, description="Hub revision")
    streaming: bool = Field(
        default=False, description="stream from the Hub instead of downloading; needs `max_documents`"
    )
    format: Literal["auto", "text", "chat", "completion", "sharegpt", "alpaca", "dolly", "openorca", "qa", "dpo"] = (
        Field(
            default="auto",
            description="`auto` detects it from the columns: `messages` (chat), `prompt` and `completion`, `text`, "
            "`conversations` (sharegpt), `instruction` and `output` (alpaca) or `response` (dolly), `question` and "
            "`response` (openorca) or `answer` (qa), `chosen` (dpo)",
        )
    )
    documents: Literal["auto", "wikitext", "paragraphs", "sections", "rows"] = Field(
        default="auto",
        description="how plain text is cut into documents: at ` = Title = ` lines (wikitext), at blank lines "
        "(paragraphs), into blocks of whole paragraphs of about 4,000 characters (sections), or one per row",
    )
    text_column: str = Field(default="text", description="column of plain text")
    messages_column: str = Field(default="messages", description="column of chat messages, a list of {role, content}")
    prompt_column: str = Field(default="prompt", description="column of prompts")
    completion_column: str = Field(default="completion", description="column of answers; only these count in the loss")
    max_documents: int | None = Field(default=None, ge=1, description="read at most this many documents")

    @model_validator(mode="after")
    def _streaming_is_bounded(self) -> Self:
        if self.streaming and self.max_documents is None:
            raise ValueError("streaming: true needs max_documents, the number of documents to read")
        return self


class DatasetConfig(TextConfig):
    """A fine-tuning data set; some of its documents are held out to measure the fine-tuning loss."""

    heldout: float = Field(default=0.1, gt=0, lt=1, description="share of documents held out, by content hash")


class ProbeConfig(Section):
    """Text that the base model writes: its answers to prompts. Forgetting is measured on the tokens of the answers."""

    probe: str = Field(
        min_length=1,
        description="prompts: a file (.jsonl, .json, .csv, .tsv, .parquet, .txt, also as .gz) or a Hub id; "
        "`default`: the 240 shipped prompts, in six kinds; or `miniature`: prompts about its world, in three kinds",
    )
    kind: str | None = Field(default=None, description="use only the prompts of this kind")
    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        description="maximum tokens of an answer; default: 128, or half of the context if that is less",
    )
    temperature: float = Field(
        default=0.0, ge=0, le=10, description="sampling temperature; 0 takes the most likely token at each step"
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the sampling")

    def answer_tokens(self, context: int) -> int:
        """Maximum tokens of an answer."""
        return self.max_new_tokens or max(1, min(128, context // 2))

    @property
    def source(self) -> str:
        """What tables and reports call this text."""
        return f"answers to {self.probe}" + (f" ({self.kind})" if self.kind else "")


def is_probe(text: Any) -> bool:
    """Whether a general text, configured, stored or validated, is the base model's own answers."""
    return "probe" in text if isinstance(text, Mapping) else isinstance(text, ProbeConfig)


TEXT, PROBE = "[text]", "[probe]"
"""Tags of the two kinds of general text; they occur in the paths of errors, and `explain` removes them."""
AnyText = Annotated[
    Annotated[TextConfig, Tag(TEXT)] | Annotated[ProbeConfig, Tag(PROBE)],
    Discriminator(lambda text: PROBE if is_probe(text) else TEXT),
]
