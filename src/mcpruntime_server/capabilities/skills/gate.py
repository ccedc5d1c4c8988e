"""Test a skill against its recorded cases in a clean sandbox, before it may be used.

1. It can be imported alone, and importing it does nothing.
2. Each recorded case has the same result again when its calls are answered from the recording, also
   with other randomness and a year later: what depends on today would pass otherwise.
3. Parameters matter: another value changes the calls or the result.
4. It is not a constant.

Code that hangs with other values gets a fraction of the time that a save may take, because one save
at a time is at the gate and others wait for it.

Rule 1: the host decides whether a skill passes; the sandbox only reports what happened.
Rule 2: a candidate gets no sign that it is being tested: its name, its version, its state, and the
code that calls it are those of a use. It can still notice that its calls are answered from a
recording, so the gate finds what does not work, and not what is malicious.
"""

from __future__ import annotations

import ast
import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import anyio

from ...errors import ReplayDiverged
from ...journal.events import InputEntry, RunStarted, RunValue
from ...journal.recording import Recording
from ...protocol.truncation import truncate_text
from .literals import literal_value
from .model import (
    CONTEXT_NAME,
    INPUT_KEY,
    RecordedCase,
    Skill,
    is_input_value,
    make_input_value,
)
from .signatures import ENTRY_FUNCTION, Signature, parse_source

TRIAL_TIMEOUT_S = 30.0  # of one execution
GATE_TIMEOUT_S = 180.0  # of all executions
MIN_VARIANT_TIMEOUT_S = 3.0  # of an execution with other values,
VARIANT_SLOWDOWN = 5  # which may take this many times as long as the recorded one
RESEEDED_TRIALS = (
    4  # of code that uses randomness: two shuffled items keep their order half of the time
)
RANDOMNESS = re.compile(r"\b(random|secrets|uuid\w*|shuffle|sample|choices?|tempfile)\b")
# to another weekday, day of the year and time of day
TIME_SHIFT_S = 403 * 86_400.0 + 5 * 3600 + 1234.5
MAX_COMPARED_VALUES = 10  # that are tried where other variants make no difference
MAX_SHOWN_CHARS = 300  # of a value or an error in a reason
CASE_RUN_ID = "case"  # in recordings made of cases; runs that replay one never use live handlers
FIRST_NUMBER = re.compile(r"([0-9]*)([0-9])(?![0-9])", re.ASCII)
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
IMPORT_HAS_EFFECTS = "Importing it calls, prints or writes something: move that into `run`."
DEPENDS_ON_CHANCE = (
    "The result depends on randomness or on the time: make what it needs of them a parameter."
)
NO_CASE_REASON = "It has no recorded case: run it once, and save that run."
IS_CONSTANT = (
    "It is a constant: it has no parameters and makes no calls. Assign what it works on to a "
    "variable, such as city = 'Oslo', or write it as a function with parameters."
)
CHANGES_DEFAULT = (
    "A call changes the default of a parameter, and so the results of later calls: "
    "change a copy instead."
)
PRINTED_MORE = (
    "The run printed more than its last statement, which alone is the result. "
    "End it with one expression that has the whole result, and save that run."
)

TrialResult = tuple[Recording, ReplayDiverged | None]


class Trial(Protocol):
    """Executes code in a session of its own, each time as its first step."""

    @property
    def session_id(self) -> str:
        """The session whose calls come from that code."""

    async def execute(self, code: str, recording: Recording) -> TrialResult:
        """Execute code; its calls are answered from a recording."""


OpenTrial = Callable[[], AbstractAsyncContextManager[Trial]]
OfferSkill = Callable[[str, Skill], AbstractContextManager[None]]  # to the code of a session
StoreBlob = Callable[[bytes], Awaitable[str]]  # returns the digest


@dataclass(frozen=True)
class Verdict:
    """The outcome of the gate: `reasons` against a skill, and its `cases` with their actual calls.

    `removable` are parameters that can be literals as well: they do not matter, or only their
    recorded value works and there is no other parameter. If there are others, such a parameter
    selects from a table of answers.
    """

    reasons: tuple[str, ...]
    cases: tuple[RecordedCase, ...]
    removable: tuple[str, ...] = ()


