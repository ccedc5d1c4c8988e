"""Sub-agents: models that write programs, see the results, and submit a value."""

DEFAULT_STEPS = 20  # programs of one task, unless the caller sets another limit
