"""Sessions, their runs, their sandboxes, and the router for all calls of sandboxed code.

It knows the journal and sandboxes. It does not know capabilities (tools, models, inputs, ...): the
router gets a mapping from prefix to route, and inputs are a protocol (`input_provider`).
"""
