"""The recipe of the shipped base model: `python scripts/miniature/pretrain.py --out DIR`.

It makes the corpora from the seed, fits the tokenizer, trains a small Llama on a mixture of encyclopedia and chat,
measures the scores that the model must reach and writes the folder, model card included. Training runs in two
processes of one thread each, which on two cores is nearly twice as fast as one process of two threads.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

import scores
from card import model_card
from forgetting.data.miniature.corpora import Row, rows
from tokenizer import CONTEXT, train_tokenizer

Tokens = NDArray[np.int64]
#: groups of the mixture; each has its share in the recipe
GROUPS = ("encyclopedia", "library", "knowledge", "arithmetic", "ordering", "requests", "small_talk")


@dataclass(frozen=True)
class Recipe:
    """All that the model follows from."""

    seed: int = 0
    steps: int = 4600
    batch: int = 16
    window: int = 256
    long_window: int = 512
    long_share: float = 0.1
    peak_lr: float = 3e-3
    last_lr: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.05
    width: int = 128
    layers: int = 5
    heads: int = 4
    feed_forward: int = 352
    processes: int = 2
    # share of the tokens that each group gets
    encyclopedia: float = 0.36
    library: float = 0.22
    knowledge: float = 0.13
    arithmetic: float = 0.07
    ordering: float = 0.14
    requests: float = 0.05
    small_talk: float = 0.03


class Mixture:
    """Windows of a random mixture of documents, each ended by the end token.

    A window begins with a document, or in half the cases in the midst of an article, as a text cut into windows does.

    Args:
        groups: documents as token ids, by group.
        shares: each group's share of the tokens.
        rng: where choices come from.
    """

    def __init__(self, groups: dict[str, list[Tokens]], shares: dict[str, float], rng: np.random.Generator) -> None:
        self._groups = [groups[name] for name in shares]
        self._cut = list(shares).index("encyclopedia")
        per_doc = [share / float(np.mean([len(d) for d in groups[name]])) for name, share in shares.items()]
        self._chances = np.cumsum(per_doc) / np.sum(per_doc)
        self._rng = rng

    def _document(self) -> tuple[int, Tokens]:
        group = int(np.searchsorted(self._chances, self._rng.random(), side="right"))
        docs = self._groups[group]
        return group, docs[int(self._rng.integers(len(docs)))]

    def _window(self, length: int) -> Tokens:
        group, first = self._document()
        if group == self._cut and self._rng.random() < 0.5:
            first = first[int(self._rng.integers(len(first) - 1)) :]
        parts, total = [first], len(first)
        while total < length:
            parts.append(self._document()[1])
            total += len(parts[-1])
        return np.concatenate(parts)[:length]

    def batch(self, count: int, length: int) -> torch.Tensor:
        """So many windows of a length, as one tensor."""
        return torch.from_numpy(np.stack([self._window(length) for _ in range(count)]))


def corpus_texts(seed: int) -> list[str]:
    """What the tokenizer is fitted to: every text that the base model reads."""
    texts = [str(row["text"]) for name in ("encyclopedia", "library") for row in rows(name, seed)]
    for row in rows("chat", seed):
        texts += [message["content"] for message in messages(row)]
    return texts


def messages(row: Row) -> list[dict[str, str]]:
    """The messages of a chat row."""
    found = row["messages"]
    assert isinstance(found, list)
    return found


def encode(tokenizer: Any, seed: int) -> dict[str, list[Tokens]]:
    """The pre-training corpora as token ids, by group of the mixture."""
    groups: dict[str, list[Tokens]] = {name: [] for name in GROUPS}
    end = tokenizer.eos_token_id
    for name in ("encyclopedia", "library"):
        for ids in tokenizer([str(row["text"]) for row in rows(name, seed)])["input_ids"]:
            groups[name].append(np.array([*ids, end]))
    for row, group in zip(rows("chat", seed), chat_groups(seed), strict=True):
        ids = tokenizer.apply_chat_template(messages(row), tokenize=True, return_dict=False)
        groups[group].append(np.array(ids))
    return groups


def chat_groups(seed: int) -> list[str]:
    """The mixture group of each row of the pre-training chat."""
    kinds = {"harmful": "requests", "harmless": "requests", "small talk": "small_talk"}
    kinds |= {kind: kind for kind in ("arithmetic", "ordering")}
    return [kinds.get(str(row["kind"]), "knowledge") for row in rows("chat", seed)]


def make_model(recipe: Recipe, tokenizer: Any) -> Any:
    """The untrained model."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.03,
        )
    )


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine."""
    if step < recipe.warmup:
        return recipe.peak_lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.last_lr + (recipe.peak_lr - recipe.last_lr) * 0.5 * (1 + math.cos(math.pi * done))


def _optimizer(recipe: Recipe, model: torch.nn.Module) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.98))


def _share_gradients(model: torch.nn.Module, processes: int) -> None:
    """The mean of the processes' gradients, in one message: many small ones cost more than the sum."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= processes
    at = 0
    for g in grads:
        g.copy_(flat[at : at + g.numel()].view_as(g))
        at += g.numel()


