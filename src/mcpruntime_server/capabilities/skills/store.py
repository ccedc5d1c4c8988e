"""The skills of one principal: one folder a skill, which people may read, compare and edit.

    weather-report/            the version in use: a folder of the Agent Skills standard
        SKILL.md  skill.py  skill.toml  cases/0001.json
        versions/1/            every version as it was saved, with the same files

Rule 1: a version is written beside the store and renamed into it, so it exists completely or not at
all. Its content is never written again. Its manifest, which has its state, is replaced as a whole.
Rule 2: everything outside `versions/` is a copy. An edited copy becomes a new draft version; a copy
without a manifest, which a dying process left, is written again.
Rule 3: several processes may use one store. A process that changes it holds its lock.
Rule 4: on every way into use, the store checks whether a version may replace a signed one
(`signing`). Such a version takes older ones out of use that could not replace it.
Rule 5: what cannot be read is reported in `problems`, and affects no other skill.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ...errors import McpRuntimeError, NotFound, SkillRefused, Unavailable
from ...journal.rows import LOCAL_PRINCIPAL
from ..atomic_files import write_atomically
from .model import Skill, SkillState
from .signing import is_signed_by, succession_problem
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
    decode_manifest,
    encode_manifest,
    load_skill,
    make_skill,
    read_plain_file,
    read_version_files,
    render_version_files,
    without_manifest,
)

VERSIONS_FOLDER = "versions"
VERSION_NUMBER = re.compile(r"[1-9][0-9]*")
LOCK_FILE = ".lock"
OWNER_FILE = "principal"  # with the name of the owner, unless that is the local user
MAX_SKILLS = 2_000
MAX_VERSIONS = 1_000
STAGING_PREFIX = ".new-"
STAGING_LIFETIME_S = 3600.0  # after which a folder that a dead process was writing is removed
EDITED = (
    "It was edited by hand, and has not been checked since: "
    "`mcpruntime-server skills promote NAME@VERSION`."
)


@contextmanager
def hold_lock(folder: Path, name: str = LOCK_FILE) -> Iterator[None]:
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


class SkillStore:
    """The skills of one principal. Its methods block; any thread may use them."""

    def __init__(
        self, folder: Path, trusted_keys: Collection[str] = (), owner: str = LOCAL_PRINCIPAL
    ) -> None:
        self.folder = folder
        self.trusted_keys = trusted_keys
        self.owner = owner
        self.problems: dict[str, str] = {}  # by "name" or "name@version"
        self._cache: dict[str, tuple[tuple[object, ...], tuple[Skill, ...]]] = {}
        self._cache_lock = threading.Lock()

    # reading --------------------------------------------------------------------------------------

    def all_versions(self) -> dict[str, tuple[Skill, ...]]:
        """Return the versions of every skill, by its name, oldest first; raises `Unavailable`."""
        found = {name: self.versions(name) for name in self._skill_names()}
        with self._cache_lock:
            self._cache = {name: each for name, each in self._cache.items() if name in found}
        return {name: versions for name, versions in found.items() if versions}

    def _skill_names(self) -> list[str]:
        """Return the names of the folders that may be skills."""
        try:
            entries = [entry for entry in os.scandir(self.folder) if _is_folder(entry)]
        except FileNotFoundError:
            return []
        except OSError as exc:
            message = f"The skills in {self.folder} cannot be read: {exc.strerror}."
            raise Unavailable(message) from exc
        names = {entry.name: entry.name.replace("-", "_") for entry in entries}
        return sorted(
            name for slug, name in names.items() if to_slug(name) == slug and not name_problem(name)
        )

    def versions(self, name: str) -> tuple[Skill, ...]:
        """Return the versions of a skill, oldest first; () if there is no such skill."""
        with self._cache_lock:
            return self._load_versions(name)

    def _load_versions(self, name: str) -> tuple[Skill, ...]:
        folder = self.folder / to_slug(name)
        state = _file_state(folder)
        if name in self._cache and self._cache[name][0] == state:
            return self._cache[name][1]
        self.problems = {
            key: problem for key, problem in self.problems.items() if key.partition("@")[0] != name
        }
        if folder.is_symlink() or not folder.is_dir():
            self._cache.pop(name, None)
            return ()
        self._adopt_edits(name, folder)
        found = tuple(self._read_versions(name, folder))
        self._cache[name] = (_file_state(folder), found)
        return found

    def version(self, name: str, number: int) -> Skill:
        """Return an exact version; raises `NotFound`."""
        for skill in self.versions(name):
            if skill.version == number:
                return skill
        raise NotFound(f"There is no version {number} of the skill {name}.")

    def next_version(self, name: str) -> int:
        """Return the number that the next version of a skill will have."""
        return max(_version_numbers(self.folder / to_slug(name)), default=0) + 1

    def read_content_files(self, skill: Skill) -> FileContents:
        """Return the files of a version without its manifest; raises `SkillRefused`, `OSError`."""
        return without_manifest(self.read_all_files(skill))

    def read_all_files(self, skill: Skill) -> FileContents:
        """Return all files of a version; raises `SkillRefused`, `OSError`."""
        return read_version_files(_version_folder(self.folder / to_slug(skill.name), skill.version))

    def _read_versions(self, name: str, folder: Path) -> Iterator[Skill]:
        for number in _version_numbers(folder):
            try:
                files = read_version_files(_version_folder(folder, number))
                skill = load_skill(files, self.owner)
                if (skill.name, skill.version) != (name, number):
                    raise SkillRefused(f"{MANIFEST_FILE} belongs to {skill.id}.")
                yield skill
            except (McpRuntimeError, OSError) as exc:
                self.problems[f"{name}@{number}"] = str(exc)

    # writing --------------------------------------------------------------------------------------

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the lock of the store; raises `Unavailable`."""
        with hold_lock(self.folder):
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
        folder = self.folder / to_slug(skill.name)
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
        if skill.state == "active" and (problem := self._succession_problem(skill, folder)):
            skill = replace(skill, state="draft", reasons=(problem,))
        skill = replace(skill, was_in_use=skill.state == "active")
        self._remove_old_staging()
        staged = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=self.folder))
        try:
            _write_files(staged, {**content, MANIFEST_FILE: encode_manifest(skill)})
            (folder / VERSIONS_FOLDER).mkdir(parents=True, exist_ok=True)
            staged.rename(_version_folder(folder, number))
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        self._retire_replaced(skill, folder)
        _publish(folder)
        return skill

    def _remove_old_staging(self) -> None:
        for path in self.folder.glob(f"{STAGING_PREFIX}*"):
            age_s = time.time() - path.lstat().st_mtime
            if age_s > STAGING_LIFETIME_S and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)

    def set_state(
        self,
        skill: Skill,
        state: SkillState,
        reasons: tuple[str, ...] = (),
        tool_digests: Mapping[str, str] | None = None,
        *,
        replaces_signed: bool = False,
    ) -> Skill:
        """Change the state of a version, and return it; raises `NotFound`.

        A version that may not be put in use keeps its state and gets the reason, unless a person
        said that it `replaces_signed` ones.
        """
        folder = self.folder / to_slug(skill.name)
        with self._lock():
            current = self._find_version(skill)
            problem = ""
            if state == "active" and current.state != "active" and not replaces_signed:
                problem = self._succession_problem(current, folder)
            if problem:
                changed = replace(current, reasons=(problem,))
            else:
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
        for each in self._read_versions(skill.name, self.folder / to_slug(skill.name)):
            if each.version == skill.version:
                return each
        raise NotFound(f"There is no skill {skill.id}.")

    def _replace_manifest(self, changed: Skill) -> Skill:
        """Write what is known of a version, and publish what is in use now; return the version."""
        folder = self.folder / to_slug(changed.name)
        changed = replace(changed, was_in_use=changed.was_in_use or changed.state == "active")
        path = _version_folder(folder, changed.version) / MANIFEST_FILE
        write_atomically(path, encode_manifest(changed))
        self._retire_replaced(changed, folder)
        _publish(folder)
        return changed

    def _succession_problem(self, skill: Skill, folder: Path) -> str:
        """Return why a version may not be put in use without a person; "" if it may."""
        versions = tuple(self._read_versions(skill.name, folder))
        return succession_problem(skill, versions, self.trusted_keys)

    def _retire_replaced(self, skill: Skill, folder: Path) -> None:
        """Take the versions out of use that must not come back when a signed one is retired."""
        if skill.state != "active" or not is_signed_by(skill, {skill.signer_key}):
            return
        reasons = (f"{skill.id}, which is signed, has replaced it.",)
        for other in tuple(self._read_versions(skill.name, folder)):
            is_signed = is_signed_by(other, {skill.signer_key, *self.trusted_keys})
            if other.version < skill.version and other.state == "active" and not is_signed:
                path = _version_folder(folder, other.version) / MANIFEST_FILE
                retired = replace(other, state="retired", reasons=reasons)
                write_atomically(path, encode_manifest(retired))

    # edits by people ------------------------------------------------------------------------------

    def _adopt_edits(self, name: str, folder: Path) -> None:
        """Add a draft version of a folder that somebody has edited or created."""
        try:
            if not _needs_attention(folder, read_version_files(folder)):
                return
            with self._lock():
                found = read_version_files(folder)  # again: it was perhaps being written
                if MANIFEST_FILE not in found and _version_numbers(folder):
                    _publish(folder)
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


