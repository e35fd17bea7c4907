"""Plugins for other trainers. Each is a file that only its trainer imports."""
