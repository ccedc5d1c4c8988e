"""Turns a base image into the sandbox image: runs inside a throw-away container, as root, as `python3 recipe.py`.

Rule 1: standard library only, Python >= 3.9, and nothing of this package: it is sent there as source.
Rule 2: whatever is needed only while building lies in `BUILD`, a volume that is not part of the image.
Rule 3: a change to this file changes the digest of every image, so it needs no version of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

BUILD = "/tmp/build"  # noqa: S108 - a volume that only this container sees


def pip() -> list[str]:
    """Return a command that runs pip for this interpreter without adding pip to the image."""
    made = subprocess.run(
        [sys.executable, "-m", "venv", f"{BUILD}/venv"], check=False, capture_output=True, text=True
    )
    if made.returncode == 0:
        return [f"{BUILD}/venv/bin/python", "-m", "pip", "--python", sys.executable]
    if (
        subprocess.run(
            [sys.executable, "-m", "pip", "--version"], check=False, capture_output=True
        ).returncode
        == 0
    ):
        return [sys.executable, "-m", "pip"]
    sys.exit(f"The base image has neither pip nor venv:\n{made.stdout}{made.stderr}")


def install(packages: list[str]) -> None:
    """Install `packages` for every user of this interpreter."""
    environment = {
        **os.environ,
        "HOME": BUILD,
        "TMPDIR": BUILD,
        "PIP_CONFIG_FILE": f"{BUILD}/pip.conf",
        "PIP_BREAK_SYSTEM_PACKAGES": "1",  # Debian guards its Python against pip; this one is ours
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_NO_INPUT": "1",
        "PIP_PROGRESS_BAR": "off",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    done = subprocess.run([*pip(), "install", "--", *packages], env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def compile_all() -> None:
    """Compile everything importable: the root is read-only later, so what is not compiled now never will be."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {folder for folder in sys.path if os.path.isdir(folder)}
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0", *sorted(folders)]
    # Some packages ship files that are templates or tests for other versions; those stay uncompiled.
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def name_python() -> None:
    """Make `python` the same as `python3`."""
    if not shutil.which("python"):
        Path("/usr/local/bin/python").symlink_to(sys.executable)


def make_workspace() -> None:
    """Make the folder that the workspace is mounted on; older engines give the mount the folder's mode."""
    Path("/workspace").mkdir(mode=0o700, exist_ok=True)


def main() -> None:
    """Build."""
    os.umask(0o022)  # the sandbox's user is nobody in particular
    if sys.argv[1:]:
        install(sys.argv[1:])
    name_python()
    make_workspace()
    compile_all()


if __name__ == "__main__":
    main()
