"""Where runs run: this machine, several processes a run, or a Ray cluster. A new engine is one file."""

from .accelerate import Accelerate
from .base import Engine, Event, Hear
from .local import Local
from .ray import Ray

__all__ = ["Accelerate", "Engine", "Event", "Hear", "Local", "Ray"]
