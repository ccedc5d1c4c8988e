"""The sandbox image: built where it is missing or out of date, and nothing of the host's left in it.

A base image (pulled, or made from Debian's packages) runs `recipe` in a throw-away container; the container's file
system, exported and imported again, is the image. One layer, no history: index addresses, credentials and certificates
are only in a volume of that container. The image's label is a digest of all that determines its content, so an
image with the right label is up to date.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from ..config import SandboxSettings
from ..errors import Unavailable
from . import debian, index_access, recipe
from .engine import Engine

if TYPE_CHECKING:
    from docker import APIClient

REPOSITORY = "mcpruntime-sandbox"
RECIPE_LABEL = "mcpruntime.recipe"
BASE_LABEL = "mcpruntime.base"
BUILD_COMMAND = "Run `mcpruntime-server image build`."
STEP_TIMEOUT = 1800  # seconds without a byte from the engine: importing a large image is silent for minutes
PULL_TIMEOUT = 30  # seconds without a byte: a registry that cannot be reached may never say so
TAIL = 12  # lines of pip's output that a failure shows
SHOWN = ("Collecting", "Downloading", "Building", "Installing", "Successfully")

Report = Callable[[str], None]


@dataclass(frozen=True)
class ImageRef:
    """An image that the engine has: its name, and the digest of its content."""

    tag: str
    id: str


def recipe_digest(settings: SandboxSettings) -> str:
    """Return the digest of everything that determines the content of the image."""
    source = Path(recipe.__file__).read_text(encoding="utf-8")
    parts = [settings.base_image, *settings.packages, source, debian.INCLUDE, *debian.LEAVE_OUT]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def tag_for(settings: SandboxSettings) -> str:
    """Return the name of the image that sandboxes with these settings run in."""
    return settings.image or f"{REPOSITORY}:{recipe_digest(settings)}"


async def current(settings: SandboxSettings, engine: Engine) -> ImageRef | None:
    """Return the image that these settings ask for, or None if the engine does not have it."""
    return await engine.call(lambda client: look_up(client, tag_for(settings)))


def look_up(client: APIClient, tag: str) -> ImageRef | None:
    """Return the image `tag`, or None if the engine does not have it."""
    from docker.errors import ImageNotFound

    try:
        return ImageRef(tag, client.inspect_image(tag)["Id"])
    except ImageNotFound:
        return None


def missing(tag: str) -> Unavailable:
    """Return the error that says that the image `tag` is not there."""
    return Unavailable(f"The engine does not have the sandbox image {tag}.", remedy=BUILD_COMMAND)


async def build(
    settings: SandboxSettings, report: Report, force: bool = False, environ: Mapping[str, str] | None = None
) -> ImageRef:
    """Make the image that these settings ask for, unless it is there; `report` gets a line for each thing begun.

    `environ` names the host's index, certificates and proxies; the process's own unless given.
    Raises `Unavailable` where the base or the packages cannot be had.
    """
    return await anyio.to_thread.run_sync(_build, settings, report, force, environ or os.environ)


def _build(settings: SandboxSettings, report: Report, force: bool, environ: Mapping[str, str]) -> ImageRef:
    engine = Engine(STEP_TIMEOUT)
    tag = tag_for(settings)
    try:
        found = engine.call_here(lambda client: look_up(client, tag))
        if found and not force:
            report(f"The sandbox image {tag} is up to date")
            return found
        if settings.image:
            pull(engine, settings.image, report)
        else:
            base = base_image(engine, settings.base_image, report)
            engine.call_here(lambda client: bake(client, base, settings, environ, report))
        made = engine.call_here(lambda client: look_up(client, tag))
    finally:
        engine.close()
    if not made:
        raise missing(tag)
    report(f"The sandbox image {tag} is ready")
    return made


def base_image(engine: Engine, name: str, report: Report) -> str:
    """Return the id of the base image: the engine's own, else pulled, else made from Debian's packages."""
    if found := engine.call_here(lambda client: look_up(client, name)):
        return found.id
    try:
        return pull(engine, name, report)
    except Unavailable as exc:
        report(exc.message)
    return debian.make_base(engine, debian.base_tag(), report)


def pull(engine: Engine, name: str, report: Report) -> str:
    """Pull the image `name` and return its id; raises `Unavailable` if no registry gives it."""
    from docker.errors import APIError
    from docker.utils import parse_repository_tag

    def fetch(client: APIClient) -> str:
        repository, tag = parse_repository_tag(name)
        client.timeout = PULL_TIMEOUT
        try:
            for line in client.pull(repository, tag or "latest", stream=True, decode=True):
                if "error" in line:
                    raise Unavailable(f"{name} cannot be pulled: {line['error']}")
            return str(client.inspect_image(name)["Id"])
        finally:
            client.timeout = STEP_TIMEOUT

    report(f"Pulling {name}")
    try:
        return engine.call_here(fetch)
    except APIError as exc:
        raise Unavailable(f"{name} cannot be pulled: {exc.explanation or exc}", remedy=BUILD_COMMAND) from exc


def bake(client: APIClient, base: str, settings: SandboxSettings, environ: Mapping[str, str], report: Report) -> None:
    """Run the recipe on `base` and make what comes out the image that `settings` ask for."""
    report("Installing " + (", ".join(settings.packages) or "no packages"))
    with builder(client, base, settings.packages, environ) as container:
        client.put_archive(container, recipe.BUILD, luggage(environ))
        client.start(container)
        tail = follow(client.logs(container, stream=True, follow=True), report)
        status = client.wait(container)["StatusCode"]
        if status:
            raise Unavailable(
                f"The packages could not be installed (exit code {status}):\n" + "\n".join(tail) + "\n",
                remedy="Check `[sandbox] packages`, and that the package index can be reached.",
            )
        report("Writing the image")
        repository, _, tag = tag_for(settings).rpartition(":")
        labels = {RECIPE_LABEL: recipe_digest(settings), BASE_LABEL: base}
        changes = image_config(client.inspect_image(base)["Config"] or {}, labels)
        client.import_image_from_stream(client.export(container), repository, tag, changes)


@contextmanager
def builder(client: APIClient, base: str, packages: Iterable[str], environ: Mapping[str, str]) -> Iterator[str]:
    """Create the container that runs the recipe; it is removed, with its volume, whatever happens."""
    proxies = index_access.proxies(environ)
    container = client.create_container_from_config(
        {
            "Image": base,
            "Entrypoint": ["python3", f"{recipe.BUILD}/recipe.py"],
            "Cmd": list(packages),
            "User": "0:0",
            "WorkingDir": "/",
            "Env": [f"{name}={value}" for name, value in proxies.items()],
            "Volumes": {recipe.BUILD: {}},
            "HostConfig": {"NetworkMode": "host", "LogConfig": {"Type": "local"}, "Init": True},
        }
    )["Id"]
    try:
        yield container
    finally:
        client.remove_container(container, force=True, v=True)


def luggage(environ: Mapping[str, str]) -> bytes:
    """Return a tar archive of what the recipe needs: itself, pip's settings and the host's certificates."""
    settings = index_access.pip_settings(environ, Path.home())
    ca = index_access.ca_bundle(environ, settings)
    files = {
        "recipe.py": Path(recipe.__file__).read_bytes(),
        "ca.pem": ca,
        "pip.conf": index_access.pip_conf(settings, f"{recipe.BUILD}/ca.pem" if ca else "").encode(),
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def follow(output: Iterable[bytes], report: Report) -> list[str]:
    """Report the lines of pip that say what it does; return the last lines of all."""
    tail: list[str] = []
    for line in text_lines(output):
        tail = [*tail[1 - TAIL :], line]
        if line.strip().startswith(SHOWN):
            report(f"  {line.strip()}")
    return tail


def text_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a stream of bytes that come in any pieces, without credentials."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield index_access.without_credentials(line.decode(errors="replace").rstrip())
    if rest:
        yield index_access.without_credentials(rest.decode(errors="replace").rstrip())


def image_config(base: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """Return the Dockerfile instructions that give the imported file system the base's environment and our labels."""
    variables = [entry.partition("=") for entry in base.get("Env") or ()]
    return [
        *(f"ENV {name}={quoted(value)}" for name, _, value in variables),
        *(f"LABEL {name}={quoted(value)}" for name, value in labels.items()),
        'CMD ["python3"]',
    ]


def quoted(value: str) -> str:
    """Return `value` as a Dockerfile string in which nothing is expanded."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
