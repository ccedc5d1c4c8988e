"""Write and read the files of a version: `SKILL.md`, `skill.py`, `cases/*.json`, `skill.toml`.

Rule 1: all files but `skill.toml` are the version's content. They never change, and `skill.toml`
has their digest.
Rule 2: anybody may have written these files. Sizes and types are checked before anything is used,
links are refused, and no code is executed.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from hashlib import sha256
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from ...errors import SkillRefused
from ...journal.events import canonical_json
from ...protocol.payloads import JsonObject
from .model import CONTEXT_NAME, RecordedCase, Skill, is_input_value
from .skill_names import parse_skill_name, to_slug
from .source import (
    is_absolute_path,
    parameter_descriptions,
    to_front_matter_line,
    to_one_line,
)

if TYPE_CHECKING:
    from jinja2 import Template

SKILL_FILE, SOURCE_FILE, MANIFEST_FILE = "SKILL.md", "skill.py", "skill.toml"
VERSION_FILES = (SKILL_FILE, SOURCE_FILE, MANIFEST_FILE)
CASES_FOLDER = "cases"
CASE_FILE_NAME = re.compile(r"[0-9]{4}\.json")
MAX_CASES = 32
MAX_CASE_BYTES = 1_000_000
MAX_FILE_BYTES = 2_000_000
MAX_DESCRIPTION_CHARS = 1024  # the limit of the Agent Skills standard
MAX_EXAMPLE_CHARS = 80  # of a value in SKILL.md

FileContents = Mapping[str, bytes]  # by relative path

# of a skill; the others are in its content, or known from where it lies
MANIFEST_FIELDS = {each.name for each in fields(Skill)} - {
    "source",
    "cases",
    "is_hand_written",
    "owner",
}

case_adapter = TypeAdapter(RecordedCase)


skill_adapter = TypeAdapter(Skill)


def compute_digest(data: bytes) -> str:
    """Return the digest of a file."""
    return f"sha256:{sha256(data).hexdigest()}"


def compute_content_digest(content: FileContents) -> str:
    """Return the digest of a version, of all its files but the manifest."""
    digests = {path: compute_digest(data) for path, data in content.items()}
    return compute_digest(canonical_json(digests).encode())


def without_manifest(files: FileContents) -> FileContents:
    """Return the files that are the content of a version."""
    return {path: data for path, data in files.items() if path != MANIFEST_FILE}


# writing ------------------------------------------------------------------------------------------


@cache
def _skill_template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # needed by saves only

    environment = Environment(  # noqa: S701 - the result is Markdown
        loader=PackageLoader("mcpruntime_server.capabilities.skills"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("SKILL.md.jinja")


def render_version_files(skill: Skill) -> dict[str, bytes]:
    """Return the files of a version without its manifest; raises `SkillRefused`."""
    cases = skill.cases[:MAX_CASES]
    inputs = cases[0].inputs if cases else {}
    examples = {key: _format_example(value) for key, value in inputs.items()}
    parameters = skill.signature.parameters.values()
    required = [each.name for each in parameters if each.default is Parameter.empty]
    arguments = examples if cases else dict.fromkeys(required, "...")
    descriptions = parameter_descriptions(skill.entry)
    text = _skill_template().render(
        slug=to_slug(skill.name),
        name=skill.name,
        title=skill.name.replace("_", " ").capitalize(),
        description=to_front_matter_line(skill.summary, MAX_DESCRIPTION_CHARS),
        summary=to_one_line(skill.summary),
        call=f"({', '.join(f'{key}={value}' for key, value in arguments.items())})",
        signature=str(skill.signature),
        is_async=skill.is_async,
        parameters=[(key, value, descriptions.get(key, "")) for key, value in examples.items()],
        tools=sorted(skill.tool_digests),
        skills=skill.used_skills,
        packages=[each.requirement for each in skill.packages],
        has_cases=bool(cases),
        asks_model=any(case.asks_model for case in cases),
    )
    content = {SKILL_FILE: text.encode(), SOURCE_FILE: skill.source.encode()}
    for number, case in enumerate(cases, 1):
        content[f"{CASES_FOLDER}/{number:04}.json"] = encode_case(case)
    return content


def _format_example(value: Any) -> str:
    """Return a value as an example shows it, without paths of the machine that recorded it."""
    if is_input_value(value):
        return CONTEXT_NAME
    text = repr(value)
    is_path = isinstance(value, str) and is_absolute_path(value)
    return '"..."' if is_path or len(text) > MAX_EXAMPLE_CHARS else text


def encode_case(case: RecordedCase) -> bytes:
    """Return the file of a case; raises `SkillRefused` if it is too large."""
    plain = case_adapter.dump_python(case, mode="json", exclude_defaults=True)
    text = json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > MAX_CASE_BYTES:
        raise SkillRefused(
            f"The recorded case has {len(data):,} bytes; the limit is {MAX_CASE_BYTES:,}.",
            remedy="Run it on less data, and save that run.",
        )
    return data


def encode_manifest(skill: Skill) -> bytes:
    """Return the file with all that is known of a version besides its content."""
    plain = skill_adapter.dump_python(
        skill, mode="json", include=MANIFEST_FIELDS, exclude_defaults=True
    )
    return tomli_w.dumps(plain, multiline_strings=False).encode()


# reading ------------------------------------------------------------------------------------------


def read_version_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a version, with its manifest; raises `SkillRefused`, `OSError`."""
    found: dict[str, bytes] = {}
    for path in (folder / name for name in VERSION_FILES):
        if path.is_symlink() or path.exists():
            found[path.name] = read_plain_file(path)
    cases = folder / CASES_FOLDER
    if cases.is_symlink():
        raise SkillRefused(
            f"{CASES_FOLDER} of {folder.name} is a link.", remedy="Replace it by a folder."
        )
    if cases.is_dir():
        paths = [path for path in sorted(cases.iterdir()) if CASE_FILE_NAME.fullmatch(path.name)]
        for path in paths[:MAX_CASES]:
            found[f"{CASES_FOLDER}/{path.name}"] = read_plain_file(path)
    return found


