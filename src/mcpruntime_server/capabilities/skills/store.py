"""The folder of all skills: one folder a skill, which people may read, compare and edit.

    weather-report/            the version in use: a folder of the Agent Skills standard
        SKILL.md  skill.py  skill.toml  cases/0001.json
        versions/1/            every version as it was saved, with the same files

Rule 1: a version is made beside the store and renamed into it, so that it is there whole or not at all. Its content is
never written again; its manifest, which says what became of it, is replaced as a whole.
Rule 2: what lies outside `versions/` is a copy. One that somebody has edited becomes a new draft version; one that a
dying process left half-written is mended.
Rule 3: several processes may use one store: whoever changes it holds its lock.
Rule 4: what cannot be read is a problem to be told of, and costs no other skill anything.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ...errors import InvalidRequest, McpRuntimeError, NotFound, SkillRefused, Unavailable
from ..atomic_files import write_atomically
from .lint import check_entry_signature, find_skill_names, find_tool_names, parse_source
from .model import Skill, SkillState
from .skill_names import name_problem, to_slug
from .version_files import (
    MANIFEST_FILE,
    SKILL_FILE,
    SOURCE_FILE,
    FileContents,
    Manifest,
    compute_file_digests,
    decode_manifest,
    decode_text_file,
    encode_manifest,
    load_skill,
    read_plain_file,
    read_version_files,
    render_version_files,
)

VERSIONS = "versions"
LOCK = ".lock"
STAGING = ".new-"
STAGED_S = 3600.0  # after which what a dead process was making is removed


class SkillStore:
    """All skills on disk. Blocks; used from worker threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: dict[str, str] = {}  # by the name of a folder: what is wrong with it
        self._known: dict[str, tuple[tuple[object, ...], tuple[Skill, ...]]] = {}

    # reading --------------------------------------------------------------------------------------

    def all_versions(self) -> dict[str, tuple[Skill, ...]]:
        """Return the versions of every skill, by its name, the first first."""
        found = {}
        for name in self.skill_names():
            if versions := self.versions(name):
                found[name] = versions
        for gone in self._known.keys() - found.keys():
            del self._known[gone]
        return found

    def skill_names(self) -> list[str]:
        """Return the names of the folders that may be skills."""
        try:
            entries = sorted(os.scandir(self.folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise Unavailable(
                f"The skills in {self.folder} cannot be read: {exc.strerror}."
            ) from exc
        names = []
        for entry in entries:
            name = entry.name.replace("-", "_")
            if (
                entry.is_dir(follow_symlinks=False)
                and to_slug(name) == entry.name
                and not name_problem(name)
            ):
                names.append(name)
        return names

    def versions(self, name: str) -> tuple[Skill, ...]:
        """Return the versions of a skill, the first first; none if there is no such skill."""
        folder = self.folder / to_slug(name)
        state = _state_of(folder)
        if name in self._known and self._known[name][0] == state:
            return self._known[name][1]
        self.problems = {
            key: value for key, value in self.problems.items() if key.partition("@")[0] != name
        }
        if folder.is_symlink() or not folder.is_dir():
            self._known.pop(name, None)
            return ()
        self._take_edits(name, folder)
        found = tuple(self._read(name, folder))
        self._known[name] = (_state_of(folder), found)
        return found

    def version(self, name: str, number: int) -> Skill:
        """Return an exact version; raises `NotFound`."""
        for skill in self.versions(name):
            if skill.version == number:
                return skill
        raise NotFound(f"There is no version {number} of the skill {name}.")

    def read_content_files(self, skill: Skill) -> FileContents:
        """Return the files of a version, without its manifest; raises `SkillRefused`, `OSError`."""
        return {
            path: data for path, data in self.read_all_files(skill).items() if path != MANIFEST_FILE
        }

    def read_all_files(self, skill: Skill) -> FileContents:
        """Return all files of a version; raises `SkillRefused`, `OSError`."""
        return read_version_files(self.folder / to_slug(skill.name) / VERSIONS / str(skill.version))

    def _read(self, name: str, folder: Path) -> Iterator[Skill]:
        for number in _numbers(folder):
            try:
                content = read_version_files(folder / VERSIONS / str(number))
                if MANIFEST_FILE not in content:
                    raise SkillRefused(f"Version {number} of {name} has no {MANIFEST_FILE}.")
                manifest = decode_manifest(content[MANIFEST_FILE])
                if (manifest.name, manifest.version) != (name, number):
                    raise SkillRefused(f"Version {number} of {name} says that it is another.")
                yield load_skill(content, manifest)
            except (McpRuntimeError, OSError) as exc:
                self.problems[f"{name}@{number}"] = str(exc)

    # writing --------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one that changes the store; raises `Unavailable`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(
                self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as exc:
            raise Unavailable(
                f"The skills in {self.folder} cannot be changed: {exc.strerror}.",
                remedy="Make the folder writable, or name another with [skills] folder.",
            ) from exc
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        except OSError as exc:
            raise Unavailable(
                f"The skills in {self.folder} cannot be changed: {exc.strerror}."
            ) from exc
        finally:
            os.close(handle)

    def add_version(self, content: FileContents, manifest: Manifest) -> Skill:
        """Keep a new version of the skill that `manifest` names, and return it; its number is the next one."""
        with self.locked():
            return self._add(content, manifest)

    def _add(self, content: FileContents, manifest: Manifest) -> Skill:
        folder = self.folder / to_slug(manifest.name)
        if folder.is_symlink():
            raise SkillRefused(
                f"The folder of {manifest.name} is a link.",
                remedy="Put a folder there, or remove it.",
            )
        number = max(_numbers(folder), default=0) + 1
        manifest = manifest.model_copy(
            update={"version": number, "digests": compute_file_digests(content)}
        )
        skill = load_skill(content, manifest)
        self._clear_staging()
        staged = Path(tempfile.mkdtemp(prefix=STAGING, dir=self.folder))
        try:
            staged.chmod(0o755)
            _write(staged, {**content, MANIFEST_FILE: encode_manifest(manifest)})
            (folder / VERSIONS).mkdir(parents=True, exist_ok=True)
            staged.rename(folder / VERSIONS / str(number))
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        self._publish(folder)
        return skill

    def set_state(
        self,
        skill: Skill,
        state: SkillState,
        reasons: tuple[str, ...] = (),
        tools: dict[str, str] | None = None,
    ) -> Skill:
        """Note what has become of a version, and return it as it is now; raises `NotFound`."""
        with self.locked():
            return self._change(
                skill,
                {"state": state, "reasons": reasons, **({} if tools is None else {"tools": tools})},
            )

    def set_signature(self, skill: Skill, signature: str, signer: str) -> Skill:
        """Note who has signed a version, instead of whoever had before; raises `NotFound`."""
        with self.locked():
            return self._change(skill, {"signature": signature, "signer": signer})

    def _change(self, skill: Skill, changes: dict[str, object]) -> Skill:
        folder = self.folder / to_slug(skill.name)
        path = folder / VERSIONS / str(skill.version) / MANIFEST_FILE
        try:
            manifest = decode_manifest(read_plain_file(path)).model_copy(update=changes)
        except FileNotFoundError:
            raise NotFound(
                f"There is no version {skill.version} of the skill {skill.name}."
            ) from None
        write_atomically(path, encode_manifest(manifest))
        self._publish(folder)
        return replace(
            skill,
            state=manifest.state,
            reasons=manifest.reasons,
            tool_digests=manifest.tool_digests,
            signature_hex=manifest.signature,
            signer_key=manifest.signer_key,
        )

    def _publish(self, folder: Path) -> None:
        """Have the folder itself show the version in use: the newest active one, or else the newest."""
        number = _shown(folder)
        if number is None:
            return
        wanted = read_version_files(folder / VERSIONS / str(number))
        for path in read_version_files(folder).keys() - wanted.keys():
            (folder / path).unlink()
        _write(folder, wanted)

    def _clear_staging(self) -> None:
        for path in self.folder.glob(f"{STAGING}*"):
            if time.time() - path.lstat().st_mtime > STAGED_S and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)

    # what people do to it ---------------------------------------------------------------------------

    def _take_edits(self, name: str, folder: Path) -> None:
        """Make a new draft version of a folder that somebody has edited, or put there."""
        try:
            found = read_version_files(folder)
            if SOURCE_FILE not in found or _is_copy(folder, found):
                return
            with self.locked():
                if not _is_copy(folder, found):
                    self._adopt(name, folder, found)
        except (McpRuntimeError, OSError, ValueError) as exc:
            self.problems[name] = str(exc)

    def _adopt(self, name: str, folder: Path, found: FileContents) -> None:
        """Keep edited files as a new draft version; files that are all of some version are only mended."""
        own = {path: data for path, data in found.items() if path != MANIFEST_FILE}
        if _is_mixture(folder, own):
            self._publish(folder)
            return
        before = (
            decode_manifest(found[MANIFEST_FILE])
            if MANIFEST_FILE in found
            else Manifest(name=name, version=0)
        )
        if SKILL_FILE not in own:
            source = decode_text_file(own, SOURCE_FILE)
            own = {
                **own,
                **render_version_files(
                    name,
                    before.summary or name,
                    source,
                    check_entry_signature(parse_source(source)),
                    (),
                ),
            }
        reason = "It was edited by hand, and has not been checked since: `mcpruntime-server skills promote NAME@VERSION`."
        tree = parse_source(decode_text_file(own, SOURCE_FILE))
        uses = {used: before.skill_digests.get(used, "") for used in sorted(find_skill_names(tree))}
        tools = {
            **dict.fromkeys(sorted(tool for tool in find_tool_names(tree) if "." in tool), ""),
            **before.tool_digests,
        }
        update = {
            "name": name,
            "state": "draft",
            "reasons": (reason,),
            "origin": "edit",
            "at": time.time(),
        }
        update |= {"skills": uses, "tools": tools, "described": ""}
        self._add(own, before.model_copy(update={**update, "signature": "", "signer": ""}))

    def remove_draft(self, skill: Skill) -> None:
        """Forget a draft that nobody was told of; any other version stays for ever."""
        if skill.state != "draft":
            raise InvalidRequest(f"{skill.id} is {skill.state}: only drafts can be forgotten.")
        with self.locked():
            folder = self.folder / to_slug(skill.name)
            shutil.rmtree(folder / VERSIONS / str(skill.version))
            if _numbers(folder):
                self._publish(folder)
            else:
                shutil.rmtree(folder)


def _numbers(folder: Path) -> list[int]:
    """Return the numbers of the versions in a skill's folder, in order."""
    try:
        entries = list(os.scandir(folder / VERSIONS))
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(
        int(name) for name in names if name.isascii() and name.isdigit() and name[0] != "0"
    )


def _shown(folder: Path) -> int | None:
    """Return the number of the version that a skill's folder shows."""
    numbers = _numbers(folder)
    for number in reversed(numbers):
        try:
            if (
                decode_manifest(
                    read_plain_file(folder / VERSIONS / str(number) / MANIFEST_FILE)
                ).state
                == "active"
            ):
                return number
        except (McpRuntimeError, OSError):
            continue
    return numbers[-1] if numbers else None


def _is_copy(folder: Path, found: FileContents) -> bool:
    """Return whether the files of a skill's folder are those of the version that it shows."""
    number = _shown(folder)
    if number is None:
        return False
    wanted = read_version_files(folder / VERSIONS / str(number))
    return all(found.get(path) == data for path, data in wanted.items() if path != MANIFEST_FILE)


def _is_mixture(folder: Path, own: FileContents) -> bool:
    """Return whether every file is as some version has it: then nobody has edited it, but a copy was not finished."""
    versions = [read_version_files(folder / VERSIONS / str(number)) for number in _numbers(folder)]
    return bool(versions) and all(
        any(each.get(path) == data for each in versions) for path, data in own.items()
    )


def _state_of(folder: Path) -> tuple[object, ...]:
    """Return what changes when any file of a skill does, as far as the file system tells."""
    state: list[object] = []
    numbers = _numbers(folder)
    for part in (folder, *(folder / VERSIONS / str(number) for number in numbers)):
        for name in (SKILL_FILE, SOURCE_FILE, MANIFEST_FILE, "cases"):
            try:
                status = (part / name).lstat()
            except OSError:
                state.append(None)
            else:
                state.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return (*numbers, *state)


def _write(folder: Path, files: FileContents) -> None:
    for path, data in files.items():
        write_atomically(folder / path, data)
