"""Fine-tuning: one run, measured on its step grid.

`methods` make a model trainable (docs/methods.md); `mitigations` reduce forgetting (docs/mitigations.md). Also contains
the trainer, checkpoints, and stopping after the current step.
"""

from .. import models as models  # must come before transformers' Trainer imports PEFT