async def run_gate(
    candidate: Skill, open_trial: OpenTrial, offer_skill: OfferSkill, store_blob: StoreBlob
) -> Verdict:
    """Test a skill against its cases.

    `offer_skill` makes it the version in use for the code of one session. `store_blob` keeps the
    content of recorded inputs for the executions.
    """
    if not candidate.cases:
        return Verdict((NO_CASE_REASON,), ())
    candidate = replace(candidate, state="active", reasons=())
    with anyio.move_on_after(GATE_TIMEOUT_S):
        async with open_trial() as trial:
            with offer_skill(trial.session_id, candidate):
                return await _Gate(candidate, trial, store_blob).test(candidate.cases)
    reason = f"Its cases did not finish within {GATE_TIMEOUT_S:.0f} seconds."
    return Verdict((reason,), candidate.cases)


class _Gate:
    """The test of one skill, which the code of `trial` imports like any skill in use."""

    def __init__(self, candidate: Skill, trial: Trial, store_blob: StoreBlob) -> None:
        self._module = f"skills.{candidate.name}"
        self._exact_module = f"{self._module}.v{candidate.version}"
        self._signature = candidate.signature
        self._tree = parse_source(candidate.source)
        self._trial = trial
        self._store_blob = store_blob
        self._reseeded_trials = RESEEDED_TRIALS if RANDOMNESS.search(candidate.source) else 1
        self._variant_timeout_s = MIN_VARIANT_TIMEOUT_S

    async def test(self, cases: Sequence[RecordedCase]) -> Verdict:
        if reason := await self._test_import():
            return Verdict((reason,), tuple(cases))
        tested: list[RecordedCase] = []
        recordings: list[Recording] = []
        for case in cases:
            recording, reason = await self._reproduce(case)
            if reason:
                return Verdict((reason,), tuple(cases))
            recordings.append(recording)
            tested.append(
                replace(case, calls=tuple(each for each in recording.calls if each.in_ledger))
            )
        if not self._signature.parameters and not any(case.calls for case in tested):
            return Verdict((IS_CONSTANT,), tuple(tested))
        if await self._changes_default(tested[0]):
            return Verdict((CHANGES_DEFAULT,), tuple(tested))
        reasons, removable = await self._vary_parameters(tested, recordings)
        return Verdict(tuple(reasons), tuple(tested), tuple(removable))

    async def _test_import(self) -> str:
        """Return what is wrong with importing it alone; "" if nothing is."""
        code = f"from {self._module} import {ENTRY_FUNCTION}"
        recording, diverged = await self._trial.execute(code, make_recording(RecordedCase({})))
        if recording.outcome["status"] != "ok":
            return f"It cannot be imported: {describe_error(recording)}"
        has_calls = diverged is not None or any(call.in_ledger for call in recording.calls)
        if has_calls or any(recording.output.values()) or recording.file_digests:
            return IMPORT_HAS_EFFECTS
        return ""

    async def _reproduce(self, case: RecordedCase) -> tuple[Recording, str]:
        """Execute a case as recorded, then as an exact version with other randomness and time.

        Return the first recording, and what is wrong; "" if nothing is.
        """
        started = anyio.current_time()
        first, diverged = await self._run_case(case, case.inputs)
        elapsed_s = anyio.current_time() - started
        self._variant_timeout_s = max(
            self._variant_timeout_s, MIN_VARIANT_TIMEOUT_S + VARIANT_SLOWDOWN * elapsed_s
        )
        if reason := find_difference(case, first, diverged):
            return first, reason
        later = replace(case, seed="", clock_readings=shift_time(first.clock_readings))
        for _ in range(self._reseeded_trials):
            again, diverged = await self._run_case(later, case.inputs, module=self._exact_module)
            if diverged or not self._is_repetition(again, first):
                return first, DEPENDS_ON_CHANCE
        return first, ""

    def _is_repetition(self, again: Recording, first: Recording) -> bool:
        """Return whether the exact version did the same; its module has another name."""
        repeated = repr(fingerprint_of(again)).replace(self._exact_module, self._module)
        return repeated == repr(fingerprint_of(first))

    async def _changes_default(self, case: RecordedCase) -> bool:
        """Return whether a call changes a default, and so the results of later calls."""
        defaults = find_defaults(self._signature)
        mutable = {name for name, value in defaults.items() if isinstance(value, (list, dict))}
        if not mutable:
            return False
        inputs = {name: value for name, value in case.inputs.items() if name not in mutable}
        signature = f"str(signature({ENTRY_FUNCTION}))"
        code = (
            f"from inspect import signature\nfrom {self._module} import {ENTRY_FUNCTION}\n"
            f"before = {signature}\n{self._call(inputs, case)}\n{signature} == before"
        )
        recording = await self._make_recording(case, inputs, self._variant_timeout_s)
        recording, _ = await self._trial.execute(code, recording)
        return text_of_result(recording.outcome["value"]) == "false"

    async def _vary_parameters(
        self, cases: Sequence[RecordedCase], recordings: Sequence[Recording]
    ) -> tuple[list[str], list[str]]:
        """Return the reasons against parameters, and the removable ones.

        A parameter has to matter in one case at least.
        """
        defaults = find_defaults(self._signature)
        names = dict.fromkeys([*(name for case in cases for name in case.inputs), *defaults])
        makes_calls = any(case.calls for case in cases)
        idle: dict[str, str] = {}
        broken: dict[str, str] = {}
        for name in names:
            results: list[TrialResult] = []
            for case, recording in zip(cases, recordings, strict=True):
                if not results and name in {**defaults, **case.inputs}:
                    value = {**defaults, **case.inputs}[name]
                    results = await self._try_other_values(case, recording, name, value)
            failed = [
                not diverged and recording.outcome["status"] != "ok"
                for recording, diverged in results
            ]
            if not results:
                idle[name] = f"Parameter `{name}` never reaches a call or the result."
            elif all(failed) and not makes_calls:
                error = describe_error(results[0][0])
                broken[name] = (
                    f"It works only for the recorded value of parameter `{name}`: {error}"
                )
        reasons = [{**idle, **broken}[name] for name in names if name in idle or name in broken]
        removable = list(names) if len(reasons) == len(names) else list(idle)
        return reasons, removable

    async def _try_other_values(
        self, case: RecordedCase, recorded: Recording, name: str, value: Any
    ) -> list[TrialResult]:
        """Return the trials of a case with other values of a parameter; [] if nothing changes."""
        for values in (make_variants(value), find_compared_values(self._tree, value)):
            results = [
                await self._run_case(case, {**case.inputs, name: other}, self._variant_timeout_s)
                for other in values
            ]
            if any(
                diverged or fingerprint_of(each) != fingerprint_of(recorded)
                for each, diverged in results
            ):
                return results
        return []

    async def _run_case(
        self,
        case: RecordedCase,
        inputs: Mapping[str, Any],
        timeout_s: float = TRIAL_TIMEOUT_S,
        module: str = "",
    ) -> TrialResult:
        """Call the skill with `inputs`; its calls are answered from a recorded case."""
        recording = await self._make_recording(case, inputs, timeout_s)
        code = f"from {module or self._module} import {ENTRY_FUNCTION}\n{self._call(inputs, case)}"
        return await self._trial.execute(code, recording)

    async def _make_recording(
        self, case: RecordedCase, inputs: Mapping[str, Any], timeout_s: float
    ) -> Recording:
        """Return the recording of a case in which CONTEXT is the input among `inputs`."""
        recording = make_recording(case, timeout_s)
        for value in filter(is_input_value, inputs.values()):
            name, text = value[INPUT_KEY]["name"], value[INPUT_KEY]["text"]
            data = text.encode("utf-8", "surrogatepass")
            digest = await self._store_blob(data)
            entry = InputEntry(
                name=name, digest=digest, path="", size=len(data), stamp="", start=0, end=None
            )
            recording = replace(recording, start=replace(recording.start, context=[entry]))
        return recording

    def _call(self, inputs: Mapping[str, Any], case: RecordedCase) -> str:
        """Return the statement with which somebody would call the skill."""
        arguments = [
            f"{name}={CONTEXT_NAME if is_input_value(value) else repr(value)}"
            for name, value in inputs.items()
        ]
        call = f"{ENTRY_FUNCTION}({', '.join(arguments)})"
        if self._signature.is_async:
            call = f"await {call}"
        return f"print({call})" if case.compares_stdout else call


