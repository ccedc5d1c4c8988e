"""Turns a base image into the sandbox image. Runs as root in a temporary container.

Rule 1: standard library only, Python >= 3.9, and nothing else of this package, because only this
file is copied into the container.
Rule 2: what is needed only for the build is in `BUILD_FOLDER`, a volume outside the image.
Rule 3: this file's content is part of every image's digest, so a change needs no version number.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

BUILD_FOLDER = "/tmp/build"  # noqa: S108 - a volume that only this container sees
PYTHON_PREFIX = "Python of the image: "  # the last line of the output has the version


def find_pip() -> list[str]:
    """Return a command that runs pip for this interpreter without adding pip to the image."""
    created = subprocess.run(
        [sys.executable, "-m", "venv", f"{BUILD_FOLDER}/venv"],
        check=False,
        capture_output=True,
        text=True,
    )
    if created.returncode == 0:
        return [f"{BUILD_FOLDER}/venv/bin/python", "-m", "pip", "--python", sys.executable]
    own_pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*own_pip, "--version"], check=False, capture_output=True).returncode == 0:
        return own_pip
    sys.exit(f"The base image has neither pip nor venv:\n{created.stdout}{created.stderr}")


def install_packages(packages: list[str]) -> None:
    """Install `packages` for all users of this interpreter."""
    environment = {
        **os.environ,
        "HOME": BUILD_FOLDER,
        "TMPDIR": BUILD_FOLDER,
        "PIP_CONFIG_FILE": f"{BUILD_FOLDER}/pip.conf",
        "PIP_BREAK_SYSTEM_PACKAGES": "1",  # Debian protects its Python from pip
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_NO_INPUT": "1",
        "PIP_PROGRESS_BAR": "off",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    command = [*find_pip(), "install", "--", *packages]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def compile_packages() -> None:
    """Compile everything that can be imported, because the root file system is read-only later."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {folder for folder in sys.path if os.path.isdir(folder)}
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0", *sorted(folders)]
    # Some packages contain templates and tests for other Python versions, which do not compile.
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def link_python() -> None:
    """Make `python` the same as `python3`."""
    if not shutil.which("python"):
        Path("/usr/local/bin/python").symlink_to(sys.executable)


def make_workspace() -> None:
    """Make the folder for the workspace; older engines give the mount the mode of this folder."""
    Path("/workspace").mkdir(mode=0o700, exist_ok=True)


def main() -> None:
    """Build the content of the image; the arguments are the packages to install."""
    os.umask(0o022)  # the sandbox runs as a user who owns nothing
    if sys.argv[1:]:
        install_packages(sys.argv[1:])
    link_python()
    make_workspace()
    compile_packages()
    print(PYTHON_PREFIX + platform.python_version(), flush=True)


if __name__ == "__main__":
    main()
