"""Skills between stores: a version as a zip with one folder of the Agent Skills standard in it.

Rule 1: the same version is the same bytes, whoever exports it and when.
Rule 2: an archive may come from anybody. What it holds is read within limits and believed only as far as it was
checked: it becomes a draft, whatever it says of itself, and proves itself like any other.
"""

from __future__ import annotations

import io
import time
import zipfile
import zlib
from collections.abc import Collection
from pathlib import PurePosixPath

from ..errors import SkillRefused
from .folder import (
    CASE_NAME,
    CASES,
    MANIFEST,
    MAX_FILE,
    SKILL,
    SOURCE,
    Files,
    Manifest,
    case_of,
    digests_of,
    read_manifest,
    text_of,
    whole_digest,
)
from .guides import front_matter
from .lint import check, check_entry, parse
from .listing import check_case, check_cycle
from .model import Skill
from .names import slug
from .signing import is_right
from .store import Store
from .texts import one_line

MAX_FILES = 64
MAX_BYTES = 8_000_000  # unpacked
MAX_ARCHIVE = 8_000_000
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can tell
IMPORTED = "It was imported, and has not been checked here yet: `mcpruntime-server skills promote NAME@VERSION`."


def packed(skill: Skill, files: Files) -> bytes:
    """Return the archive of a version whose files, its manifest among them, are these."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for path, data in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{slug(skill.name)}/{path}", EPOCH)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=9)
    return target.getvalue()


def take_in(store: Store, data: bytes, packages: Collection[str] | None) -> tuple[Skill, bool]:
    """Keep the skill of an archive as a draft; return it and whether it was there already. Raises `SkillRefused`.

    `packages` are what is installed in sandboxes, None where that is not known.
    """
    name, files = unpacked(data)
    manifest = read_manifest(files[MANIFEST])
    content = {path: each for path, each in files.items() if path != MANIFEST}
    if slug(manifest.name) != name or front_matter(text_of(content, SKILL)).get("name") != name:
        raise SkillRefused(f"The folder {name}, {SKILL} and {MANIFEST} do not have one name.")
    digests = digests_of(content)
    if dict(manifest.digests) != digests:
        raise SkillRefused(f"{MANIFEST} has other digests than the files: the archive is damaged, or was changed.")
    digest = whole_digest(digests)
    if manifest.signature and not is_right(manifest.name, digest, manifest.signature, manifest.signer):
        raise SkillRefused("The signature is wrong: somebody has changed the skill, or signed another one.")
    found = store.all()
    for known in found.get(manifest.name, ()):
        if known.digest == digest:
            is_news = bool(manifest.signature) and not known.signed
            return store.sign(known, manifest.signature, manifest.signer) if is_news else known, True
    source = text_of(content, SOURCE)
    check_entry(parse(source))
    checked = check(source, packages)
    check_cycle(manifest.name, checked.skills, found)
    for path, each in content.items():
        if path.startswith(f"{CASES}/"):
            check_case(case_of(each, path))
    tools = {tool: digest for tool, digest in manifest.tools.items() if len(tool) <= 200}
    kept = Manifest(
        name=manifest.name,
        version=0,
        reasons=(IMPORTED,),
        summary=one_line(manifest.summary)[:1000],
        origin="import",
        at=time.time(),
        tools=tools,
        skills={used: manifest.skills.get(used, "") for used in sorted(checked.skills)},
        signature=manifest.signature,
        signer=manifest.signer,
    )
    return store.add(content, kept), False


def unpacked(data: bytes) -> tuple[str, dict[str, bytes]]:
    """Return the name of the folder in an archive, and its files by path; raises `SkillRefused`."""
    if len(data) > MAX_ARCHIVE:
        raise SkillRefused(f"The archive has {len(data):,} bytes; the limit is {MAX_ARCHIVE:,}.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _unpacked(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as exc:
        raise SkillRefused(f"This is no archive of a skill: {one_line(str(exc))[:200]}.") from None


def _unpacked(archive: zipfile.ZipFile) -> tuple[str, dict[str, bytes]]:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MAX_FILES:
        raise SkillRefused(f"The archive has {len(entries):,} files; the limit is {MAX_FILES}.")
    files: dict[str, bytes] = {}
    folders: set[str] = set()
    left = MAX_BYTES
    for entry in entries:
        folder, path = _place(entry)
        folders.add(folder)
        if path in files:
            raise SkillRefused(f"{path} is in the archive twice.")
        with archive.open(entry) as file:  # the size that it claims is not believed
            files[path] = file.read(min(MAX_FILE, left) + 1)
        left -= len(files[path])
        if len(files[path]) > MAX_FILE or left < 0:
            raise SkillRefused(f"{path} is too large: a file may have {MAX_FILE:,} bytes, all of them {MAX_BYTES:,}.")
    if len(folders) != 1:
        raise SkillRefused("An archive of a skill has one folder with all files in it.")
    for path in (SKILL, SOURCE, MANIFEST):
        if path not in files:
            remedy = "[skills] folders takes Agent Skills as they are." if path != SKILL else ""
            raise SkillRefused(f"There is no {path} in the archive.", remedy=remedy)
    return folders.pop(), files


def _place(entry: zipfile.ZipInfo) -> tuple[str, str]:
    """Return the folder and the path in it of a file in an archive; raises `SkillRefused`."""
    if entry.flag_bits & 1:
        raise SkillRefused(f"{entry.filename!r:.100} is encrypted.")
    if (entry.external_attr >> 16) & 0o170000 not in (0, 0o100000):
        raise SkillRefused(f"{entry.filename!r:.100} is not a plain file.")
    parts = PurePosixPath(entry.filename).parts
    folder, path = parts[0] if parts else "", "/".join(parts[1:])
    known = path in (SKILL, SOURCE, MANIFEST) or (
        len(parts) == 3 and parts[1] == CASES and CASE_NAME.fullmatch(parts[2])
    )
    if not known or entry.filename != f"{folder}/{path}":
        raise SkillRefused(f"{entry.filename!r:.100} does not belong into a skill.")
    return folder, path
