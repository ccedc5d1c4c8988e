"""The skills of one principal: one folder a skill, which people may read, compare and edit.

    skills_store/                      the skills of the local user
        weather-report/                the version in use: a folder of the Agent Skills standard
            SKILL.md  skill.py  skill.toml  cases/0001.json
            versions/1/                every version as it was saved, with the same files
        shared.json                    which skills are shared: {"weather_report": "alice"}
        _principals/alice-2bd806c97f/  the skills of another principal, named in `principal`

Rule 1: a version is written beside the store and renamed into it, so it exists completely or not at
all. Its content is never written again. Its manifest, which has its state, is replaced as a whole.
Rule 2: everything outside `versions/` is a copy. An edited copy becomes a new draft version; a copy
without a manifest, which a dying process left, is written again.
Rule 3: several processes may use one store. A process that changes it holds its lock.
Rule 4: on every way into use, the store checks whether a version may replace a signed one
(`signing`). Such a version takes older ones out of use that could not replace it.
Rule 5: what cannot be read is reported in `problems`, and affects no other skill.
Rule 6: a principal sees its own skills, and those that others share. An own skill hides a shared
one of the same name, and at most one principal shares a name. Others get the versions in use, and
nothing but their code: recorded cases, reasons and origin remain with the owner.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ...errors import InvalidRequest, McpRuntimeError, NotFound, SkillRefused, Unavailable
from ...journal.principals import LOCAL_PRINCIPAL, principal_file_name
from ..atomic_files import write_atomically
from .model import TRANSITIONS, Skill, SkillEvent
from .signing import find_replaced_versions, succession_problem
from .skill_names import name_problem, to_slug
from .version_files import (
    CASES_FOLDER,
    MANIFEST_FIELDS,
    MANIFEST_FILE,
    SKILL_FILE,
    SOURCE_FILE,
    VERSION_FILES,
    FileContents,
    compute_content_digest,
    compute_digest,
    decode_manifest,
    encode_manifest,
    load_skill,
    make_skill,
    read_version_files,
    render_version_files,
    without_manifest,
)

VERSIONS_FOLDER = "versions"
VERSION_NUMBER = re.compile(r"[1-9][0-9]*")
PRIVATE_FOLDER = "_principals"  # no skill can have this name
SHARED_FILE = "shared.json"
LOCK_FILE, SHARED_LOCK_FILE = ".lock", ".shared.lock"  # both may be in the local user's folder
OWNER_FILE = "principal"  # with the name of the owner, unless that is the local user
MAX_OWNER_CHARS = 2_000
MAX_SKILLS = 2_000
MAX_VERSIONS = 1_000
STAGING_PREFIX = ".new-"
STAGING_LIFETIME_S = 3600.0  # after which a folder that a dead process was writing is removed
EDITED = (
    "It was edited by hand, and has not been checked since: "
    "`mcpruntime-server skills promote NAME@VERSION`."
)


class SkillStore:
    """The skills that a principal has or may use. Its methods block; any thread may use them."""

    def __init__(
        self,
        root: Path,
        trusted_keys: Collection[str] = (),
        owner: str = LOCAL_PRINCIPAL,
        stores: dict[str, SkillStore] | None = None,
    ) -> None:
        self.root = root
        self.folder = root
        if owner != LOCAL_PRINCIPAL:
            self.folder = root / PRIVATE_FOLDER / principal_file_name(owner)
        self.trusted_keys = trusted_keys
        self.owner = owner
        self.problems: dict[str, str] = {}  # by "name", "name@version" or file
        self._stores = {owner: self} if stores is None else stores  # by principal
        self._cache: dict[str, tuple[tuple[object, ...], tuple[Skill, ...]]] = {}
        self._cache_lock = threading.Lock()

    def of_principal(self, principal: str) -> SkillStore:
        """Return the store of a principal, which need not exist yet."""
        if principal not in self._stores:
            store = SkillStore(self.root, self.trusted_keys, principal, self._stores)
            self._stores.setdefault(principal, store)
        return self._stores[principal]

    def list_principals(self) -> list[str]:
        """Return the principals that have a store."""
        found = [LOCAL_PRINCIPAL]
        for path in sorted((self.root / PRIVATE_FOLDER).glob(f"*/{OWNER_FILE}")):
            with suppress(OSError, ValueError):
                principal = path.read_bytes()[:MAX_OWNER_CHARS].decode()
                if principal_file_name(principal) == path.parent.name:
                    found.append(principal)
        return found

    # reading --------------------------------------------------------------------------------------

    def all_versions(self) -> dict[str, tuple[Skill, ...]]:
        """Return the own versions of every skill, by its name, oldest first.

        Raises `Unavailable`.
        """
        found = {name: self.versions(name) for name in self._skill_names()}
        with self._cache_lock:
            self._cache = {name: each for name, each in self._cache.items() if name in found}
        return {name: versions for name, versions in found.items() if versions}

    def visible_versions(self) -> dict[str, tuple[Skill, ...]]:
        """Return the versions that the principal can use, own and shared; raises `Unavailable`."""
        found = self.all_versions()
        for name, owner in self.shared_skills().items():
            if name not in found:
                versions = self.of_principal(owner).versions(name)
                found[name] = tuple(_without_records(each) for each in versions if each.is_active)
        return {name: versions for name, versions in sorted(found.items()) if versions}

    def _skill_names(self) -> list[str]:
        """Return the names of the folders that may be skills."""
        try:
            slugs = [entry.name for entry in os.scandir(self.folder) if _is_folder(entry)]
        except FileNotFoundError:
            return []
        except OSError as exc:
            message = f"The skills in {self.folder} cannot be read: {exc.strerror}."
            raise Unavailable(message) from exc
        names = [slug.replace("-", "_") for slug in sorted(slugs) if "_" not in slug]
        return [name for name in names if not name_problem(name)]

    def versions(self, name: str) -> tuple[Skill, ...]:
        """Return the own versions of a skill, oldest first; () if there is no such skill."""
        with self._cache_lock:
            return self._load_versions(name)

    def _load_versions(self, name: str) -> tuple[Skill, ...]:
        folder = self._folder_of(name)
        state = _file_state(folder)
        if name in self._cache and self._cache[name][0] == state:
            return self._cache[name][1]
        known = [*self.problems.items()]  # a copy, because other threads add to it
        self.problems = {key: problem for key, problem in known if key.partition("@")[0] != name}
        if folder.is_symlink() or not folder.is_dir():
            self._cache.pop(name, None)
            return ()
        self._adopt_edits(name, folder)
        found = tuple(self._read_versions(name))
        self._cache[name] = (_file_state(folder), found)
        return found

    def _read_versions(self, name: str) -> Iterator[Skill]:
        folder = self._folder_of(name)
        for number in _version_numbers(folder):
            try:
                skill = load_skill(read_version_files(_version_folder(folder, number)), self.owner)
                if (skill.name, skill.version) != (name, number):
                    raise SkillRefused(f"{MANIFEST_FILE} belongs to {skill.id}.")
                yield skill
            except (McpRuntimeError, OSError) as exc:
                self.problems[f"{name}@{number}"] = str(exc)

    def next_version(self, name: str) -> int:
        """Return the number that the next version of a skill will have."""
        return max(_version_numbers(self._folder_of(name)), default=0) + 1

    def find_owner(self, name: str) -> str:
        """Return whose skill a name is for the principal; its own one, if there is none."""
        return self.owner if self.versions(name) else self.shared_skills().get(name, self.owner)

    def read_files(self, skill: Skill) -> FileContents:
        """Return all files of a version; of another owner's, those that show its code.

        Raises `SkillRefused`, `OSError`.
        """
        if skill.owner != self.owner:
            return render_version_files(skill)
        return read_version_files(_version_folder(self._folder_of(skill.name), skill.version))

    def _folder_of(self, name: str) -> Path:
        return self.folder / to_slug(name)

    # writing --------------------------------------------------------------------------------------

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the lock of the store; raises `Unavailable`."""
        with _hold_lock(self.folder, LOCK_FILE):
            owner_file = self.folder / OWNER_FILE
            if self.owner != LOCAL_PRINCIPAL and not owner_file.exists():
                write_atomically(owner_file, self.owner.encode())
            yield

    def add_version(self, skill: Skill, content: FileContents | None = None) -> Skill:
        """Add a skill as the next version of its name, and return that.

        `content` are its files, if they exist already. Raises `SkillRefused`, `Unavailable`.
        """
        with self._lock():
            return self._add(skill, content or render_version_files(skill))

    def _add(self, skill: Skill, content: FileContents) -> Skill:
        folder = self._folder_of(skill.name)
        if folder.is_symlink():
            raise SkillRefused(
                f"The folder of {skill.name} is a link.",
                remedy="Replace it by a folder, or remove it.",
            )
        number = self.next_version(skill.name)
        if number > MAX_VERSIONS or (number == 1 and len(self._skill_names()) >= MAX_SKILLS):
            raise SkillRefused(
                f"A principal has at most {MAX_SKILLS:,} skills with {MAX_VERSIONS:,} versions.",
                remedy=f"Remove folders that are no longer needed from {self.folder}.",
            )
        known = {name: getattr(skill, name) for name in MANIFEST_FIELDS}
        known |= {"version": number, "owner": self.owner}
        skill = make_skill(content, known)
        if skill.is_active and (problem := self._succession_problem(skill)):
            skill = replace(skill, state="draft", reasons=(problem,))
        skill = replace(skill, was_in_use=skill.is_active)
        self._remove_old_staging()
        staged = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=self.folder))
        try:
            _write_files(staged, {**content, MANIFEST_FILE: encode_manifest(skill)})
            (folder / VERSIONS_FOLDER).mkdir(parents=True, exist_ok=True)
            staged.rename(_version_folder(folder, number))
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        self._publish_change(skill)
        return skill

    def _remove_old_staging(self) -> None:
        for path in self.folder.glob(f"{STAGING_PREFIX}*"):
            age_s = time.time() - path.lstat().st_mtime
            if age_s > STAGING_LIFETIME_S and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)

    def record_event(
        self,
        skill: Skill,
        event: SkillEvent,
        reasons: tuple[str, ...] = (),
        tool_digests: Mapping[str, str] | None = None,
        *,
        replaces_signed: bool = False,
    ) -> Skill:
        """Change a version as an event and its reasons say, and return it; raises `NotFound`.

        A version that may not be put in use keeps its state and gets the reason, unless a person
        said that it `replaces_signed` ones.
        """
        with self._lock():
            current = self._find_version(skill)
            state = TRANSITIONS[current.state].get(event, current.state)
            if event not in TRANSITIONS[current.state] and not reasons:
                return current
            problem = ""
            if state == "active" and not current.is_active and not replaces_signed:
                problem = self._succession_problem(current)
            if problem:
                return self._replace_manifest(replace(current, reasons=(problem,)))
            digests = current.tool_digests if tool_digests is None else tool_digests
            changed = replace(current, state=state, reasons=reasons, tool_digests=digests)
            return self._replace_manifest(changed)

    def set_signature(self, skill: Skill, signature: str, signer_key: str) -> Skill:
        """Replace the signature of a version, and return it; raises `NotFound`."""
        with self._lock():
            current = self._find_version(skill)
            signed = replace(current, signature_hex=signature, signer_key=signer_key)
            return self._replace_manifest(signed)

    def _find_version(self, skill: Skill) -> Skill:
        """Return a version as it is now; raises `NotFound`."""
        for each in self._read_versions(skill.name):
            if each.version == skill.version:
                return each
        raise NotFound(f"There is no skill {skill.id}.")

    def _replace_manifest(self, changed: Skill) -> Skill:
        """Write what is known of a version, and publish what is in use now; return the version."""
        changed = replace(changed, was_in_use=changed.was_in_use or changed.is_active)
        self._write_manifest(changed)
        self._publish_change(changed)
        return changed

    def _write_manifest(self, skill: Skill) -> None:
        path = _version_folder(self._folder_of(skill.name), skill.version) / MANIFEST_FILE
        write_atomically(path, encode_manifest(skill))

    def _succession_problem(self, skill: Skill) -> str:
        """Return why a version may not be put in use without a person; "" if it may."""
        return succession_problem(skill, [*self._read_versions(skill.name)], self.trusted_keys)

    def _publish_change(self, skill: Skill) -> None:
        """Show the version that is in use after a change of one; retire those that it replaces."""
        versions = [*self._read_versions(skill.name)]
        reasons = (f"{skill.id}, which is signed, has replaced it.",)
        for replaced in find_replaced_versions(skill, versions, self.trusted_keys):
            self._write_manifest(replace(replaced, state="retired", reasons=reasons))
        self._publish(skill.name)

    def _publish(self, name: str) -> None:
        """Copy the newest active or else newest version into the folder, the manifest last."""
        folder = self._folder_of(name)
        versions = [*self._read_versions(name)]
        shown = [each for each in versions if each.is_active] or versions
        if not shown:
            return
        wanted = read_version_files(_version_folder(folder, shown[-1].version))
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        for path in read_version_files(folder).keys() - wanted.keys():
            (folder / path).unlink()
        _write_files(folder, without_manifest(wanted))
        _write_files(folder, {MANIFEST_FILE: wanted[MANIFEST_FILE]})

    # edits by people ------------------------------------------------------------------------------

    def _adopt_edits(self, name: str, folder: Path) -> None:
        """Add a draft version of a folder that somebody has edited or created."""
        try:
            if not _needs_attention(folder, read_version_files(folder)):
                return
            with self._lock():
                found = read_version_files(folder)  # again: it was perhaps being written
                if MANIFEST_FILE not in found and _version_numbers(folder):
                    self._publish(name)
                elif _needs_attention(folder, found):
                    self._adopt(name, found)
        except (McpRuntimeError, OSError, ValueError) as exc:
            self.problems[name] = str(exc)

    def _adopt(self, name: str, found: FileContents) -> None:
        """Add edited files as a draft version."""
        content = dict(without_manifest(found))
        before = decode_manifest(found[MANIFEST_FILE]) if MANIFEST_FILE in found else {}
        edited = make_skill(content, {**before, "name": name})
        skill = Skill(
            name=name,
            summary=edited.summary or name,
            source=edited.source,
            reasons=(EDITED,),
            origin="edit",
            saved_at=time.time(),
            tool_digests={**dict.fromkeys(edited.used_tools, ""), **edited.tool_digests},
        )
        if SKILL_FILE not in content:
            content |= render_version_files(skill)
        self._add(skill, content)

    # sharing --------------------------------------------------------------------------------------

    def shared_skills(self) -> dict[str, str]:
        """Return the owner of each shared skill, by name; nothing if the file is damaged."""
        self.problems.pop(SHARED_FILE, None)
        try:
            found = json.loads((self.root / SHARED_FILE).read_bytes())
            if isinstance(found, dict) and all(isinstance(each, str) for each in found.values()):
                return found
            problem = "it has no owner for each name"
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as exc:
            problem = str(exc)
        self.problems[SHARED_FILE] = f"It is damaged, so nothing is shared: {problem}."
        return {}

    def share_skill(self, skill: Skill) -> None:
        """Let everybody use an own skill; raises `InvalidRequest`, `Unavailable`."""
        if not skill.is_active:
            raise InvalidRequest(
                f"{skill.id} is not in use.", remedy="Promote a version, then share the skill."
            )
        with self._change_shared() as shared:
            owner = shared.get(skill.name, self.owner)
            if owner != self.owner:
                raise InvalidRequest(
                    f"{owner} shares a skill {skill.name} already.",
                    remedy=f"Save it under another name, or unshare that of {owner}.",
                )
            for reference in skill.used_skills:
                used = reference.partition("@")[0]
                if shared.get(used) != self.find_owner(used):
                    raise InvalidRequest(
                        f"{skill.name} uses the skill {used}, which is not shared.",
                        remedy=f"Share {used} first.",
                    )
            shared[skill.name] = self.owner

    def unshare_skill(self, name: str) -> None:
        """Keep an own skill to its owner again; raises `InvalidRequest`, `Unavailable`."""
        with self._change_shared() as shared:
            if shared.get(name) != self.owner:
                raise InvalidRequest(
                    f"{self.owner} does not share a skill {name}.",
                    remedy="`skills` lists the own ones, and says which are shared.",
                )
            del shared[name]

    @contextmanager
    def _change_shared(self) -> Iterator[dict[str, str]]:
        """Yield what is shared and write it back; one process at a time."""
        with _hold_lock(self.root, SHARED_LOCK_FILE):
            shared = self.shared_skills()
            if problem := self.problems.get(SHARED_FILE):
                message = f"{SHARED_FILE} cannot be changed. {problem}"
                raise Unavailable(message, remedy=f"Mend or remove {SHARED_FILE}.")
            yield shared
            data = json.dumps(dict(sorted(shared.items())), indent=1) + "\n"
            write_atomically(self.root / SHARED_FILE, data.encode())


