"""Make skills of runs and of written code: extract, check, test, describe, and store them.

Rule 1: a skill becomes active only if it passes the gate. Otherwise it is a draft, with the
reasons.
Rule 2: nothing is saved without being asked, unless `[skills] auto` wants it: a case holds what
tools answered, and lies in a folder beside the settings.
Rule 3: what becomes active has passed the gate exactly as it is saved, name and words included.
Rule 4: what is saved holds no credentials, neither its code nor its recorded cases.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any, Literal

import anyio

from ...errors import InvalidRequest, McpRuntimeError, NotFound, SkillRefused
from ...journal.events import RunValue
from ...journal.progress import ReportProgress, ignore_progress
from ...journal.recording import Recording, load_recording
from ...journal.rows import RunRow
from ...journal.store import Journal
from .descriptions import NOT_DESCRIBED, apply_summary, needs_description
from .gate import Trial, run_gate
from .library import SkillLibrary
from .lint import check_case, check_skill
from .model import (
    CONTEXT_NAME,
    MAX_INPUT_BYTES,
    RecordedCase,
    RecordedStep,
    Skill,
    SkillEvent,
    VersionsByName,
    make_input_value,
)
from .signing import is_held_back
from .skill_names import choose_free_name, parse_skill_name
from .source import count_words, source_shape
from .version_files import compute_digest

AUTO_PATIENCE_S = 5.0  # for which a run waits until it is saved unasked,
DESCRIPTION_PATIENCE_S = 10.0  # and this more where a model describes skills
MAX_REMEMBERED = 10_000  # codes that were considered; a repeated one is skipped at once
MIN_LINES = 3  # of code that is saved unasked
MAX_STEPS = 200  # of a session, from which a skill is extracted
MAX_STEPS_WORDS = 50_000  # and signs of their code: 30 ms and 0.5 MB for each thousand
MAX_ATTEMPTS = 3  # at the gate, each with fewer parameters
NO_CASE = "It has no recorded case: run it once, and save that run."
NOT_CHECKED_YET = (
    "It has worked once and was not checked: a second run like it, or saving that run, checks it."
)
EDIT_REMEDY = (
    "If the edit is meant to change the result: call this exact version with named values, "
    "and save that run."
)

logger = logging.getLogger(__name__)

AutoSave = Literal["off", "draft", "active-on-second-success"]
Extract = Callable[[Collection[str]], Skill]  # takes the parameters that stay literals
OpenTrial = Callable[[], AbstractAsyncContextManager[Trial]]
# takes the skill, the session whose owner pays, names that are taken, and seconds for a test
DescribeSkill = Callable[[Skill, str, Collection[str] | None, float], Awaitable[tuple[Skill, str]]]


@dataclass(frozen=True)
class SaveResult:
    """The version that was saved, or that `already_existed`; `note` says who described it."""

    skill: Skill
    already_existed: bool = False
    note: str = ""


@dataclass(frozen=True)
class LeftOutCode:
    """A statement of run `run_id`, at a line of its code, that a skill made of it does not need."""

    run_id: str
    step: int
    line: int
    source: str


@dataclass(frozen=True)
class SkillPreview:
    """What a run would be saved as, before its test.

    `known` is the version that does the same, if there is one. If the run only calls a skill, it
    `adds_case` to that: then nothing is extracted.
    """

    candidate: Skill
    left_out: Sequence[LeftOutCode] = ()
    known: Skill | None = None
    adds_case: bool = False


class SkillSaver:
    """Adds skills to a library, one at a time.

    `packages` are what sandboxes have installed, None if that is unknown. Without `describe`,
    skills are described by what their code says. `auto` says whether runs are saved unasked: a run
    that makes calls as a draft, and with "active-on-second-success", the gate tests that draft
    when another run does the same.
    """

    def __init__(
        self,
        library: SkillLibrary,
        journal: Journal,
        packages: Collection[str] | None,
        open_trial: OpenTrial,
        describe: DescribeSkill | None = None,
        auto: AutoSave = "off",
    ) -> None:
        self.library = library
        self._journal = journal
        self._packages = packages
        self._open_trial = open_trial
        self._describe = describe
        self._auto = auto
        self._considered: dict[bytes, None] = {}  # digests of code
        self._lock = anyio.Lock()

    async def preview_run(self, run: RunRow) -> SkillPreview:
        """Return what `save_run` would test; nothing is executed or saved.

        Raises `SkillRefused`, `InvalidRequest`, `JournalFailed`, and `NotFound` for a run that only
        calls a skill that is not there.
        """
        check_succeeded(run)
        from .extraction import extract_skill, find_left_out, find_skill_call

        steps = await self._load_steps(run)
        rows = (await self._load_lineage(run))[-len(steps) :]
        if call := await anyio.to_thread.run_sync(find_skill_call, steps[-1]):
            skill = await self.library.get(call[0])
            return SkillPreview(skill, known=skill, adds_case=True)
        extract = partial(extract_skill, steps, packages=self._packages or ())
        extracted = await anyio.to_thread.run_sync(extract)
        known, candidate = await self._name_and_merge(extracted, "")
        left_out = [
            LeftOutCode(rows[number].id, rows[number].step, line, source)
            for number, line, source in await anyio.to_thread.run_sync(find_left_out, steps)
        ]
        return SkillPreview(candidate, left_out, known)

    async def save_run(
        self,
        run: RunRow,
        name: str = "",
        summary: str = "",
        report: ReportProgress = ignore_progress,
    ) -> SaveResult:
        """Save what a recorded run did as a skill, described by `summary` if that is given.

        Raises `SkillRefused`, `InvalidRequest`, `JournalFailed`.
        """
        name = parse_skill_name(name) if name else ""
        check_succeeded(run)
        from .extraction import extract_skill, find_skill_call  # expensive, and rarely needed

        steps = await self._load_steps(run)
        async with self._lock:
            if call := await anyio.to_thread.run_sync(find_skill_call, steps[-1]):
                return await self._add_case(*call, report=report)
            extract = partial(extract_skill, steps, name=name, packages=self._packages or ())
            return await self._save(
                extract, name, session=run.session_id, summary=summary, report=report
            )

    async def save_code(self, code: str, name: str = "", summary: str = "") -> SaveResult:
        """Save code that was written as a skill: a draft, until a run that uses it is saved."""
        from .extraction import read_written_skill

        name = parse_skill_name(name) if name else ""
        async with self._lock:
            return await self._save(lambda _: read_written_skill(code, name), name, summary=summary)

    def should_consider(self, code: str, value: RunValue | None, call_count: int) -> bool:
        """Return whether a run that succeeded may be worth saving, and its code is new."""
        if self._auto == "off" or not call_count or not has_useful_result(value):
            return False
        lines = (line.strip() for line in code.splitlines())
        if sum(bool(line) and not line.startswith(("#", "import ")) for line in lines) < MIN_LINES:
            return False
        digest = sha256(code.encode("utf-8", "surrogatepass")).digest()
        if digest in self._considered:
            return False
        if len(self._considered) >= MAX_REMEMBERED:
            del self._considered[next(iter(self._considered))]
        self._considered[digest] = None
        return True

    async def consider_run(self, run: RunRow) -> str:
        """Save a run without being asked, if it is worth it; return a line about that, "" if none.

        This only helps: what cannot be a skill is skipped, and the run does not wait long.
        """
        patience_s = AUTO_PATIENCE_S
        if self._describe is not None:
            patience_s += DESCRIPTION_PATIENCE_S
        try:
            with anyio.move_on_after(patience_s):
                saved = await self._save_unasked(run)
                return "" if saved is None else describe_unasked(saved)
        except (SkillRefused, InvalidRequest, NotFound):
            return ""  # nobody asked for a skill
        except McpRuntimeError as exc:
            logger.warning("run %s could not be considered as a skill: %s", run.id, exc)
        return ""

    async def _save_unasked(self, run: RunRow) -> SaveResult | None:
        """Save a run as a draft, or test the draft of a run like it; None if it is not worth it."""
        from .extraction import extract_skill, find_skill_call

        steps = await self._load_steps(run)
        if await anyio.to_thread.run_sync(find_skill_call, steps[-1]):
            return None
        extract = partial(extract_skill, steps, packages=self._packages or ())
        extracted = await anyio.to_thread.run_sync(extract)
        [case] = extracted.cases
        if not case.calls or not case.inputs:
            return None
        async with self._lock:
            duplicate = await self._find_duplicate(extracted)
            if duplicate is not None:
                is_same_case = any(each.inputs == case.inputs for each in duplicate.cases)
                if duplicate.state != "draft" or self._auto == "draft" or is_same_case:
                    return SaveResult(duplicate, already_existed=True)
            return await self._save(extract, session=run.session_id, skips_gate=duplicate is None)

    async def recheck(
        self, skill: Skill, *, is_promoted: bool = False, replaces_signed: bool = False
    ) -> Skill:
        """Test a version again, which may be edited or whose tools may have changed.

        Return it with its new state. A person puts one in use that `is_promoted`, retired or not.
        `replaces_signed` is a person's word that it may take the place of a signed version.
        """
        async with self._lock:
            try:
                await self._check(skill)
                checked, _ = await self._test(skill)
                reasons = checked.reasons
            except SkillRefused as exc:
                reasons = (str(exc),)
            if reasons:
                if skill.origin == "edit" and skill.cases:
                    reasons = (*reasons, EDIT_REMEDY)
                return await self.library.record_event(skill, "failed", reasons)
            digests = {
                tool: self.library.get_tool_digest(tool) or checked_digest
                for tool, checked_digest in skill.tool_digests.items()
            }
            event: SkillEvent = "promoted" if is_promoted else "passed"
            return await self.library.record_event(
                skill, event, (), digests, replaces_signed=replaces_signed
            )

    # steps and cases ------------------------------------------------------------------------------

    async def _load_lineage(self, run: RunRow) -> list[RunRow]:
        return (await self._journal.load_lineage(run.id))[-MAX_STEPS:]

    async def _load_steps(self, run: RunRow) -> list[RecordedStep]:
        """Return the recorded runs that led to a run, and that run; no more than can be read."""
        steps = [await self._load_step(row, run) for row in await self._load_lineage(run)]
        return await anyio.to_thread.run_sync(select_last_steps, steps)

    async def _load_step(self, row: RunRow, saved: RunRow) -> RecordedStep:
        """Return a recorded run that led to the one that is `saved`, or that one."""
        recording = await load_recording(self._journal, row)
        outcome = recording.outcome
        case = RecordedCase(
            {},
            recording.calls,
            outcome["value"],
            outcome["stdout"],
            seed=recording.start.seed,
            clock_readings=recording.clock_readings,
        )
        code, error = recording.start.code, outcome["error"]
        # A function of an earlier step may read the input of the last one.
        may_read = row.id == saved.id or CONTEXT_NAME in code
        found = await self._load_input(recording) if may_read else None
        failed_line = (error and error["line"]) or 0
        succeeded = outcome["status"] == "ok"
        return RecordedStep(row.id, code, case, succeeded, failed_line, found)

    async def _load_input(self, recording: Recording) -> Mapping[str, Any] | None:
        """Return what CONTEXT was; None if that was no single text which a case can hold."""
        context = recording.start.context
        entry = context[0] if len(context) == 1 else None
        if entry is None or not entry["digest"] or entry["size"] > MAX_INPUT_BYTES:
            return None
        try:
            data = await self._journal.get_blob(entry["digest"])
            text = data[entry["start"] : entry["end"]].decode()
        except (NotFound, UnicodeDecodeError):
            return None
        return make_input_value(entry["name"], text)

    async def _add_case(
        self, reference: str, case: RecordedCase, *, report: ReportProgress
    ) -> SaveResult:
        """Test a skill with one more case."""
        skill = await self.library.get(reference)
        if skill.owner != self.library.principal:
            return SaveResult(skill, already_existed=True)  # only its owner adds cases
        check_case(case)
        known = cases_with_its_code(skill)
        others = tuple(each for each in known if each.inputs != case.inputs)
        if len(others) < len(known) and skill.is_active:
            return SaveResult(skill, already_existed=True)
        candidate = Skill(
            skill.name,
            skill.summary,
            skill.source,
            (*others, case),
            origin=skill.origin,
            described_by=skill.described_by,
            is_hand_written=True,
        )
        return await self._save(lambda _: candidate, skill.name, report=report)

    # saving ---------------------------------------------------------------------------------------

    async def _save(
        self,
        extract: Extract,
        name: str = "",
        *,
        session: str = "",
        skips_gate: bool = False,
        summary: str = "",
        report: ReportProgress = ignore_progress,
    ) -> SaveResult:
        """Test a skill, and add it as a new version, active or not.

        Without a `summary` and with a `session`, a model may describe the skill, and the session's
        owner pays.
        """
        fixed: frozenset[str] = frozenset()
        for attempt in range(1, MAX_ATTEMPTS + 1):
            extracted = await anyio.to_thread.run_sync(extract, fixed)
            duplicate, candidate = await self._name_and_merge(extracted, name)
            if duplicate is not None and self._is_known(duplicate, candidate):
                note = "It keeps its description." if summary else ""
                return SaveResult(duplicate, already_existed=True, note=note)
            if summary:
                candidate = apply_summary(candidate, summary)
            if skips_gate:
                return SaveResult(await self._add(replace(candidate, reasons=(NOT_CHECKED_YET,))))
            started = anyio.current_time()
            candidate, removable = await self._test(candidate, report)
            gate_s = anyio.current_time() - started
            is_final = fixed.issuperset(removable) or candidate.is_hand_written
            if is_final or attempt == MAX_ATTEMPTS:
                break
            report(f"It is made again with literals in place of {', '.join(removable)}.")
            fixed |= {*removable}  # extract it again, with literals in place of these parameters
        note = ""
        if session and not summary and candidate.state == "active":
            candidate, note = await self._let_describe(
                candidate, session, gate_s, report, may_rename=not name and duplicate is None
            )
        return SaveResult(await self._add(candidate), note=note)

    async def _load_own_versions(self, name: str) -> tuple[Skill, ...]:
        return await anyio.to_thread.run_sync(self.library.store.versions, name)

    async def _find_duplicate(self, skill: Skill) -> Skill | None:
        """Return the latest version of any owner's skill that does the same as `skill`."""
        versions = await self.library.all_versions()
        return await anyio.to_thread.run_sync(find_duplicate, skill, versions)

    async def _name_and_merge(self, extracted: Skill, name: str) -> tuple[Skill | None, Skill]:
        """Return the last version that does the same, and what is to be tested at the gate.

        Raises `SkillRefused` if it cannot be a skill.
        """
        if name:
            own = {name: await self._load_own_versions(name)}
            find = partial(find_duplicate, extracted, own, may_be_retired=True)
            last = await anyio.to_thread.run_sync(find)
        else:
            last = await self._find_duplicate(extracted)
            name = last.name if last else ""
        name = name or choose_free_name(extracted.name, await self.library.taken_names())
        candidate = replace(extracted, name=name)
        await self._check(candidate)
        return last, merge_cases(candidate, last)

    async def _check(self, skill: Skill) -> None:
        """Raise `SkillRefused` if code or cases cannot be those of a skill."""
        skills = await self.library.all_versions()
        await anyio.to_thread.run_sync(check_skill, skill, skills, self._packages)

    def _is_known(self, duplicate: Skill, candidate: Skill) -> bool:
        """Return whether a candidate says nothing new about a version that has been tested."""
        is_tested = duplicate.is_active or is_held_back(duplicate)
        has_new_case = len(candidate.cases) != len(duplicate.cases)
        return is_tested and (duplicate.owner != self.library.principal or not has_new_case)

    async def _let_describe(
        self,
        skill: Skill,
        session: str,
        gate_s: float,
        report: ReportProgress,
        *,
        may_rename: bool,
    ) -> tuple[Skill, str]:
        """Return a skill with a model's words if it passes the gate with them, and a note."""
        versions = await self._load_own_versions(skill.name)
        is_new = all(each.state != "active" for each in versions)
        if self._describe is None or not is_new or not needs_description(skill):
            return skill, ""
        report("A model describes it.")
        taken_names = None
        if may_rename and not skill.is_hand_written:
            taken_names = await self.library.taken_names()
        described, note = await self._describe(skill, session, taken_names, gate_s)
        if described != skill:
            tested, _ = await self._test(described)
            if tested.reasons:
                reason = "With its words, the skill does not pass its test."
                return skill, NOT_DESCRIBED.format(reason)
        return described, note

    async def _test(
        self, skill: Skill, report: ReportProgress = ignore_progress
    ) -> tuple[Skill, tuple[str, ...]]:
        """Test a skill as the version that it is, or will be; return what the gate returns."""
        if not skill.cases:
            return replace(skill, state="draft", reasons=(NO_CASE,)), ()
        offered = replace(skill, state="active", reasons=())
        if not skill.version:
            version = await anyio.to_thread.run_sync(self.library.store.next_version, skill.name)
            digest = compute_digest(skill.source.encode())
            offered = replace(offered, version=version, digest=digest)
        open_trial = self._open_trial_of(offered)
        tested, removable = await run_gate(offered, open_trial, self._journal.put_blob, report)
        return replace(tested, version=skill.version, digest=skill.digest), removable

    @asynccontextmanager
    async def _open_trial_of(self, skill: Skill) -> AsyncIterator[Trial]:
        """Yield a trial whose code finds a skill in use, whatever the store has."""
        async with self._open_trial() as trial:
            with self.library.offer_skill(trial.session_id, skill):
                yield trial

    async def _add(self, skill: Skill) -> Skill:
        """Add a tested skill to the store as a new version."""
        digests = {tool: self.library.get_tool_digest(tool) for tool in skill.used_tools}
        saved = replace(skill, saved_at=time.time(), tool_digests=digests)
        return await anyio.to_thread.run_sync(self.library.store.add_version, saved)


