"""Fine-tuning: one run, measured on its step grid.

`methods` make a model trainable (docs/methods.md), `mitigations` hold forgetting back (docs/mitigations.md); the
trainer, checkpoints, and a stop that waits for the next whole step.
"""

from .. import models as models  # before transformers' Trainer imports PEFT
