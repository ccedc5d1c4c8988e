"""The data of the tasks: git repositories, files, a memory and a shop, the same every time.

Rule: constants and seeds determine all data. Plain Python can read the data behind each server.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import runpy
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ORDERS = ROOT / "tests" / "upstreams" / "orders.py"
NODE = ROOT / ".venvs" / "node" / "node_modules" / ".bin"
SERVERS = {
    "git": ROOT / ".venvs" / "mcp-server-git" / "bin" / "mcp-server-git",
    "time": ROOT / ".venvs" / "mcp-server-time" / "bin" / "mcp-server-time",
    "filesystem": NODE / "mcp-server-filesystem",
    "memory": NODE / "mcp-server-memory",
}
# The tool has the destructive hint, and the benchmark has no user who approves calls.
POLICY = {"tools": {"filesystem.write_file": "allow"}}

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class World:
    """A folder with the data of all tasks, and the servers that read it."""

    folder: Path
    servers: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def places(self) -> Mapping[str, Path]:
        """The values of the placeholders in tasks."""
        names = ("harbor", "beacon", "north", "south")
        return dict(
            zip(
                ("repo", "repo2", "data", "data2"),
                (self.folder / name for name in names),
                strict=True,
            )
        )

    @property
    def shop(self) -> Path:
        """The database of the orders server."""
        return self.folder / "shop.db"

    @property
    def memory(self) -> Path:
        """The file of the memory server, a line for each entity and each relation."""
        return self.folder / "memory.jsonl"

    def fill(self, text: str) -> str:
        """Return `text` with the placeholders replaced."""
        for name, place in self.places.items():
            text = text.replace(f"{{{name}}}", str(place))
        return text

    def rows(self, sql: str, *params: Any) -> list[sqlite3.Row]:
        """Return the rows of a query on the shop's database."""
        with closing(sqlite3.connect(self.shop)) as database:
            database.row_factory = sqlite3.Row
            return database.execute(sql, params).fetchall()

    def table(self, name: str) -> list[dict[str, Any]]:
        """Return a whole table of the shop's database."""
        return [dict(row) for row in self.rows(f"SELECT * FROM {name} ORDER BY rowid")]

    def git(self, repository: str, *arguments: str) -> str:
        """Return the output of a git command in a repository."""
        command = ["git", "-C", repository, *arguments]
        return subprocess.run(
            command, env=GIT_ENVIRONMENT, capture_output=True, text=True, check=True
        ).stdout


def missing_servers() -> list[str]:
    """Return the servers that `scripts/test-upstreams` has not installed."""
    return [name for name, path in SERVERS.items() if not path.exists()]


def make_world(folder: Path) -> World:
    """Create the world in an empty folder."""
    world = World(folder.resolve(), {})
    make_repository(world.places["repo"], "harbor", TEAM)
    make_repository(world.places["repo2"], "beacon", OTHER_TEAM)
    make_files(world.places["data"], "north")
    make_files(world.places["data2"], "south")
    world.memory.write_text(
        "".join(json.dumps(line) + "\n" for line in remembered()), encoding="utf-8"
    )
    runpy.run_path(str(ORDERS))["make_orders"](world.shop)
    return World(world.folder, servers_of(world))


def servers_of(world: World) -> dict[str, Entry]:
    """Return the servers of a world in the format of `mcpServers`."""
    entries = {name: {"command": str(path), "args": []} for name, path in SERVERS.items()}
    entries["filesystem"]["args"] = [str(world.places["data"]), str(world.places["data2"])]
    entries["orders"] = {"command": sys.executable, "args": [str(ORDERS), str(world.shop)]}
    return {
        **entries,
        "memory": {**entries["memory"], "env": {"MEMORY_FILE_PATH": str(world.memory)}},
    }


# git ----------------------------------------------------------------------------------------------

