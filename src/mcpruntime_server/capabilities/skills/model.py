"""A skill as data: a function with a signature, its recorded cases, and its origin.

All of it is immutable. `version_files` writes and reads it, `library` finds it, and `saving` makes
new versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...journal.events import RunValue
from ...journal.recording import RecordedCall
from ...journal.rows import LOCAL_PRINCIPAL

ENTRY_FUNCTION = "run"  # of a skill's module
TOOL_PREFIX, MODEL_PREFIX = "tools.", "llm."  # of the targets of calls

CONTEXT_NAME = "CONTEXT"  # in code: the input of its run
MAX_INPUT_BYTES = 500_000  # of an input in a recorded case
INPUT_KEY = "$input"  # of a recorded argument that is an input, with its name and text

SkillState = Literal["draft", "active", "quarantined", "retired"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a skill; `annotation` and `default` are Python source."""

    name: str
    annotation: str = ""
    default: str | None = None  # None: the caller has to give it
    is_keyword_only: bool = False


@dataclass(frozen=True)
class Signature:
    """What a skill takes and returns; `return_annotation` is Python source, "" if unknown."""

    parameters: tuple[Parameter, ...] = ()
    return_annotation: str = ""
    is_async: bool = False


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
class ExtractedSkill:
    """A skill as it was read from code, before the gate; `source` is its whole module.

    `name` is made of what the code does. Code that was written as a skill, and not run, has no
    `case`. The parameters of one that `is_hand_written` are its author's.
    """

    name: str
    summary: str
    source: str
    signature: Signature
    case: RecordedCase | None = None
    is_hand_written: bool = False


@dataclass(frozen=True)
class Skill:
    """One version of a skill in the store; `version` counts from 1.

    `reasons` say why it is not active. `tool_digests` has the digest of each tool's schemas when
    the skill was last checked, `skill_digests` those of the skills that it uses, and `digest` is
    that of all its files. `origin` is the id of the run that it was made of, or "code", "edit" or
    "import". `saved_at` is in seconds since the epoch. `described_by` is the model that found its
    words, if one did. `signature_hex` was made with the key `signer_key`; "" if it is unsigned.
    `was_in_use` says whether it is or ever was active. `owner` is the principal that saved it.
    """

    name: str
    version: int
    state: SkillState
    summary: str
    source: str
    signature: Signature
    cases: tuple[RecordedCase, ...]
    digest: str
    saved_at: float
    origin: str = ""
    reasons: tuple[str, ...] = ()
    tool_digests: Mapping[str, str] = field(default_factory=dict)
    skill_digests: Mapping[str, str] = field(default_factory=dict)
    described_by: str = ""
    signature_hex: str = ""
    signer_key: str = ""
    was_in_use: bool = False
    owner: str = LOCAL_PRINCIPAL

    @property
    def id(self) -> str:
        """The exact version, as people write it: "weather_report@2"."""
        return f"{self.name}@{self.version}"

    @property
    def call_targets(self) -> list[str]:
        """What it calls: tools, skills, and anything else that it asked the host for."""
        targets = {call.target for case in self.cases for call in case.calls}
        return [
            *(f"{TOOL_PREFIX}{tool}" for tool in self.tool_digests),
            *(f"skills.{name}" for name in self.skill_digests),
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


def format_signature(signature: Signature) -> str:
    """Return a signature as Python writes it: `(city: str = "Oslo") -> dict`."""
    parts: list[str] = []
    for parameter in signature.parameters:
        if parameter.is_keyword_only and "*" not in parts:
            parts.append("*")
        text = parameter.name
        if parameter.annotation:
            text += f": {parameter.annotation}"
        if parameter.default is not None:
            text += " = " if parameter.annotation else "="
            text += parameter.default
        parts.append(text)
    returns = f" -> {signature.return_annotation}" if signature.return_annotation else ""
    return f"({', '.join(parts)}){returns}"
