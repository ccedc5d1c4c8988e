"""A git repository with the first three years of a small project, always the same to the byte.

`git fast-import` reads the whole history as one stream, in a fraction of a second.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import anyio

from ...errors import Unavailable

COMMIT_COUNT = 1_248
START = datetime(2023, 1, 2, tzinfo=UTC)
DURATION_DAYS = 3 * 365 - 3
COMMITS_PER_RELEASE = 96


@dataclass(frozen=True)
class Author:
    """Who commits, how many hours east of Greenwich, how often, and from which local hour on."""

    name: str
    email: str
    hours_east: int
    commit_weight: int
    first_hour: int


AUTHORS = (
    Author("Ingrid Solberg", "ingrid@lantern.example", 1, 30, 7),
    Author("Mateus Rocha", "mateus@lantern.example", -3, 22, 9),
    Author("Aiko Tanabe", "aiko@lantern.example", 9, 20, 8),
    Author("Dana Whitfield", "dana@lantern.example", -7, 18, 10),
    Author("Tomas Novak", "tomas@lantern.example", 2, 10, 14),
)
CODE_AREAS = {"parser": 9, "cache": 8, "net": 7, "store": 6, "cli": 5, "auth": 3}
AREAS = {**CODE_AREAS, "docs": 4}
COMMIT_KINDS = {"add": 34, "fix": 26, "refactor": 16, "test": 12, "docs": 6, "hotfix": 6}
COMMIT_SUBJECTS = {
    "add": (
        "support for {} headers",
        "an option for {} mode",
        "{} to the public interface",
        "a fast path for {} input",
    ),
    "fix": (
        "{} values that are empty",
        "an off-by-one error in {} ranges",
        "{} on slow machines",
        "a leak in {} mode",
    ),
    "refactor": ("{} into a function of its own", "names around {}", "{} without global state"),
    "test": ("{} with hostile input", "{} at its limits", "that {} can be interrupted"),
    "docs": ("what {} means", "an example of {}"),
    "hotfix": (
        "crash on {} requests in production",
        "data loss in {} mode",
        "{} requests that never end",
    ),
}
SUBJECT_WORDS = (
    "nested",
    "chunked",
    "partial",
    "expired",
    "binary",
    "signed",
    "empty",
    "retried",
    "quoted",
    "streamed",
)


async def make_repository(folder: Path) -> int:
    """Create the repository and return its number of commits; raises `Unavailable` without git."""
    if shutil.which("git") is None:
        raise Unavailable(
            "The demo needs git.", remedy="Install it, e.g. with `apt-get install git`."
        )
    git = ("git", "-C", str(folder))
    await anyio.run_process(("git", "init", "--quiet", str(folder)))
    await anyio.run_process((*git, "symbolic-ref", "HEAD", "refs/heads/main"))
    await anyio.run_process(
        (*git, "fast-import", "--quiet"), input="".join(generate_history()).encode()
    )
    await anyio.run_process((*git, "reset", "--quiet", "--hard"))
    counted = await anyio.run_process((*git, "rev-list", "--count", "main"))
    return int(counted.stdout)


def generate_history() -> Iterator[str]:
    """Yield the history as `git fast-import` reads it."""
    rng = Random(20230102)  # noqa: S311 - no secret depends on it
    files: dict[str, list[str]] = {}
    for number, (moment, author) in enumerate(schedule_commits(rng), 1):
        kind = choose_weighted(rng, COMMIT_KINDS)
        area = choose_weighted(rng, CODE_AREAS if kind == "hotfix" else AREAS)
        subject = rng.choice(COMMIT_SUBJECTS[kind]).format(rng.choice(SUBJECT_WORDS))
        message = f"{kind}({area}): {subject} (#{number // 2 + 100})\n"
        when = f"{int(moment.timestamp())} {author.hours_east * 100:+05d}"
        who = f"{author.name} <{author.email}> {when}"
        yield f"commit refs/heads/main\nmark :{number}\nauthor {who}\ncommitter {who}\n"
        yield format_import_data(message)
        for path in changed_files(rng, kind, area):
            content = edit_file(rng, files.setdefault(path, []), subject, number)
            yield f"M 100644 inline {path}\n{format_import_data(content)}"
        if number % COMMITS_PER_RELEASE == 0:
            tag = f"v{number // COMMITS_PER_RELEASE // 4}.{number // COMMITS_PER_RELEASE % 4}"
            yield f"reset refs/tags/{tag}\nfrom :{number}\n\n"


def schedule_commits(rng: Random) -> list[tuple[datetime, Author]]:
    """Return the time and the author of each commit in order; most are within working hours."""
    found = []
    for _ in range(COMMIT_COUNT):
        author = rng.choices(AUTHORS, [each.commit_weight for each in AUTHORS])[0]
        hour = author.first_hour - author.hours_east + min(rng.expovariate(1 / 5), 17.0)
        found.append(
            (START + timedelta(days=rng.randrange(DURATION_DAYS), seconds=int(hour * 3600)), author)
        )
    return sorted(found, key=lambda each: (each[0], each[1].name))


def changed_files(rng: Random, kind: str, area: str) -> list[str]:
    """Return the files that a commit of this kind changes."""
    if kind == "docs" or area == "docs":
        return [f"docs/{area}.md"]
    source, tests = f"src/lantern/{area}.py", f"tests/test_{area}.py"
    neighbour = f"src/lantern/{choose_weighted(rng, CODE_AREAS)}.py"
    return {
        "add": [source, tests, "CHANGELOG.md"],
        "refactor": list(dict.fromkeys([source, neighbour])),
        "test": [tests],
    }.get(kind, [source, tests])


def edit_file(rng: Random, lines: list[str], subject: str, number: int) -> str:
    """Change a file's `lines` in two places, add some, and return the new content."""
    for _ in range(min(2, len(lines))):
        lines[rng.randrange(len(lines))] = f"    step_{number}({rng.randrange(1000)})  # {subject}"
    lines += [
        f"def handle_{number}(request):",
        f"    # {subject}",
        f"    return request[:{rng.randrange(9, 999)}]",
        "",
    ]
    return "\n".join(lines)


def choose_weighted(rng: Random, weights: dict[str, int]) -> str:
    """Return one of the keys at random, weighted by their values."""
    return rng.choices(list(weights), list(weights.values()))[0]


def format_import_data(text: str) -> str:
    """Return `text` in the format of fast-import: its length in bytes first."""
    return f"data {len(text.encode())}\n{text}\n"
