"""Agents: models that write programs, see their results, and submit an answer.

`agent_loop` is the loop of an agent, `conversation` its messages, `sub_agents` the calls by which
code starts agents.
"""

from __future__ import annotations

DEFAULT_STEPS = 20  # programs of one task
