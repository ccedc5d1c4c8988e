"""A task in SkillsBench's layout: a folder with these parts.

- `instruction.md`: what an agent is asked;
- `task.toml`: difficulty, category and time limits;
- `environment/`: data and skills; its Dockerfile says where the data goes;
- `solution/solve.sh`: the reference solution;
- `tests/test_outputs.py`: the tests that decide.

Rule: of a Dockerfile, only WORKDIR, COPY and ADD are followed. What else it would do is named, so
that a task that needs it fails with its reason.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

HOME = PurePosixPath("/root")
SKILLS_FOLDER = "skills"
DEFAULT_TIMEOUT_S = 600.0
COPYING = ("COPY", "ADD")
IGNORED_INSTRUCTIONS = ("FROM", "CMD", "ENTRYPOINT", "LABEL", "USER")
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


@dataclass(frozen=True)
class Placement:
    """A file or the content of a folder, and its path in the sandbox."""

    source: Path
    target: PurePosixPath


@dataclass(frozen=True)
class Skill:
    """A skill as an agent sees it: a text with a name and a description, and other files."""

    name: str
    description: str
    files: dict[str, bytes]

    @classmethod
    def from_text(cls, text: str, files: dict[str, bytes] | None = None) -> Skill:
        """Return the skill that a SKILL.md describes; raises `ValueError` without a name."""
        found = FRONT_MATTER.match(text)
        try:
            facts = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError:
            facts = None
        if not isinstance(facts, dict) or not re.fullmatch(
            r"[a-z0-9][a-z0-9-]{0,63}", str(facts.get("name"))
        ):
            raise ValueError(f"A skill begins with front matter and a name: {text[:80]!r}")
        files = {**(files or {}), "SKILL.md": text.encode()}
        return cls(facts["name"], str(facts.get("description", "")).strip(), files)


@dataclass(frozen=True)
class SkillsTask:
    """One task; `left_out` are the instructions of its Dockerfile that are not followed."""

    folder: Path
    instruction: str
    difficulty: str
    category: str
    timeout_s: float
    placements: tuple[Placement, ...]
    left_out: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def curated_skills(self) -> list[Skill]:
        """Return the skills that come with the task."""
        found = sorted((self.folder / "environment" / SKILLS_FOLDER).glob("*/SKILL.md"))
        return [read_skill(file.parent) for file in found]


def read_skill(folder: Path) -> Skill:
    """Return the skill in a folder."""
    files = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    return Skill.from_text((folder / "SKILL.md").read_text("utf-8"), files)


def read_tasks(checkout: Path) -> list[SkillsTask]:
    """Return the tasks in a folder, or in the folder `tasks` of a checkout."""
    folder = checkout / "tasks" if (checkout / "tasks").is_dir() else checkout
    return [read_task(file.parent) for file in sorted(folder.glob("*/task.toml"))]


def read_task(folder: Path) -> SkillsTask:
    """Return the task in a folder; raises `ValueError` if a part of it is missing."""
    for part in ("instruction.md", "environment", "solution/solve.sh", "tests/test_outputs.py"):
        if not (folder / part).exists():
            raise ValueError(f"The task {folder.name} has no {part}.")
    facts: dict[str, Any] = tomllib.loads((folder / "task.toml").read_text("utf-8"))
    metadata = facts.get("metadata", {})
    limits = [facts.get(part, {}).get("timeout_sec", 0.0) for part in ("agent", "verifier")]
    placements, left_out = read_environment(folder / "environment")
    return SkillsTask(
        folder,
        (folder / "instruction.md").read_text("utf-8").strip(),
        str(metadata.get("difficulty", "unknown")),
        str(metadata.get("category", "unknown")),
        float(max(limits)) or DEFAULT_TIMEOUT_S,
        placements,
        left_out,
    )


def read_environment(folder: Path) -> tuple[tuple[Placement, ...], tuple[str, ...]]:
    """Return where the files of an environment go, and what is not followed.

    Skills are left out: whether an agent gets them is the condition that is measured.
    """
    dockerfile = folder / "Dockerfile"
    if not dockerfile.exists():
        names = (each for each in sorted(folder.iterdir()) if each.name != SKILLS_FOLDER)
        return tuple(Placement(each, HOME / each.name) for each in names), ()
    placements: list[Placement] = []
    left_out: list[str] = []
    current = PurePosixPath("/")
    for instruction, rest in read_dockerfile(dockerfile.read_text("utf-8")):
        if instruction == "WORKDIR":
            current /= rest
            continue
        found = list(resolve_copy(folder, current, rest)) if instruction in COPYING else []
        placements += (each for each in found if each.target.is_relative_to(HOME))
        is_followed = instruction in IGNORED_INSTRUCTIONS or is_about_skills(rest)
        if not is_followed and not any(each.target.is_relative_to(HOME) for each in found):
            left_out.append(f"{instruction} {rest}"[:200])
    return tuple(placements), tuple(left_out)


def read_dockerfile(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile and what follows each."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction:
            yield instruction.upper(), " ".join(rest.split())


def is_about_skills(arguments: str) -> bool:
    """Return whether all that a COPY copies is skills."""
    *patterns, _ = split_copy(arguments)
    return bool(patterns) and all(is_skill_path(each) for each in patterns)


def is_skill_path(pattern: str) -> bool:
    """Return whether a path in an environment is that of skills."""
    return PurePosixPath(pattern.strip("/")).parts[:1] == (SKILLS_FOLDER,)


def split_copy(arguments: str) -> list[str]:
    """Return the sources of a COPY and its target."""
    paths = re.sub(r"^(--\S+\s+)+", "", arguments)
    words: list[str] = json.loads(paths) if paths.startswith("[") else shlex.split(paths)
    return words


def resolve_copy(folder: Path, current: PurePosixPath, arguments: str) -> Iterator[Placement]:
    """Yield what a COPY places; skills and what another stage has built are not yielded."""
    *patterns, target = split_copy(arguments)
    if "--from=" in arguments:
        return
    for pattern in patterns:
        relative = str(PurePosixPath(pattern.strip("/")))
        if is_skill_path(pattern) or "://" in pattern:
            continue
        for source in [folder] if relative == "." else sorted(folder.glob(relative)):
            goal = PurePosixPath(posixpath.normpath(current / target))
            if source.is_file() and (target.endswith(("/", ".")) or len(patterns) > 1):
                goal /= source.name
            yield Placement(source, goal)


def place_files(placements: tuple[Placement, ...]) -> dict[str, bytes]:
    """Return the files of an environment by their paths below the home folder."""
    files: dict[str, bytes] = {}
    for placement in placements:
        target = placement.target.relative_to(HOME)
        if placement.source.is_file():
            files[str(target)] = placement.source.read_bytes()
            continue
        for file in sorted(placement.source.rglob("*")):
            relative = file.relative_to(placement.source)
            if file.is_file() and relative.parts[0] not in (SKILLS_FOLDER, "Dockerfile"):
                files[str(target / relative)] = file.read_bytes()
    return files