GIT_ENVIRONMENT = {
    "PATH": os.environ.get("PATH", ""),
    "GIT_CONFIG_NOSYSTEM": "1",
    "HOME": os.devnull,
    "LC_ALL": "C",
}
TEAM = ("Ada Moreno", "Bjarne Holt", "Chidi Okafor", "Dana Weiss", "Emi Tanaka")
OTHER_TEAM = ("Farid Aziz", "Greta Lind", "Ada Moreno", "Hugo Prats")
COMMITS = 72
AREAS = ("api", "ui", "docs", "storage", "build")
KINDS = ("feat", "fix", "fix", "refactor", "docs", "chore")
MATTERS = (
    "retry",
    "timeout",
    "cache",
    "paging",
    "login",
    "export",
    "locale",
    "index",
    "quota",
    "banner",
)
# The number of commits by which each branch is behind the first.
BRANCHES = {"release-1": 20, "release-2": 45, "feature/quota": 60}


def make_repository(folder: Path, name: str, team: tuple[str, ...]) -> None:
    """Create a repository with a history of two years."""
    chance = random.Random(name)
    moment = datetime(2024, 1, 3, 9, tzinfo=UTC)
    stream: list[str] = []
    lines: dict[str, int] = {}
    for number in range(1, COMMITS + 1):
        moment += timedelta(hours=chance.randint(30, 420), minutes=chance.randrange(60))
        author, area, matter = chance.choice(team), chance.choice(AREAS), chance.choice(MATTERS)
        message = f"{chance.choice(KINDS)}({area}): {matter} number {number}"
        if chance.random() < 0.3:
            message += f" (#{chance.randint(100, 180)})"
        stream += _commit(number, moment, author, message)
        for path in chance.sample(
            [f"{area}/{matter}.py", f"{area}/README.md", "CHANGES.md"], chance.randint(1, 3)
        ):
            lines[path] = lines.get(path, 0) + chance.randint(1, 6)
            stream += _file(path, [f"{path} line {line}" for line in range(lines[path])])
    for branch, at in BRANCHES.items():
        stream += [f"reset refs/heads/{branch}", f"from :{at}", ""]
    folder.mkdir(parents=True)
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "-q", "-b", "main"], env=GIT_ENVIRONMENT, check=True)
    text = "\n".join([*stream, "done", ""])
    subprocess.run(
        [*git, "fast-import", "--quiet", "--done"],
        input=text.encode(),
        env=GIT_ENVIRONMENT,
        check=True,
    )
    subprocess.run([*git, "reset", "-q", "--hard", "main"], env=GIT_ENVIRONMENT, check=True)


def _commit(number: int, moment: datetime, author: str, message: str) -> list[str]:
    email = f"{author.split(maxsplit=1)[0].lower()}@example.org"
    who = f"{author} <{email}> {int(moment.timestamp())} +0000"
    return [
        "commit refs/heads/main",
        f"mark :{number}",
        f"author {who}",
        f"committer {who}",
        f"data {len(message)}",
        message,
    ]


def _file(path: str, lines: list[str]) -> list[str]:
    text = "".join(f"{line}\n" for line in lines)
    return [f"M 100644 inline {path}", f"data {len(text)}", text]


# files --------------------------------------------------------------------------------------------

CITIES = {"north": ("Oslo", "Turku", "Umea"), "south": ("Porto", "Palermo", "Athens")}
TEAMS = ("platform", "design", "support", "sales", "finance")
SERVICES = ("auth", "billing", "search", "mail", "gateway")
LEVELS = ("INFO", "INFO", "INFO", "WARN", "ERROR")
TOPICS = ("roadmap", "incident", "hiring", "budget", "retro", "onboarding")


