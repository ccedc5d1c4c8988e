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

from ..errors import SkillRefused
from ..journal.events import canonical_json
from .lint import check_entry, is_absolute, parse
from .model import Case, Signature, Skill, State, asks_model, signature_text
from .names import skill_name, slug
from .texts import documented, front_line, one_line

if TYPE_CHECKING:
    from jinja2 import Environment

SKILL, SOURCE, MANIFEST, CASES = "SKILL.md", "skill.py", "skill.toml", "cases"
MAX_CASE = 1_000_000  # bytes of one recorded case
MAX_FILE = 2_000_000  # bytes of any file
MAX_CASES = 32
MAX_DESCRIPTION = 1024  # characters, as in the standard
CASE_NAME = re.compile(r"[0-9]{4}\.json")

Files = Mapping[str, bytes]  # by relative path

cases = TypeAdapter(Case)


class Manifest(BaseModel):
    """What `skill.toml` holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    version: int
    state: State = "draft"
    reasons: tuple[str, ...] = ()
    summary: str = ""
    origin: str = ""
    at: float = 0.0
    tools: Mapping[str, str] = {}
    skills: Mapping[str, str] = {}
    digests: Mapping[str, str] = {}
    described: str = ""  # by which model; "" if its words are its code's, or its author's
    signature: str = ""  # of the name and the digest of all files, by whoever has the key `signer`; in hex
    signer: str = ""


def digest_of(data: bytes) -> str:
    """Return the digest of content as manifests have it."""
    return f"sha256:{sha256(data).hexdigest()}"


def digests_of(content: Files) -> dict[str, str]:
    """Return the digest of each file of a version's content."""
    return {path: digest_of(data) for path, data in sorted(content.items())}


def whole_digest(digests: Mapping[str, str]) -> str:
    """Return the one digest of all of a version's content."""
    return digest_of(canonical_json(dict(digests)).encode())


# writing ------------------------------------------------------------------------------------------


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # only who writes a skill needs it

    loader = PackageLoader("mcpruntime_server.skills")
    return Environment(  # noqa: S701 - what it makes is Markdown
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )


def case_bytes(case: Case) -> bytes:
    """Return a case as it is written; raises `SkillRefused` if it is too large."""
    plain = cases.dump_python(case, mode="json", exclude_defaults=True)
    data = json.dumps(plain, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    if len(data) > MAX_CASE:
        raise SkillRefused(
            f"The recorded case has {len(data):,} bytes; the limit is {MAX_CASE:,}.",
            remedy="Run it on less data, and save that run.",
        )
    return data


def content_of(
    name: str,
    summary: str,
    source: str,
    signature: Signature,
    recorded: tuple[Case, ...],
    *,
    tools: tuple[str, ...] = (),
    skills: tuple[str, ...] = (),
) -> dict[str, bytes]:
    """Return the files of a version, without its manifest; raises `SkillRefused`."""
    example = {**recorded[0].inputs} if recorded else {}
    about = documented(source)
    text = (
        _templates()
        .get_template("SKILL.md.jinja")
        .render(
            slug=slug(name),
            name=name,
            title=name.replace("_", " ").capitalize(),
            description=front_line(summary, MAX_DESCRIPTION),
            summary=one_line(summary),
            call=f"({', '.join(f'{key}={_shown(value)}' for key, value in example.items())})",
            signature=signature_text(signature),
            is_async=signature.is_async,
            parameters=[(key, _shown(value), about.get(key, "")) for key, value in example.items()],
            tools=tools,
            skills=skills,
            asks=any(asks_model(call.target) for case in recorded for call in case.calls),
        )
    )
    content = {SKILL: text.encode(), SOURCE: source.encode()}
    for number, case in enumerate(recorded[:MAX_CASES], 1):
        content[f"{CASES}/{number:04}.json"] = case_bytes(case)
    return content


def _shown(value: Any) -> str:
    """Return a value as an example has it; paths are the recorder's own."""
    text = repr(value)
    return '"..."' if len(text) > 80 or (isinstance(value, str) and is_absolute(value)) else text


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return a manifest as it is written."""
    plain = manifest.model_dump(exclude_defaults=True)
    plain["reasons"] = list(manifest.reasons)
    return tomli_w.dumps(plain, multiline_strings=False).encode()


# reading ------------------------------------------------------------------------------------------


def read_content(folder: Path) -> dict[str, bytes]:
    """Return the files of a version, its manifest among them; raises `SkillRefused`, `OSError`."""
    found: dict[str, bytes] = {}
    for path in (folder / SKILL, folder / SOURCE, folder / MANIFEST):
        if path.is_symlink() or path.exists():
            found[path.name] = read_file(path)
    recorded = folder / CASES
    if recorded.is_symlink():
        raise SkillRefused(f"{CASES} of {folder.name} is a link.", remedy="Put a folder there.")
    for path in sorted(recorded.iterdir()) if recorded.is_dir() else ():
        if CASE_NAME.fullmatch(path.name) and len(found) < MAX_CASES + 3:
            found[f"{CASES}/{path.name}"] = read_file(path)
    return found


def read_file(path: Path) -> bytes:
    """Return the bytes of a plain file of reasonable size; raises `SkillRefused`, `OSError`."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise SkillRefused(
            f"{path.name} of {path.parent.name} is not a plain file.", remedy="Put the file itself there."
        )
    if status.st_size > MAX_FILE:
        raise SkillRefused(f"{path.name} of {path.parent.name} has {status.st_size:,} bytes, over {MAX_FILE:,}.")
    return path.read_bytes()


