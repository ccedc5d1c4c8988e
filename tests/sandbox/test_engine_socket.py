"""What the engine says of an image, with and without docker-py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcpruntime_server.config import SandboxSettings
from mcpruntime_server.sandbox import engine_socket
from mcpruntime_server.sandbox.docker_engine import DockerEngine
from mcpruntime_server.sandbox.image import choose_tag, parse_python_version


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({}, engine_socket.DEFAULT_SOCKET),
        ({"DOCKER_HOST": "unix:///run/user/1/docker.sock"}, "/run/user/1/docker.sock"),
        ({"DOCKER_HOST": "tcp://127.0.0.1:2375"}, ""),
        ({"DOCKER_HOST": "ssh://me@there"}, ""),
    ],
)
def test_the_socket_is_that_of_the_environment(
    tmp_path: Path, environ: dict[str, str], path: str
) -> None:
    assert engine_socket.find_socket(environ, tmp_path) == path


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({}, engine_socket.DEFAULT_SOCKET),
        ({"currentContext": "default"}, engine_socket.DEFAULT_SOCKET),
        ({"currentContext": "far-away"}, ""),
        ("no object", engine_socket.DEFAULT_SOCKET),
    ],
)
def test_a_docker_context_is_left_to_docker_py(tmp_path: Path, config: object, path: str) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text(json.dumps(config))
    assert engine_socket.find_socket({}, tmp_path) == path


async def test_both_ways_find_the_same_image(monkeypatch: pytest.MonkeyPatch) -> None:
    tag = choose_tag(SandboxSettings())
    engine = DockerEngine()
    try:
        found = await engine.inspect_image(tag)
        assert parse_python_version(SandboxSettings(), found)
        assert parse_python_version(SandboxSettings(image=tag), found) == ""
        with monkeypatch.context() as patch:
            patch.setattr(engine_socket, "find_socket", lambda *_: "")
            assert (await engine.inspect_image(tag))["Id"] == found["Id"]
            assert await engine.inspect_image("nothing:here") == {}
        assert await engine.inspect_image("nothing:here") == {}
    finally:
        engine.close()


async def test_an_engine_that_does_not_answer_says_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    assert await DockerEngine().inspect_image("any") == {}
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert await DockerEngine().inspect_image("any") == {}
