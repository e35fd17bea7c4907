"""GGUF files, as llama.cpp uses them: dequantised by transformers, with their vocabulary checked against the base's.

transformers gives the values that the file's blocks represent; llama.cpp also rounds activations in some kernels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.schema import ModelConfig
from ..data import hub
from ..display.numbers import few
from ..errors import UsageError
from . import bounds, failures, loading, transformers_internals, weights
from .causal import check_causal
from .loading import Placement

SUFFIX = ".gguf"
MAGIC = b"GGUF"


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file by name.

    Attributes:
        name: the user's name for it.
        path: its path.
    """

    name: str
    path: Path


def find(model: str, file: str | None, revision: str | None) -> GgufFile | None:
    """The GGUF file that a model's name means; None if it is not one.

    Args:
        model: the path of a file; or a folder or Hub id, with `file`.
        file: its name in that folder or repository.
        revision: revision of a Hub id.

    Raises:
        UsageError: the file does not exist, or has another format.
        ForgettingError: the Hub cannot be reached.
    """
    if file is None:
        if not model.endswith(SUFFIX):
            return None
        path = Path(model).expanduser()
        name = model
    else:
        folder, name = Path(model).expanduser(), f"{model}/{file}"
        if not folder.is_dir():
            repo = hub.find(model, revision)
            if file not in repo.files:
                held = [one for one in sorted(repo.files) if one.endswith(SUFFIX)]
                raise UsageError(
                    f"model '{model}': this repository has no {file}; it has {few(held) or 'no .gguf file'}"
                )
            folder = repo.fetch([file])
        path = folder / file
    if not path.is_file():
        raise UsageError(f"model '{name}': no such file")
    with path.open("rb") as start:
        if start.read(len(MAGIC)) != MAGIC:
            raise UsageError(f"model '{name}': not a GGUF file, judging by its first bytes")
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(
            f"model '{name}': the package gguf, which reads it, is not installed; pip install 'forgetting[gguf]'"
        )
    return GgufFile(name, path)


def load(config: ModelConfig, file: GgufFile, placement: Placement) -> tuple[Any, list[str]]:
    """The model of a file, with plain weights, in evaluation mode, and notices.

    Args:
        config: dtype and device; `auto` is float32, in which the blocks' values are exact up to rounding.
        file: the file.
        placement: where its weights go.

    Raises:
        UsageError: an architecture that transformers cannot read, missing weights, a damaged file.
        ForgettingError: memory is too small.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    name = f"model '{file.name}'"
    device = None if placement.spread else loading.pick_device(config.device)
    dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
    where, options = str(file.path.parent), {"gguf_file": file.path.name}
    more: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    if device is None:
        more["device_map"] = "auto"
    with failures.quiet(), transformers_internals.without_bars(), failures.explained(name, "cannot be loaded"):
        asked = AutoConfig.from_pretrained(where, **options)
        bounds.check_size(asked, file.path.stat().st_size, name)
        model, info = AutoModelForCausalLM.from_pretrained(where, **options, **more)
    notices = weights.check_fit(name, model, info, {}, method="gguf")
    if device is not None:
        with failures.explained(name, f"cannot be put on {device}"):
            model.to(device)
    model.eval()
    weights.check_finite(model.named_parameters(), f"{name}: the tuned model's")
    check_causal(model, name)
    return model, notices


def check_tokenizer(file: GgufFile, tokenizer: Any) -> list[str]:
    """Check that a file's vocabulary and chat template are the base model's; more tokens may follow.

    Returns:
        Notices: another chat template, added tokens that differ, no vocabulary at all.

    Raises:
        UsageError: tokens of the base model differ in the file.
    """
    tokens, template = _tokenizer(file)
    if tokens is None:
        return ["the file has no vocabulary; it is assumed to be the base model's"]
    vocabulary = tokenizer.get_vocab()
    added = set(tokenizer.get_added_vocab())
    ordered = sorted(vocabulary.items(), key=lambda entry: entry[1])
    moved = [one for one, place in ordered if place >= len(tokens) or _plain(tokens[place]) != _plain(one)]
    if plain := [token for token in moved if token not in added]:
        raise UsageError(
            f"model '{file.name}': its vocabulary differs from the base model's: {len(plain)} of {len(vocabulary)} "
            f"tokens are missing or have another id, {plain[0]!r:.40} among them; losses of different tokens cannot be "
            "compared"
        )
    notices = [f"added tokens of the base model differ in the file: {few(sorted(moved), 3)}"] if moved else []
    ours = getattr(tokenizer, "chat_template", None)
    if isinstance(ours, str) and template is not None and template.strip() != ours.strip():
        notices.append("the file's chat template differs from the base model's; the text is rendered with the base's")
    return notices


def _tokenizer(file: GgufFile) -> tuple[Sequence[str] | None, str | None]:
    """The tokens in the order of their ids, and the chat template."""
    from gguf import GGUFReader

    with failures.explained(f"model '{file.name}'", "its tokens cannot be read"):
        reader = GGUFReader(file.path)
        fields = [reader.get_field(f"tokenizer.{key}") for key in ("ggml.tokens", "chat_template")]
        tokens, template = (None if field is None else field.contents() for field in fields)
    return tokens, template


def _plain(token: str) -> str:
    """A token with SentencePiece's space mark replaced by a space; files use either."""
    return token.replace("\u2581", " ")
