"""What a skill is: a function with a signature, the cases that it was recorded with, and where it came from.

Everything here is immutable data; how it lies in a folder is `folder`'s, and what becomes of it `library`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mcpruntime_server.journal.recording import RecordedCall

ENTRY_FUNCTION = "run"  # the function that a skill's module is asked for

TOOL_PREFIX, MODEL_PREFIX = (
    "tools.",
    "llm.",
)  # what the targets of calls to tools begin with, and of questions to models

SkillState = Literal["draft", "active", "quarantined", "retired"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a skill; `annotation` and `default` are Python source, a `default` of None is none at all."""

    name: str
    annotation: str = ""
    default: str | None = None
    is_keyword_only: bool = False


@dataclass(frozen=True)
class Signature:
    """What a skill takes and returns; `returns` is Python source, or "" where it is not known."""

    parameters: tuple[Parameter, ...] = ()
    return_annotation: str = ""
    is_async: bool = False


@dataclass(frozen=True)
class RecordedCase:
    """What a skill did once: `inputs` by parameter, the answers that it got, and how it came out.

    `output` is what a run's value is in the journal (keys: kind, type, text, cut), `printed` what it printed. A case
    `by_print` came out right if it printed the same, whatever it returned: its code was recorded as printing its
    result. `seed` and `readings` are the chance and the clocks that it met.
    """

    inputs: Mapping[str, Any]
    calls: tuple[RecordedCall, ...] = ()
    result: Mapping[str, Any] | None = None
    stdout: str = ""
    compares_stdout: bool = False
    seed: str = ""
    clock_readings: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedStep:
    """One recorded run that a skill may be made of; `value` is as in `Case.output`.

    Of one that failed, the lines before `failed_at` are known to have been executed.
    """

    run_id: str
    code: str
    succeeded: bool
    calls: tuple[RecordedCall, ...] = ()
    result: Mapping[str, Any] | None = None
    stdout: str = ""
    seed: str = ""
    clock_readings: Mapping[str, list[float]] = field(default_factory=dict)
    failed_line: int = 0


@dataclass(frozen=True)
class ExtractedSkill:
    """A skill as it was read off code: `source` is the whole module, whose function `run` has `signature`.

    `name` is a Python name made of what the code does, `summary` one line, `case` the recording; code that was written
    as a skill and not run has none. One that `is_given` was written as a function, whose parameters are its author's.
    """

    name: str
    summary: str
    source: str
    signature: Signature
    case: RecordedCase | None = None
    is_hand_written: bool = False


@dataclass(frozen=True)
class Skill:
    """One version of a skill as it lies in the store; `version` counts from 1.

    `reasons` say why it is not active. `tools` maps what it calls ("git.git_log") to the digest of the tool's schemas
    when it was last checked, `skills` what it uses ("weather_report") to the version's digest. `digest` is that of all
    its files. `origin` says where it came from: the run, or "code", "edit", "import", with `at` in seconds since the
    epoch. `described` is the model that found its words, if one did. `signed` is the signature by the key `signer`, its
    public one, both in hex; "" if there is none.
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

    @property
    def id(self) -> str:
        """The exact version, as people write it: "weather_report@2"."""
        return f"{self.name}@{self.version}"

    @property
    def call_targets(self) -> list[str]:
        """What it calls: tools, skills, and what else there is to ask."""
        targets = {call.target for case in self.cases for call in case.calls}
        below = [
            *(f"{TOOL_PREFIX}{tool}" for tool in self.tool_digests),
            *(f"skills.{name}" for name in self.skill_digests),
        ]
        return [*below, *sorted(target for target in targets if not target.startswith(TOOL_PREFIX))]


def is_model_request(target: str) -> bool:
    """Return whether a call is a question to a model."""
    return target.startswith(MODEL_PREFIX)


def format_signature(signature: Signature) -> str:
    """Return a signature as Python writes it: `(city: str = "Oslo") -> dict`."""
    parts: list[str] = []
    for parameter in signature.parameters:
        if parameter.is_keyword_only and "*" not in parts:
            parts.append("*")
        text = parameter.name + (f": {parameter.annotation}" if parameter.annotation else "")
        if parameter.default is not None:
            text += f" = {parameter.default}" if parameter.annotation else f"={parameter.default}"
        parts.append(text)
    return f"({', '.join(parts)})" + (
        f" -> {signature.return_annotation}" if signature.return_annotation else ""
    )