def read_plain_file(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of a plain file; raises `SkillRefused`, `OSError`."""
    name = f"{path.name} of {path.parent.name}"
    if path.is_symlink():
        raise SkillRefused(f"{name} is a link.", remedy="Replace it by the file itself.")
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise SkillRefused(f"{name} is not a plain file.")
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise SkillRefused(f"{name} is too large: it may have {max_bytes:,} bytes.")
    return data


def decode_manifest(data: bytes) -> JsonObject:
    """Return the fields of a version in its manifest, unchecked; raises `SkillRefused`."""
    try:
        found = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as exc:
        raise SkillRefused(f"{MANIFEST_FILE} cannot be read: {exc}.") from None
    return {key: value for key, value in found.items() if key in MANIFEST_FIELDS}


def make_skill(content: FileContents, fields: Mapping[str, Any]) -> Skill:
    """Return the skill that has this content, and these fields; raises `SkillRefused`."""
    cases = [
        decode_case(data, path)
        for path, data in content.items()
        if path.startswith(f"{CASES_FOLDER}/")
    ]
    known = {
        "source": decode_text_file(content, SOURCE_FILE),
        "cases": cases,
        "digest": compute_content_digest(content),
    }
    try:
        skill = skill_adapter.validate_python({"summary": "", **fields, **known})
    except ValidationError as exc:
        names = ", ".join(".".join(map(str, each["loc"])) for each in exc.errors())
        raise SkillRefused(f"{MANIFEST_FILE} has wrong values: {names}.") from None
    parse_skill_name(skill.name)
    _ = skill.signature  # which must be readable
    return replace(skill, summary=to_one_line(skill.summary))


def load_skill(files: FileContents, owner: str) -> Skill:
    """Return the version in files; raises `SkillRefused` if they are not what was saved."""
    if MANIFEST_FILE not in files:
        raise SkillRefused(f"There is no {MANIFEST_FILE}.")
    fields = decode_manifest(files[MANIFEST_FILE])
    skill = make_skill(without_manifest(files), {**fields, "owner": owner})
    if "digest" not in fields:
        raise SkillRefused(f"{MANIFEST_FILE} of {skill.id} has no digest of the content.")
    if skill.digest != fields.get("digest"):
        raise SkillRefused(f"The content of {skill.id} is not what was saved.")
    return skill


def decode_text_file(content: FileContents, path: str) -> str:
    """Return a file as text; raises `SkillRefused`."""
    try:
        return content[path].decode()
    except KeyError:
        raise SkillRefused(f"There is no {path}.") from None
    except ValueError:
        raise SkillRefused(f"{path} is not UTF-8 text.") from None


def decode_case(data: bytes, path: str) -> RecordedCase:
    """Return the case in a file; raises `SkillRefused`."""
    try:
        return case_adapter.validate_json(data)
    except ValidationError as exc:
        message = exc.errors()[0]["msg"]
        raise SkillRefused(f"{path} is not a recorded case: {message}.") from None
