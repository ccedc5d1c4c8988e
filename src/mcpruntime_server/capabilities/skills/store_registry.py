"""The stores of all principals, and which of their skills everybody may use.

    skills_store/                      the store of the local user
        shared.json                    which skills are shared: {"weather_report": "alice"}
        _principals/alice-2bd806c97f/  the store of another principal, with its name in `principal`

Rule 1: a principal has the skills in its own store, and those that others share. A skill of its own
hides a shared one of the same name.
Rule 2: of a shared skill, others get the versions in use, and nothing but their code. Recorded
cases, reasons and origin remain with the owner, who alone changes it.
Rule 3: at most one principal shares a skill of a name.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ...errors import InvalidRequest, Unavailable
from ...journal.principals import principal_file_name
from ...journal.rows import LOCAL_PRINCIPAL
from ..atomic_files import write_atomically
from .model import Skill
from .store import OWNER_FILE, SkillStore, hold_lock
from .version_files import (
    FileContents,
    compute_digest,
    render_version_files,
)

PRIVATE_FOLDER = "_principals"  # no skill can have this name
SHARED_FILE = "shared.json"
SHARED_LOCK_FILE = ".shared.lock"  # not that of the local user's store, which is in the same folder
MAX_OWNER_CHARS = 2_000


class StoreRegistry:
    """Opens the store of each principal. Its methods block; any thread may use them."""

    def __init__(self, folder: Path, trusted_keys: Collection[str] = ()) -> None:
        self.folder = folder
        self.problem = ""  # with what is shared
        self._trusted_keys = trusted_keys
        self._stores: dict[str, SkillStore] = {}  # by principal
        self._lock = threading.Lock()

    def open_store(self, principal: str) -> SkillStore:
        """Return the store of a principal, which need not exist yet."""
        folder = self.folder
        if principal != LOCAL_PRINCIPAL:
            folder = folder / PRIVATE_FOLDER / principal_file_name(principal)
        with self._lock:
            if principal not in self._stores:
                self._stores[principal] = SkillStore(folder, self._trusted_keys, principal)
            return self._stores[principal]

    def list_principals(self) -> list[str]:
        """Return the principals that have a store."""
        found = [LOCAL_PRINCIPAL]
        for path in sorted((self.folder / PRIVATE_FOLDER).glob(f"*/{OWNER_FILE}")):
            with suppress(OSError, ValueError):
                principal = path.read_bytes()[:MAX_OWNER_CHARS].decode()
                if principal_file_name(principal) == path.parent.name:
                    found.append(principal)
        return found

    # what a principal sees ------------------------------------------------------------------------

    def visible_versions(self, principal: str) -> dict[str, tuple[Skill, ...]]:
        """Return the versions that a principal can use, by name, oldest first.

        Raises `Unavailable`.
        """
        found = self.open_store(principal).all_versions()
        for name, owner in self.shared_skills().items():
            if name not in found and (versions := self._shared_versions(name, owner)):
                found[name] = versions
        return dict(sorted(found.items()))

    def _shared_versions(self, name: str, owner: str) -> tuple[Skill, ...]:
        versions = self.open_store(owner).versions(name)
        return tuple(_without_records(each) for each in versions if each.state == "active")

    def find_owner(self, principal: str, name: str) -> str:
        """Return whose skill a name is for a principal; its own one, if there is none."""
        if self.open_store(principal).versions(name):
            return principal
        return self.shared_skills().get(name, principal)

    def read_files(self, principal: str, skill: Skill) -> FileContents:
        """Return the files of a version that a principal sees; raises `SkillRefused`, `OSError`."""
        content = self.open_store(skill.owner).read_content_files(skill)
        if skill.owner == principal:
            return content
        return render_version_files(skill)

    # sharing --------------------------------------------------------------------------------------

    def shared_skills(self) -> dict[str, str]:
        """Return the owner of each shared skill, by name; nothing if the file is damaged."""
        self.problem = ""
        try:
            found = json.loads((self.folder / SHARED_FILE).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as exc:
            self.problem = f"{SHARED_FILE} cannot be read, so nothing is shared: {exc}"
            return {}
        if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
            self.problem = f"{SHARED_FILE} is damaged, so nothing is shared."
            return {}
        return found

    def share_skill(self, skill: Skill) -> None:
        """Let everybody use a skill; raises `InvalidRequest`, `Unavailable`."""
        if skill.state != "active":
            raise InvalidRequest(
                f"{skill.id} is not in use.", remedy="Promote a version, then share the skill."
            )
        with self._change_shared() as shared:
            owner = shared.get(skill.name, skill.owner)
            if owner != skill.owner:
                raise InvalidRequest(
                    f"{owner} shares a skill {skill.name} already.",
                    remedy=f"Save it under another name, or unshare that of {owner}.",
                )
            for reference in skill.used_skills:
                used = reference.partition("@")[0]
                if shared.get(used) != self.find_owner(skill.owner, used):
                    raise InvalidRequest(
                        f"{skill.name} uses the skill {used}, which is not shared.",
                        remedy=f"Share {used} first.",
                    )
            shared[skill.name] = skill.owner

    def unshare_skill(self, name: str, owner: str) -> None:
        """Keep a skill to its owner again; raises `InvalidRequest`, `Unavailable`."""
        with self._change_shared() as shared:
            if shared.get(name) != owner:
                raise InvalidRequest(f"{owner} does not share a skill {name}.")
            del shared[name]

    @contextmanager
    def _change_shared(self) -> Iterator[dict[str, str]]:
        """Yield what is shared and write it back; one process at a time."""
        with hold_lock(self.folder, SHARED_LOCK_FILE):
            shared = self.shared_skills()
            if self.problem:
                raise Unavailable(self.problem, remedy=f"Mend or remove {SHARED_FILE}.")
            yield shared
            data = json.dumps(dict(sorted(shared.items())), indent=1) + "\n"
            write_atomically(self.folder / SHARED_FILE, data.encode())


def _without_records(skill: Skill) -> Skill:
    """Return a version as others than its owner see it."""
    return replace(
        skill,
        cases=(),
        reasons=(),
        origin="",
        digest=compute_digest(skill.source.encode()),
        signature_hex="",
        signer_key="",
    )