def read_manifest(data: bytes) -> Manifest:
    """Return the manifest that a file holds; raises `SkillRefused`."""
    try:
        manifest = Manifest.model_validate(tomllib.loads(data.decode()))
        skill_name(manifest.name)
    except ValidationError as exc:
        where = ", ".join(".".join(map(str, each["loc"])) for each in exc.errors())
        raise SkillRefused(f"{MANIFEST} is not right: {where}.") from None
    except (ValueError, RecursionError) as exc:
        raise SkillRefused(f"{MANIFEST} cannot be read: {exc}.") from None
    return manifest


def skill_of(content: Files, manifest: Manifest) -> Skill:
    """Return the version that files make up; raises `SkillRefused` if they are none, or not what was saved."""
    own = {path: data for path, data in content.items() if path != MANIFEST}
    digests = digests_of(own)
    if digests != dict(manifest.digests):
        changed = sorted(path for path, _ in digests.items() ^ dict(manifest.digests).items())
        raise SkillRefused(f"{', '.join(changed)} of {manifest.name} {manifest.version} is not what was saved.")
    return Skill(
        name=manifest.name,
        version=manifest.version,
        state=manifest.state,
        summary=one_line(manifest.summary),
        source=text_of(own, SOURCE),
        signature=check_entry(parse(text_of(own, SOURCE))),
        cases=tuple(case_of(data, path) for path, data in own.items() if path.startswith(f"{CASES}/")),
        digest=whole_digest(digests),
        at=manifest.at,
        origin=manifest.origin,
        reasons=manifest.reasons,
        tools=manifest.tools,
        skills=manifest.skills,
        described=manifest.described,
        signed=manifest.signature,
        signer=manifest.signer,
    )


def text_of(content: Files, path: str) -> str:
    """Return one of the files as text; raises `SkillRefused`."""
    try:
        return content[path].decode()
    except KeyError:
        raise SkillRefused(f"There is no {path}.") from None
    except ValueError:
        raise SkillRefused(f"{path} is not UTF-8 text.") from None


def case_of(data: bytes, path: str) -> Case:
    """Return the case that a file holds; raises `SkillRefused`."""
    try:
        return cases.validate_json(data)
    except ValidationError as exc:
        raise SkillRefused(f"{path} is not a recorded case: {exc.errors()[0]['msg']}.") from None
