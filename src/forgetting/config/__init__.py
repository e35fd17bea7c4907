"""What users ask for: a study's configuration, and the arguments of the Python functions.

The schema, with run ids that are content hashes; the YAML, flags and presets it comes from; the registries in which
methods, mitigations and laws are found by name; arguments checked against their annotations, and tables of any kind.
"""
