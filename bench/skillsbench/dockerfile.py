"""Reads the Dockerfile of a task: where its files go, and what else can be done in a sandbox.

COPY, ADD, WORKDIR, ENV and ARG are followed, in the last stage and in those that it is built from.
A RUN is a command for later: the sandbox executes it without a network and without root, below
`/root` and `/tmp` alone, after all files are placed. What is not followed is named, so that a task
that needs it fails with its reason.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

ROOT, HOME = PurePosixPath("/"), PurePosixPath("/root")
SKILLS_FOLDER = "skills"
COPYING = ("COPY", "ADD")
IGNORED_INSTRUCTIONS = (
    *("CMD", "ENTRYPOINT", "LABEL", "USER", "EXPOSE", "VOLUME", "HEALTHCHECK", "STOPSIGNAL"),
    *("MAINTAINER", "ONBUILD"),
)
SUBSTITUTED = (*COPYING, "ENV", "WORKDIR", "FROM", "ARG")
DEFAULT_SHELL = ("/bin/sh", "-c")
BASE_VARIABLES = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
ARCHIVE = re.compile(r"\.(tar|tgz|tar\.\w+)$")
HEREDOC = re.compile(r"<<-?\s*[\"']?(\w+)[\"']?")
VARIABLE = re.compile(r"\\\$|\$(?:(\w+)|\{(\w+)(?::([-+])([^}]*))?\})")
MAX_SHOWN_CHARS = 200


@dataclass(frozen=True)
class Placement:
    """A file or the content of a folder, and its path in the sandbox."""

    source: Path
    target: PurePosixPath


@dataclass(frozen=True)
class RunStep:
    """A RUN: the command, its working folder and variables, and the instruction as text."""

    command: tuple[str, ...]
    folder: str
    variables: Mapping[str, str]
    text: str


@dataclass(frozen=True)
class TaskEnvironment:
    """What a sandbox has before an agent works; `left_out` are instructions not followed."""

    placements: tuple[Placement, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[RunStep, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass
class BuildStage:
    """A stage of a build, as far as it has been read."""

    folder: PurePosixPath = ROOT
    shell: tuple[str, ...] = DEFAULT_SHELL
    variables: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    placements: list[Placement] = field(default_factory=list)
    steps: list[RunStep] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def copy(self) -> BuildStage:
        """Return the beginning of a stage that is built from this one; arguments end here."""
        return BuildStage(
            self.folder,
            self.shell,
            dict(self.variables),
            {},
            list(self.placements),
            list(self.steps),
            list(self.left_out),
        )

    def substitute(self, text: str) -> str:
        """Return a text with the values of its variables."""
        values = {**BASE_VARIABLES, **self.arguments, **self.variables}

        def replace(found: re.Match[str]) -> str:
            if found[0] == r"\$":
                return "$"
            value = values.get(found[1] or found[2], "")
            if found[3] == "-":
                return value or found[4]
            return found[4] * bool(value) if found[3] == "+" else value

        return VARIABLE.sub(replace, text)


def read_environment(folder: Path) -> TaskEnvironment:
    """Return the environment in a folder.

    Skills are left out: whether an agent gets them is the condition that is measured.
    """
    dockerfile = folder / "Dockerfile"
    if not dockerfile.exists():
        names = (each for each in sorted(folder.iterdir()) if each.name != SKILLS_FOLDER)
        return TaskEnvironment(tuple(Placement(each, HOME / each.name) for each in names))
    stage = BuildStage()
    stages: dict[str, BuildStage] = {}
    for instruction, rest in read_instructions(dockerfile.read_text("utf-8")):
        arguments = stage.substitute(rest) if instruction in SUBSTITUTED else rest
        if instruction == "FROM":
            words = re.sub(r"^(--\S+\s+)+", "", arguments).split()
            base = stages.get(words[0].lower()) if words else None
            stage = base.copy() if base else BuildStage()
            if len(words) == 3:
                stages[words[2].lower()] = stage
            continue
        follow_instruction(stage, folder, instruction, arguments)
    return TaskEnvironment(
        tuple(stage.placements), stage.variables, tuple(stage.steps), tuple(stage.left_out)
    )


def follow_instruction(stage: BuildStage, folder: Path, instruction: str, arguments: str) -> None:
    """Do in a stage what an instruction says, or name it as left out."""
    match instruction:
        case "WORKDIR":
            stage.folder /= arguments.strip("\"'")
        case "ENV":
            stage.variables |= read_variables(arguments)
        case "ARG":
            defaults = read_variables(arguments) if "=" in arguments else {}
            stage.arguments = {**defaults, **stage.arguments}
        case "SHELL" if arguments.startswith("["):
            stage.shell = tuple(json.loads(arguments))
        case "RUN":
            stage.steps.append(read_run(stage, arguments))
        case "COPY" | "ADD":
            follow_copy(stage, folder, instruction, arguments)
        case _ if instruction not in IGNORED_INSTRUCTIONS:
            stage.left_out.append(f"{instruction} {arguments}"[:MAX_SHOWN_CHARS])


def follow_copy(stage: BuildStage, folder: Path, instruction: str, arguments: str) -> None:
    """Add what a COPY places below the home folder, or name it as left out."""
    found = list(resolve_copy(folder, stage.folder, arguments))
    below = [each for each in found if each.target.is_relative_to(HOME)]
    stage.placements += below
    is_packed = instruction == "ADD" and any(ARCHIVE.search(each.source.name) for each in below)
    if is_packed or not (below or is_about_skills(arguments)):
        note = ": the archive is not unpacked" if is_packed else ""
        stage.left_out.append(f"{instruction} {arguments}"[:MAX_SHOWN_CHARS] + note)


def read_run(stage: BuildStage, arguments: str) -> RunStep:
    """Return the command of a RUN."""
    text = re.sub(r"^(--\S+\s+)+", "", arguments)
    shown = " ".join(f"RUN {text}".split())[:MAX_SHOWN_CHARS]
    variables = {**stage.arguments, **stage.variables}
    is_list = text.startswith("[") and text.endswith("]")
    if heredoc := HEREDOC.match(text):
        body = text.partition("\n")[2]
        text = body.removesuffix(heredoc[1]).rstrip("\n")
    command = tuple(json.loads(text)) if is_list else (*stage.shell, text)
    return RunStep(command, str(stage.folder), variables, shown)


def read_variables(arguments: str) -> dict[str, str]:
    """Return what an ENV or ARG sets; `NAME VALUE` is its old form."""
    if "=" not in arguments.split(" ", 1)[0]:
        name, _, value = arguments.partition(" ")
        return {name: value.strip()}
    pairs = (word.partition("=") for word in shlex.split(arguments))
    return {name: value for name, sign, value in pairs if sign}


def read_instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile and what follows each.

    A here-document stays in the lines of its instruction.
    """
    lines = iter(text.splitlines())
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        whole = line.strip()
        while whole.endswith("\\"):
            following = next(lines, "")
            if not following.lstrip().startswith("#"):
                whole = f"{whole[:-1].rstrip()} {following.strip()}"
        instruction, _, rest = whole.partition(" ")
        if instruction.upper() in ("RUN", *COPYING) and (heredoc := HEREDOC.search(rest)):
            body = []
            for inner in lines:
                body.append(inner)
                if inner.strip() == heredoc[1]:
                    break
            rest = "\n".join([rest, *body])
        yield instruction.upper(), rest.strip()


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
        if is_skill_path(pattern) or "://" in pattern or pattern.startswith("<<"):
            continue
        for source in [folder] if relative == "." else sorted(folder.glob(relative)):
            if not is_inside(source, folder):
                continue
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
            is_data = relative.parts[0] not in (SKILLS_FOLDER, "Dockerfile")
            if file.is_file() and is_data and is_inside(file, placement.source):
                files[str(target / relative)] = file.read_bytes()
    return files


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path leads to something in a folder, links followed."""
    return path.resolve().is_relative_to(folder.resolve())
