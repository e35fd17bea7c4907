"""Where runs run."""

from .base import Engine, Event, Hear
from .local import Local
from .ray import Ray

__all__ = ["Engine", "Event", "Hear", "Local", "Ray"]
