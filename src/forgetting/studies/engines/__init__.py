"""Engines, which execute runs: on this machine, with several processes per run, or on a Ray cluster; one file each."""

from .accelerate import Accelerate
from .base import Engine, Event, Hear
from .local import Local
from .ray import Ray

__all__ = ["Accelerate", "Engine", "Event", "Hear", "Local", "Ray"]
