"""Measuring: base targets, token losses, clustered means, and the callback that measures while a model trains."""

from __future__ import annotations
