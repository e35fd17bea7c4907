"""Configuration: its schema, where it comes from, and the shipped presets."""
