"""Runs the recipe of docs/examples/llamafactory on a tiny random model, on the CPU, and checks its numbers.

    python bench/llamafactory.py WORK LLAMAFACTORY_CLI [TRAIN_PYTHON]

WORK is an empty folder. LLAMAFACTORY_CLI is the command of the environment with LLaMA-Factory; this script runs in one
with forgetting. TRAIN_PYTHON is the Python of an environment with both, for `train.py`. By hand only: not in CI, since
LLaMA-Factory installs some 80 packages.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import forgetting

RECIPE = Path(__file__).parents[1] / "docs" / "examples" / "llamafactory"
WORDS = ("the", "a", "old", "new", "river", "town", "guild", "baker", "smith", "went", "saw", "built", "bread", "iron")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sentence(seed: int, words: int = 9) -> str:
    """Random words, the same for the same seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + " ."


def make(work: Path) -> None:
    """A base model, its tokenizer, a task in two formats, and general text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, special_tokens=SPECIAL)
    raw.train_from_iterator([sentence(i, 200) for i in range(200)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(work / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(work / "base")
    shutil.copytree(RECIPE / "data", work / "data", dirs_exist_ok=True)
    pairs = [(sentence(i), sentence(9000 + i)) for i in range(40)]
    task = [{"instruction": asked, "input": "", "output": answer} for asked, answer in pairs]
    (work / "data" / "my_task.json").write_text(json.dumps(task), encoding="utf-8")
    chats = [
        {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]}
        for asked, answer in pairs
    ]
    (work / "data" / "my_chats.json").write_text(json.dumps(chats), encoding="utf-8")
    general = [json.dumps({"text": sentence(500 + i, 40)}) for i in range(20)]
    (work / "general.jsonl").write_text("\n".join(general) + "\n", encoding="utf-8")


def run(work: Path, *command: str) -> str:
    """A command's output; its errors end this script."""
    environment = {**os.environ, "DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=work, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(work: Path, llamafactory: str, python: str | None = None) -> None:
    """Make, train, export, measure, compare."""
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        raise SystemExit(f"{work} is not empty")
    make(work)
    for name in ("lora.yaml", "export.yaml", "train.py"):
        shutil.copy(RECIPE / name, work)
    run(work, llamafactory, "train", "lora.yaml")
    run(work, llamafactory, "export", "export.yaml")
    os.chdir(work)  # LLaMA-Factory writes the base model's path into the adapter as lora.yaml has it
    adapter = forgetting.measure("base", "out", text="general.jsonl")
    merged = forgetting.measure("base", "merged", text="general.jsonl")
    print(f"adapter {adapter.forgetting.value:.6f}, merged {merged.forgetting.value:.6f} nats/token")
    assert adapter.forgetting.value > 0.01
    assert abs(adapter.forgetting.value - merged.forgetting.value) < 1e-5
    if python is not None:
        shutil.move("out", "out-of-the-command")
        print(rows := run(work, python, "train.py", "lora.yaml"))
        last = float(rows.strip().splitlines()[-1].split()[2])
        assert abs(last - adapter.forgetting.value) < 1e-5


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *sys.argv[2:])
