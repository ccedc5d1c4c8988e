"""Sessions, their runs, the sandboxes these happen in, and the one router for everything that code asks of the host.

It knows the journal and sandboxes. It does not know capabilities (tools, models, ...): the router is handed a mapping.
"""
