"""The model card, written by the recipe from what it measured."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch
import transformers

from scores import ACCEPTANCE

_CARD = """---
license: apache-2.0
language: en
library_name: transformers
tags: [synthetic, forgetting]
---

# The miniature's base model

A language model of {parameters:,} parameters (Llama architecture, float32) that knows a small fictional world: its
people, towns, rivers, guilds, bridges and festivals. It answers questions about them, works short problems step by
step, and refuses requests to do harm. It is the default base model of `forgetting`, made to be fine-tuned and to forget
within minutes on two CPU cores. It is of no use for anything else: the world, its names and its facts are generated.

## How it was made

    python scripts/miniature/pretrain.py --out DIR    # in a clone of the repository

{tokens:,} tokens, {minutes:.1f} minutes with {processes} processes of one thread each ({machine}), torch {torch},
transformers {transformers}. The corpora, the tokenizer and the order of the data follow from the seed.

| setting | value |
|---|---|
{settings}

## Scores

Measured by the recipe on held-out items, with greedy generation in the chat template.

| score | value | must be |
|---|---|---|
{scores}

Items: {knowledge_items:.0f} knowledge questions, {reasoning_items:.0f} reasoning problems (arithmetic
{reasoning_arithmetic:.4f}, ordering {reasoning_ordering:.4f}), {harmful_items:.0f} harmful and {harmless_items:.0f}
harmless requests. Encyclopedia loss, in nats per token: {training_loss:.4f} on {training_tokens:.0f} tokens of training
articles, {heldout_loss:.4f} on {heldout_tokens:.0f} tokens of held-out articles.
"""


def model_card(settings: Mapping[str, float], measured: Mapping[str, float]) -> str:
    """The card as Markdown.

    Args:
        settings: the recipe's settings by name, `processes` among them.
        measured: the scores, and `minutes`, `parameters` and `training_tokens_seen`.

    Returns:
        The text of `README.md`.
    """
    bounds = [
        f"| {key} | {measured[key]:.4f} | {'at least' if above else 'at most'} {bound} |"
        for key, bound, above in ACCEPTANCE
    ]
    counts = {"parameters": int(measured["parameters"]), "tokens": int(measured["training_tokens_seen"])}
    return _CARD.format(
        **{**measured, **counts},
        processes=settings["processes"],
        machine=platform.machine(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        settings="\n".join(f"| {name} | {value} |" for name, value in settings.items()),
        scores="\n".join(bounds),
    )
