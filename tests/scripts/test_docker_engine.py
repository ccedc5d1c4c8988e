"""Tests of `scripts/docker-engine`; installing is exercised on machines without an engine."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "docker-engine"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("docker_engine", str(SCRIPT))
    spec = importlib.util.spec_from_loader("docker_engine", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docker_engine"] = module  # dataclasses look their module up there
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("host", "answer", "root", "debian", "installed", "action", "says"),
    [
        ("", "yes", False, False, False, "use", "/var/run/docker.sock"),
        ("tcp://box:2375", "yes", False, False, False, "use", "tcp://box:2375"),
        ("tcp://box:2375", "refused", True, True, False, "explain", "unset DOCKER_HOST"),
        ("", "denied", False, True, True, "explain", "usermod -aG docker"),
        ("", "no such file", False, True, False, "explain", "as root on Debian or Ubuntu"),
        ("", "no such file", True, True, True, "start", "starting dockerd"),
        ("", "no such file", True, True, False, "install", "docker.io"),
        ("", "no such file", True, False, False, "explain", "Install one"),
    ],
)
def test_it_installs_only_if_nothing_else_helps(
    script: ModuleType,
    host: str,
    answer: str,
    root: bool,
    debian: bool,
    installed: bool,
    action: str,
    says: str,
) -> None:
    chosen, sentence = script.choose_action(
        script.MachineFacts(host, answer, root, debian, installed)
    )
    assert chosen == action
    assert says in sentence


def test_a_running_engine_is_used() -> None:
    done = subprocess.run([SCRIPT], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.startswith("Using the Docker engine at ")


def test_a_chosen_engine_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    environ = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/nothing.sock"}
    done = subprocess.run([SCRIPT], check=False, capture_output=True, text=True, env=environ)
    assert done.returncode == 1
    assert "no engine answers there" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def garbler(tmp_path: Path) -> Iterator[Path]:
    """A socket on which something other than an engine answers."""
    path = tmp_path / "garbler.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-hello\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield path
        thread.join()


def test_something_else_behind_the_socket_is_not_an_engine(
    script: ModuleType, garbler: Path
) -> None:
    assert "SSH-2.0-hello" in script.ping_socket(str(garbler))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")
def test_a_user_without_permission_is_told_which_group_to_join(script: ModuleType) -> None:
    command = f"""
import os, runpy
os.setgroups([]); os.setgid(65534); os.setuid(65534)
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    environ = {name: value for name, value in os.environ.items() if name != "DOCKER_HOST"}
    done = subprocess.run(
        ["/usr/bin/python3", "-c", command],
        check=False,
        capture_output=True,
        text=True,
        env=environ,
        cwd="/",
    )
    assert done.returncode == 1
    assert "usermod -aG docker" in done.stderr or "No Docker engine answers" in done.stderr


def test_only_the_pid_file_of_a_dead_daemon_is_removed(script: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "daemon.pid"
    with subprocess.Popen(["sleep", "60"]) as daemon:
        file.write_text(str(daemon.pid))
        script.remove_stale_pid_file(file, "sleep")
        assert file.exists()
        script.remove_stale_pid_file(file, "dockerd")  # another program has this number now
        assert not file.exists()
        file.write_text(str(daemon.pid))
        daemon.kill()
        os.waitid(os.P_PID, daemon.pid, os.WEXITED | os.WNOWAIT)  # a zombie, until it is waited for
        script.remove_stale_pid_file(file, "sleep")
        assert not file.exists()
    script.remove_stale_pid_file(file, "sleep")  # nothing there
