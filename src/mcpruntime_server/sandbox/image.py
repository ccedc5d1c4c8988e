"""The sandbox image: built if it is missing or out of date, without anything of the host in it.

A base image (pulled, or made from Debian's packages) runs `recipe` in a temporary container. The
file system of that container, exported and imported again, is the image: one layer without a
history. Index addresses, credentials and certificates are only in a volume of the container. The
tag of the image contains a digest of all that determines its content, so an image with the right
tag is up to date.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from ..config import SandboxSettings
from ..errors import Unavailable
from . import debian, index_access, recipe
from .debian import ProgressReporter
from .docker_engine import DockerEngine

if TYPE_CHECKING:
    from docker import APIClient

IMAGE_REPOSITORY = "mcpruntime-sandbox"
RECIPE_LABEL = "mcpruntime.recipe"
BASE_LABEL = "mcpruntime.base"
PYTHON_LABEL = "mcpruntime.python"  # the version of its interpreter
BUILD_COMMAND = "Run `mcpruntime-server image build`."
STEP_TIMEOUT_S = 1800  # without a byte from the engine, which imports large images silently
PULL_TIMEOUT_S = 30  # without a byte; an unreachable registry may never answer
MAX_TAIL_LINES = 12  # of pip's output, in an error
REPORTED_PREFIXES = ("Collecting", "Downloading", "Building", "Installing", "Successfully")


@dataclass(frozen=True)
class ImageRef:
    """An image that the engine has."""

    tag: str
    id: str  # a digest of its content


def compute_recipe_digest(settings: SandboxSettings) -> str:
    """Return the digest of everything that determines the content of the image."""
    source = Path(recipe.__file__).read_text(encoding="utf-8")
    base = [debian.INCLUDED_PACKAGES, *debian.EXCLUDED_PATHS]
    parts = [settings.base_image, *settings.packages, source, *base]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def choose_tag(settings: SandboxSettings) -> str:
    """Return the name of the image that sandboxes with these settings run in."""
    return settings.image or f"{IMAGE_REPOSITORY}:{compute_recipe_digest(settings)}"


async def find_current_image(settings: SandboxSettings, engine: DockerEngine) -> ImageRef | None:
    """Return the image for these settings, or None if the engine does not have it."""
    return await engine.call_api(lambda client: look_up_image(client, choose_tag(settings)))


def look_up_image(client: APIClient, tag: str) -> ImageRef | None:
    """Return the image `tag`, or None if the engine does not have it."""
    from docker.errors import ImageNotFound

    try:
        return ImageRef(tag, client.inspect_image(tag)["Id"])
    except ImageNotFound:
        return None


def parse_python_version(settings: SandboxSettings, inspected: Mapping[str, Any]) -> str:
    """Return the Python version that the build found in the image, "" if it is not known.

    An image of the user's own may have inherited the label, and another interpreter since.
    """
    if settings.image:
        return ""
    labels = (inspected.get("Config") or {}).get("Labels") or {}
    return str(labels.get(PYTHON_LABEL) or "")


def missing_image_error(tag: str) -> Unavailable:
    """Return the error for an image that the engine does not have."""
    return Unavailable(f"The engine does not have the sandbox image {tag}.", remedy=BUILD_COMMAND)


async def build_image(
    settings: SandboxSettings,
    report: ProgressReporter,
    force: bool = False,
    environ: Mapping[str, str] | None = None,
) -> ImageRef:
    """Build the image for these settings unless it exists; `report` gets a line for each step.

    `environ` (default: `os.environ`) names the host's package index, certificates and proxies.
    Raises `Unavailable` if the base image or the packages cannot be downloaded.
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
        built = engine.call_api_blocking(lambda client: look_up_image(client, tag))
    finally:
        engine.close()
    if not built:
        raise missing_image_error(tag)
    report(f"The sandbox image {tag} is ready")
    return built


def provide_base_image(engine: DockerEngine, name: str, report: ProgressReporter) -> str:
    """Return the id of the base image; pull it or make it from Debian's packages if necessary."""
    if found := engine.call_api_blocking(lambda client: look_up_image(client, name)):
        return found.id
    try:
        return pull_image(engine, name, report)
    except Unavailable as exc:
        report(exc.message)
    return debian.make_base_image(engine, debian.compute_base_tag(), report)


def pull_image(engine: DockerEngine, name: str, report: ProgressReporter) -> str:
    """Pull the image `name` and return its id; raises `Unavailable` if that fails."""
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
    """Run the recipe on the image `base` and import the result as the image for `settings`."""
    report("Installing " + (", ".join(settings.packages) or "no packages"))
    with build_container(client, base, settings.packages, environ) as container:
        client.put_archive(container, recipe.BUILD_FOLDER, pack_build_files(environ))
        client.start(container)
        tail = report_output(client.logs(container, stream=True, follow=True), report)
        status = client.wait(container)["StatusCode"]
        if status:
            output = "\n".join(tail)
            raise Unavailable(
                f"The packages could not be installed (exit code {status}):\n{output}\n",
                remedy="Check `[sandbox] packages`, and that the package index can be reached.",
            )
        report("Writing the image")
        repository, _, tag = choose_tag(settings).rpartition(":")
        labels = {
            RECIPE_LABEL: compute_recipe_digest(settings),
            BASE_LABEL: base,
            PYTHON_LABEL: tail[-1].removeprefix(recipe.PYTHON_PREFIX) if tail else "",
        }
        changes = format_image_changes(client.inspect_image(base)["Config"] or {}, labels)
        client.import_image_from_stream(client.export(container), repository, tag, changes)


@contextmanager
def build_container(
    client: APIClient, base: str, packages: Iterable[str], environ: Mapping[str, str]
) -> Iterator[str]:
    """Create the container that runs the recipe; remove it and its volume afterwards."""
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
    """Return a tar archive with the recipe, pip's settings and the host's certificates."""
    settings = index_access.read_pip_settings(environ, Path.home())
    certificates = index_access.read_ca_bundle(environ, settings)
    certificate_path = f"{recipe.BUILD_FOLDER}/ca.pem" if certificates else ""
    files = {
        "recipe.py": Path(recipe.__file__).read_bytes(),
        "ca.pem": certificates,
        "pip.conf": index_access.format_pip_conf(settings, certificate_path).encode(),
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def report_output(output: Iterable[bytes], report: ProgressReporter) -> list[str]:
    """Report the lines of pip's output that show progress; return the last lines of the output."""
    tail: list[str] = []
    for line in decode_lines(output):
        tail = [*tail[1 - MAX_TAIL_LINES :], line]
        if line.strip().startswith(REPORTED_PREFIXES):
            report(f"  {line.strip()}")
    return tail


def decode_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a stream of bytes, with credentials masked."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield index_access.mask_credentials(line.decode(errors="replace").rstrip())
    if rest:
        yield index_access.mask_credentials(rest.decode(errors="replace").rstrip())


def format_image_changes(base: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """Return Dockerfile instructions that give an imported image its environment and labels."""
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
