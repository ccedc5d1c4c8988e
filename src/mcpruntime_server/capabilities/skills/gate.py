"""The gate that code must pass to be a skill in use: it proves itself in a clean sandbox, against its recording.

1. It can be imported alone, and importing it does nothing.
2. Each recorded case comes out again, all calls answered as they were then.
3. Parameters matter: with another value, the calls or the outcome are others.
4. It is no constant.

Rule: whether it has passed is decided here, on the host; the sandbox only says what happened.
"""

from __future__ import annotations

import ast
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from typing import Any

import anyio

from ...errors import ReplayDiverged
from ...journal.events import RunStarted
from ...journal.recording import RecordedCall, Recording
from ...protocol.presentation import truncate_text
from .lint import parse_source
from .model import ENTRY_FUNCTION, ExtractedSkill, RecordedCase, Signature, Skill
from .parameters import literal_value

TRIAL_S = 30.0  # for one execution
LEAST_S, SLOWER = (
    3.0,
    5,
)  # for one with other values: so long, and so many times as long as the recorded one
GATE_S = 180.0  # for all of them
CHANCE = re.compile(
    r"\b(random|secrets|uuid\w*|shuffle|sample|choices?|tempfile)\b"
)  # what code draws chance with
FIRST_NUMBER = re.compile(r"([0-9]*)([0-9])(?![0-9])", re.ASCII)
DRAWS = 4  # other seeds for code that does: two things that are shuffled are as they were half of the time
LATER_S = 403 * 86_400.0 + 5 * 3600 + 1234.5
MAX_TOLD = 10  # values that code tells apart, which are tried where others make no difference
SHOWN = 300  # characters of a value or an error in a reason
RECORDED = "case"  # stands for the run that a case was; what repeats a run never goes on without its recording
CANDIDATE = 0  # the version under which code is imported that has none yet
BY_CHANCE = "What comes out depends on chance or on the time of day: make what it needs of them a parameter."
NO_CASE_REASON = "It has no recorded case: run it once, and save that run."
CONSTANT = (
    "It is a constant: it takes nothing, and calls nothing. Give what it works on a name of its own, such as "
    "city = 'Oslo', or write it as a function that takes it."
)
CHANGES = "A call changes the default of a parameter, and so what later calls return: have the code change a copy."
PRINTED_MORE = (
    "The run printed more than its last statement, which alone is the result. End it with one expression that has all "
    "of the result, and save that run."
)
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")

TrialResult = tuple[Recording, ReplayDiverged | None]
RunTrial = Callable[[str, Recording], Awaitable[TrialResult]]
OpenTrial = Callable[[], AbstractAsyncContextManager[RunTrial]]


@dataclass(frozen=True)
class Verdict:
    """What came of it: `reasons` against it, its `cases` with the calls that they really make.

    `unfit` are the parameters that may as well be literals: they do not matter, or nothing works but what was recorded
    and there is no other. Where others are, such a parameter is a key of a table of answers.
    """

    reasons: tuple[str, ...]
    cases: tuple[RecordedCase, ...]
    unfit: tuple[str, ...] = ()


async def run_gate(
    name: str,
    made: ExtractedSkill | Skill,
    cases: Sequence[RecordedCase],
    open_trial: OpenTrial,
    version: int = CANDIDATE,
) -> Verdict:
    """Return what there is to say against a skill that can be imported as `skills.<name>.v<version>`."""
    draws = DRAWS if CHANCE.search(made.source) else 1
    gate = Gate(f"skills.{name}.v{version}", made.signature, parse_source(made.source), draws)
    with anyio.move_on_after(GATE_S) as scope:
        async with open_trial() as trial:
            reasons, kept, unfit = await gate.pass_through(trial, cases)
    if scope.cancelled_caught:
        return Verdict((f"Its cases did not end within {GATE_S:.0f} seconds.",), tuple(cases))
    return Verdict(tuple(reasons), tuple(kept), tuple(unfit))