# recordings ---------------------------------------------------------------------------------------


def make_recording(case: RecordedCase, timeout_s: float = TRIAL_TIMEOUT_S) -> Recording:
    """Return the recording of a run that a case was; its replay may take `timeout_s`."""
    seed = case.seed or secrets.token_hex(16)
    timeout_s = min(timeout_s, TRIAL_TIMEOUT_S)
    start = RunStarted(CASE_RUN_ID, None, 1, "", "<case>", timeout_s, seed=seed)
    return Recording("", start, case.calls, dict(case.clock_readings))


def shift_time(readings: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
    """Return clock readings of `TIME_SHIFT_S` later; only clocks that tell the date change."""
    return {
        clock: [value + TIME_SHIFT_S for value in values]
        if clock.partition("@")[0] == "time"
        else values
        for clock, values in readings.items()
    }


def find_difference(
    case: RecordedCase, recording: Recording, diverged: ReplayDiverged | None
) -> str:
    """Return how an execution differs from its recorded case; "" if it does not."""
    if diverged is not None:
        return f"Its recorded case is not reproduced: {diverged.message}"
    if recording.outcome["status"] != "ok":
        return f"Its recorded case is not reproduced: {describe_error(recording)}"
    if case.compares_stdout:
        recorded, actual = case.stdout, recording.output.get("stdout", "")
    else:
        recorded, actual = text_of_result(case.result), text_of_result(recording.outcome["value"])
    if recorded == actual:
        return ""
    if case.compares_stdout and recorded.endswith(actual):
        return PRINTED_MORE
    return (
        "Its recorded case is not reproduced: the result was "
        f"{truncate_text(recorded, MAX_SHOWN_CHARS)[0]}, and is "
        f"{truncate_text(actual, MAX_SHOWN_CHARS)[0]} in a clean sandbox. "
        "It may depend on variables, files, randomness or time."
    )


def text_of_result(result: RunValue | None) -> str:
    """Return a run's value as a text that is the same for equal values."""
    if result is None:
        return "None"
    text = str(result["text"])
    return text if result["kind"] == "json" else ADDRESS.sub("0x", text)


def fingerprint_of(recording: Recording) -> tuple[object, ...]:
    """Return what is equal for executions with the same calls, output and result."""
    error = recording.outcome["error"]
    return (
        recording.outcome["status"],
        text_of_result(recording.outcome["value"]),
        error and (error["type"], error["message"]),
        tuple(sorted(recording.output.items())),
        tuple(sorted((call.target, call.args) for call in recording.calls if call.in_ledger)),
    )


def describe_error(recording: Recording) -> str:
    """Return in one line why an execution failed."""
    status = recording.outcome["status"]
    if status == "timeout":
        return f"it does not finish within {recording.start.timeout_s:.0f} seconds"
    error = recording.outcome["error"]
    text = f"{error['type']}: {error['message']}" if error else str(status)
    return truncate_text(" ".join(text.split()), MAX_SHOWN_CHARS)[0]


# other values -------------------------------------------------------------------------------------


def find_defaults(signature: Signature) -> dict[str, Any]:
    """Return the defaults of parameters that are literals."""
    found = {}
    for each in signature.parameters:
        if each.default is not None:
            with suppress(ValueError):
                found[each.name] = literal_value(ast.parse(each.default, mode="eval").body)
    return found


def make_variants(value: Any) -> Collection[Any]:
    """Return other values of the type of `value`, the likeliest to make a difference first."""
    variants: list[Any] = ["x", 1]
    if is_input_value(value):
        name, text = value[INPUT_KEY]["name"], value[INPUT_KEY]["text"]
        lines = text.splitlines(keepends=True)
        texts = ("".join(lines[: len(lines) // 2]), "".join(lines[1:]), change_first_number(text))
        variants = [make_input_value(name, each) for each in (*texts, text * 2, "")]
    elif isinstance(value, bool):
        variants = [not value]
    elif isinstance(value, (int, float)):
        variants = [value - 1, value + 1, value * 3 + 7, 0]
    elif isinstance(value, str):
        variants = [f"{value}x", value[: len(value) // 2], "zz", change_first_number(value)]
    elif isinstance(value, list):
        variants = [value[:-1], [*value, *value[:1]], value[::-1]] if value else [["x"], [1]]
    elif isinstance(value, dict):
        variants = [
            {key: each for key, each in value.items() if key != removed}
            for removed in list(value)[:3]
        ] or [{"x": 1}]
    return [each for number, each in enumerate(variants) if each not in (value, *variants[:number])]


def change_first_number(text: str) -> str:
    """Return a text with another first number; dates stay dates, and JSON stays JSON."""
    return FIRST_NUMBER.sub(
        lambda match: f"{match[1]}{int(match[2]) - 1 if int(match[2]) else 1}", text, count=1
    )


def find_compared_values(tree: ast.AST, value: Any) -> list[Any]:
    """Return values of the same type that code compares with or looks up: `if style == "long"`."""
    found: list[Any] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Compare, ast.MatchValue)):
            found += [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
        elif isinstance(node, ast.Dict):
            found += [each.value for each in node.keys if isinstance(each, ast.Constant)]
    others = [each for each in found if type(each) is type(value) and each != value]
    return list(dict.fromkeys(others))[:MAX_COMPARED_VALUES]
