"""Unpack one wheel: a program that the server starts, because the index of a wheel may be huge.

The names of a hundred thousand files are 50 MB in Python, and reading them holds the interpreter's
lock. The program limits its own memory, and exits with a sentence if it fails.

Rule: a wheel is data: no links, no paths that lead out, no `.pth` files, bounded in size and number
of files.
"""

from __future__ import annotations

import stat
import sys
import zipfile
from pathlib import Path, PurePosixPath

from ..process_limits import limit_process

MAX_WHEEL_FILES = 100_000
FOLDER_MODE = 0o755  # the sandbox's user is another one than the server's
FILE_MODE = 0o644
READ_BYTES = 1 << 20
ROOT_SCHEMES = ("purelib", "platlib")  # of `NAME.data`, which belong beside the packages
NOT_IMPORTABLE = (".pth",)  # that Python would execute


def unpack_wheel(wheel: Path, folder: Path, max_bytes: int) -> None:
    """Unpack a wheel into an empty folder; raises `OSError`, `ValueError` or `BadZipFile`."""
    left = max_bytes
    folders = {folder}
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_WHEEL_FILES:
            raise ValueError(f"it has more than {MAX_WHEEL_FILES:,} files")
        for entry in entries:
            path = place_entry(entry)
            if path is None:
                continue
            target = folder / path
            if target.parent not in folders:
                target.parent.mkdir(parents=True, exist_ok=True)
                folders.update(folder / parent for parent in path.parents)
            with archive.open(entry) as source, target.open("xb") as file:
                while data := source.read(READ_BYTES):
                    left -= len(data)
                    if left < 0:
                        raise ValueError(f"it has more than {max_bytes:,} bytes")
                    file.write(data)
            target.chmod(FILE_MODE)
    for each in folders:
        each.chmod(FOLDER_MODE)  # whatever the umask of the server


def place_entry(entry: zipfile.ZipInfo) -> PurePosixPath | None:
    """Return the path of a wheel's file below the package folder; None if it is left out.

    Raises `ValueError` if it is no plain file inside the wheel.
    """
    name = entry.filename
    if entry.is_dir():
        return None
    kind = stat.S_IFMT(entry.external_attr >> 16)
    path = PurePosixPath(name)
    is_inside = not path.is_absolute() and ".." not in path.parts and "\\" not in name
    is_inside = is_inside and path.parts != () and ":" not in path.parts[0]
    if kind not in (0, stat.S_IFREG) or not is_inside or "\0" in name:
        raise ValueError(f"{name!r:.100} is not a file inside it")
    if path.suffix in NOT_IMPORTABLE:
        return None
    if path.parts[0].endswith(".data"):
        if len(path.parts) < 3 or path.parts[1] not in ROOT_SCHEMES:
            return None  # scripts, headers, data
        path = PurePosixPath(*path.parts[2:])
    return path


if __name__ == "__main__":
    limit_process()
    try:
        unpack_wheel(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    except MemoryError:
        sys.exit("its list of files is too long")
    except Exception as exc:  # noqa: BLE001 - a stranger's archive breaks its reader in many ways
        sys.exit(str(exc) or type(exc).__name__)
