"""A task in SkillsBench's layout: a folder with these parts.

- `instruction.md`: what an agent is asked;
- `task.toml`: difficulty, category and time limits;
- `environment/`: data and skills; its Dockerfile says where the data goes;
- `solution/solve.sh`: the reference solution;
- `tests/test_outputs.py`: the tests that decide.

"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .dockerfile import SKILLS_FOLDER, TaskEnvironment, read_environment

DEFAULT_TIMEOUT_S = 600.0
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


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
    """One task."""

    folder: Path
    instruction: str
    difficulty: str
    category: str
    timeout_s: float
    environment: TaskEnvironment

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
    return SkillsTask(
        folder,
        (folder / "instruction.md").read_text("utf-8").strip(),
        str(metadata.get("difficulty", "unknown")),
        str(metadata.get("category", "unknown")),
        float(max(limits)) or DEFAULT_TIMEOUT_S,
        read_environment(folder / "environment"),
    )
