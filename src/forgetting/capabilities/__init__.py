"""What a model lost: knowledge, reasoning and safety, item by item (docs/capabilities.md).

Contains suites, which run through lm-evaluation-harness; transitions with paired statistics; judges of refusals; and
the relearning probe. `transitions`, `netloss` and `predictors` need only numpy and scipy.
"""
