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

from ...errors import SkillRefused
from .docstrings import to_one_line
from .guides import parse_front_matter
from .lint import check_entry_signature, check_source, parse_source
from .model import Skill
from .selection import check_case, check_dependency_cycle
from .signing import is_signature_valid
from .skill_names import to_slug
from .store import SkillStore
from .version_files import (
    CASE_FILE_NAME,
    CASES_FOLDER,
    MANIFEST_FILE,
    MAX_FILE_BYTES,
    SKILL_FILE,
    SOURCE_FILE,
    FileContents,
    Manifest,
    compute_file_digests,
    compute_version_digest,
    decode_case,
    decode_manifest,
    decode_text_file,
)

MAX_ARCHIVE_FILES = 64
MAX_UNPACKED_BYTES = 8_000_000  # unpacked
MAX_ARCHIVE_BYTES = 8_000_000
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can tell
IMPORTED = "It was imported, and has not been checked here yet: `mcpruntime-server skills promote NAME@VERSION`."


def pack_skill(skill: Skill, files: FileContents) -> bytes:
    """Return the archive of a version whose files, its manifest among them, are these."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for path, data in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{to_slug(skill.name)}/{path}", EPOCH)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=9)
    return target.getvalue()


def import_archive(
    store: SkillStore, data: bytes, packages: Collection[str] | None
) -> tuple[Skill, bool]:
    """Keep the skill of an archive as a draft; return it and whether it was there already. Raises `SkillRefused`.

    `packages` are what is installed in sandboxes, None where that is not known.
    """
    name, files = unpack_archive(data)
    manifest = decode_manifest(files[MANIFEST_FILE])
    content = {path: each for path, each in files.items() if path != MANIFEST_FILE}
    if (
        to_slug(manifest.name) != name
        or parse_front_matter(decode_text_file(content, SKILL_FILE)).get("name") != name
    ):
        raise SkillRefused(
            f"The folder {name}, {SKILL_FILE} and {MANIFEST_FILE} do not have one name."
        )
    digests = compute_file_digests(content)
    if dict(manifest.file_digests) != digests:
        raise SkillRefused(
            f"{MANIFEST_FILE} has other digests than the files: the archive is damaged, or was changed."
        )
    digest = compute_version_digest(digests)
    if manifest.signature and not is_signature_valid(
        manifest.name, digest, manifest.signature, manifest.signer_key
    ):
        raise SkillRefused(
            "The signature is wrong: somebody has changed the skill, or signed another one."
        )
    found = store.all_versions()
    for known in found.get(manifest.name, ()):
        if known.digest == digest:
            is_news = bool(manifest.signature) and not known.signature_hex
            return store.set_signature(
                known, manifest.signature, manifest.signer_key
            ) if is_news else known, True
    source = decode_text_file(content, SOURCE_FILE)
    check_entry_signature(parse_source(source))
    checked = check_source(source, packages)
    check_dependency_cycle(manifest.name, checked.skills, found)
    for path, each in content.items():
        if path.startswith(f"{CASES_FOLDER}/"):
            check_case(decode_case(each, path))
    tools = {tool: digest for tool, digest in manifest.tool_digests.items() if len(tool) <= 200}
    kept = Manifest(
        name=manifest.name,
        version=0,
        reasons=(IMPORTED,),
        summary=to_one_line(manifest.summary)[:1000],
        origin="import",
        saved_at=time.time(),
        tool_digests=tools,
        skill_digests={
            used: manifest.skill_digests.get(used, "") for used in sorted(checked.skills)
        },
        signature=manifest.signature,
        signer_key=manifest.signer_key,
    )
    return store.add_version(content, kept), False


def unpack_archive(data: bytes) -> tuple[str, dict[str, bytes]]:
    """Return the name of the folder in an archive, and its files by path; raises `SkillRefused`."""
    if len(data) > MAX_ARCHIVE_BYTES:
        raise SkillRefused(
            f"The archive has {len(data):,} bytes; the limit is {MAX_ARCHIVE_BYTES:,}."
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _unpacked(archive)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as exc:
        raise SkillRefused(
            f"This is no archive of a skill: {to_one_line(str(exc))[:200]}."
        ) from None


def _unpacked(archive: zipfile.ZipFile) -> tuple[str, dict[str, bytes]]:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MAX_ARCHIVE_FILES:
        raise SkillRefused(
            f"The archive has {len(entries):,} files; the limit is {MAX_ARCHIVE_FILES}."
        )
    files: dict[str, bytes] = {}
    folders: set[str] = set()
    left = MAX_UNPACKED_BYTES
    for entry in entries:
        folder, path = _place(entry)
        folders.add(folder)
        if path in files:
            raise SkillRefused(f"{path} is in the archive twice.")
        with archive.open(entry) as file:  # the size that it claims is not believed
            files[path] = file.read(min(MAX_FILE_BYTES, left) + 1)
        left -= len(files[path])
        if len(files[path]) > MAX_FILE_BYTES or left < 0:
            raise SkillRefused(
                f"{path} is too large: a file may have {MAX_FILE_BYTES:,} bytes, all of them {MAX_UNPACKED_BYTES:,}."
            )
    if len(folders) != 1:
        raise SkillRefused("An archive of a skill has one folder with all files in it.")
    for path in (SKILL_FILE, SOURCE_FILE, MANIFEST_FILE):
        if path not in files:
            remedy = (
                "[skills] folders takes Agent Skills as they are." if path != SKILL_FILE else ""
            )
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
    known = path in (SKILL_FILE, SOURCE_FILE, MANIFEST_FILE) or (
        len(parts) == 3 and parts[1] == CASES_FOLDER and CASE_FILE_NAME.fullmatch(parts[2])
    )
    if not known or entry.filename != f"{folder}/{path}":
        raise SkillRefused(f"{entry.filename!r:.100} does not belong into a skill.")
    return folder, path
