"""Find skills and guides, and give them to the code that imports them.

Rule 1: code gets only active skills by name. Any other version has to be imported by its exact
version (`skills.weather_report.v2`).
Rule 2: a version never changes. What is learned about it goes into its state.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio

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
from .guides import Guide, GuideFolders, read_guide_files
from .model import Skill, SkillState
from .search_index import SkillIndex
from .selection import active_skills, content_identity, describe_state, listing_entry, pick_version
from .signing import is_signed_by
from .store import SkillStore
from .usage import UsageRecord, UsageRecords, count_uses, retirement_reason
from .version_files import FileContents, Manifest

MAX_SEARCH_RESULTS = 50


class SkillLibrary:
    """The skills of one store, and the guides in some folders.

    `tool_digest` returns the digest of a tool's schemas, "" if that is not known.
    """

    def __init__(
        self,
        store: SkillStore,
        journal: Journal,
        tool_digest: Callable[[str], str],
        guides: GuideFolders | None = None,
    ) -> None:
        self._store = store
        self._journal = journal
        self._tool_digest = tool_digest
        self._guides = guides or GuideFolders()
        self._index = SkillIndex()
        self._indexed: dict[str, str] = {}  # the content's identity, by name
        self._offered: dict[str, Skill] = {}  # by the id of the session that tests it
        self._store_lock = anyio.Lock()

    # finding --------------------------------------------------------------------------------------

    async def all_versions(self) -> dict[str, tuple[Skill, ...]]:
        """Return the versions of every skill, by its name, oldest first; raises `Unavailable`."""
        async with self._store_lock:
            skills = await anyio.to_thread.run_sync(self._store.all_versions)
        scope = find_call_scope()
        if scope is not None and (offered := self._offered.get(scope.session_id)) is not None:
            others = [
                each for each in skills.get(offered.name, ()) if each.version != offered.version
            ]
            skills[offered.name] = (*others, offered)
        return skills

    async def load_guides(self) -> dict[str, Guide]:
        """Return the guides by name, except those whose name a skill has."""
        skills = await self.all_versions()
        async with self._store_lock:
            found = await anyio.to_thread.run_sync(self._guides.load_guides)
        return {name: guide for name, guide in found.items() if name not in skills}

    async def usage_records(self) -> UsageRecords:
        """Return the record of every version that was used; raises `JournalFailed`."""
        return count_uses(await self._journal.load_skill_uses())

    @property
    def problems(self) -> Mapping[str, str]:
        """What is wrong in the store and in the folders of guides, by skill or folder."""
        return {**self._store.problems, **self._guides.problems}

    async def get(self, name: str) -> Skill:
        """Return a skill by name, or an exact version ("weather_report@2").

        Raises `NotFound`, `InvalidRequest`.
        """
        return pick_version(await self.all_versions(), name)

    async def available_names(self) -> list[str]:
        """Return the names of all active skills and guides."""
        return sorted({*active_skills(await self.all_versions()), *await self.load_guides()})

    async def count_available(self) -> int:
        """Return the number of active skills and guides."""
        return len(await self.available_names())

    async def search(self, query: str, limit: int) -> list[Skill | Guide]:
        """Return the active skills and guides that match any word of `query`, best first.

        An empty query matches all.
        """
        skills = active_skills(await self.all_versions())
        found: dict[str, Skill | Guide] = {**await self.load_guides(), **skills}
        records = await self.usage_records()

        def weight(name: str) -> float:
            key = (name, skills[name].version) if name in skills else (name, 0)
            return records.get(key, UsageRecord()).search_weight

        if not query.strip():
            return sorted(found.values(), key=lambda each: (-weight(each.name), each.name))[:limit]
        async with self._store_lock:
            identities = {name: content_identity(each) for name, each in found.items()}
            if identities != self._indexed:
                await anyio.to_thread.run_sync(self._index.replace_all, list(found.values()))
                self._indexed = identities
            names = await anyio.to_thread.run_sync(self._index.search, query, limit, weight)
        return [found[name] for name in names if name in found]

    async def read_files(self, name: str) -> FileContents:
        """Return the files of an active skill, or of a guide; raises `NotFound`, `Unavailable`."""
        if guide := (await self.load_guides()).get(name):
            read: Callable[[], FileContents] = partial(read_guide_files, guide)
        elif skill := active_skills(await self.all_versions()).get(name):
            read = partial(self._store.read_content_files, skill)
        else:
            raise NotFound(
                f"There is no active skill {name!r:.80}.", remedy="list_skills shows them."
            )
        try:
            async with self._store_lock:
                return await anyio.to_thread.run_sync(read)
        except (SkillRefused, OSError) as exc:
            raise Unavailable(f"The files of {name} cannot be read: {exc}") from None

    # changing -------------------------------------------------------------------------------------

    async def add_version(self, content: FileContents, manifest: Manifest) -> Skill:
        """Add a version of the skill that the manifest names, and return it."""
        async with self._store_lock:
            return await anyio.to_thread.run_sync(self._store.add_version, content, manifest)

    async def set_state(
        self,
        skill: Skill,
        state: SkillState,
        reasons: tuple[str, ...] = (),
        tool_digests: Mapping[str, str] | None = None,
        *,
        replaces_signed: bool = False,
    ) -> Skill:
        """Change the state of a version as the store allows, and return it."""
        change = partial(
            self._store.set_state,
            skill,
            state,
            reasons,
            tool_digests,
            replaces_signed=replaces_signed,
        )
        async with self._store_lock:
            return await anyio.to_thread.run_sync(change)

    async def retire_unused(self) -> list[Skill]:
        """Retire and return the active skills that are no longer used, or that mostly fail."""
        uses = await self._journal.load_skill_uses()
        records = count_uses(uses)
        is_shared = len({use.principal for use in uses}) > 1
        retired = []
        for skill in active_skills(await self.all_versions()).values():
            record = records.get((skill.name, skill.version), UsageRecord())
            is_signed = is_signed_by(skill, {skill.signer_key})
            reason = retirement_reason(
                record, skill.saved_at, is_shared=is_shared, is_signed=is_signed
            )
            if reason:
                retired.append(await self.set_state(skill, "retired", (reason,)))
        return retired

    def tool_digest(self, tool: str) -> str:
        """Return the digest of a tool's schemas; "" if it is not known."""
        return self._tool_digest(tool)

    async def skill_digest(self, name: str) -> str:
        """Return the digest of a skill; "" if there is none of that name."""
        try:
            return (await self.get(name)).digest
        except McpRuntimeError:
            return ""

    async def next_version(self, name: str) -> int:
        """Return the number that the next version of a skill will have."""
        async with self._store_lock:
            return await anyio.to_thread.run_sync(self._store.next_version, name)

    @contextmanager
    def offer_skill(self, session_id: str, skill: Skill) -> Iterator[None]:
        """Let the code of a session find a version in use, whatever the store has."""
        self._offered[session_id] = skill
        try:
            yield
        finally:
            del self._offered[session_id]

    # calls from sandboxes -------------------------------------------------------------------------

    async def handle_call(self, target: str, args: dict[str, Any]) -> Any:
        """Answer `skills.source`, `.names`, `.files`, `.search` or `.used`."""
        match target:
            case "skills.source":
                return await self._handle_source(args.get("skill"), args.get("version"))
            case "skills.names":
                return await self.available_names()
            case "skills.files":
                return await self._handle_files(args.get("skill"))
            case "skills.search":
                return await self._handle_search(args.get("query"), args.get("limit"))
            case "skills.used":
                return None  # the journal has it, which is its purpose
        raise CallFailed("unknown_skill", f"There is no call {target!r:.80}.")

    async def _handle_search(self, query: Any, limit: Any) -> dict[str, Any]:
        if not isinstance(query, str) or type(limit) is not int:
            raise CallFailed("invalid_arguments", "skills.search takes a text and a number.")
        found = await self.search(query, max(1, min(limit, MAX_SEARCH_RESULTS)))
        return {"skills": [listing_entry(skill) for skill in found]}

    async def _handle_source(self, name: Any, version: Any) -> dict[str, Any]:
        if not isinstance(name, str) or not (version is None or type(version) is int):
            raise CallFailed(
                "invalid_arguments", "A skill has a name, and a version that is a number."
            )
        try:
            skill = await self.get(name if version is None else f"{name}@{version}")
        except (NotFound, InvalidRequest) as exc:
            guide = (await self.load_guides()).get(name)
            if version is None and guide is not None:
                return {**_source_answer(name, 0, "guide", ""), "guide": guide.text}
            raise CallFailed("unknown_skill", exc.message) from None
        if version is None and skill.state == "active":
            skill = await self._quarantine_if_changed(skill)
        if version is None and skill.state != "active":
            message = f"The skill {name} is not in use: it is {describe_state(skill.state)}."
            raise CallFailed(
                skill.state,
                " ".join([message, *skill.reasons]),
                remedy=f"skills.{name}.v{skill.version} imports it nevertheless.",
            )
        return _source_answer(skill.name, skill.version, skill.state, skill.source, skill.digest)

    async def _handle_files(self, name: Any) -> dict[str, str]:
        """Return the files of a guide in base 64."""
        if not isinstance(name, str) or name not in await self.load_guides():
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
        current = {tool: self._tool_digest(tool) for tool in skill.tool_digests}
        changed = sorted(
            tool
            for tool, checked in skill.tool_digests.items()
            if checked and current[tool] and current[tool] != checked
        )
        if not changed:
            return skill
        command = f"`mcpruntime-server skills check {skill.name}`"
        reason = f"{', '.join(changed)} has changed since it was checked: {command}."
        return await self.set_state(skill, "quarantined", (reason,))


def _source_answer(
    name: str, version: int, state: str, source: str, digest: str = ""
) -> dict[str, Any]:
    return {"skill": name, "version": version, "state": state, "source": source, "digest": digest}
