"""What each scope of an access token allows: one table, for MCP and for the routes over HTTP.

A request without authentication (stdio, or `serve --no-auth`) is the local user's and may do
everything. Scopes do not imply each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.scopes import SCOPES, Scope
from ..errors import InsufficientScope
from .connections import find_http_request

ALL_SCOPES = frozenset(SCOPES)

NOTHING: frozenset[Scope] = frozenset()
RUN: frozenset[Scope] = frozenset({"run"})
READ: frozenset[Scope] = frozenset({"read"})
APPROVE: frozenset[Scope] = frozenset({"approve"})
MCP_SCOPES = RUN | READ | APPROVE  # with these, no MCP request needs a check

TOOL_SCOPES: Mapping[str, frozenset[Scope]] = {
    "run_code": RUN,  # answers that approve a call need `approve`, too: see `may_approve`
    "save_skill": RUN,
    "ask_llm": RUN,
    "list_skills": READ,
}
REPLAY_SCOPES: Mapping[str, frozenset[Scope]] = {  # by action
    "list": READ,
    "show": READ,
    "diff": READ,
    "rewind": RUN,
    "fork": RUN,
    "rerun": RUN,
}
METHOD_SCOPES: Mapping[str, frozenset[Scope]] = {
    "initialize": NOTHING,
    "ping": NOTHING,
    "server/discover": NOTHING,
    "logging/setLevel": NOTHING,
    "tools/list": NOTHING,  # a list that varies with the token would break caches
    "completion/complete": READ,
    "prompts/list": READ,
    "prompts/get": READ,
    "resources/list": READ,
    "resources/templates/list": READ,
    "resources/read": READ,
    "resources/subscribe": READ,
    "resources/unsubscribe": READ,
    "subscriptions/listen": READ,
    "tasks/get": RUN,  # a task is a call of run_code that continues
    "tasks/list": RUN,
    "tasks/result": RUN,
    "tasks/cancel": RUN,
    "tasks/update": APPROVE,  # it has the forms that a person has filled in
}


def required_scopes(message: Any) -> frozenset[Scope]:
    """Return the scopes that one JSON-RPC message over MCP needs.

    What the table does not have needs everything that MCP can need.
    """
    if not isinstance(message, Mapping):
        return MCP_SCOPES
    method, params = message.get("method"), message.get("params")
    if method is None:  # an answer to a question of the server, whose kind is not known here
        return _answer_scopes(message.get("result"))
    if not isinstance(method, str):
        return MCP_SCOPES
    if method.startswith("notifications/"):
        return NOTHING
    if method == "tools/call" and isinstance(params, Mapping):
        return _tool_scopes(params)
    return METHOD_SCOPES.get(method, MCP_SCOPES)


def _tool_scopes(params: Mapping[Any, Any]) -> frozenset[Scope]:
    name, arguments = params.get("name"), params.get("arguments")
    if name == "replay":
        action = arguments.get("action") if isinstance(arguments, Mapping) else None
        return REPLAY_SCOPES.get(action, MCP_SCOPES) if isinstance(action, str) else MCP_SCOPES
    return TOOL_SCOPES.get(name, MCP_SCOPES) if isinstance(name, str) else MCP_SCOPES


def _answer_scopes(result: Any) -> frozenset[Scope]:
    """Return what an answer needs: that of a person approves, that of a model continues a run."""
    is_form = isinstance(result, Mapping) and "action" in result
    return APPROVE if is_form else RUN


def find_scopes(ctx: Any) -> frozenset[str]:
    """Return the scopes of the request that `ctx` belongs to; all of them over stdio."""
    request = find_http_request(ctx)
    if request is None:
        return ALL_SCOPES
    credentials = request.scope.get("auth")
    return frozenset() if credentials is None else frozenset(credentials.scopes)


def check_may_approve(ctx: Any) -> None:
    """Raise `InsufficientScope` unless who sent a request may approve calls of code."""
    if not may_approve(ctx):
        raise InsufficientScope(
            "The access token lacks the scope approve.",
            remedy="A person with the scope can answer, in a client that shows forms.",
            scopes=("approve",),
        )


def may_approve(ctx: Any) -> bool:
    """Return whether who sent a request may approve calls of code."""
    return "approve" in find_scopes(ctx)