def select_last_steps(steps: Sequence[RecordedStep]) -> list[RecordedStep]:
    """Return the last step, and as many before it as have `MAX_STEPS_WORDS` together."""
    words_left = MAX_STEPS_WORDS
    selected = [steps[-1]]
    for step in reversed(steps[:-1]):
        words_left -= count_words(step.code, MAX_STEPS_WORDS + 1)
        if words_left < 0:
            break
        selected.append(step)
    return selected[::-1]


def check_succeeded(run: RunRow) -> None:
    """Raise `InvalidRequest` unless a run can be saved."""
    if run.status != "ok":
        raise InvalidRequest(
            f"Run {run.id} is {run.status}: only a run that succeeded can be saved."
        )


def has_useful_result(value: RunValue | None) -> bool:
    """Return whether a run's value is more than nothing, or yes or no."""
    if value is None or value["kind"] != "json":
        return False
    try:
        return json.loads(value["text"]) not in (None, "", [], {}, True, False)
    except ValueError:
        return False


def describe_unasked(saved: SaveResult) -> str:
    """Return a line about a run that was saved unasked."""
    skill, use = saved.skill, f"from skills.{saved.skill.name} import run."
    if skill.is_active and saved.already_existed:
        return f"The skill {skill.name} does this: {use}"
    if saved.already_existed:
        return ""
    if skill.is_active:
        return f"Saved as a skill: {use} {saved.note}".rstrip()
    if is_held_back(skill):
        return f"Saved as {skill.id}. {skill.reasons[0]}"
    return f"Saved as the draft skill {skill.id}: save_skill(run=...) checks it."


# skills that do the same --------------------------------------------------------------------------


def find_duplicate(
    skill: Skill, skills: VersionsByName, *, may_be_retired: bool = False
) -> Skill | None:
    """Return the last version of a skill that does the same; None if there is none."""
    shape = source_shape(skill.source)
    for *_, last in filter(None, skills.values()):
        is_candidate = may_be_retired or last.state != "retired"
        if is_candidate and source_shape(last.source) == shape:
            return last
    return None


def merge_cases(skill: Skill, last: Skill | None) -> Skill:
    """Return a skill with the cases and words of the last version, if that does the same."""
    if last is None:
        return skill
    known = cases_with_its_code(last) if skill.cases else last.cases
    inputs = [case.inputs for case in skill.cases]
    known = tuple(case for case in known if case.inputs not in inputs)
    return replace(
        skill,
        source=last.source,
        summary=last.summary,
        described_by=last.described_by,
        cases=(*known, *skill.cases),
    )


def cases_with_its_code(skill: Skill) -> tuple[RecordedCase, ...]:
    """Return the cases that were recorded with the code of a skill; an edit has older ones."""
    return () if skill.origin == "edit" and skill.state == "draft" else skill.cases
