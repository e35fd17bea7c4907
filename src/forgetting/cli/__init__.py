"""The command: parses, calls one function, prints. Nothing here is imported by the library."""

from .app import main

__all__ = ["main"]
