"""What was lost: knowledge, reasoning and safety, item by item (docs/capabilities.md).

Suites run through lm-evaluation-harness; transitions with paired statistics, judges of refusals, and the probe of what
can be relearned. `transitions` and `predictors` are pure numpy.
"""
