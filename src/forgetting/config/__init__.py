"""A study's configuration.

Its schema, with run ids that are content hashes; the YAML, flags and presets it comes from; and the registries in which
methods, mitigations and laws are found by name.
"""
