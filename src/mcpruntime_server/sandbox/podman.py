"""What Podman has to be told differently, behind the API that it shares with Docker.

Tested with Podman 4.3 as root:

- It reads a seccomp profile from a file of its machine, where Docker takes the text.
- It knows another word for a tmpfs that belongs to the container's user, and none for the number of
  files, which the memory bounds.
- It ignores the options of a volume's driver, so the number of pseudo terminals is that of the
  machine.
- It raises limits of processes to those of the machine unless they are named, and fails if it may
  not.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..protocol.payloads import JsonObject
from . import HealthCheck
from .hardening import format_ulimit

ENGINE_NAME = "Podman Engine"  # among the components of its answer to `/version`
SECCOMP_OPTION = "seccomp="
UNKNOWN_TMPFS_OPTIONS = ("nr_inodes=", "uid=", "gid=")
OWN_FOLDER = "U"  # it belongs to the user of the container
EXTRA_FOLDERS = ("/run", "/var/tmp")  # noqa: S108 - where it would mount tmpfs without a size
EMPTY_TMPFS = "rw,nosuid,nodev,noexec,size=4k,mode=0555,notmpcopyup"
KEEP_EMPTY = "notmpcopyup"  # else it gets the files, the owner and the mode of the image's folder


def is_podman(engine_info: Mapping[str, Any]) -> bool:
    """Return whether an engine is Podman, from its answer to `/version`."""
    components = engine_info.get("Components") or ()
    return any(each.get("Name") == ENGINE_NAME for each in components)


def adapt_config(config: JsonObject, folder: Path) -> JsonObject:
    """Return a container configuration as Podman understands it; its files are in `folder`."""
    host = config["HostConfig"]
    adapted = {
        "SecurityOpt": [adapt_security_option(option, folder) for option in host["SecurityOpt"]],
        "Tmpfs": {
            **{path: adapt_tmpfs_options(options) for path, options in host["Tmpfs"].items()},
            **dict.fromkeys(EXTRA_FOLDERS, EMPTY_TMPFS),
        },
        "Mounts": [mount for mount in host["Mounts"] if not has_driver_options(mount)],
        "Ulimits": [*host["Ulimits"], format_ulimit("nproc", host["PidsLimit"])],
    }
    return {**config, "HostConfig": {**host, **adapted}}


def adapt_tmpfs_options(text: str) -> str:
    """Return the options of a tmpfs as Podman knows them."""
    options = text.split(",")
    has_owner = any(option.startswith("uid=") for option in options)
    dropped = (*UNKNOWN_TMPFS_OPTIONS, *(("mode=",) if has_owner else ()))
    kept = [option for option in options if not option.startswith(dropped)]
    return ",".join([*kept, KEEP_EMPTY, *((OWN_FOLDER,) if has_owner else ())])


def has_driver_options(mount: JsonObject) -> bool:
    """Return whether a mount is a volume that its driver mounts with options."""
    return "DriverConfig" in mount.get("VolumeOptions", {})


def adapt_security_option(option: str, folder: Path) -> str:
    """Return a security option, with the path of a seccomp profile in the place of its text."""
    text = option.removeprefix(SECCOMP_OPTION)
    if text == option:
        return option
    return f"{SECCOMP_OPTION}{write_profile(text, folder)}"


def write_profile(text: str, folder: Path) -> Path:
    """Write a seccomp profile to a file of its own; return the path."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = folder / f"seccomp-{digest}.json"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        Path(temporary).replace(path)
    return path


def check_podman(engine_info: Mapping[str, Any]) -> list[HealthCheck]:
    """Return the checks of what is different with Podman."""
    checks = [
        HealthCheck(
            "podman",
            True,
            "the number of files and of terminals of a sandbox is bounded by its memory alone",
        )
    ]
    if engine_info.get("Rootless") or "name=rootless" in (engine_info.get("SecurityOptions") or ()):
        checks.append(
            HealthCheck(
                "podman",
                True,
                "it runs without root, which is not tested: limits may not be enforced",
                "Use the service of root: `sudo podman system service`. See docs/podman.md.",
                is_warning=True,
            )
        )
    return checks


def is_removal_race(explanation: str) -> bool:
    """Return whether Podman did not remove a container only because it ended at that moment."""
    return "could not be stopped" in explanation or "container state improper" in explanation