@contextmanager
def _hold_lock(folder: Path, name: str) -> Iterator[None]:
    """Create a folder and hold a lock in it; raises `Unavailable`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        handle = os.open(folder / name, flags, 0o600)
    except OSError as exc:
        raise Unavailable(
            f"The skills in {folder} cannot be changed: {exc.strerror}.",
            remedy="Make the folder writable, or set another one as [skills] folder.",
        ) from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    except OSError as exc:
        raise Unavailable(f"The skills in {folder} cannot be changed: {exc.strerror}.") from exc
    finally:
        os.close(handle)


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


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _version_folder(folder: Path, number: int) -> Path:
    return folder / VERSIONS_FOLDER / str(number)


def _version_numbers(folder: Path) -> list[int]:
    """Return the numbers of the versions in a skill's folder, in order."""
    try:
        names = [entry.name for entry in os.scandir(folder / VERSIONS_FOLDER) if _is_folder(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if VERSION_NUMBER.fullmatch(name))


def _needs_attention(folder: Path, found: FileContents) -> bool:
    """Return whether the files in a skill's folder are not a whole copy of a version."""
    if MANIFEST_FILE not in found:
        return SOURCE_FILE in found or bool(_version_numbers(folder))
    digest = decode_manifest(found[MANIFEST_FILE]).get("digest")
    return SOURCE_FILE in found and digest != compute_content_digest(without_manifest(found))


def _file_state(folder: Path) -> tuple[object, ...]:
    """Return a value that changes when a file of a skill does, as far as its status tells."""
    numbers = _version_numbers(folder)
    state: list[object] = [*numbers]
    for part in (folder, *(_version_folder(folder, number) for number in numbers)):
        for name in (*VERSION_FILES, CASES_FOLDER):
            try:
                status = (part / name).lstat()
            except OSError:
                state.append(None)
            else:
                state.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(state)


def _write_files(folder: Path, files: FileContents) -> None:
    for path, data in files.items():
        write_atomically(folder / path, data)
