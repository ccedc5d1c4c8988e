"""The sandbox image: built where it is missing or out of date, and nothing of the host's left in it.

A base image (pulled, or made from Debian's packages) runs `recipe` in a throw-away container; the
container's file system, exported and imported again, is the image. One layer, no history: index
addresses, credentials and certificates are only in a volume of that container. The image's label is
a digest of all that determines its content, so an image with the right label is up to date.
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
from .docker_engine import DockerEngine

if TYPE_CHECKING:
    from docker import APIClient

IMAGE_REPOSITORY = "mcpruntime-sandbox"
RECIPE_LABEL = "mcpruntime.recipe"
BASE_LABEL = "mcpruntime.base"
BUILD_COMMAND = "Run `mcpruntime-server image build`."
STEP_TIMEOUT_S = (
    1800  # seconds without a byte from the engine: importing a large image is silent for minutes
)
PULL_TIMEOUT_S = 30  # seconds without a byte: a registry that cannot be reached may never say so
MAX_TAIL_LINES = 12  # lines of pip's output that a failure shows
REPORTED_PREFIXES = ("Collecting", "Downloading", "Building", "Installing", "Successfully")

ProgressReporter = Callable[[str], None]


@dataclass(frozen=True)
class ImageRef:
    """An image that the engine has: its name, and the digest of its content."""

    tag: str
    id: str


def compute_recipe_digest(settings: SandboxSettings) -> str:
    """Return the digest of everything that determines the content of the image."""
    source = Path(recipe.__file__).read_text(encoding="utf-8")
    parts = [
        settings.base_image,
        *settings.packages,
        source,
        debian.INCLUDED_PACKAGES,
        *debian.EXCLUDED_PATHS,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def choose_tag(settings: SandboxSettings) -> str:
    """Return the name of the image that sandboxes with these settings run in."""
    return settings.image or f"{IMAGE_REPOSITORY}:{compute_recipe_digest(settings)}"


async def find_current_image(settings: SandboxSettings, engine: DockerEngine) -> ImageRef | None:
    """Return the image that these settings ask for, or None if the engine does not have it."""
    return await engine.call_api(lambda client: look_up_image(client, choose_tag(settings)))


def look_up_image(client: APIClient, tag: str) -> ImageRef | None:
    """Return the image `tag`, or None if the engine does not have it."""
    from docker.errors import ImageNotFound

    try:
        return ImageRef(tag, client.inspect_image(tag)["Id"])
    except ImageNotFound:
        return None


def missing_image_error(tag: str) -> Unavailable:
    """Return the error that says that the image `tag` is not there."""
    return Unavailable(f"The engine does not have the sandbox image {tag}.", remedy=BUILD_COMMAND)


async def build_image(
    settings: SandboxSettings,
    report: ProgressReporter,
    force: bool = False,
    environ: Mapping[str, str] | None = None,
) -> ImageRef:
    """Make the image that these settings ask for, unless it is there; `report` gets a line for each thing begun.

    `environ` names the host's index, certificates and proxies; the process's own unless given.
    Raises `Unavailable` where the base or the packages cannot be had.
    """
    return await anyio.to_thread.run_sync(
        _build_image, settings, report, force, environ or os.environ
    )


def _build_image(
    settings: SandboxSettings, report: ProgressReporter, force: bool, environ: Mapping[str, str]
) -> ImageRef:
    engine = DockerEngine(STEP_TIMEOUT_S)
    tag = choose_tag(settings)
    try:
        found = engine.call_api_blocking(lambda client: look_up_image(client, tag))
        if found and not force:
            report(f"The sandbox image {tag} is up to date")
            return found
        if settings.image:
            pull_image(engine, settings.image, report)
        else:
            base = provide_base_image(engine, settings.base_image, report)
            engine.call_api_blocking(
                lambda client: bake_image(client, base, settings, environ, report)
            )
        made = engine.call_api_blocking(lambda client: look_up_image(client, tag))
    finally:
        engine.close()
    if not made:
        raise missing_image_error(tag)
    report(f"The sandbox image {tag} is ready")
    return made


def provide_base_image(engine: DockerEngine, name: str, report: ProgressReporter) -> str:
    """Return the id of the base image: the engine's own, else pulled, else made from Debian's packages."""
    if found := engine.call_api_blocking(lambda client: look_up_image(client, name)):
        return found.id
    try:
        return pull_image(engine, name, report)
    except Unavailable as exc:
        report(exc.message)
    return debian.make_base_image(engine, debian.compute_base_tag(), report)


def pull_image(engine: DockerEngine, name: str, report: ProgressReporter) -> str:
    """Pull the image `name` and return its id; raises `Unavailable` if no registry gives it."""
    from docker.errors import APIError
    from docker.utils import parse_repository_tag

    def fetch(client: APIClient) -> str:
        repository, tag = parse_repository_tag(name)
        client.timeout = PULL_TIMEOUT_S
        try:
            for line in client.pull(repository, tag or "latest", stream=True, decode=True):
                if "error" in line:
                    raise Unavailable(f"{name} cannot be pulled: {line['error']}")
            return str(client.inspect_image(name)["Id"])
        finally:
            client.timeout = STEP_TIMEOUT_S

    report(f"Pulling {name}")
    try:
        return engine.call_api_blocking(fetch)
    except APIError as exc:
        raise Unavailable(
            f"{name} cannot be pulled: {exc.explanation or exc}", remedy=BUILD_COMMAND
        ) from exc


def bake_image(
    client: APIClient,
    base: str,
    settings: SandboxSettings,
    environ: Mapping[str, str],
    report: ProgressReporter,
) -> None:
    """Run the recipe on `base` and make what comes out the image that `settings` ask for."""
    report("Installing " + (", ".join(settings.packages) or "no packages"))
    with build_container(client, base, settings.packages, environ) as container:
        client.put_archive(container, recipe.BUILD_FOLDER, pack_build_files(environ))
        client.start(container)
        tail = report_output(client.logs(container, stream=True, follow=True), report)
        status = client.wait(container)["StatusCode"]
        if status:
            raise Unavailable(
                f"The packages could not be installed (exit code {status}):\n"
                + "\n".join(tail)
                + "\n",
                remedy="Check `[sandbox] packages`, and that the package index can be reached.",
            )
        report("Writing the image")
        repository, _, tag = choose_tag(settings).rpartition(":")
        labels = {RECIPE_LABEL: compute_recipe_digest(settings), BASE_LABEL: base}
        changes = format_image_changes(client.inspect_image(base)["Config"] or {}, labels)
        client.import_image_from_stream(client.export(container), repository, tag, changes)


@contextmanager
def build_container(
    client: APIClient, base: str, packages: Iterable[str], environ: Mapping[str, str]
) -> Iterator[str]:
    """Create the container that runs the recipe; it is removed, with its volume, whatever happens."""
    proxies = index_access.find_proxies(environ)
    container = client.create_container_from_config(
        {
            "Image": base,
            "Entrypoint": ["python3", f"{recipe.BUILD_FOLDER}/recipe.py"],
            "Cmd": list(packages),
            "User": "0:0",
            "WorkingDir": "/",
            "Env": [f"{name}={value}" for name, value in proxies.items()],
            "Volumes": {recipe.BUILD_FOLDER: {}},
            "HostConfig": {"NetworkMode": "host", "LogConfig": {"Type": "local"}, "Init": True},
        }
    )["Id"]
    try:
        yield container
    finally:
        client.remove_container(container, force=True, v=True)


def pack_build_files(environ: Mapping[str, str]) -> bytes:
    """Return a tar archive of what the recipe needs: itself, pip's settings and the host's certificates."""
    settings = index_access.read_pip_settings(environ, Path.home())
    ca = index_access.read_ca_bundle(environ, settings)
    files = {
        "recipe.py": Path(recipe.__file__).read_bytes(),
        "ca.pem": ca,
        "pip.conf": index_access.format_pip_conf(
            settings, f"{recipe.BUILD_FOLDER}/ca.pem" if ca else ""
        ).encode(),
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def report_output(output: Iterable[bytes], report: ProgressReporter) -> list[str]:
    """Report the lines of pip that say what it does; return the last lines of all."""
    tail: list[str] = []
    for line in decode_lines(output):
        tail = [*tail[1 - MAX_TAIL_LINES :], line]
        if line.strip().startswith(REPORTED_PREFIXES):
            report(f"  {line.strip()}")
    return tail


def decode_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a stream of bytes that come in any pieces, without credentials."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield index_access.mask_credentials(line.decode(errors="replace").rstrip())
    if rest:
        yield index_access.mask_credentials(rest.decode(errors="replace").rstrip())


def format_image_changes(base: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """Return the Dockerfile instructions that give the imported file system the base's environment and our labels."""
    variables = [entry.partition("=") for entry in base.get("Env") or ()]
    return [
        *(f"ENV {name}={quote_value(value)}" for name, _, value in variables),
        *(f"LABEL {name}={quote_value(value)}" for name, value in labels.items()),
        'CMD ["python3"]',
    ]


def quote_value(value: str) -> str:
    """Return `value` as a Dockerfile string in which nothing is expanded."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
