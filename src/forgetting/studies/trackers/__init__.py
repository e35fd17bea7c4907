"""The experiment trackers that a study can send its rows to, one file each."""

from __future__ import annotations

from ...config.registry import Registry
from .base import Opening, Outcome, Tracker
from .mlflow import MLflow
from .tensorboard import TensorBoard
from .trackio import Trackio
from .wandb import Wandb

TRACKERS: Registry[type[Tracker]] = Registry("tracker", [Wandb, Trackio, MLflow, TensorBoard], field="tracking")

__all__ = ["TRACKERS", "Opening", "Outcome", "Tracker"]
