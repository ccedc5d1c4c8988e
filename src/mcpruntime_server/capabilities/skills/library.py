"""Find skills and guides for a principal, and give them to the code that imports them.

Rule 1: code gets only active skills by name. Any other version has to be imported by its exact
version (`skills.weather_report.v2`).
Rule 2: a version never changes. What is learned about it goes into its state.
Rule 3: only the owner's work changes the state of a skill; the use of others counts as votes.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import anyio
from anyio import to_thread

from ...errors import (
    CallFailed,
    InvalidRequest,
    McpRuntimeError,
    NotFound,
    SkillRefused,
    Unavailable,
)
from ...journal.call_scope import find_call_scope
from ...journal.store import Journal
from ...protocol.payloads import JsonObject, SkillListing, SkillSource
from .guides import Guide, GuideFolders, read_guide_files
from .model import Skill, SkillEvent, active_skills, pick_version
from .search_index import SkillIndex
from .signing import has_valid_signature
from .store import SkillStore
from .usage import UsageRecord, UsageRecords, count_uses, retirement_reason
from .version_files import FileContents, without_manifest

MAX_SEARCH_RESULTS = 50


class SkillLibrary:
    """The skills that a principal has or may use, and the guides.

    `get_tool_digest` returns the digest of a tool's schemas, "" if that is not known.
    """

    def __init__(
        self,
        store: SkillStore,
        journal: Journal,
        get_tool_digest: Callable[[str], str],
        guides: GuideFolders,
    ) -> None:
        self.principal = store.owner
        self.store = store  # its methods block
        self._journal = journal
        self.get_tool_digest = get_tool_digest
        self._guides = guides
        self._index: SkillIndex | None = None
        self._index_lock = anyio.Lock()
        self._offered: dict[str, Skill] = {}  # by the id of the session that tests it

    # finding --------------------------------------------------------------------------------------

    async def all_versions(self) -> dict[str, tuple[Skill, ...]]:
        """Return the versions of every skill, by its name, oldest first; raises `Unavailable`."""
        skills = await to_thread.run_sync(self.store.visible_versions)
        scope = find_call_scope()
        if scope is not None and (offered := self._offered.get(scope.session_id)) is not None:
            others = [
                each
                for each in skills.get(offered.name, ())
                if each.owner == self.principal and each.version != offered.version
            ]
            skills[offered.name] = (*others, offered)
        return skills

    async def find_guide(self, name: str) -> Guide | None:
        """Return the guide of that name; None if there is none, or if a skill has the name."""
        guide = (await self._load_guides()).get(name)
        return None if guide is None or name in await self.all_versions() else guide

    async def _load_guides(self) -> dict[str, Guide]:
        return await to_thread.run_sync(self._guides.load_guides)

    async def list_available(self) -> dict[str, Skill | Guide]:
        """Return all active skills, and the guides whose name no skill has."""
        skills = await self.all_versions()
        guides = await self._load_guides()
        found: dict[str, Skill | Guide] = {**active_skills(skills)}
        return found | {name: each for name, each in guides.items() if name not in skills}

    async def taken_names(self) -> set[str]:
        """Return the names of all skills and guides."""
        return {*await self.all_versions(), *await self._load_guides()}

    async def get(self, name: str) -> Skill:
        """Return a skill by name, or an exact version ("weather_report@2").

        Raises `NotFound`, `InvalidRequest`.
        """
        return pick_version(await self.all_versions(), name)

    async def search(self, query: str, limit: int) -> tuple[list[Skill | Guide], int]:
        """Return the active skills and guides that match any word of `query`, best first.

        An empty query matches all. Return also how many there are that could match.
        """
        found = await self.list_available()
        records = await self._load_records()

        def weight(name: str) -> float:
            return find_record(records, found[name]).search_weight

        if not query.strip():
            ranked = sorted(found.values(), key=lambda each: (-weight(each.name), each.name))
            return ranked[:limit], len(found)
        async with self._index_lock:
            index = self._index = self._index or SkillIndex()
            names = await to_thread.run_sync(index.search, found, query, limit, weight)
        return [found[name] for name in names], len(found)

    async def read_files(self, name: str) -> FileContents:
        """Return the files of an active skill, or of a guide; raises `NotFound`, `Unavailable`."""
        found = (await self.list_available()).get(name)
        if found is None:
            raise NotFound(
                f"There is no active skill {name!r:.80}.", remedy="list_skills shows them."
            )
        try:
            if isinstance(found, Guide):
                return await to_thread.run_sync(read_guide_files, found)
            return without_manifest(await to_thread.run_sync(self.store.read_files, found))
        except (SkillRefused, OSError) as exc:
            raise Unavailable(f"The files of {name} cannot be read: {exc}") from None

    # usage ----------------------------------------------------------------------------------------

    async def find_usage(self, skill: Skill) -> UsageRecord:
        """Return the record of a version; raises `JournalFailed`."""
        return find_record(await self._load_records(), skill)

    async def _load_records(self) -> UsageRecords:
        """Return the record of every version that was used; raises `JournalFailed`."""
        shared = await to_thread.run_sync(self.store.shared_skills)
        uses = await self._journal.load_skill_uses(self.principal, shared)

        @cache
        def find_owner(principal: str, name: str) -> str:
            return self.store.of_principal(principal).find_owner(name)

        return await to_thread.run_sync(count_uses, uses, find_owner, shared.items())

    async def retire_unused(self) -> list[Skill]:
        """Retire and return the own skills that are no longer used, or that mostly fail."""
        records = await self._load_records()
        retired = []
        for skill in active_skills(await self.all_versions()).values():
            if skill.owner != self.principal:
                continue
            is_signed = has_valid_signature(skill)
            record = find_record(records, skill)
            if reason := retirement_reason(record, skill.saved_at, is_signed=is_signed):
                retired.append(await self.record_event(skill, "retired", (reason,)))
        return retired

    # changing -------------------------------------------------------------------------------------

    async def record_event(
        self,
        skill: Skill,
        event: SkillEvent,
        reasons: tuple[str, ...] = (),
        tool_digests: Mapping[str, str] | None = None,
        *,
        replaces_signed: bool = False,
    ) -> Skill:
        """Change an own version as an event says and the store allows, and return it."""
        change = partial(
            self.store.record_event,
            skill,
            event,
            reasons,
            tool_digests,
            replaces_signed=replaces_signed,
        )
        return await to_thread.run_sync(change)

    @contextmanager
    def offer_skill(self, session_id: str, skill: Skill) -> Iterator[None]:
        """Let the code of a session find a version in use, whatever the store has."""
        self._offered[session_id] = skill
        try:
            yield
        finally:
            del self._offered[session_id]

    # calls from sandboxes -------------------------------------------------------------------------

    async def handle_call(self, target: str, args: JsonObject) -> Any:
        """Answer `skills.source`, `.names`, `.files`, `.search` or `.used`."""
        match target:
            case "skills.source":
                return await self._handle_source(args.get("skill"), args.get("version"))
            case "skills.names":
                return sorted(await self.list_available())
            case "skills.files":
                return await self._handle_files(args.get("skill"))
            case "skills.search":
                return await self._handle_search(args.get("query"), args.get("limit"))
            case "skills.used":
                return None  # the journal has it, which is its purpose
        raise CallFailed("unknown_skill", f"There is no call {target!r:.80}.")

    async def _handle_search(self, query: Any, limit: Any) -> SkillListing:
        if not isinstance(query, str) or type(limit) is not int:
            raise CallFailed("invalid_arguments", "skills.search takes a text and a number.")
        found, _ = await self.search(query, max(1, min(limit, MAX_SEARCH_RESULTS)))
        return {"skills": [skill.listing for skill in found]}

    async def _handle_source(self, name: Any, version: Any) -> SkillSource:
        if not isinstance(name, str) or not (version is None or type(version) is int):
            raise CallFailed(
                "invalid_arguments", "A skill has a name, and a version that is a number."
            )
        try:
            skill = await self.get(name if version is None else f"{name}@{version}")
        except (NotFound, InvalidRequest) as exc:
            guide = await self.find_guide(name)
            if version is None and guide is not None:
                return {**_source_answer(name, 0, "guide", ""), "guide": guide.body}
            raise CallFailed("unknown_skill", exc.message) from None
        if version is None and skill.state == "active":
            skill = await self._quarantine_if_changed(skill)
        if version is None and skill.state != "active":
            message = f"The skill {name} is not in use: it is {skill.state_words}."
            raise CallFailed(
                skill.state,
                " ".join([message, *skill.reasons]),
                remedy=f"skills.{name}.v{skill.version} imports it nevertheless.",
            )
        answer = _source_answer(skill.name, skill.version, skill.state, skill.source, skill.digest)
        if skill.packages:
            answer["wheels"] = [
                {"name": each.name, "version": each.version, "sha256": each.digest}
                for each in skill.packages
            ]
        return answer

    async def _handle_files(self, name: Any) -> dict[str, str]:
        """Return the files of a guide in base 64."""
        if not isinstance(name, str) or await self.find_guide(name) is None:
            raise CallFailed("unknown_skill", f"There is no guide {name!r:.80}.")
        try:
            content = await self.read_files(name)
        except McpRuntimeError as exc:
            raise CallFailed("unavailable", exc.message) from None
        return {path: b64encode(data).decode() for path, data in content.items()}

    async def _quarantine_if_changed(self, skill: Skill) -> Skill:
        """Return an active skill as it is now that the schemas of its tools may have changed."""
        if skill in self._offered.values():
            return skill
        current = {tool: self.get_tool_digest(tool) for tool in skill.tool_digests}
        changed = sorted(
            tool
            for tool, checked in skill.tool_digests.items()
            if checked and current[tool] and current[tool] != checked
        )
        if not changed:
            return skill
        command = f"`mcpruntime-server skills check {skill.name}`"
        reason = f"{', '.join(changed)} has changed since it was checked: {command}."
        if skill.owner != self.principal:
            return replace(skill, state="quarantined", reasons=(reason,))
        return await self.record_event(skill, "tool_changed", (reason,))


async def retire_unused_skills(
    store: SkillStore, find_library: Callable[[str], SkillLibrary]
) -> list[Skill]:
    """Retire and return skills that no principal uses, or that mostly fail."""
    principals = await to_thread.run_sync(store.list_principals)
    return [skill for each in principals for skill in await find_library(each).retire_unused()]


def find_record(records: UsageRecords, found: Skill | Guide) -> UsageRecord:
    """Return the record of a version; an empty one if it was not used."""
    if isinstance(found, Guide):
        return UsageRecord()
    return records.get((found.owner, found.name, found.version), UsageRecord())


def _source_answer(
    name: str, version: int, state: str, source: str, digest: str = ""
) -> SkillSource:
    return {"skill": name, "version": version, "state": state, "source": source, "digest": digest}
