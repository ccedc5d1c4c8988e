"""All that is done with skills: kept, found, shown, and handed to the code that imports them.

Rule 1: nothing is in use that has not passed the gate. What has not is a draft, which says why, and which only its
exact version (`skills.weather_report.v2`) imports.
Rule 2: a version is never changed; what is learned of it goes into its state.
Rule 3: what is kept holds no credentials: neither its code nor what it was recorded with.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import anyio

from ...errors import (
    CallFailed,
    InvalidRequest,
    McpRuntimeError,
    NotFound,
    SkillRefused,
    Unavailable,
)
from ...journal.recording import load_recording
from ...journal.rows import RunRow
from ...journal.store import Journal
from .descriptions import Described, SkillDescriber, is_describable
from .duplicates import find_duplicate, merge_cases, replace_source
from .gate import CANDIDATE, NO_CASE_REASON, OpenTrial, Verdict, run_gate
from .guides import Guide, GuideFolders, read_guide_files
from .lint import CheckedSource, check_entry_signature, check_source, parse_source
from .model import TOOL_PREFIX, ExtractedSkill, RecordedCase, RecordedStep, Skill
from .search_index import SkillIndex
from .selection import (
    active_skills,
    check_case,
    check_dependency_cycle,
    content_identity,
    describe_state,
    listing_entry,
    pick_version,
)
from .skill_calls import find_skill_call
from .skill_names import choose_free_name, parse_skill_name
from .store import SkillStore
from .usage import UsageRecord, UsageRecords, count_uses, retirement_reason
from .version_files import Manifest, render_version_files

MAX_FOUND = 50
MAX_STEPS = 200  # of a session that a skill is looked for in
TRIES = 3  # at a skill whose parameters turn out not to matter
ONCE = "It has worked once, and was not checked: a second run of its kind, or saving it, has it checked."
MEANT = "If the edit meant that: call this exact version with named values, and save that run."


@dataclass(frozen=True)
class SaveResult:
    """What became of a request to keep something: the version, whether it was there already, and who described it."""

    skill: Skill
    already_existed: bool = False
    note: str = ""


class SkillLibrary:
    """The skills of one store.

    `packages` are what is installed in sandboxes, None if that is not known; `schema` returns the digest of a tool's
    schemas, "" if that is not known. `open_trial` is given by whoever has sandboxes.
    """

    def __init__(
        self,
        store: SkillStore,
        journal: Journal,
        packages: Collection[str] | None,
        schema: Callable[[str], str],
        guides: GuideFolders | None = None,
    ) -> None:
        self._store = store
        self._journal = journal
        self.open_trial: OpenTrial = _nowhere
        self.describer: SkillDescriber | None = (
            None  # without one, skills are described by what their code says
        )
        self._packages = packages
        self._schema = schema
        self._guides = guides or GuideFolders()
        self._index = SkillIndex()
        self._indexed: dict[str, str] = {}  # the digest of each skill that can be found
        self._candidates: dict[str, str] = {}  # source by name, while it is at the gate
        self._saving = anyio.Lock()
        self._reading = anyio.Lock()

    # finding --------------------------------------------------------------------------------------

    async def all_versions(self) -> dict[str, tuple[Skill, ...]]:
        """Return the versions of every skill, by its name; raises `Unavailable`."""
        async with self._reading:
            return await anyio.to_thread.run_sync(self._store.all_versions)

    async def load_guides(self) -> dict[str, Guide]:
        """Return the guides by name, but those whose name a skill has."""
        taken = await self.all_versions()
        async with self._reading:
            found = await anyio.to_thread.run_sync(self._guides.load_guides)
        return {name: guide for name, guide in found.items() if name not in taken}

    async def usage_records(self) -> UsageRecords:
        """Return how every version has done, as far as it was used; raises `JournalFailed`."""
        return count_uses(await self._journal.load_skill_uses())

    async def retire_unused(self) -> list[Skill]:
        """Retire what nobody uses any more, and what mostly fails; return what was."""
        records, retired = await self.usage_records(), []
        for skill in active_skills(await self.all_versions()).values():
            reason = retirement_reason(
                records.get((skill.name, skill.version), UsageRecord()), skill.saved_at
            )
            if reason:
                retired.append(await self.retire(skill, reason))
        return retired

    @property
    def problems(self) -> Mapping[str, str]:
        """What is wrong in the store and the folders of guides, by skill or folder, as far as they have been read."""
        return {**self._store.problems, **self._guides.problems}

    async def search(self, query: str, limit: int) -> list[Skill | Guide]:
        """Return the skills in use and the guides that match any word of `query`, best first; any, if it is empty."""
        skills = active_skills(await self.all_versions())
        found: dict[str, Skill | Guide] = {**await self.load_guides(), **skills}
        records = await self.usage_records()
        weights = dict.fromkeys(found, UsageRecord().search_weight)
        weights.update(
            {
                name: records[key].search_weight
                for name, skill in skills.items()
                if (key := (name, skill.version)) in records
            }
        )
        if not query.strip():
            return sorted(found.values(), key=lambda skill: (-weights[skill.name], skill.name))[
                :limit
            ]
        async with self._reading:
            digests = {name: content_identity(each) for name, each in found.items()}
            if digests != self._indexed:
                await anyio.to_thread.run_sync(self._index.replace_all, list(found.values()))
                self._indexed = digests
            names = await anyio.to_thread.run_sync(
                self._index.search, query, limit, weights.__getitem__
            )
        return [found[name] for name in names if name in found]

    async def count_available(self) -> int:
        """Return how many skills are in use, and guides there are."""
        return len(await self.available_names())

    async def get(self, name: str) -> Skill:
        """Return a skill by name, or an exact version ("weather_report@2"); raises `NotFound`, `InvalidRequest`."""
        return pick_version(await self.all_versions(), name)

    async def available_names(self) -> list[str]:
        """Return the names of all skills in use, and of the guides."""
        return sorted({*active_skills(await self.all_versions()), *await self.load_guides()})

    async def read_files(self, name: str) -> Mapping[str, bytes]:
        """Return the files of a skill in use, or of a guide, by path; raises `NotFound`, `Unavailable`."""
        read: Callable[[], Mapping[str, bytes]]
        if guide := (await self.load_guides()).get(name):
            read = partial(read_guide_files, guide)
        elif skill := active_skills(await self.all_versions()).get(name):
            read = partial(self._store.read_content_files, skill)
        else:
            raise NotFound(
                f"There is no skill {name!r:.80} in use.", remedy="list_skills shows them."
            )
        try:
            async with self._reading:
                return await anyio.to_thread.run_sync(read)
        except (SkillRefused, OSError) as exc:
            raise Unavailable(f"The files of {name} cannot be read: {exc}") from None

    # what sandboxes ask -----------------------------------------------------------------------------

    async def handle_call(self, target: str, args: dict[str, Any]) -> Any:
        """Answer `skills.source {skill, version}`, `.files`, `.search {query, limit}`, `.names` or `.used`."""
        if target == "skills.source":
            return await self._source(args.get("skill"), args.get("version"))
        if target == "skills.names":
            return await self.available_names()
        if target == "skills.files":
            return await self._files(args.get("skill"))
        if target == "skills.search":
            query, limit = args.get("query"), args.get("limit")
            if not isinstance(query, str) or type(limit) is not int:
                raise CallFailed("invalid_arguments", "skills.search takes a text and a number.")
            return {
                "skills": [
                    listing_entry(skill)
                    for skill in await self.search(query, max(1, min(limit, MAX_FOUND)))
                ]
            }
        if target == "skills.used":
            return None  # that it is in the journal is what it is for
        raise CallFailed("unknown_skill", f"The skills do not know {target!r:.80}.")

    async def _source(self, name: Any, version: Any) -> dict[str, Any]:
        if not isinstance(name, str) or not (version is None or type(version) is int):
            raise CallFailed(
                "invalid_arguments", "A skill has a name, and a version that is a number."
            )
        if version == CANDIDATE and name in self._candidates:
            source = self._candidates[name]
            return {
                "skill": name,
                "version": version,
                "source": source,
                "state": "draft",
                "digest": "",
            }
        try:
            skill = await self.get(name if version is None else f"{name}@{version}")
        except (NotFound, InvalidRequest) as exc:
            if version is None and name in self._candidates:
                raise CallFailed("draft", f"The skill {name} is being checked.") from None
            if version is None and (guide := (await self.load_guides()).get(name)) is not None:
                return {
                    "skill": name,
                    "version": 0,
                    "state": "guide",
                    "source": "",
                    "guide": guide.text,
                }
            raise CallFailed("unknown_skill", exc.message) from None
        if version is None and skill.state == "active":
            skill = await self._checked(skill)
        if version is None and skill.state != "active":
            why = f" {' '.join(skill.reasons)}" if skill.reasons else ""
            raise CallFailed(
                skill.state,
                f"The skill {name} is not in use: it is {describe_state(skill.state)}.{why}",
                remedy=f"skills.{name}.v{skill.version} imports it all the same.",
            )
        return {
            "skill": skill.name,
            "version": skill.version,
            "source": skill.source,
            "state": skill.state,
            "digest": skill.digest,
        }

    async def _files(self, name: Any) -> dict[str, str]:
        """Return the files of a guide, each in base 64."""
        if not isinstance(name, str) or name not in await self.load_guides():
            raise CallFailed("unknown_skill", f"There is no guide {name!r:.80}.")
        try:
            content = await self.read_files(name)
        except McpRuntimeError as exc:
            raise CallFailed("unavailable", exc.message) from None
        return {path: b64encode(data).decode() for path, data in content.items()}

    async def _checked(self, skill: Skill) -> Skill:
        """Return a skill in use as it is now that the tools which it calls may have changed."""
        now = {tool: self._schema(tool) for tool in skill.tool_digests}
        changed = sorted(
            tool
            for tool, was in skill.tool_digests.items()
            if was and now[tool] and now[tool] != was
        )
        if not changed:
            return skill
        reason = f"{', '.join(changed)} has changed since it was checked: `mcpruntime-server skills check {skill.name}`."
        return await self._set(skill, "quarantined", (reason,))

    async def _set(
        self, skill: Skill, state: Any, reasons: tuple[str, ...], tools: Any = None
    ) -> Skill:
        async with self._reading:
            return await anyio.to_thread.run_sync(
                self._store.set_state, skill, state, reasons, tools
            )

    # keeping --------------------------------------------------------------------------------------

    async def save_run(self, run: RunRow, name: str = "") -> SaveResult:
        """Keep what a recorded run did as a skill; raises `SkillRefused`, `InvalidRequest`, `JournalFailed`."""
        given = parse_skill_name(name) if name else ""
        if run.status != "ok":
            raise InvalidRequest(f"Run {run.id} is {run.status}: only what ended well can be kept.")
        from .extraction import (
            extract_skill,
        )  # as much as all the rest of a server's start, and rarely needed

        steps = await self._steps(run)
        async with self._saving:
            if used := await anyio.to_thread.run_sync(find_skill_call, steps[-1]):
                return await self._prove(*used)
            return await self._keep(
                given, run.id, partial(extract_skill, steps), session=run.session_id
            )

    async def propose_draft(self, run: RunRow, *, promotes: bool) -> SaveResult | None:
        """Keep what a run did as a draft that has worked once, if it made calls; None if it is not worth that.

        If it `promotes`, a run that does what a draft does has that pass the gate.
        """
        from .extraction import extract_skill

        steps = await self._steps(run)
        if await anyio.to_thread.run_sync(find_skill_call, steps[-1]):
            return None
        made = await anyio.to_thread.run_sync(extract_skill, steps)
        if made.case is None or not made.case.calls or not made.case.inputs:
            return None
        async with self._saving:
            found = await self.all_versions()
            twin = found[name][-1] if (name := find_duplicate(made, found)) else None
            if twin is not None and (twin.state != "draft" or not promotes):
                return SaveResult(twin, already_existed=True)
            if twin is not None and any(case.inputs == made.case.inputs for case in twin.cases):
                return SaveResult(twin, already_existed=True)
            made_of = partial(extract_skill, steps)
            return await self._keep(
                "", run.id, made_of, on_probation=twin is None, session=run.session_id
            )

    async def save_code(self, code: str, name: str = "") -> SaveResult:
        """Keep code that was written as a skill; it is a draft until a run that uses it is saved."""
        from .extraction import read_written_skill

        given = parse_skill_name(name) if name else ""
        async with self._saving:
            return await self._keep(given, "code", lambda _: read_written_skill(code))

    async def recheck(self, skill: Skill, *, may_revive: bool = False) -> Skill:
        """Have a version prove itself again, and return it as it is now; a retired one is back only if it `revives`."""
        async with self._saving:
            verdict = await self._refused(skill)
            verdict = verdict or await self._examine(skill.name, skill, skill.cases, skill.version)
            if verdict.reasons or (skill.state == "retired" and not may_revive):
                state = "quarantined" if skill.state == "active" else skill.state
                meant = (
                    (MEANT,) if verdict.reasons and skill.origin == "edit" and skill.cases else ()
                )
                return await self._set(skill, state, (*verdict.reasons, *meant) or skill.reasons)
            tools = {tool: self._schema(tool) or was for tool, was in skill.tool_digests.items()}
            return await self._set(skill, "active", (), tools)

    async def _refused(self, skill: Skill) -> Verdict | None:
        """Return what keeps a version from being tried at all: it came by hand, or what it uses has changed since."""
        try:
            checked = await anyio.to_thread.run_sync(check_source, skill.source, self._packages)
            check_dependency_cycle(skill.name, checked.skills, await self.all_versions())
            for case in skill.cases:
                check_case(case)
        except SkillRefused as exc:
            return Verdict((str(exc),), skill.cases)
        return None

    async def retire(self, skill: Skill, reason: str) -> Skill:
        """Take a version out of use; its exact version can still be imported."""
        async with self._saving:
            return await self._set(skill, "retired", (reason,))

    async def _steps(self, run: RunRow) -> list[RecordedStep]:
        steps = []
        for row in (await self._journal.load_lineage(run.id))[-MAX_STEPS:]:
            recording = await load_recording(self._journal, row)
            end = recording.outcome
            steps.append(
                RecordedStep(
                    row.id,
                    recording.start.code,
                    end["status"] == "ok",
                    recording.calls,
                    end["value"],
                    end["stdout"],
                    recording.start.seed,
                    recording.clock_readings,
                    (end["error"] or {}).get("line") or 0,
                )
            )
        return steps

    async def _prove(self, name: str, version: int | None, case: RecordedCase) -> SaveResult:
        """Have a skill prove itself with what it was used for."""
        skill = await self.get(name if version is None else f"{name}@{version}")
        check_case(case)
        known = [each for each in skill.cases if each.inputs != case.inputs]
        if len(known) < len(skill.cases) and skill.state == "active":
            return SaveResult(skill, already_existed=True)
        extraction = ExtractedSkill(skill.name, skill.summary, skill.source, skill.signature, case)
        return await self._keep(skill.name, skill.origin, lambda _: extraction, tuple(known))

    async def _keep(
        self,
        given: str,
        origin: str,
        make: Callable[[frozenset[str]], ExtractedSkill],
        others: tuple[RecordedCase, ...] = (),
        *,
        on_probation: bool = False,
        session: str = "",
    ) -> SaveResult:
        """Have an extraction pass the gate, and keep it as a new version, active or not; or first wait for another.

        What comes of a `session` may be described by a model.
        """
        fixed: frozenset[str] = frozenset()
        found, guides = await self.all_versions(), await self.load_guides()
        for attempt in range(TRIES):
            made = await anyio.to_thread.run_sync(make, fixed)
            checked = await anyio.to_thread.run_sync(check_source, made.source, self._packages)
            if made.case is not None:
                check_case(made.case)
            name = (
                given
                or find_duplicate(made, found)
                or choose_free_name(made.name, {*found, *guides})
            )
            check_dependency_cycle(name, checked.skills, found)
            cases, source, twin = merge_cases(made, others, found.get(name, ()))
            if (
                twin is not None
                and not others
                and len(cases) == len(twin.cases)
                and twin.state == "active"
            ):
                return SaveResult(twin, already_existed=True)
            if on_probation:
                verdict = Verdict((ONCE,), cases)
                break
            self._candidates[name] = source
            try:
                verdict = await self._examine(name, replace_source(made, source), cases, CANDIDATE)
            finally:
                del self._candidates[name]
            new = frozenset(verdict.unfit) - fixed
            if not new or made.is_hand_written or attempt == TRIES - 1:
                break
            fixed |= new
        told = Described(name, twin.summary if twin else made.summary, source)
        if session and not verdict.reasons:
            taken = None if given or name in found or made.is_hand_written else {*found, *guides}
            made = replace_source(made, source)
            told = await self._described(
                told, made, verdict.cases[-1], session, found.get(name, ()), taken
            )
        return await self._add(
            told, verdict, checked, origin, told.by or (twin.described_by if twin else "")
        )

    async def _add(
        self, told: Described, verdict: Verdict, checked: CheckedSource, origin: str, described: str
    ) -> SaveResult:
        """Keep what has been at the gate as a new version."""
        calls = {call.target for case in verdict.cases for call in case.calls}
        tools = {
            target.removeprefix(TOOL_PREFIX) for target in calls if target.startswith(TOOL_PREFIX)
        }
        tools |= {tool for tool in checked.tools if "." in tool}
        used = tuple(sorted(checked.skills))
        signature = check_entry_signature(parse_source(told.source))
        content = render_version_files(
            told.name,
            told.summary,
            told.source,
            signature,
            verdict.cases,
            tools=tuple(sorted(tools)),
            skills=used,
        )
        manifest = Manifest(
            name=told.name,
            version=0,
            state="draft" if verdict.reasons else "active",
            reasons=verdict.reasons,
            summary=told.summary,
            described_by=described,
            origin=origin,
            saved_at=time.time(),
            tool_digests={tool: self._schema(tool) for tool in sorted(tools)},
            skill_digests={each: await self._digest(each) for each in used},
        )
        async with self._reading:
            skill = await anyio.to_thread.run_sync(self._store.add_version, content, manifest)
        return SaveResult(skill, note=told.note)

    async def _described(
        self,
        own: Described,
        made: ExtractedSkill,
        case: RecordedCase,
        session: str,
        versions: Sequence[Skill],
        taken: Collection[str] | None,
    ) -> Described:
        """Return what a model says of a skill that is in use for the first time, if one is to be asked."""
        is_new = all(each.state != "active" for each in versions)
        if self.describer is None or not is_new or not is_describable(made):
            return own
        return await self.describer.describe_skill(own, made, case, session, taken)

    async def _examine(
        self, name: str, made: ExtractedSkill | Skill, cases: Sequence[RecordedCase], version: int
    ) -> Verdict:
        if not cases:
            return Verdict((NO_CASE_REASON,), ())
        return await run_gate(name, made, cases, self.open_trial, version)

    async def _digest(self, skill: str) -> str:
        try:
            return (await self.get(skill)).digest
        except McpRuntimeError:
            return ""

    def close(self) -> None:
        """Let go of the index."""
        self._index.close()


def _nowhere() -> NoReturn:
    raise Unavailable("Skills cannot be checked without sandboxes.")