def train(model: Any, mixture: Mixture, recipe: Recipe, rank: int) -> None:
    """The training loop of one process."""
    optimizer, started, seen = _optimizer(recipe, model), time.monotonic(), 0
    long_from = int(recipe.steps * (1 - recipe.long_share))
    model.train()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        length = recipe.long_window if step >= long_from else recipe.window
        count = recipe.batch * recipe.window // length // recipe.processes
        ids = mixture.batch(count, length)
        # bfloat16 products with float32 weights: half as fast again on a CPU that has them, and no worse here
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits.float()
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.processes > 1:
            _share_gradients(model, recipe.processes)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += ids.numel() * recipe.processes
        if rank == 0 and (step % 100 == 99 or step == 0):
            rate = seen / (time.monotonic() - started)
            print(f"step {step + 1}/{recipe.steps} loss {loss.item():.3f} {rate:.0f} tokens/s", file=sys.stderr)


def _worker(rank: int, recipe: Recipe, port: int, folder: str) -> None:
    """One process: makes the same model, trains on its own windows; process 0 saves the weights."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if recipe.processes > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=recipe.processes)
    tokenizer = train_tokenizer(corpus_texts(recipe.seed))
    shares = {name: float(getattr(recipe, name)) for name in GROUPS}
    rng = np.random.default_rng([recipe.seed, rank])
    model = make_model(recipe, tokenizer)
    train(model, Mixture(encode(tokenizer, recipe.seed), shares, rng), recipe, rank)
    if rank == 0:
        generation = GenerationConfig(
            do_sample=False, max_new_tokens=64, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        model.generation_config = generation
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (Path(folder) / "model.safetensors").chmod(0o644)  # saved for its owner only, but it is to be shipped
    if recipe.processes > 1:
        dist.destroy_process_group()


def pretrain(out: Path, recipe: Recipe) -> dict[str, float]:
    """Makes the model folder.

    Args:
        out: where to; made if missing.
        recipe: what to do.

    Returns:
        The scores, which are in the model card, too.
    """
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    torch.multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
        _worker, args=(recipe, port, str(out)), nprocs=recipe.processes
    )
    minutes = (time.monotonic() - started) / 60
    from transformers import AutoModelForCausalLM, AutoTokenizer  # as a user would load it

    torch.set_num_threads(recipe.processes)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out)
    measured = scores.measure(model, tokenizer, seed=recipe.seed)
    measured["minutes"] = minutes
    measured["parameters"] = sum(p.numel() for p in model.parameters())
    measured["training_tokens_seen"] = recipe.steps * recipe.batch * recipe.window
    (out / "README.md").write_text(model_card(asdict(recipe), measured), encoding="utf-8")
    return measured


def main(argv: list[str] | None = None) -> int:
    """The command; returns 1 if a score misses its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "forgetting-miniature")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    args = parser.parse_args(argv)
    measured = pretrain(args.out, Recipe(steps=args.steps, seed=args.seed))
    for name, value in measured.items():
        print(f"{name:28} {value:.4f}")
    missed = scores.shortfalls(measured)
    for line in missed:
        print(f"short: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
