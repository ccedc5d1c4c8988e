"""Exchange skills between stores: a version as a zip with one folder of the Agent Skills standard.

Rule 1: every export of a version produces the same bytes.
Rule 2: an archive may come from an untrusted source. It is read within limits. Its digest and its
signature must be right, and its state and statistics are ignored. It becomes a draft, which must
pass the gate here. A trusted key changes what is said about a skill, not what is done with it.
"""

from __future__ import annotations

import io
import time
import zipfile
import zlib
from collections.abc import Collection
from pathlib import PurePosixPath

from ...errors import SkillRefused
from .guides import parse_front_matter
from .lint import check_skill
from .model import Skill
from .signing import has_valid_signature
from .skill_names import to_slug
from .source import to_one_line
from .store import SkillStore
from .version_files import (
    CASE_FILE_NAME,
    CASES_FOLDER,
    MANIFEST_FILE,
    MAX_FILE_BYTES,
    SKILL_FILE,
    VERSION_FILES,
    FileContents,
    decode_text_file,
    load_skill,
    without_manifest,
)

MAX_ARCHIVE_BYTES = 8_000_000
MAX_ARCHIVE_FILES = 64
MAX_UNPACKED_BYTES = 8_000_000
MAX_TOOL_NAME_CHARS = 200
MAX_SUMMARY_CHARS = 1000
MAX_MESSAGE_CHARS = 200  # of an error of the zip reader
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold
ENCRYPTED_FLAG = 1
FILE_TYPE_MASK, PLAIN_FILE_TYPE = 0o170000, 0o100000
IMPORTED = (
    "It was imported, and has not been checked here yet: "
    "`mcpruntime-server skills promote NAME@VERSION`."
)


def pack_skill(skill: Skill, files: FileContents) -> bytes:
    """Return the archive of a version; `files` are all its files, with the manifest."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for path, data in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{to_slug(skill.name)}/{path}", ZIP_EPOCH)
            entry.create_system = 3  # Unix
            entry.external_attr = (PLAIN_FILE_TYPE | 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=9)
    return target.getvalue()


def import_archive(
    store: SkillStore, data: bytes, packages: Collection[str] | None
) -> tuple[Skill, bool]:
    """Add the skill of an archive as a draft; return it, and whether the store had it already.

    `packages` are what sandboxes have installed, None if that is unknown. Raises `SkillRefused`.
    """
    slug, files = unpack_archive(data)
    theirs = load_skill(files, store.owner)
    content = without_manifest(files)
    front_matter = parse_front_matter(decode_text_file(content, SKILL_FILE))
    if to_slug(theirs.name) != slug or front_matter.get("name") != slug:
        raise SkillRefused(
            f"The folder {slug}, {SKILL_FILE} and {MANIFEST_FILE} have different names."
        )
    signature, signer_key = theirs.signature_hex, theirs.signer_key
    if signature and not has_valid_signature(theirs):
        raise SkillRefused(
            "The signature is wrong: the skill was changed, or another one was signed."
        )
    skills = store.all_versions()
    for known in skills.get(theirs.name, ()):
        if known.digest == theirs.digest:
            if may_adopt_signature(known, signer_key, store.trusted_keys):
                return store.set_signature(known, signature, signer_key), True
            return known, True
    check_skill(theirs, skills, packages)
    imported = Skill(
        name=theirs.name,
        summary=theirs.summary[:MAX_SUMMARY_CHARS],
        source=theirs.source,
        reasons=(IMPORTED,),
        origin="import",
        saved_at=time.time(),
        tool_digests={
            tool: schemas
            for tool, schemas in theirs.tool_digests.items()
            if len(tool) <= MAX_TOOL_NAME_CHARS
        },
        signature_hex=signature,
        signer_key=signer_key,
    )
    return store.add_version(imported, content), False


def may_adopt_signature(known: Skill, signer_key: str, trusted_keys: Collection[str]) -> bool:
    """Return whether a version gets the signature that an archive of the same files has.

    The key of a version in use decides what may replace it, so that must be a trusted one.
    """
    if signer_key in trusted_keys:
        return known.signer_key not in trusted_keys
    return bool(signer_key) and not known.signature_hex and not known.was_in_use


def unpack_archive(data: bytes) -> tuple[str, dict[str, bytes]]:
    """Return the name of the folder in an archive, and its files by path; raises `SkillRefused`."""
    if len(data) > MAX_ARCHIVE_BYTES:
        raise SkillRefused(
            f"The archive has {len(data):,} bytes; the limit is {MAX_ARCHIVE_BYTES:,}."
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _unpack(archive)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as exc:
        message = to_one_line(str(exc))[:MAX_MESSAGE_CHARS]
        raise SkillRefused(f"The file is not an archive of a skill: {message}.") from None


def _unpack(archive: zipfile.ZipFile) -> tuple[str, dict[str, bytes]]:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MAX_ARCHIVE_FILES:
        raise SkillRefused(
            f"The archive has {len(entries):,} files; the limit is {MAX_ARCHIVE_FILES}."
        )
    files: dict[str, bytes] = {}
    folders: set[str] = set()
    bytes_left = MAX_UNPACKED_BYTES
    for entry in entries:
        folder, path = _split_path(entry)
        folders.add(folder)
        if path in files:
            raise SkillRefused(f"The archive has {path} twice.")
        with archive.open(entry) as file:  # the size in the entry may be wrong
            files[path] = file.read(min(MAX_FILE_BYTES, bytes_left) + 1)
        bytes_left -= len(files[path])
        if len(files[path]) > MAX_FILE_BYTES or bytes_left < 0:
            raise SkillRefused(
                f"{path} is too large: a file may have {MAX_FILE_BYTES:,} bytes, "
                f"and all files {MAX_UNPACKED_BYTES:,}."
            )
    if len(folders) != 1:
        raise SkillRefused("The archive of a skill has one folder, with all files in it.")
    for path in VERSION_FILES:
        if path not in files:
            is_guide = path != SKILL_FILE
            remedy = "Add an Agent Skill without it to [skills] folders." if is_guide else ""
            raise SkillRefused(f"The archive has no {path}.", remedy=remedy)
    return folders.pop(), files


def _split_path(entry: zipfile.ZipInfo) -> tuple[str, str]:
    """Return the folder of a file in an archive, and its path in the folder.

    Raises `SkillRefused`.
    """
    name = f"{entry.filename!r:.100}"
    if entry.flag_bits & ENCRYPTED_FLAG:
        raise SkillRefused(f"{name} is encrypted.")
    if (entry.external_attr >> 16) & FILE_TYPE_MASK not in (0, PLAIN_FILE_TYPE):
        raise SkillRefused(f"{name} is not a plain file.")
    parts = PurePosixPath(entry.filename).parts
    folder, path = parts[0] if parts else "", "/".join(parts[1:])
    is_case = len(parts) == 3 and parts[1] == CASES_FOLDER and CASE_FILE_NAME.fullmatch(parts[2])
    if not (path in VERSION_FILES or is_case) or entry.filename != f"{folder}/{path}":
        raise SkillRefused(f"{name} is not a file of a skill.")
    return folder, path