def _published_number(folder: Path) -> int | None:
    """Return the version that a skill's folder shows: the newest active one, or else the newest."""
    newest = None
    for number in reversed(_version_numbers(folder)):
        try:
            data = read_plain_file(_version_folder(folder, number) / MANIFEST_FILE)
            state = decode_manifest(data).get("state")
        except (McpRuntimeError, OSError):
            continue
        newest = newest or number
        if state == "active":
            return number
    return newest


def _publish(folder: Path) -> None:
    """Copy the version that a skill's folder shows into the folder, the manifest last."""
    number = _published_number(folder)
    if number is None:
        return
    wanted = read_version_files(_version_folder(folder, number))
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    for path in read_version_files(folder).keys() - wanted.keys():
        (folder / path).unlink()
    _write_files(folder, without_manifest(wanted))
    _write_files(folder, {MANIFEST_FILE: wanted[MANIFEST_FILE]})


def _needs_attention(folder: Path, found: FileContents) -> bool:
    """Return whether the files in a skill's folder are not a whole copy of a version."""
    if MANIFEST_FILE not in found:
        return SOURCE_FILE in found or bool(_version_numbers(folder))
    is_copy = decode_manifest(found[MANIFEST_FILE]).get("digest") == compute_content_digest(
        without_manifest(found)
    )
    return SOURCE_FILE in found and not is_copy


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