class Gate:
    """One skill on its way through the gate: imported from `module`, and tried with `draws` other seeds of chance."""

    def __init__(self, module: str, signature: Signature, tree: ast.Module, draws: int) -> None:
        self._module = module
        self._signature = signature
        self._tree = tree
        self._draws = draws
        self._limit_s = LEAST_S

    async def pass_through(
        self, trial: RunTrial, cases: Sequence[RecordedCase]
    ) -> tuple[list[str], list[RecordedCase], list[str]]:
        """Return the reasons against it, its cases, and the parameters that are unfit."""
        if reason := await self._import_alone(trial):
            return [reason], list(cases), []
        if not cases:
            return [NO_CASE_REASON], [], []
        kept, outcomes = [], []
        for case in cases:
            began = anyio.current_time()
            outcome, diverged = await trial(self._code(case.inputs, case), recording_of(case))
            self._limit_s = max(self._limit_s, LEAST_S + SLOWER * (anyio.current_time() - began))
            reason = difference(case, outcome, diverged)
            for _ in range(0 if reason else self._draws):  # now with other chance, and long after
                other = recording_of(
                    replace(case, seed="", clock_readings=much_later(outcome.clock_readings))
                )
                again, diverged = await trial(self._code(case.inputs, case), other)
                if diverged or fingerprint(again) != fingerprint(outcome):
                    reason = BY_CHANCE
                    break
            if reason:
                return [reason], list(cases), []
            outcomes.append(outcome)
            kept.append(
                replace(case, calls=tuple(call for call in outcome.calls if call.in_ledger))
            )
        if not self._signature.parameters and not any(case.calls for case in kept):
            return [CONSTANT], kept, []
        if await self._changes_defaults(trial, kept[0]):
            return [CHANGES], kept, []
        reasons, unfit = await self._vary(trial, kept, outcomes)
        return reasons, kept, unfit

    async def _import_alone(self, trial: RunTrial) -> str:
        outcome, _ = await trial(
            f"from {self._module} import {ENTRY_FUNCTION}", recording_of(RecordedCase({}))
        )
        if outcome.outcome["status"] != "ok":
            return f"It cannot be imported: {error_of(outcome)}"
        if any(call.in_ledger for call in outcome.calls) or any(outcome.output.values()):
            return "Importing it calls or prints something: move that into `run`."
        return ""

    async def _vary(
        self, trial: RunTrial, cases: Sequence[RecordedCase], outcomes: Sequence[Recording]
    ) -> tuple[list[str], list[str]]:
        """Return the reasons against parameters, and those that are unfit; one that matters in any case is fit."""
        defaults = defaults_of(self._signature)
        names = list(dict.fromkeys([*(name for case in cases for name in case.inputs), *defaults]))
        reasons: dict[str, str] = {}
        broken = set()
        for name in names:
            found: list[TrialResult] = []
            for case, recorded in zip(cases, outcomes, strict=True):
                inputs = {**defaults, **case.inputs}
                if name in inputs and (
                    found := await self._others(trial, case, recorded, name, inputs[name])
                ):
                    break
            failed = [
                not diverged and outcome.outcome["status"] != "ok" for outcome, diverged in found
            ]
            if not found:
                reasons[name] = f"Parameter `{name}` never reaches a call or the result."
            elif all(failed) and not any(case.calls for case in cases):
                broken.add(name)
                reasons[name] = (
                    f"It works for the recorded value of parameter `{name}` only: {error_of(found[0][0])}"
                )
        unfit = reasons.keys() if len(reasons) == len(names) else reasons.keys() - broken
        return list(reasons.values()), list(unfit)

    async def _others(
        self, trial: RunTrial, case: RecordedCase, recorded: Recording, name: str, value: Any
    ) -> list[TrialResult]:
        """Return what comes of a case with other values of a parameter; [] if that is always the same."""
        for values in (variants(value), told_apart(self._tree, value)):  # these are seldom needed
            found = [
                await trial(
                    self._code({**case.inputs, name: other}, case),
                    recording_of(case, self._limit_s),
                )
                for other in values
            ]
            if any(
                diverged or fingerprint(outcome) != fingerprint(recorded)
                for outcome, diverged in found
            ):
                return found
        return []

    async def _changes_defaults(self, trial: RunTrial, case: RecordedCase) -> bool:
        """Return whether a call changes what a parameter is for whoever leaves it out after that."""
        changeable = {
            name
            for name, each in defaults_of(self._signature).items()
            if isinstance(each, (list, dict))
        }
        if not changeable:
            return False
        inputs = {name: value for name, value in case.inputs.items() if name not in changeable}
        seen = f"str(signature({ENTRY_FUNCTION}))"
        before = f"from inspect import signature\nfrom {self._module} import {ENTRY_FUNCTION}\nit_was = {seen}"
        code = f"{before}\n{self._code(inputs, case)}\n{seen} == it_was"
        outcome, _ = await trial(code, recording_of(case, self._limit_s))
        return text_of(outcome.outcome["value"]) == "false"

    def _code(self, inputs: Mapping[str, Any], case: RecordedCase) -> str:
        """Return code that calls the skill."""
        call = f"{ENTRY_FUNCTION}(**{dict(inputs)!r})"
        call = f"await {call}" if self._signature.is_async else call
        return f"from {self._module} import {ENTRY_FUNCTION}\n" + (
            f"print({call})" if case.compares_stdout else call
        )


