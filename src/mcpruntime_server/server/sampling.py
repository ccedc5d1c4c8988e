"""How the client's model is asked through the client, where that offers it, what code wants to know.

It is never a person who is asked: a question to a model is answered by a model, or waits.
"""

from __future__ import annotations

from mcp.types import ClientCapabilities


def is_offered(capabilities: ClientCapabilities | None) -> bool:
    """Return whether a client with these capabilities asks its model for us."""
    return capabilities is not None and capabilities.sampling is not None
