"""The engines beside Docker that `make engines` installs and starts, for the same tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from mcpruntime_server.config import SandboxSettings
from mcpruntime_server.errors import Unavailable
from mcpruntime_server.sandbox.docker_engine import DockerEngine
from mcpruntime_server.sandbox.image import choose_tag, look_up_image

FOLDER = Path(__file__).parents[2] / ".venvs" / "engines"
MISSING_FILE = FOLDER / ".missing"  # why `make engines` could not start one
SLOW_ENGINES = ("gvisor",)  # with ptrace, several times slower
ENGINES = {"podman": "", "gvisor": "runsc"}  # by name, the runtime in `[sandbox]`


@dataclass(frozen=True)
class TestEngine:
    """An engine of its own socket."""

    __test__ = False
    runtime: str
    environ: Mapping[str, str]


def find_engine(name: str) -> TestEngine:
    """Return a running engine that has the sandbox image, or skip the test."""
    if reason := explain_absence(name):
        pytest.skip(f"{reason}: run `make engines`")
    return TestEngine(ENGINES[name], make_environ(name))


def make_environ(name: str) -> dict[str, str]:
    return {"DOCKER_HOST": f"unix://{FOLDER}/{name}.sock"}


@cache
def explain_absence(name: str) -> str:
    """Return why an engine cannot be used; "" if it can."""
    if not (FOLDER / f"{name}.sock").exists():
        return MISSING_FILE.read_text() if MISSING_FILE.exists() else f"{name} is not running"
    engine = DockerEngine(environ=make_environ(name))
    try:
        tag = choose_tag(SandboxSettings())
        found = engine.call_api_blocking(lambda client: look_up_image(client, tag))
        return "" if found else f"{name} does not have the image {tag}"
    except Unavailable as exc:
        return f"{name} does not answer ({exc})"
    finally:
        engine.close()
