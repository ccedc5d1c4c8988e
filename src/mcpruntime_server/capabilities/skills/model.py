"""A skill as data: the source of its function `run`, its recorded cases, and its origin.

All of it is immutable. `extraction` and `saving` make skills, `store` keeps them, `library` finds
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from ...journal.events import RunValue
from ...journal.recording import RecordedCall
from ...journal.rows import LOCAL_PRINCIPAL
from .lint import find_skill_names
from .signatures import Signature, entry_of, parse_source, signature_of

TOOL_PREFIX, MODEL_PREFIX = "tools.", "llm."  # of the targets of calls

CONTEXT_NAME = "CONTEXT"  # in code: the input of its run
MAX_INPUT_BYTES = 500_000  # of an input in a recorded case
INPUT_KEY = "$input"  # of a recorded argument that is an input, with its name and text

SkillState = Literal["draft", "active", "quarantined", "retired"]


@dataclass(frozen=True)
class RecordedCase:
    """One recorded use of a skill: its arguments, the answers to its calls, and its result.

    A case that `compares_stdout` is reproduced when it prints the same, whatever it returns: its
    code printed its result. `seed` and `clock_readings` are the randomness and the time that the
    code observed.
    """

    inputs: Mapping[str, Any]
    calls: tuple[RecordedCall, ...] = ()
    result: RunValue | None = None
    stdout: str = ""
    compares_stdout: bool = False
    seed: str = ""
    clock_readings: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedStep:
    """One recorded run that a skill may be made of.

    If it failed, the lines before `failed_line` are known to have run.
    """

    run_id: str
    code: str
    succeeded: bool
    calls: tuple[RecordedCall, ...] = ()
    result: RunValue | None = None
    stdout: str = ""
    seed: str = ""
    clock_readings: Mapping[str, list[float]] = field(default_factory=dict)
    failed_line: int = 0
    input: Mapping[str, Any] | None = None  # what CONTEXT was, as an argument of a case has it


@dataclass(frozen=True)
class Skill:
    """A skill, or one version of it in a store.

    In a store, `version` counts from 1, `digest` is that of all files, and `owner` is the principal
    that saved it at `saved_at`, in seconds since the epoch. `reasons` say why it is not active, and
    `was_in_use` whether it is or ever was. `origin` is the id of the run that it was made of, or
    "code", "edit" or "import".

    `tool_digests` has the digest of each tool's schemas when the skill was last checked.
    `described_by` is the model that found its words, if one did; the words and parameters of one
    that `is_hand_written` are its author's. `signature_hex` was made with the key `signer_key`; ""
    if it is unsigned.
    """

    name: str
    summary: str
    source: str  # of its whole module
    cases: tuple[RecordedCase, ...] = ()
    version: int = 0
    state: SkillState = "draft"
    reasons: tuple[str, ...] = ()
    origin: str = ""
    saved_at: float = 0.0
    tool_digests: Mapping[str, str] = field(default_factory=dict)
    described_by: str = ""
    is_hand_written: bool = False
    signature_hex: str = ""
    signer_key: str = ""
    was_in_use: bool = False
    digest: str = ""
    owner: str = LOCAL_PRINCIPAL

    @property
    def id(self) -> str:
        """The exact version, as people write it: "weather_report@2"."""
        return f"{self.name}@{self.version}"

    @cached_property
    def signature(self) -> Signature:
        """What its function `run` takes and returns; raises `SkillRefused` if it has none."""
        return signature_of(entry_of(parse_source(self.source)))

    @cached_property
    def used_skills(self) -> Sequence[str]:
        """The skills that its code names; an exact version is "weather_report@2"."""
        return find_skill_names(self.source)

    @property
    def call_targets(self) -> list[str]:
        """What it calls: tools, skills, and anything else that it asked the host for."""
        targets = {call.target for case in self.cases for call in case.calls}
        return [
            *(f"{TOOL_PREFIX}{tool}" for tool in self.tool_digests),
            *(f"skills.{name}" for name in self.used_skills),
            *sorted(target for target in targets if not target.startswith(TOOL_PREFIX)),
        ]


def make_input_value(name: str, text: str) -> dict[str, Any]:
    """Return an input as an argument of a recorded case has it."""
    return {INPUT_KEY: {"name": name, "text": text}}


def is_input_value(value: Any) -> bool:
    """Return whether a recorded argument is an input, which code gets as CONTEXT."""
    if not isinstance(value, Mapping) or value.keys() != {INPUT_KEY}:
        return False
    found = value[INPUT_KEY]
    return isinstance(found, Mapping) and all(
        isinstance(found.get(name), str) for name in ("name", "text")
    )


def is_model_request(target: str) -> bool:
    """Return whether a call asks a model."""
    return target.startswith(MODEL_PREFIX)
