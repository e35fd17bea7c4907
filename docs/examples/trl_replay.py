"""Fine-tune with TRL and LoRA, replay general text, measure forgetting on other general text, stop at a budget.

    python trl_replay.py MODEL TRAIN.jsonl GENERAL.jsonl OUT [SHARE] [STEPS]

TRAIN and GENERAL have the same columns (`text`, or `messages`). SHARE is the share of replayed rows, by default 0.2.
"""

import sys

import torch
from datasets import interleave_datasets, load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from forgetting import ForgettingCallback

model, train, general, out, *more = sys.argv[1:]
share = float(more[0]) if more else 0.2
steps = int(more[1]) if len(more) > 1 else 200

# a row that is replayed is trained on, so forgetting is measured on the others
parts = load_dataset("json", data_files=general, split="train").train_test_split(0.5, seed=0)
mixture = interleave_datasets(
    [load_dataset("json", data_files=train, split="train"), parts["train"]],
    probabilities=[1 - share, share],
    seed=0,
    stopping_strategy="all_exhausted",
)
forgetting = ForgettingCallback(parts["test"], every=max(1, steps // 10), budget=0.1)
trainer = SFTTrainer(
    model,
    args=SFTConfig(
        out,
        max_steps=steps,
        max_length=512,
        bf16=torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=mixture,
    peft_config=LoraConfig(target_modules="all-linear"),
    callbacks=[forgetting],
)
trainer.train()
trainer.save_model(out)
print(forgetting.to_frame().to_string(columns=["step", "kept", "forgetting", "agreement"]))
