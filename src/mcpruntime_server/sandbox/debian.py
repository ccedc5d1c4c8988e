"""A base image from Debian packages, for hosts that reach a Debian mirror but no image registry."""

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
from .docker_engine import DockerEngine

BASE_REPOSITORY = "mcpruntime-base"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SUITE = "bookworm"
INCLUDED_PACKAGES = "python3,python3-venv"
# What no sandbox needs. The rest is unchanged.
EXCLUDED_PATHS = (
    *("dev/*", "usr/share/doc/*", "usr/share/locale/*", "usr/share/man/*", "usr/share/info/*"),
    *("var/cache/*", "var/lib/apt/lists/*", "var/log/*", "tmp/*"),
)
REPORTED_PHASES = ("Retrieving", "Validating", "Extracting", "Unpacking", "Configuring")
SYSTEM_UMASK = 0o022  # everybody may read the files of an image
MAX_TAIL_LINES = 12  # of a command's output, in an error

ProgressReporter = Callable[[str], None]


def make_base_image(engine: DockerEngine, tag: str, report: ProgressReporter) -> str:
    """Make the image `tag` with debootstrap, unless it exists, and return its id. This blocks.

    Raises `Unavailable` if debootstrap cannot run.
    """
    from docker.errors import ImageNotFound

    try:
        return str(engine.call_api_blocking(lambda client: client.inspect_image(tag))["Id"])
    except ImageNotFound:
        check_requirements()
    program = find_debootstrap(report)
    suite, mirror = find_release()
    report(f"Making a base image from Debian packages ({suite})")
    with tempfile.TemporaryDirectory(prefix="mcpruntime-") as folder:
        root = Path(folder, "root")
        options = ["--variant=minbase", f"--include={INCLUDED_PACKAGES}"]
        run_debootstrap([program, *options, suite, str(root), mirror], report)
        report("Importing the base image")
        return import_root_folder(engine, root, tag)


def check_requirements() -> None:
    """Raise `Unavailable` unless this host and user can run debootstrap."""
    if platform.system() != "Linux" or not shutil.which("apt-get"):
        raise Unavailable(
            "The base image cannot be pulled, and only Debian and Ubuntu can make one.",
            remedy="Make the image registry reachable, "
            "or name an image that the engine has: `[sandbox] base_image`.",
        )
    if os.geteuid() != 0:
        raise Unavailable(
            "The base image cannot be pulled, and making one from Debian packages needs root.",
            remedy="Run `sudo mcpruntime-server image build` once, "
            "or make the image registry reachable.",
        )


def find_debootstrap(report: ProgressReporter) -> str:
    """Return the path of debootstrap; install it if necessary."""
    if not shutil.which("debootstrap"):
        report("Installing debootstrap")
        run_command(["apt-get", "update", "-qq"])
        run_command(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "debootstrap"])
    return shutil.which("debootstrap") or "/usr/sbin/debootstrap"


def read_host_suite() -> str:
    """Return the code name of this host's release."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", DEFAULT_SUITE)
    except OSError:  # not Linux
        return DEFAULT_SUITE


def compute_base_tag() -> str:
    """Return the name of the base image that this host makes; it depends on all that is in it."""
    parts = "\n".join([INCLUDED_PACKAGES, *EXCLUDED_PATHS])
    digest = hashlib.sha256(parts.encode()).hexdigest()
    return f"{BASE_REPOSITORY}:{read_host_suite()}-{digest[:8]}"


def find_release() -> tuple[str, str]:
    """Return the suite and the mirror for packages: this host's own, or the default ones."""
    suite = read_host_suite()
    fields = "$(RELEASE) $(COMPONENT) $(CREATED_BY) $(REPO_URI)"
    command = ["apt-get", "indextargets", "--format", fields]
    listed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        found, component, kind, mirror = line.split(" ", 3)
        if (found, component, kind) == (suite, "main", "Packages"):
            return suite, mirror.rstrip("/")
    return DEFAULT_SUITE, DEFAULT_MIRROR


def run_command(command: list[str]) -> None:
    """Run `command` quietly; raises `Unavailable` with the end of its output if it fails."""
    done = subprocess.run(
        command,
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise command_failed_error(command, done.stdout.splitlines())


def run_debootstrap(command: list[str], report: ProgressReporter) -> None:
    """Run debootstrap and report its phases; raises `Unavailable` if it fails."""
    lines: list[str] = []
    seen = set()
    with subprocess.Popen(
        command,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        umask=SYSTEM_UMASK,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines = [*lines[1 - MAX_TAIL_LINES :], line.rstrip()]
            phase = line.removeprefix("I: ").split(" ", 1)[0]
            if phase in REPORTED_PHASES and phase not in seen:
                seen.add(phase)
                report(f"  {phase} packages")
    if process.returncode:
        raise command_failed_error(command, lines)


def command_failed_error(command: list[str], lines: list[str]) -> Unavailable:
    """Return the error for a failed command, with the end of its output."""
    tail = "\n".join(lines[-MAX_TAIL_LINES:])
    return Unavailable(
        f"`{' '.join(command)}` failed:\n{tail}\n",
        remedy="Check that the Debian mirror can be reached, and try again.",
    )


def import_root_folder(engine: DockerEngine, root: Path, tag: str) -> str:
    """Import the folder `root` as the image `tag` and return its id."""
    excluded = [f"--exclude=./{pattern}" for pattern in EXCLUDED_PATHS]
    command = ["tar", "--create", "--numeric-owner", "--wildcards", *excluded, "-C", str(root), "."]
    repository, _, name = tag.rpartition(":")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar:
        assert tar.stdout is not None
        stream = tar.stdout
        engine.call_api_blocking(
            lambda client: client.import_image_from_stream(
                iter(lambda: stream.read(1 << 20), b""), repository, name, ['CMD ["python3"]']
            )
        )
    if tar.returncode:
        raise Unavailable(f"tar failed with exit code {tar.returncode} while it read {root}.")
    return str(engine.call_api_blocking(lambda client: client.inspect_image(tag))["Id"])
