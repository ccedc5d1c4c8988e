"""A skill as data: the source of its function `run`, its recorded cases, and its origin.

All of it is immutable. `extraction` and `saving` make skills, `store` keeps them, `library` finds
them. A candidate is a skill without a version.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import Signature
from typing import Any, Literal

from ...errors import NotFound
from ...journal.events import RunValue
from ...journal.principals import LOCAL_PRINCIPAL
from ...journal.recording import RecordedCall
from ...protocol.payloads import SkillDescription
from ...protocol.suggestions import did_you_mean
from .skill_names import parse_version
from .skill_packages import SkillPackage, find_packages
from .source import (
    FunctionNode,
    annotation_of,
    entry_of,
    find_skill_names,
    find_tool_names,
    parse_source,
    signature_of,
)

TOOL_PREFIX, MODEL_PREFIX = "tools.", "llm."  # of the targets of calls

CONTEXT_NAME = "CONTEXT"  # in code: the input of its run
MAX_INPUT_BYTES = 500_000  # of an input in a recorded case
INPUT_KEY = "$input"  # of a recorded argument that is an input, with its name and text

SkillState = Literal["draft", "active", "quarantined", "retired"]
# A check has passed or failed, a tool has other schemas, a person promotes what has passed, or a
# person, failures or disuse take a version out of use.
SkillEvent = Literal["passed", "failed", "tool_changed", "promoted", "retired"]
# A version keeps its state after any other event.
TRANSITIONS: Mapping[SkillState, Mapping[SkillEvent, SkillState]] = {
    "draft": {"passed": "active", "promoted": "active", "retired": "retired"},
    "active": {
        "passed": "active",
        "failed": "quarantined",
        "tool_changed": "quarantined",
        "retired": "retired",
    },
    "quarantined": {"passed": "active", "promoted": "active", "retired": "retired"},
    "retired": {"promoted": "active"},
}
STATE_WORDS = {"draft": "a draft", "active": "in use"}  # in sentences, where they differ


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

    @property
    def tools(self) -> list[str]:
        """The tools that it calls: ["git.git_log"]."""
        targets = {call.target for call in self.calls if call.target.startswith(TOOL_PREFIX)}
        return sorted(target.removeprefix(TOOL_PREFIX) for target in targets)

    @property
    def asks_model(self) -> bool:
        """Whether it asks a model."""
        return any(call.target.startswith(MODEL_PREFIX) for call in self.calls)

    @property
    def result_annotation(self) -> str:
        """The type of its result, as Python source; "" if it is not known."""
        result = self.result
        if result is None or result["kind"] != "json" or result["cut"] or self.compares_stdout:
            return ""
        return annotation_of(json.loads(result["text"]))


@dataclass(frozen=True)
class RecordedStep:
    """One recorded run that a skill may be made of, with what it observed as a case without inputs.

    If it failed, the lines before `failed_line` are known to have run. `input` is what CONTEXT was,
    as an argument of a case has it.
    """

    run_id: str
    code: str
    case: RecordedCase
    succeeded: bool = True
    failed_line: int = 0
    input: Mapping[str, Any] | None = None


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

    @property
    def is_active(self) -> bool:
        """Whether it is in use; of several such versions, the newest is."""
        return self.state == "active"

    @property
    def entry(self) -> FunctionNode:
        """Its function `run`; raises `SkillRefused` if it has none."""
        return entry_of(parse_source(self.source))

    @cached_property
    def signature(self) -> Signature:
        """What its function `run` takes and returns; raises `SkillRefused` if it has none."""
        return signature_of(self.entry)

    @property
    def is_async(self) -> bool:
        """Whether its function has to be awaited."""
        return isinstance(self.entry, ast.AsyncFunctionDef)

    @cached_property
    def used_tools(self) -> Sequence[str]:
        """The tools that its code names or its cases call: ["git.git_log"]."""
        called = {tool for case in self.cases for tool in case.tools}
        return sorted(called.union(find_tool_names(self.source)))

    @cached_property
    def used_skills(self) -> Sequence[str]:
        """The skills that its code names; an exact version is "weather_report@2"."""
        return find_skill_names(self.source)

    @cached_property
    def packages(self) -> Sequence[SkillPackage]:
        """The packages that its source lists, with the digests of their files."""
        return find_packages(self.source)

    @property
    def call_targets(self) -> list[str]:
        """What it calls: tools, skills, and anything else that it asked the host for."""
        targets = {call.target for case in self.cases for call in case.calls}
        return [
            *(f"{TOOL_PREFIX}{tool}" for tool in self.tool_digests),
            *(f"skills.{name}" for name in self.used_skills),
            *sorted(target for target in targets if not target.startswith(TOOL_PREFIX)),
        ]

    @property
    def state_words(self) -> str:
        """Its state, as a sentence has it."""
        return STATE_WORDS.get(self.state, self.state)

    @property
    def body(self) -> str:
        """What searches look through, besides name and words."""
        return self.source

    @property
    def content_identity(self) -> str:
        """A text that changes with its content."""
        return self.id + self.digest

    @property
    def listing(self) -> SkillDescription:
        """The skill as listings show it."""
        return {
            "name": self.name,
            "version": self.version,
            "signature": str(self.signature),
            "summary": self.summary,
            "state": self.state,
        }


VersionsByName = Mapping[str, Sequence[Skill]]  # oldest first


def active_skills(skills: VersionsByName) -> dict[str, Skill]:
    """Return the newest active version of every skill that has one."""
    return {
        version.name: version
        for versions in skills.values()
        for version in versions
        if version.is_active
    }


def pick_version(skills: VersionsByName, reference: str) -> Skill:
    """Return an exact version ("weather_report@2"), or a skill's active or else newest version.

    Raises `NotFound`, `InvalidRequest`.
    """
    name, number = parse_version(reference)
    if name not in skills:
        hint = did_you_mean(name, skills)
        message = f"There is no skill {name!r:.80}. {hint}".rstrip()
        raise NotFound(message, remedy="list_skills shows them.")
    versions = skills[name]
    if number is None:
        return active_skills({name: versions}).get(name, versions[-1])
    for version in versions:
        if version.version == number:
            return version
    newest = versions[-1].version
    raise NotFound(f"There is no version {number} of the skill {name}; the newest is {newest}.")


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