def recording_of(case: RecordedCase, limit_s: float = TRIAL_S) -> Recording:
    """Return the recording that a case is, of a run that may take `limit_s`."""
    seed = case.seed or secrets.token_hex(16)
    start = RunStarted(RECORDED, None, 1, "", "<case>", min(limit_s, TRIAL_S), seed=seed)
    return Recording("", start, case.calls, dict(case.clock_readings))


def much_later(readings: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
    """Return what clocks would tell after the time of `LATER_S`, on another day of the week and the year."""
    return {
        clock: [told + LATER_S for told in values] if clock.partition("@")[0] == "time" else values
        for clock, values in readings.items()
    }


def difference(case: RecordedCase, outcome: Recording, diverged: ReplayDiverged | None) -> str:
    """Return how a case came out otherwise than it was recorded; "" if it did not."""
    if diverged is not None:
        return f"Its recorded case does not come out again: {diverged.message}"
    if outcome.outcome["status"] != "ok":
        return f"Its recorded case does not come out again: {error_of(outcome)}"
    if case.compares_stdout:
        was, now = case.stdout, outcome.output.get("stdout", "")
    else:
        was, now = text_of(case.result), text_of(outcome.outcome["value"])
    if was == now:
        return ""
    if case.compares_stdout and was.endswith(now):
        return PRINTED_MORE
    return (
        "Its recorded case does not come out again: it was "
        f"{truncate_text(was, SHOWN)[0]}, and is {truncate_text(now, SHOWN)[0]} in a clean sandbox. "
        "It may depend on variables, files, chance or the time."
    )


def text_of(value: Mapping[str, Any] | None) -> str:
    """Return a run's value as text that equal values share."""
    if value is None:
        return "None"
    return str(value["text"]) if value["kind"] == "json" else ADDRESS.sub("0x", str(value["text"]))


def fingerprint(outcome: Recording) -> tuple[object, ...]:
    """Return what is the same for executions that did and said the same."""
    calls: list[RecordedCall] = [call for call in outcome.calls if call.in_ledger]
    error = outcome.outcome["error"] or {}
    return (
        outcome.outcome["status"],
        text_of(outcome.outcome["value"]),
        error.get("type"),
        error.get("message"),
        tuple(sorted(outcome.output.items())),
        tuple(sorted((call.target, call.args) for call in calls)),
    )


def error_of(outcome: Recording) -> str:
    """Return in one line why an execution failed."""
    if outcome.outcome["status"] == "timeout":
        return f"it does not end within {outcome.start.timeout_s:.0f} seconds"
    error = outcome.outcome["error"] or {}
    text = f"{error.get('type', outcome.outcome['status'])}: {error.get('message', '')}".strip(": ")
    return truncate_text(" ".join(text.split()), SHOWN)[0]


def defaults_of(signature: Signature) -> dict[str, Any]:
    """Return what parameters are that a case may leave out, as far as these are plain values."""
    found = {}
    for each in signature.parameters:
        if each.default is not None:
            with suppress(ValueError):
                found[each.name] = literal_value(ast.parse(each.default, mode="eval").body)
    return found


def told_apart(tree: ast.AST, value: Any) -> list[Any]:
    """Return values of the kind of `value` that code compares with or looks up: `if style == "long"`."""
    found: list[Any] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Compare, ast.MatchValue)):
            found += [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
        elif isinstance(node, ast.Dict):
            found += [each.value for each in node.keys if isinstance(each, ast.Constant)]
    return list(
        dict.fromkeys(each for each in found if type(each) is type(value) and each != value)
    )[:MAX_TOLD]


def renumbered(text: str) -> str:
    """Return a text with another first number in it, where dates stay dates, and JSON stays JSON."""
    return FIRST_NUMBER.sub(
        lambda found: f"{found[1]}{int(found[2]) - 1 if int(found[2]) else 1}", text, count=1
    )


def variants(value: Any) -> list[Any]:
    """Return other values of the kind of `value`, the likeliest to matter first."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return list(
            dict.fromkeys(
                other for other in (value - 1, value + 1, value * 3 + 7, 0) if other != value
            )
        )
    if isinstance(value, str):
        others = (f"{value}x", value[: len(value) // 2], "zz", renumbered(value))
        return list(dict.fromkeys(other for other in others if other != value))
    if isinstance(value, list):
        return [value[:-1], [*value, *value[:1]], value[::-1]] if value else [["x"], [1]]
    if isinstance(value, dict):
        return [
            {key: each for key, each in value.items() if key != gone} for gone in list(value)[:3]
        ] or [{"x": 1}]
    return ["x", 1]