def make_files(folder: Path, name: str) -> None:
    """Create a folder with tables, logs, notes and settings."""
    chance = random.Random(name)
    for sub in ("sales", "logs", "notes", "settings"):
        (folder / sub).mkdir(parents=True)
    for month in range(1, 7):
        rows = [
            [
                f"2025-{month:02}-{day:02}",
                chance.choice(CITIES[name]),
                chance.choice(TEAMS),
                chance.randint(5, 900),
            ]
            for day in sorted(chance.randint(1, 28) for _ in range(30))
        ]
        (folder / "sales" / f"2025-{month:02}.csv").write_text(
            _table(["date", "city", "team", "amount"], rows)
        )
    for service in SERVICES:
        moment = datetime(2025, 3, 1, tzinfo=UTC)
        lines = []
        for _ in range(120):
            moment += timedelta(seconds=chance.randint(20, 1500))
            level, matter = chance.choice(LEVELS), chance.choice(MATTERS)
            words = f"{level} {service} {matter} took {chance.randint(2, 4000)}ms"
            lines.append(f"{moment:%Y-%m-%dT%H:%M:%S} {words}\n")
        (folder / "logs" / f"{service}.log").write_text("".join(lines))
        ports = {
            "port": chance.randint(2000, 9000),
            "replicas": chance.randint(1, 6),
            "debug": chance.random() < 0.3,
        }
        limits = {
            "memory_mb": chance.choice((128, 256, 512, 1024)),
            "timeout_s": chance.choice((5, 10, 30)),
        }
        text = json.dumps({"service": service, **ports, "limits": limits}, indent=2)
        (folder / "settings" / f"{service}.json").write_text(text)
    for topic in TOPICS:
        (folder / "notes" / f"{topic}.md").write_text(_notes(chance, topic))
    (folder / "people.json").write_text(json.dumps(_people(chance, name), indent=1))


def _table(head: list[str], rows: list[list[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([head, *rows])
    return file.getvalue()


def _notes(chance: random.Random, topic: str) -> str:
    parts = [f"# {topic.title()}\n"]
    for section in chance.sample(MATTERS, 4):
        parts.append(f"\n## {section.title()}\n")
        for number in range(chance.randint(1, 5)):
            box, owner = chance.choice("x  "), chance.choice(TEAM).split()[0]
            parts.append(f"- [{box}] {section} step {number} @{owner.lower()}\n")
    return "".join(parts)


def _people(chance: random.Random, name: str) -> list[dict[str, Any]]:
    first = ("Ana", "Bo", "Cai", "Dov", "Eve", "Finn", "Gus", "Hana", "Ida", "Jon", "Kim", "Lea")
    return [
        {
            "name": f"{given} {family}",
            "team": chance.choice(TEAMS),
            "city": chance.choice(CITIES[name]),
            "salary": chance.randint(38, 120) * 1000,
            "started": f"{chance.randint(2015, 2025)}-{chance.randint(1, 12):02}-15",
            "skills": chance.sample(
                ("python", "sql", "go", "figma", "excel", "rust", "french"), chance.randint(1, 4)
            ),
        }
        for given in first
        for family in chance.sample(("Berg", "Costa", "Duarte", "Eide", "Fonseca"), 3)
    ]


# memory -------------------------------------------------------------------------------------------


def remembered() -> list[dict[str, Any]]:
    """Return the initial content of the memory server: projects, people, and their relations."""
    chance = random.Random("memory")
    people = [
        {"type": "entity", "name": name, "entityType": "person"}
        for name in (*TEAM, "Farid Aziz", "Greta Lind")
    ]
    projects = [
        {"type": "entity", "name": name, "entityType": "project"}
        for name in ("Atlas", "Borealis", "Cinder")
    ]
    for person in people:
        hours, city = chance.choice((20, 30, 40)), chance.choice(("Oslo", "Porto", "Turku"))
        person["observations"] = [f"lives in {city}", f"works {hours} hours a week"]  # type: ignore[assignment]
    for project in projects:
        project["observations"] = [
            f"budget {chance.randint(20, 90)}k",
            f"due 2026-{chance.randint(1, 12):02}",
        ]  # type: ignore[assignment]
    relations = [
        {
            "type": "relation",
            "from": person["name"],
            "to": project["name"],
            "relationType": relation,
        }
        for person in people
        for project in chance.sample(projects, 2)
        for relation in [chance.choice(("works_on", "leads", "reviews"))]
    ]
    return [*people, *projects, *relations]
