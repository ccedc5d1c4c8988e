"""The events of a task that an agent does, for those who watch it."""

from ..capabilities.agent.agent_loop import (
    AnswerRejected,
    ModelAnswered,
    ProgramFinished,
    ProgramStarted,
)
from .reference_agent.reference_agent import RouteChosen, SkillsFound, TaskEvent, TaskFinished

__all__ = [
    "AnswerRejected",
    "ModelAnswered",
    "ProgramFinished",
    "ProgramStarted",
    "RouteChosen",
    "SkillsFound",
    "TaskEvent",
    "TaskFinished",
]
