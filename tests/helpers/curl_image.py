"""An image with this machine's curl, which the images of sandboxes do not have."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest

TAG = "mcpruntime-test:curl"
FOLDER = "/opt/curl"
LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x")


@contextmanager
def build_curl_image(base: str) -> Iterator[str]:
    """Add curl and its libraries to an image; yield the tag of the new one, which is removed."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("this machine has no curl")
    client = docker.APIClient(version="auto")
    try:
        container = client.create_container(base)["Id"]
        try:
            client.put_archive(container, "/", pack_program(Path(curl)))
            repository, _, tag = TAG.partition(":")
            client.commit(container, repository, tag)
        finally:
            client.remove_container(container)
        try:
            yield TAG
        finally:
            client.remove_image(TAG, force=True)
    finally:
        client.close()


def pack_program(program: Path) -> bytes:
    """Return an archive with a program, its libraries, and a script that starts it with them."""
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    libraries = [Path(found) for found in LIBRARY.findall(listed)]
    [loader] = (each.name for each in libraries if each.name.startswith("ld-"))
    script = f'#!/bin/sh\nexec {FOLDER}/{loader} --library-path {FOLDER} {FOLDER}/curl "$@"\n'
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for path in (program, *libraries):
            add_file(archive, f"{FOLDER}/{path.name}", path.read_bytes())
        add_file(archive, "/usr/local/bin/curl", script.encode())
    return data.getvalue()


def add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file that everybody may execute."""
    entry = tarfile.TarInfo(name.lstrip("/"))
    entry.size, entry.mode = len(content), 0o755
    archive.addfile(entry, io.BytesIO(content))
