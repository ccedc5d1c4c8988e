"""A version of a skill as files: `SKILL.md`, `skill.py`, `cases/*.json` and `skill.toml`.

Rule 1: all files but `skill.toml` are the version's content. They never change, and `skill.toml` has their digests.
Rule 2: what is read may have been written by anybody: sizes and kinds are checked before anything is believed, links
are refused, and nothing is executed.
"""

from __future__ import annotations

import json
import re
import stat
import tomllib
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ...errors import SkillRefused
from ...journal.events import canonical_json
from .docstrings import front_line, parameter_descriptions, to_one_line
from .lint import check_entry_signature, is_absolute, parse_source
from .model import RecordedCase, Signature, Skill, SkillState, format_signature, is_model_request
from .skill_names import parse_skill_name, to_slug

if TYPE_CHECKING:
    from jinja2 import Environment

SKILL_FILE, SOURCE_FILE, MANIFEST_FILE, CASES_FOLDER = "SKILL.md", "skill.py", "skill.toml", "cases"
MAX_CASE_BYTES = 1_000_000  # bytes of one recorded case
MAX_FILE_BYTES = 2_000_000  # bytes of any file
MAX_CASES = 32
MAX_DESCRIPTION_CHARS = 1024  # characters, as in the standard
CASE_FILE_NAME = re.compile(r"[0-9]{4}\.json")

FileContents = Mapping[str, bytes]  # by relative path

case_adapter = TypeAdapter(RecordedCase)


class Manifest(BaseModel):
    """What `skill.toml` holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    version: int
    state: SkillState = "draft"
    reasons: tuple[str, ...] = ()
    summary: str = ""
    origin: str = ""
    saved_at: float = 0.0
    tool_digests: Mapping[str, str] = {}
    skill_digests: Mapping[str, str] = {}
    file_digests: Mapping[str, str] = {}
    described_by: str = ""  # by which model; "" if its words are its code's, or its author's
    signature: str = (
        ""  # of the name and the digest of all files, by whoever has the key `signer`; in hex
    )
    signer_key: str = ""


def compute_digest(data: bytes) -> str:
    """Return the digest of content as manifests have it."""
    return f"sha256:{sha256(data).hexdigest()}"


def compute_file_digests(content: FileContents) -> dict[str, str]:
    """Return the digest of each file of a version's content."""
    return {path: compute_digest(data) for path, data in sorted(content.items())}


def compute_version_digest(digests: Mapping[str, str]) -> str:
    """Return the one digest of all of a version's content."""
    return compute_digest(canonical_json(dict(digests)).encode())


# writing ------------------------------------------------------------------------------------------


