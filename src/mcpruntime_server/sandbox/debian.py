"""A base image from Debian's own packages, for hosts that reach a Debian mirror but no image registry."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import Unavailable
from .engine import Engine

REPOSITORY = "mcpruntime-base"
MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
INCLUDE = "python3,python3-venv"
# What nobody reads in a sandbox. The rest is as Debian made it.
LEAVE_OUT = ("dev/*", "usr/share/doc/*", "usr/share/locale/*", "usr/share/man/*", "usr/share/info/*",
             "var/cache/*", "var/lib/apt/lists/*", "var/log/*", "tmp/*")  # fmt: skip
PHASES = ("Retrieving", "Validating", "Extracting", "Unpacking", "Configuring")
TAIL = 12  # lines of a failed command's output that are worth showing

Report = Callable[[str], None]


def make_base(engine: Engine, tag: str, report: Report) -> str:
    """Make the image `tag` from a debootstrap root file system, unless it is there; blocking; returns its id.

    Raises `Unavailable` where debootstrap cannot run.
    """
    from docker.errors import ImageNotFound

    try:
        return str(engine.call_here(lambda client: client.inspect_image(tag))["Id"])
    except ImageNotFound:
        require_root()
    program = debootstrap(report)
    suite, mirror = release()
    report(f"Making a base image from Debian packages ({suite})")
    with tempfile.TemporaryDirectory(prefix="mcpruntime-") as folder:
        root = Path(folder, "root")
        command = [program, "--variant=minbase", f"--include={INCLUDE}", suite, str(root), mirror]
        follow(command, report)
        report("Importing the base image")
        return import_root(engine, root, tag)


def require_root() -> None:
    """Raise `Unavailable` unless this host and user can run debootstrap."""
    if platform.system() != "Linux" or not shutil.which("apt-get"):
        raise Unavailable(
            "The base image cannot be pulled, and only Debian and Ubuntu can make one from packages.",
            remedy="Make the image registry reachable, or name an image that the engine has: `[sandbox] base_image`.",
        )
    if os.geteuid() != 0:
        raise Unavailable(
            "The base image cannot be pulled, and making one from Debian packages needs root.",
            remedy="Run `sudo mcpruntime-server image build` once, or make the image registry reachable.",
        )


def debootstrap(report: Report) -> str:
    """Return the path of debootstrap, installing it if need be."""
    if not shutil.which("debootstrap"):
        report("Installing debootstrap")
        run(["apt-get", "update", "-qq"])
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "debootstrap"])
    return shutil.which("debootstrap") or "/usr/sbin/debootstrap"


def host_suite() -> str:
    """Return the code name of this host's release."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", SUITE)
    except OSError:  # not Linux
        return SUITE


def base_tag() -> str:
    """Return the name of the base image that this host makes; it changes with whatever determines the content."""
    parts = "\n".join([INCLUDE, *LEAVE_OUT])
    return f"{REPOSITORY}:{host_suite()}-{hashlib.sha256(parts.encode()).hexdigest()[:8]}"


def release() -> tuple[str, str]:
    """Return the suite and the mirror to take packages from: this host's own where it names them."""
    suite = host_suite()
    command = ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(CREATED_BY) $(REPO_URI)"]
    listed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        found, component, kind, mirror = line.split(" ", 3)
        if (found, component, kind) == (suite, "main", "Packages"):
            return suite, mirror.rstrip("/")
    return SUITE, MIRROR


def run(command: list[str]) -> None:
    """Run `command` quietly; raises `Unavailable` with the end of its output if it fails."""
    done = subprocess.run(command, check=False, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    if done.returncode:
        raise failure(command, done.stdout.splitlines())


def follow(command: list[str], report: Report) -> None:
    """Run `command`, reporting the phases of debootstrap as they begin; raises `Unavailable` if it fails."""
    lines: list[str] = []
    seen = set()
    with subprocess.Popen(command, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            lines = [*lines[1 - TAIL :], line.rstrip()]
            phase = line.removeprefix("I: ").split(" ", 1)[0]
            if phase in PHASES and phase not in seen:
                seen.add(phase)
                report(f"  {phase} packages")
    if process.returncode:
        raise failure(command, lines)


def failure(command: list[str], lines: list[str]) -> Unavailable:
    """Return the error that says that `command` failed and how its output ended."""
    tail = "\n".join(lines[-TAIL:])
    return Unavailable(
        f"`{' '.join(command)}` failed:\n{tail}\n", remedy="Check that the Debian mirror can be reached, and try again."
    )


def import_root(engine: Engine, root: Path, tag: str) -> str:
    """Make the folder `root` the image `tag`; returns its id."""
    without = [f"--exclude=./{pattern}" for pattern in LEAVE_OUT]
    command = ["tar", "--create", "--numeric-owner", "--wildcards", *without, "-C", str(root), "."]
    repository, _, name = tag.rpartition(":")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar:
        assert tar.stdout is not None
        stream = tar.stdout
        engine.call_here(
            lambda client: client.import_image_from_stream(
                iter(lambda: stream.read(1 << 20), b""), repository, name, ['CMD ["python3"]']
            )
        )
    if tar.returncode:
        raise Unavailable(f"tar failed with exit code {tar.returncode} while it read {root}.")
    return str(engine.call_here(lambda client: client.inspect_image(tag))["Id"])
