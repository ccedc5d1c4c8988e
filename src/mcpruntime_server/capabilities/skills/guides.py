"""Read guides: Agent Skills that the user mounts, with instructions, scripts and other files.

Rule 1: nothing of a guide is executed here, and its texts are its author's word. Code reads them in
its sandbox.
Rule 2: links and hidden files are skipped, so that a guide exposes nothing outside its folder.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ...errors import McpRuntimeError, SkillRefused
from ...protocol.payloads import JsonObject, SkillDescription
from ...protocol.wire import escape_json_surrogates
from .skill_names import parse_skill_name
from .source import to_one_line
from .version_files import SKILL_FILE, read_plain_file

if TYPE_CHECKING:
    import yaml

MAX_GUIDES = 500  # in one folder
MAX_SUMMARY_CHARS = 1_024  # the limit of the standard for a description
MAX_GUIDE_TEXT_BYTES = 256_000  # of its SKILL.md
MAX_GUIDE_FILES = 500
MAX_GUIDE_BYTES = 16_000_000
MAX_FOLDER_DEPTH = 8
MAX_FRONT_MATTER_CHARS = 16_000
MAX_FRONT_MATTER_DEPTH = 20
MAX_MESSAGE_CHARS = 200  # of an error of the YAML reader
FENCE = "---"


@dataclass(frozen=True)
class Guide:
    """An Agent Skill in a mounted folder; `name` is what code calls it, `body` its SKILL.md."""

    name: str
    summary: str
    body: str
    folder: Path

    @property
    def content_identity(self) -> str:
        """A text that changes with its content."""
        return str(hash(self.body))

    @property
    def listing(self) -> SkillDescription:
        """The guide as listings of skills show it."""
        return {
            "name": self.name,
            "version": 0,
            "signature": "",
            "summary": self.summary,
            "state": "guide",
        }


class GuideFolders:
    """The guides in some folders. Its methods block; any thread may use them."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self.problems: dict[str, str] = {}  # by folder
        self._folders = folders
        self._lock = threading.Lock()
        # A refusal is remembered, too: it may cost more time than a guide.
        self._cache: dict[Path, tuple[tuple[int, int, int], Guide | str]] = {}

    def load_guides(self) -> dict[str, Guide]:
        """Return the guides by name; of two with one name, the one in the first folder."""
        with self._lock:
            return self._load_guides()

    def _load_guides(self) -> dict[str, Guide]:
        found: dict[str, Guide] = {}
        self.problems = {}
        for parent in self._folders:
            try:
                folders = _find_guide_folders(parent)
            except OSError as exc:
                self.problems[str(parent)] = f"It cannot be read: {exc.strerror}."
                continue
            for folder in folders:
                guide = self._load_guide(folder)
                if guide is not None and found.setdefault(guide.name, guide) is not guide:
                    self.problems[str(folder)] = f"Another folder has a guide {guide.name} already."
        return found

    def _load_guide(self, folder: Path) -> Guide | None:
        try:
            status = (folder / SKILL_FILE).lstat()
            state = status.st_mtime_ns, status.st_size, status.st_ino
            if folder not in self._cache or self._cache[folder][0] != state:
                try:
                    self._cache[folder] = state, read_guide(folder)
                except (McpRuntimeError, ValueError) as exc:
                    self._cache[folder] = state, str(exc)
            found: Guide | str = self._cache[folder][1]
        except OSError as exc:
            found = str(exc)
        if isinstance(found, Guide):
            return found
        self.problems[str(folder)] = found
        return None


def _find_guide_folders(folder: Path) -> list[Path]:
    """Return the folders that have a SKILL.md: `folder` itself, or those in it."""
    if (folder / SKILL_FILE).exists():
        return [folder]
    names = sorted(each.name for each in os.scandir(folder) if each.is_dir(follow_symlinks=False))
    folders = (folder / name for name in names[:MAX_GUIDES])
    return [each for each in folders if (each / SKILL_FILE).exists()]


def read_guide(folder: Path) -> Guide:
    """Return the guide in a folder; raises `SkillRefused`, `InvalidRequest`, `OSError`."""
    text = read_plain_file(folder / SKILL_FILE, MAX_GUIDE_TEXT_BYTES).decode("utf-8", "replace")
    front_matter = parse_front_matter(text)
    name, summary = front_matter.get("name"), front_matter.get("description")
    if not isinstance(name, str) or not isinstance(summary, str):
        raise SkillRefused(f"The front matter of {SKILL_FILE} has no name and description.")
    return Guide(parse_skill_name(name), to_one_line(summary)[:MAX_SUMMARY_CHARS], text, folder)


def parse_front_matter(text: str) -> JsonObject:
    """Return the front matter of a SKILL.md, as JSON data; raises `SkillRefused`.

    Only plain YAML is accepted: aliases can make a short text endlessly large, and tags make
    objects of other types.
    """
    lines = text.removeprefix("\ufeff")[:MAX_FRONT_MATTER_CHARS].splitlines()
    fences = [number for number, line in enumerate(lines) if line.rstrip() == FENCE]
    if len(fences) < 2 or fences[0] != 0:
        raise SkillRefused(f"{SKILL_FILE} has no front matter between lines of {FENCE}.")
    import yaml  # needed for guides and archives only

    try:
        source = "\n".join(lines[1 : fences[1]])
        _check_plain_yaml(source)
        found = yaml.load(source, _yaml_loader())  # noqa: S506 - it makes nothing but text
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as exc:
        message = to_one_line(str(exc))[:MAX_MESSAGE_CHARS]
        raise SkillRefused(f"The front matter of {SKILL_FILE} is not YAML: {message}.") from None
    if not isinstance(found, dict):
        return {}
    cleaned: JsonObject = escape_json_surrogates(found)
    return cleaned


def _yaml_loader() -> type[yaml.BaseLoader | yaml.CBaseLoader]:
    """Return the loader that makes nothing but text; the one in C is ten times faster."""
    import yaml

    return yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader


def _check_plain_yaml(source: str) -> None:
    """Raise `ValueError` if YAML has aliases, anchors or tags, or is nested too deeply."""
    import yaml

    depth = 0
    for event in yaml.parse(source, _yaml_loader()):
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise ValueError("aliases and anchors are not accepted")
        if getattr(event, "tag", None) is not None:
            raise ValueError("tags are not accepted")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_FRONT_MATTER_DEPTH:
            raise ValueError(f"it is nested more than {MAX_FRONT_MATTER_DEPTH} deep")


def read_guide_files(guide: Guide) -> Mapping[str, bytes]:
    """Return the files of a guide by their relative paths.

    Raises `SkillRefused` if they are too many or too large.
    """
    content: dict[str, bytes] = {}
    bytes_left = MAX_GUIDE_BYTES
    for path in _find_files(guide.folder, 0):
        if len(content) == MAX_GUIDE_FILES:
            raise SkillRefused(f"The guide {guide.name} has more than {MAX_GUIDE_FILES} files.")
        data = read_plain_file(path, bytes_left)  # all together have at most `MAX_GUIDE_BYTES`
        bytes_left -= len(data)
        content[str(PurePosixPath(path.relative_to(guide.folder)))] = data
    return content


def _find_files(folder: Path, depth: int) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or not entry.name.isprintable():
            continue
        if entry.is_file(follow_symlinks=False):
            yield folder / entry.name
        elif entry.is_dir(follow_symlinks=False) and depth < MAX_FOLDER_DEPTH:
            yield from _find_files(folder / entry.name, depth + 1)
