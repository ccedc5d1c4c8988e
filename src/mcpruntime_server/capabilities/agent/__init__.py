"""Agents: models that write programs, see their results, and submit an answer.

`agent_loop` has the loop of an agent, `conversation` its messages, and `sub_agents` the calls that
start agents from code.
"""

from __future__ import annotations

DEFAULT_STEPS = 20  # programs per task
