"""Guides: Agent Skills that somebody else keeps, instructions with scripts and other files; read, and never written.

Rule 1: nothing of a guide is executed here, and its texts are its author's word. Code reads them in its sandbox.
Rule 2: links and hidden files are passed over, so that nothing outside the folder can be had through it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import McpRuntimeError, SkillRefused
from .docstrings import to_one_line
from .skill_names import parse_skill_name
from .version_files import SKILL_FILE

MAX_GUIDE_TEXT_BYTES = 256_000  # bytes of a SKILL.md
MAX_FRONT_MATTER_CHARS = 16_000  # characters
MAX_GUIDES = 500
MAX_GUIDE_FILES = 500  # of one guide
MAX_GUIDE_BYTES = 16_000_000  # of one guide
MAX_FOLDER_DEPTH = 8
FENCE = "---"


@dataclass(frozen=True)
class Guide:
    """One Agent Skill in a folder of somebody's; `name` is what code calls it, `text` its SKILL.md."""

    name: str
    summary: str
    text: str
    folder: Path

    @property
    def id(self) -> str:
        """Its name; it has no versions."""
        return self.name


class GuideFolders:
    """The guides in some folders. Blocks; used from one worker thread at a time."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self.problems: dict[str, str] = {}  # by the name of a folder: what is wrong with it
        self._folders = folders
        self._known: dict[Path, tuple[tuple[int, int, int], Guide]] = {}

    def load_guides(self) -> dict[str, Guide]:
        """Return the guides by name; of two with one name, that of the folder which is named first."""
        found: dict[str, Guide] = {}
        self.problems = {}
        for folder in self._folders:
            try:
                for place in _places(folder):
                    guide = self._guide(place)
                    if guide is not None and found.setdefault(guide.name, guide) is not guide:
                        self.problems[str(place)] = (
                            f"There is a guide {guide.name} in another folder already."
                        )
            except OSError as exc:
                self.problems[str(folder)] = f"It cannot be read: {exc.strerror}."
        return found

    def _guide(self, place: Path) -> Guide | None:
        try:
            status = (place / SKILL_FILE).lstat()
            state = status.st_mtime_ns, status.st_size, status.st_ino
            if place not in self._known or self._known[place][0] != state:
                self._known[place] = state, read_guide(place)
            return self._known[place][1]
        except (McpRuntimeError, OSError, ValueError) as exc:
            self.problems[str(place)] = str(exc)
            return None


def _places(folder: Path) -> list[Path]:
    """Return the folders that have a SKILL.md: `folder` itself, or those in it."""
    if (folder / SKILL_FILE).exists():
        return [folder]
    inside = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)
    )
    return [folder / name for name in inside[:MAX_GUIDES] if (folder / name / SKILL_FILE).exists()]


def read_guide(folder: Path) -> Guide:
    """Return the guide in a folder; raises `SkillRefused`, `InvalidRequest`, `OSError`."""
    text = _read(folder / SKILL_FILE, MAX_GUIDE_TEXT_BYTES).decode("utf-8", "replace")
    told = parse_front_matter(text)
    name, summary = told.get("name"), told.get("description")
    if not isinstance(name, str) or not isinstance(summary, str):
        raise SkillRefused(f"{SKILL_FILE} has no name and description in its front matter.")
    return Guide(parse_skill_name(name), to_one_line(summary), text, folder)


def parse_front_matter(text: str) -> dict[str, Any]:
    """Return what stands between the fences at the beginning of a SKILL.md; raises `SkillRefused`."""
    lines = text.removeprefix("\ufeff")[:MAX_FRONT_MATTER_CHARS].splitlines()
    if not lines or lines[0].rstrip() != FENCE or FENCE not in map(str.rstrip, lines[1:]):
        raise SkillRefused(f"{SKILL_FILE} has no front matter between lines of {FENCE}.")
    end = next(number for number, line in enumerate(lines[1:], 1) if line.rstrip() == FENCE)
    import yaml  # only who has guides needs it

    try:
        told = yaml.safe_load("\n".join(lines[1:end]))
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        raise SkillRefused(
            f"The front matter of {SKILL_FILE} is not YAML: {to_one_line(str(exc))[:200]}."
        ) from None
    return (
        {key: value for key, value in told.items() if isinstance(key, str)}
        if isinstance(told, dict)
        else {}
    )


def read_guide_files(guide: Guide) -> Mapping[str, bytes]:
    """Return the files of a guide by their relative paths; raises `SkillRefused` if they are too many or too large."""
    content: dict[str, bytes] = {}
    left = MAX_GUIDE_BYTES
    for path in _files(guide.folder, 0):
        if len(content) == MAX_GUIDE_FILES:
            raise SkillRefused(f"The guide {guide.name} has more than {MAX_GUIDE_FILES} files.")
        data = _read(path, left)
        left -= len(data)
        content[str(PurePosixPath(path.relative_to(guide.folder)))] = data
    return content


def _files(folder: Path, depth: int) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or not entry.name.isprintable():
            continue
        if entry.is_file(follow_symlinks=False):
            yield folder / entry.name
        elif entry.is_dir(follow_symlinks=False) and depth < MAX_FOLDER_DEPTH:
            yield from _files(folder / entry.name, depth + 1)


def _read(path: Path, limit: int) -> bytes:
    """Return the bytes of a plain file; raises `SkillRefused`, `OSError`."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise SkillRefused(f"{path.name} is not a plain file.")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise SkillRefused(
            f"{path.name} is too large: a guide has at most {MAX_GUIDE_BYTES:,} bytes, its text {MAX_GUIDE_TEXT_BYTES:,}."
        )
    return data
