"""LLaMA-Factory's training with forgetting measured on the way: python train.py lora.yaml [GENERAL.jsonl]

Its command has no field for callbacks, but the function behind it has.
"""

import sys
from pathlib import Path

import yaml
from llamafactory.train.tuner import run_exp

from forgetting import ForgettingCallback

general = sys.argv[2] if len(sys.argv) > 2 else "general.jsonl"
forgetting = ForgettingCallback(general, every=5)  # budget=0.1 would end training at 0.1 nats per token
run_exp(yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8")), callbacks=[forgetting])
print(forgetting.to_frame().to_string(columns=["step", "forgetting", "agreement"]))
