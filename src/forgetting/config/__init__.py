"""What users ask for: a study's configuration, and the arguments of the Python functions.

Contains the schema, whose run ids are content hashes; the YAML files, flags and presets that fill it; the registries
that find methods, mitigations and laws by name; and checks of arguments against their annotations.
"""
