"""Make skills of runs and of written code: extract, check, test, describe, and store them.

Rule 1: a skill becomes active only if it passes the gate. Otherwise it is a draft, with the
reasons.
Rule 2: nothing is saved without being asked, unless `[skills] auto` wants it (`auto_save`): a case
holds what tools answered, and lies in a folder beside the settings.
Rule 3: what becomes active has passed the gate exactly as it is saved, name and words included.
Rule 4: what is saved holds no credentials, neither its code nor its recorded cases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio

from ...errors import InvalidRequest, NotFound, SkillRefused
from ...journal.recording import Recording, load_recording
from ...journal.rows import RunRow
from ...journal.store import Journal
from .descriptions import Description, SkillDescriber, apply_summary, needs_description
from .duplicates import find_duplicate, merge_cases
from .gate import OpenTrial, Verdict, run_gate
from .library import SkillLibrary
from .lint import CheckedSource, check_entry_signature, check_source, parse_source
from .model import (
    CONTEXT_NAME,
    MAX_INPUT_BYTES,
    TOOL_PREFIX,
    ExtractedSkill,
    RecordedCase,
    RecordedStep,
    Skill,
    make_input_value,
)
from .selection import check_case, check_dependency_cycle
from .signing import is_held_back
from .skill_calls import SkillCall, find_skill_call
from .skill_names import choose_free_name, parse_skill_name
from .version_files import Manifest, compute_digest, render_version_files

MAX_STEPS = 200  # of a session, from which a skill is extracted
MAX_ATTEMPTS = 3  # at the gate, each with fewer parameters
NOT_CHECKED_YET = (
    "It has worked once and was not checked: a second run like it, or saving that run, checks it."
)
EDIT_REMEDY = (
    "If the edit is meant to change the result: call this exact version with named values, "
    "and save that run."
)

Extract = Callable[[Collection[str]], ExtractedSkill]  # takes the parameters that stay literals


@dataclass(frozen=True)
class SaveResult:
    """The version that was saved, or that `already_existed`; `note` says who described it."""

    skill: Skill
    already_existed: bool = False
    note: str = ""


@dataclass(frozen=True)
class _Candidate:
    """A skill before the gate, with its words and all its cases.

    `duplicate` is the last version, if that does the same.
    """

    extracted: ExtractedSkill
    checked: CheckedSource
    description: Description
    cases: tuple[RecordedCase, ...]
    duplicate: Skill | None

    @property
    def name(self) -> str:
        """What code will call it."""
        return self.description.name


class SkillSaver:
    """Adds skills to a library, one at a time.

    `packages` are what sandboxes have installed, None if that is unknown. Without a `describer`,
    skills are described by what their code says.
    """

    def __init__(
        self,
        library: SkillLibrary,
        journal: Journal,
        packages: Collection[str] | None,
        open_trial: OpenTrial,
        describer: SkillDescriber | None = None,
    ) -> None:
        self.library = library
        self._journal = journal
        self._packages = packages
        self._open_trial = open_trial
        self._describer = describer
        self._lock = anyio.Lock()

    @property
    def has_describer(self) -> bool:
        """Whether a save may ask a model."""
        return self._describer is not None

    async def save_run(self, run: RunRow, name: str = "", summary: str = "") -> SaveResult:
        """Save what a recorded run did as a skill, described by `summary` if that is given.

        Raises `SkillRefused`, `InvalidRequest`, `JournalFailed`.
        """
        name = parse_skill_name(name) if name else ""
        if run.status != "ok":
            raise InvalidRequest(
                f"Run {run.id} is {run.status}: only a run that succeeded can be saved."
            )
        from .extraction import extract_skill  # expensive to import, and rarely needed

        steps = await self._load_steps(run)
        async with self._lock:
            if call := await anyio.to_thread.run_sync(find_skill_call, steps[-1]):
                return await self._add_case(call)
            return await self._save(
                partial(extract_skill, steps, name=name),
                run.id,
                name,
                session=run.session_id,
                summary=summary,
            )

    async def save_code(self, code: str, name: str = "", summary: str = "") -> SaveResult:
        """Save code that was written as a skill: a draft, until a run that uses it is saved."""
        from .extraction import read_written_skill

        name = parse_skill_name(name) if name else ""
        async with self._lock:
            return await self._save(
                lambda _: read_written_skill(code, name), "code", name, summary=summary
            )

    async def propose_draft(self, run: RunRow, *, may_activate: bool) -> SaveResult | None:
        """Save a run that makes calls as a draft, without a check; None if it is not worth that.

        If it `may_activate`, a second run like a draft is tested at the gate.
        """
        from .extraction import extract_skill

        steps = await self._load_steps(run)
        if await anyio.to_thread.run_sync(find_skill_call, steps[-1]):
            return None
        extracted = await anyio.to_thread.run_sync(extract_skill, steps)
        case = extracted.case
        if case is None or not case.calls or not case.inputs:
            return None
        async with self._lock:
            skills = await self.library.all_versions()
            name = find_duplicate(extracted, skills)
            if name:
                duplicate = skills[name][-1]
                is_same_case = any(each.inputs == case.inputs for each in duplicate.cases)
                if duplicate.state != "draft" or not may_activate or is_same_case:
                    return SaveResult(duplicate, already_existed=True)
            extract = partial(extract_skill, steps)
            return await self._save(extract, run.id, session=run.session_id, skips_gate=not name)

    async def recheck(
        self, skill: Skill, *, may_revive: bool = False, replaces_signed: bool = False
    ) -> Skill:
        """Test a version again, and return it with its new state.

        A retired version stays retired, unless it `may_revive`. `replaces_signed` is a person's
        word that it may take the place of a signed version.
        """
        async with self._lock:
            verdict = await self._check_again(skill)
            if verdict.reasons:
                state = "quarantined" if skill.state == "active" else skill.state
                is_edit = skill.origin == "edit" and bool(skill.cases)
                reasons = (*verdict.reasons, EDIT_REMEDY) if is_edit else verdict.reasons
                return await self.library.set_state(skill, state, reasons)
            if skill.state == "retired" and not may_revive:
                return skill
            digests = {
                tool: self.library.tool_digest(tool) or checked
                for tool, checked in skill.tool_digests.items()
            }
            return await self.library.set_state(
                skill, "active", (), digests, replaces_signed=replaces_signed
            )

    async def _check_again(self, skill: Skill) -> Verdict:
        """Return the verdict on a version that may be edited, or whose tools may have changed."""
        try:
            checked = await anyio.to_thread.run_sync(check_source, skill.source, self._packages)
            check_dependency_cycle(skill.name, checked.skills, await self.library.all_versions())
            for case in skill.cases:
                check_case(case)
        except SkillRefused as exc:
            return Verdict((str(exc),), skill.cases)
        return await self._test(skill)

    async def _test(self, skill: Skill) -> Verdict:
        return await run_gate(
            skill, self._open_trial, self.library.offer_skill, self._journal.put_blob
        )

    async def _load_steps(self, run: RunRow) -> list[RecordedStep]:
        """Return the recorded runs that led to a run, and that run."""
        steps = []
        for row in (await self._journal.load_lineage(run.id))[-MAX_STEPS:]:
            recording = await load_recording(self._journal, row)
            # A function of an earlier step may read the input of the last one.
            may_read = row.id == run.id or CONTEXT_NAME in recording.start.code
            outcome = recording.outcome
            error = outcome["error"]
            steps.append(
                RecordedStep(
                    row.id,
                    recording.start.code,
                    outcome["status"] == "ok",
                    recording.calls,
                    outcome["value"],
                    outcome["stdout"],
                    recording.start.seed,
                    recording.clock_readings,
                    (error and error["line"]) or 0,
                    await self._load_input(recording) if may_read else None,
                )
            )
        return steps

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

    async def _add_case(self, call: SkillCall) -> SaveResult:
        """Test a skill with one more case."""
        reference = call.name if call.version is None else f"{call.name}@{call.version}"
        skill = await self.library.get(reference)
        if skill.owner != self.library.principal:
            return SaveResult(skill, already_existed=True)  # only its owner adds cases
        check_case(call.case)
        others = tuple(each for each in skill.cases if each.inputs != call.case.inputs)
        if len(others) < len(skill.cases) and skill.state == "active":
            return SaveResult(skill, already_existed=True)
        extracted = ExtractedSkill(
            skill.name,
            skill.summary,
            skill.source,
            skill.signature,
            call.case,
            is_hand_written=True,
        )
        return await self._save(lambda _: extracted, skill.origin, skill.name, others=others)

    async def _save(
        self,
        extract: Extract,
        origin: str,
        name: str = "",
        *,
        others: tuple[RecordedCase, ...] = (),
        session: str = "",
        skips_gate: bool = False,
        summary: str = "",
    ) -> SaveResult:
        """Test a skill, and add it as a new version, active or not.

        `others` are known cases. Without a `summary` and with a `session`, a model may describe the
        skill, and the session's owner pays.
        """
        skills = await self.library.all_versions()
        taken_names = await self.library.taken_names()
        fixed: frozenset[str] = frozenset()
        for attempt in range(1, MAX_ATTEMPTS + 1):
            candidate = await self._check(
                extract, fixed, name, others, skills, taken_names, summary
            )
            duplicate = candidate.duplicate
            is_tested = duplicate is not None and (
                duplicate.state == "active" or is_held_back(duplicate)
            )
            if duplicate is not None and is_tested:
                is_others = duplicate.owner != self.library.principal
                is_known = not others and len(candidate.cases) == len(duplicate.cases)
                if is_known or is_others:
                    note = "It keeps its description." if summary else ""
                    return SaveResult(duplicate, already_existed=True, note=note)
            if skips_gate:
                verdict = Verdict((NOT_CHECKED_YET,), candidate.cases)
                break
            started = anyio.current_time()
            verdict = await self._test_candidate(candidate)
            gate_s = anyio.current_time() - started
            removable = fixed.union(verdict.removable)
            is_final = removable == fixed or candidate.extracted.is_hand_written
            if is_final or attempt == MAX_ATTEMPTS:
                break
            fixed = removable  # extract it again, with literals in the places of these parameters
        versions = await self.library.own_versions(candidate.name)
        is_new = all(each.state != "active" for each in versions)
        if session and is_new and not summary and not verdict.reasons:
            may_rename = not name and candidate.name not in skills
            names = taken_names if may_rename else None
            candidate = await self._describe(candidate, verdict.cases[-1], session, names, gate_s)
        return await self._add(candidate, verdict, origin)

    async def _check(
        self,
        extract: Extract,
        fixed: frozenset[str],
        name: str,
        others: tuple[RecordedCase, ...],
        skills: Mapping[str, Sequence[Skill]],
        taken_names: Collection[str],
        summary: str,
    ) -> _Candidate:
        """Return what is to be tested at the gate.

        Raises `SkillRefused` if it cannot be a skill.
        """
        extracted = await anyio.to_thread.run_sync(extract, fixed)
        checked = await anyio.to_thread.run_sync(check_source, extracted.source, self._packages)
        if extracted.case is not None:
            check_case(extracted.case)
        versions: Sequence[Skill] = ()
        if name:
            versions = await self.library.own_versions(name)
        elif name := find_duplicate(extracted, skills):
            versions = skills[name]  # maybe of another principal, who shares it
        name = name or choose_free_name(extracted.name, taken_names)
        check_dependency_cycle(name, checked.skills, skills)
        merged = merge_cases(extracted, others, versions)
        if merged.source != extracted.source:
            signature = check_entry_signature(parse_source(merged.source))
            extracted = replace(extracted, source=merged.source, signature=signature)
        known_summary = merged.duplicate.summary if merged.duplicate else extracted.summary
        description = Description(name, known_summary, extracted.source)
        if summary:
            is_hand_written = extracted.is_hand_written
            description = apply_summary(description, summary, is_hand_written=is_hand_written)
        return _Candidate(extracted, checked, description, merged.cases, merged.duplicate)

    async def _test_candidate(self, candidate: _Candidate) -> Verdict:
        """Test a candidate as the version that it will be."""
        description = candidate.description
        skill = Skill(
            name=description.name,
            version=await self.library.next_version(description.name),
            state="active",
            summary=description.summary,
            source=description.source,
            signature=candidate.extracted.signature,
            cases=candidate.cases,
            digest=compute_digest(description.source.encode()),
            saved_at=time.time(),
        )
        return await self._test(skill)

    async def _describe(
        self,
        candidate: _Candidate,
        case: RecordedCase,
        session: str,
        taken_names: Collection[str] | None,
        gate_s: float,
    ) -> _Candidate:
        """Return a candidate with a model's words, if it passes the gate with them, too."""
        extracted = candidate.extracted
        if self._describer is None or not needs_description(extracted):
            return candidate
        names = None if extracted.is_hand_written else taken_names
        description = await self._describer.describe_skill(
            candidate.description, extracted, case, session, names, gate_s
        )
        described = replace(candidate, description=description)
        if description.author and (await self._test_candidate(described)).reasons:
            problem = "With its words, the skill does not pass its test."
            return replace(candidate, description=replace(candidate.description, problem=problem))
        return described

    async def _add(self, candidate: _Candidate, verdict: Verdict, origin: str) -> SaveResult:
        """Add a tested candidate to the store as a new version."""
        description = candidate.description
        targets = {call.target for case in verdict.cases for call in case.calls}
        tools = {
            target.removeprefix(TOOL_PREFIX) for target in targets if target.startswith(TOOL_PREFIX)
        }
        tools |= {tool for tool in candidate.checked.tools if "." in tool}
        skills = sorted(candidate.checked.skills)
        described_by = description.author
        if not described_by and candidate.duplicate is not None:
            described_by = candidate.duplicate.described_by
        content = render_version_files(
            description.name,
            description.summary,
            description.source,
            check_entry_signature(parse_source(description.source)),
            verdict.cases,
            tools=tuple(sorted(tools)),
            skills=tuple(skills),
        )
        manifest = Manifest(
            name=description.name,
            version=0,
            state="draft" if verdict.reasons else "active",
            reasons=verdict.reasons,
            summary=description.summary,
            described_by=described_by,
            origin=origin,
            saved_at=time.time(),
            tool_digests={tool: self.library.tool_digest(tool) for tool in sorted(tools)},
            skill_digests={name: await self.library.skill_digest(name) for name in skills},
        )
        skill = await self.library.add_version(content, manifest)
        return SaveResult(skill, note=description.note)
