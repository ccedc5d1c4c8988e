"""The sandbox image: built if it is missing or out of date, without anything of the host in it.

A base image (pulled, or made from Debian's packages) runs `recipe` in a temporary container. The
file system of that container, exported and imported again, is the image: one layer without a
history. Index addresses, credentials and certificates are only in a volume of the container. The
tag of the image contains a digest of all that determines its content, so an image with the right
tag is up to date.

A container is known by its name before it exists, so that a cancelled build can remove it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import tarfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
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
CONTAINER_PREFIX = "mcpruntime-build-"
BUILD_COMMAND = "Run `mcpruntime-server image build`."
STEP_TIMEOUT_S = 1800  # without a byte from the engine, which imports large images silently
PULL_TIMEOUT_S = 30  # without a byte; an unreachable registry may never answer
REMOVAL_TIMEOUT_S = 20  # of the container of a cancelled build; an engine under load takes seconds
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


def build_cancelled_error() -> Unavailable:
    """Return the error that ends the thread of a cancelled build."""
    return Unavailable("The build of the sandbox image was cancelled.", remedy=BUILD_COMMAND)


async def build_image(
    settings: SandboxSettings,
    report: ProgressReporter,
    force: bool = False,
    environ: Mapping[str, str] | None = None,
) -> ImageRef:
    """Build the image for these settings unless it exists; `report` gets a line for each step.

    `environ` (default: `os.environ`) names the host's package index, certificates and proxies.
    A cancelled build removes its container. Raises `Unavailable` if the base image or the packages
    cannot be downloaded.
    """
    build = ImageBuild(settings, report, environ or os.environ)
    try:
        return await anyio.to_thread.run_sync(build.run, force, abandon_on_cancel=True)
    except anyio.get_cancelled_exc_class():
        with anyio.move_on_after(REMOVAL_TIMEOUT_S, shield=True):
            await anyio.to_thread.run_sync(build.cancel, abandon_on_cancel=True)
        raise


class ImageBuild:
    """One build, in a worker thread; another thread may cancel it."""

    def __init__(
        self, settings: SandboxSettings, report: ProgressReporter, environ: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._report_line = report
        self._environ = environ
        self._container = f"{CONTAINER_PREFIX}{secrets.token_hex(6)}"
        self._is_cancelled = threading.Event()

    def run(self, force: bool) -> ImageRef:
        """Build the image unless it exists; with `force`, build it in any case."""
        settings = self._settings
        engine = DockerEngine(STEP_TIMEOUT_S)
        tag = choose_tag(settings)
        try:
            found = engine.call_api_blocking(lambda client: look_up_image(client, tag))
            if found and not force:
                self._report(f"The sandbox image {tag} is up to date")
                return found
            if settings.image:
                pull_image(engine, settings.image, self._report)
            else:
                base = provide_base_image(engine, settings.base_image, self._report)
                engine.call_api_blocking(lambda client: self._bake_image(client, base))
            built = engine.call_api_blocking(lambda client: look_up_image(client, tag))
        finally:
            engine.close()
        if not built:
            raise missing_image_error(tag)
        self._report(f"The sandbox image {tag} is ready")
        return built

    def cancel(self) -> None:
        """End the build at its next step, and remove its container."""
        self._is_cancelled.set()
        engine = DockerEngine()
        try:
            engine.call_api_blocking(self._remove_container)
        except Unavailable as exc:
            self._report_line(f"The container {self._container} may be left: {exc.message}")
        finally:
            engine.close()

    def _report(self, line: str) -> None:
        """Report a step, unless the build is cancelled; raises `Unavailable` then."""
        if self._is_cancelled.is_set():
            raise build_cancelled_error()
        self._report_line(line)

    def _bake_image(self, client: APIClient, base: str) -> None:
        """Run the recipe on the image `base` and import the result as the image."""
        settings = self._settings
        self._report("Installing " + (", ".join(settings.packages) or "no packages"))
        with self._build_container(client, base) as container:
            client.put_archive(container, recipe.BUILD_FOLDER, pack_build_files(self._environ))
            client.start(container)
            tail = report_output(client.logs(container, stream=True, follow=True), self._report)
            status = client.wait(container)["StatusCode"]
            if status:
                output = "\n".join(tail)
                raise Unavailable(
                    f"The packages could not be installed (exit code {status}):\n{output}\n",
                    remedy="Check `[sandbox] packages`, and that the package index can be reached.",
                )
            self._report("Writing the image")
            repository, _, tag = choose_tag(settings).rpartition(":")
            labels = {
                RECIPE_LABEL: compute_recipe_digest(settings),
                BASE_LABEL: base,
                PYTHON_LABEL: tail[-1].removeprefix(recipe.PYTHON_PREFIX) if tail else "",
            }
            changes = format_image_changes(client.inspect_image(base)["Config"] or {}, labels)
            client.import_image_from_stream(client.export(container), repository, tag, changes)

    @contextmanager
    def _build_container(self, client: APIClient, base: str) -> Iterator[str]:
        """Create the container that runs the recipe; remove it and its volume afterwards."""
        proxies = index_access.find_proxies(self._environ)
        configuration = {
            "Image": base,
            "Entrypoint": ["python3", f"{recipe.BUILD_FOLDER}/recipe.py"],
            "Cmd": list(self._settings.packages),
            "User": "0:0",
            "WorkingDir": "/",
            "Env": [f"{name}={value}" for name, value in proxies.items()],
            "Labels": {RECIPE_LABEL: compute_recipe_digest(self._settings)},
            "Volumes": {recipe.BUILD_FOLDER: {}},
            "HostConfig": {"NetworkMode": "host", "LogConfig": {"Type": "local"}, "Init": True},
        }
        try:
            client.create_container_from_config(configuration, self._container)
            if self._is_cancelled.is_set():  # perhaps before the container existed
                raise build_cancelled_error()
            yield self._container
        finally:
            self._remove_container(client)

    def _remove_container(self, client: APIClient) -> None:
        """Remove the container and its volume, unless it is gone or another thread removes it."""
        from docker.errors import APIError

        try:
            client.remove_container(self._container, force=True, v=True)
        except APIError as exc:
            if exc.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise


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