@cache
def _templates() -> Environment:
    from jinja2 import (
        Environment,
        PackageLoader,
        StrictUndefined,
    )  # only who writes a skill needs it

    loader = PackageLoader("mcpruntime_server.capabilities.skills")
    return Environment(  # noqa: S701 - what it makes is Markdown
        loader=loader,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def encode_case(case: RecordedCase) -> bytes:
    """Return a case as it is written; raises `SkillRefused` if it is too large."""
    plain = case_adapter.dump_python(case, mode="json", exclude_defaults=True)
    data = (
        json.dumps(plain, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    )
    if len(data) > MAX_CASE_BYTES:
        raise SkillRefused(
            f"The recorded case has {len(data):,} bytes; the limit is {MAX_CASE_BYTES:,}.",
            remedy="Run it on less data, and save that run.",
        )
    return data


def render_version_files(
    name: str,
    summary: str,
    source: str,
    signature: Signature,
    recorded: tuple[RecordedCase, ...],
    *,
    tools: tuple[str, ...] = (),
    skills: tuple[str, ...] = (),
) -> dict[str, bytes]:
    """Return the files of a version, without its manifest; raises `SkillRefused`."""
    example = {**recorded[0].inputs} if recorded else {}
    about = parameter_descriptions(source)
    text = (
        _templates()
        .get_template("SKILL.md.jinja")
        .render(
            slug=to_slug(name),
            name=name,
            title=name.replace("_", " ").capitalize(),
            description=front_line(summary, MAX_DESCRIPTION_CHARS),
            summary=to_one_line(summary),
            call=f"({', '.join(f'{key}={_shown(value)}' for key, value in example.items())})",
            signature=format_signature(signature),
            is_async=signature.is_async,
            parameters=[(key, _shown(value), about.get(key, "")) for key, value in example.items()],
            tools=tools,
            skills=skills,
            asks=any(is_model_request(call.target) for case in recorded for call in case.calls),
        )
    )
    content = {SKILL_FILE: text.encode(), SOURCE_FILE: source.encode()}
    for number, case in enumerate(recorded[:MAX_CASES], 1):
        content[f"{CASES_FOLDER}/{number:04}.json"] = encode_case(case)
    return content


def _shown(value: Any) -> str:
    """Return a value as an example has it; paths are the recorder's own."""
    text = repr(value)
    return '"..."' if len(text) > 80 or (isinstance(value, str) and is_absolute(value)) else text


def encode_manifest(manifest: Manifest) -> bytes:
    """Return a manifest as it is written."""
    plain = manifest.model_dump(exclude_defaults=True)
    plain["reasons"] = list(manifest.reasons)
    return tomli_w.dumps(plain, multiline_strings=False).encode()


# reading ------------------------------------------------------------------------------------------


def read_version_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a version, its manifest among them; raises `SkillRefused`, `OSError`."""
    found: dict[str, bytes] = {}
    for path in (folder / SKILL_FILE, folder / SOURCE_FILE, folder / MANIFEST_FILE):
        if path.is_symlink() or path.exists():
            found[path.name] = read_plain_file(path)
    recorded = folder / CASES_FOLDER
    if recorded.is_symlink():
        raise SkillRefused(
            f"{CASES_FOLDER} of {folder.name} is a link.", remedy="Put a folder there."
        )
    for path in sorted(recorded.iterdir()) if recorded.is_dir() else ():
        if CASE_FILE_NAME.fullmatch(path.name) and len(found) < MAX_CASES + 3:
            found[f"{CASES_FOLDER}/{path.name}"] = read_plain_file(path)
    return found


def read_plain_file(path: Path) -> bytes:
    """Return the bytes of a plain file of reasonable size; raises `SkillRefused`, `OSError`."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise SkillRefused(
            f"{path.name} of {path.parent.name} is not a plain file.",
            remedy="Put the file itself there.",
        )
    if status.st_size > MAX_FILE_BYTES:
        raise SkillRefused(
            f"{path.name} of {path.parent.name} has {status.st_size:,} bytes, over {MAX_FILE_BYTES:,}."
        )
    return path.read_bytes()


def decode_manifest(data: bytes) -> Manifest:
    """Return the manifest that a file holds; raises `SkillRefused`."""
    try:
        manifest = Manifest.model_validate(tomllib.loads(data.decode()))
        parse_skill_name(manifest.name)
    except ValidationError as exc:
        where = ", ".join(".".join(map(str, each["loc"])) for each in exc.errors())
        raise SkillRefused(f"{MANIFEST_FILE} is not right: {where}.") from None
    except (ValueError, RecursionError) as exc:
        raise SkillRefused(f"{MANIFEST_FILE} cannot be read: {exc}.") from None
    return manifest


def load_skill(content: FileContents, manifest: Manifest) -> Skill:
    """Return the version that files make up; raises `SkillRefused` if they are none, or not what was saved."""
    own = {path: data for path, data in content.items() if path != MANIFEST_FILE}
    digests = compute_file_digests(own)
    if digests != dict(manifest.file_digests):
        changed = sorted(path for path, _ in digests.items() ^ dict(manifest.file_digests).items())
        raise SkillRefused(
            f"{', '.join(changed)} of {manifest.name} {manifest.version} is not what was saved."
        )
    return Skill(
        name=manifest.name,
        version=manifest.version,
        state=manifest.state,
        summary=to_one_line(manifest.summary),
        source=decode_text_file(own, SOURCE_FILE),
        signature=check_entry_signature(parse_source(decode_text_file(own, SOURCE_FILE))),
        cases=tuple(
            decode_case(data, path)
            for path, data in own.items()
            if path.startswith(f"{CASES_FOLDER}/")
        ),
        digest=compute_version_digest(digests),
        saved_at=manifest.saved_at,
        origin=manifest.origin,
        reasons=manifest.reasons,
        tool_digests=manifest.tool_digests,
        skill_digests=manifest.skill_digests,
        described_by=manifest.described_by,
        signature_hex=manifest.signature,
        signer_key=manifest.signer_key,
    )


def decode_text_file(content: FileContents, path: str) -> str:
    """Return one of the files as text; raises `SkillRefused`."""
    try:
        return content[path].decode()
    except KeyError:
        raise SkillRefused(f"There is no {path}.") from None
    except ValueError:
        raise SkillRefused(f"{path} is not UTF-8 text.") from None


def decode_case(data: bytes, path: str) -> RecordedCase:
    """Return the case that a file holds; raises `SkillRefused`."""
    try:
        return case_adapter.validate_json(data)
    except ValidationError as exc:
        raise SkillRefused(f"{path} is not a recorded case: {exc.errors()[0]['msg']}.") from None
