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
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Protocol

import anyio

from ...errors import ReplayDiverged
from ...journal.events import InputEntry, RunStarted, RunValue
from ...journal.progress import ReportProgress, ignore_progress
from ...journal.recording import Recording
from ...protocol.truncation import truncate_text
from .model import (
    CONTEXT_NAME,
    INPUT_KEY,
    RecordedCase,
    Skill,
    SkillState,
    is_input_value,
    make_input_value,
)
from .source import (
    ENTRY_FUNCTION,
    FunctionNode,
    defaults_of,
    is_literal,
    literal_value,
    parse_source,
)

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


StoreBlob = Callable[[bytes], Awaitable[str]]  # returns the digest


async def run_gate(
    candidate: Skill,
    open_trial: AbstractAsyncContextManager[Trial],
    store_blob: StoreBlob,
    report: ReportProgress = ignore_progress,
) -> tuple[Skill, tuple[str, ...]]:
    """Return a candidate as its cases show it: active or a draft, with reasons and actual calls.

    Return also the parameters that can be literals as well: they do not matter, or only their
    recorded value works and there is no other parameter. If there are others, such a parameter
    selects from a table of answers.

    The code of the trial's session has to find the candidate in use. `store_blob` keeps the content
    of recorded inputs for the executions.
    """
    with anyio.move_on_after(GATE_TIMEOUT_S):
        async with open_trial as trial:
            gate = _Gate(candidate, trial, store_blob, report)
            reasons = await gate.test()
        state: SkillState = "draft" if reasons else "active"
        cases = tuple(gate.tested) or candidate.cases
        return replace(candidate, state=state, reasons=reasons, cases=cases), gate.removable
    reason = f"Its cases did not finish within {GATE_TIMEOUT_S:.0f} seconds."
    return replace(candidate, state="draft", reasons=(reason,)), ()


class _Gate:
    """The test of one skill, which the code of `trial` imports like any skill in use."""

    def __init__(
        self, candidate: Skill, trial: Trial, store_blob: StoreBlob, report: ReportProgress
    ) -> None:
        self.tested: list[RecordedCase] = []  # with their actual calls; all of them or none
        self.removable: tuple[str, ...] = ()
        self._cases = candidate.cases
        if candidate.origin == "import":
            self._cases = tuple(map(forget_blobs, candidate.cases))
        self._module = f"skills.{candidate.name}"
        self._exact_module = f"{self._module}.v{candidate.version}"
        self._parameters = candidate.signature.parameters
        self._defaults = find_defaults(candidate.entry)
        self._is_async = candidate.is_async
        self._tree = parse_source(candidate.source)
        self._trial = trial
        self._store_blob = store_blob
        self._report = report
        self._reseeded_trials = RESEEDED_TRIALS if RANDOMNESS.search(candidate.source) else 1
        self._variant_timeout_s = MIN_VARIANT_TIMEOUT_S

    async def test(self) -> tuple[str, ...]:
        """Return the reasons against the skill."""
        self._report("It is imported alone.")
        if reason := await self._test_import():
            return (reason,)
        recordings: list[Recording] = []
        for number, case in enumerate(self._cases, 1):
            self._report(f"Recorded case {number} of {len(self._cases)} is repeated.")
            recording, reason = await self._reproduce(case)
            if reason:
                return (reason,)
            recordings.append(recording)
        self.tested = [
            replace(case, calls=tuple(call for call in recording.calls if call.in_ledger))
            for case, recording in zip(self._cases, recordings, strict=True)
        ]
        if not self._parameters and not any(case.calls for case in self.tested):
            return (IS_CONSTANT,)
        if await self._changes_default(self.tested[0]):
            return (CHANGES_DEFAULT,)
        return await self._vary_parameters(recordings)

    async def _test_import(self) -> str:
        """Return what is wrong with importing it alone; "" if nothing is."""
        code = f"from {self._module} import {ENTRY_FUNCTION}"
        recording, diverged = await self._trial.execute(code, make_recording(RecordedCase({})))
        if recording.outcome["status"] != "ok":
            return f"It cannot be imported: {describe_recorded_error(recording)}"
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
        mutable = {
            name for name, value in self._defaults.items() if isinstance(value, (list, dict))
        }
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

    async def _vary_parameters(self, recordings: Sequence[Recording]) -> tuple[str, ...]:
        """Return the reasons against parameters; each has to matter in one case at least."""
        inputs = [{**self._defaults, **case.inputs} for case in self.tested]
        recorded_names = (name for case in self.tested for name in case.inputs)
        names = dict.fromkeys([*recorded_names, *self._defaults])
        makes_calls = any(case.calls for case in self.tested)
        idle: list[str] = []
        reasons: list[str] = []
        for name in names:
            self._report(f"Other values of {name} are tried.")
            results: list[TrialResult] = []
            for case, recording, values in zip(self.tested, recordings, inputs, strict=True):
                if not results and name in values:
                    results = await self._try_other_values(case, recording, name, values[name])
            has_failed = all(
                not diverged and recording.outcome["status"] != "ok"
                for recording, diverged in results
            )
            if not results:
                idle.append(name)
                reasons.append(f"Parameter `{name}` never reaches a call or the result.")
            elif has_failed and not makes_calls:
                error = describe_recorded_error(results[0][0])
                reasons.append(
                    f"It works only for the recorded value of parameter `{name}`: {error}"
                )
        self.removable = tuple(names if len(reasons) == len(names) else idle)
        return tuple(reasons)

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
        if self._is_async:
            call = f"await {call}"
        return f"print({call})" if case.compares_stdout else call


# recordings ---------------------------------------------------------------------------------------


def make_recording(case: RecordedCase, timeout_s: float = TRIAL_TIMEOUT_S) -> Recording:
    """Return the recording of a run that a case was; its replay may take `timeout_s`."""
    seed = case.seed or secrets.token_hex(16)
    timeout_s = min(timeout_s, TRIAL_TIMEOUT_S)
    start = RunStarted(CASE_RUN_ID, None, 1, "", "<case>", timeout_s, seed=seed)
    return Recording("", start, case.calls, dict(case.clock_readings))


def forget_blobs(case: RecordedCase) -> RecordedCase:
    """Return a case whose answers may name no blobs: those of this journal are not a stranger's."""
    return replace(case, calls=tuple(replace(call, blobs=()) for call in case.calls))


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
        return f"Its recorded case is not reproduced: {describe_recorded_error(recording)}"
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


def describe_recorded_error(recording: Recording) -> str:
    """Return in one line why an execution failed."""
    status = recording.outcome["status"]
    if status == "timeout":
        return f"it does not finish within {recording.start.timeout_s:.0f} seconds"
    error = recording.outcome["error"]
    text = f"{error['type']}: {error['message']}" if error else str(status)
    return truncate_text(" ".join(text.split()), MAX_SHOWN_CHARS)[0]


# other values -------------------------------------------------------------------------------------


def find_defaults(function: FunctionNode) -> dict[str, Any]:
    """Return the defaults of parameters that are literals."""
    defaults = defaults_of(function.args)
    return {name: literal_value(node) for name, node in defaults.items() if is_literal(node)}


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
