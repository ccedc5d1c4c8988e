"""The base image from Debian packages; `make image` builds it where there is no registry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcpruntime_server.errors import Unavailable
from mcpruntime_server.sandbox import debian
from mcpruntime_server.sandbox.docker_engine import DockerEngine

TAG = "mcpruntime-base:test"


def test_a_folder_becomes_an_image_without_excluded_paths(tmp_path: Path) -> None:
    for file in (
        "etc/keep",
        "usr/share/doc/package/copyright",
        "var/cache/apt/big",
        "usr/bin/tool",
    ):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content of " + file)
    engine = DockerEngine()
    try:
        made = debian.import_root_folder(engine, tmp_path, TAG)
        content = b"".join(engine.call_api_blocking(lambda client: list(client.get_image(made))))
        assert b"content of etc/keep" in content
        assert b"content of usr/bin/tool" in content
        assert b"content of usr/share/doc" not in content
        assert b"content of var/cache" not in content
        assert debian.make_base_image(engine, TAG, print) == made
    finally:
        engine.call_api_blocking(lambda client: client.remove_image(TAG, force=True))
        engine.close()


def test_each_phase_is_reported_once() -> None:
    lines: list[str] = []
    script = (
        "echo I: Retrieving a; echo I: Retrieving b; echo W: odd; echo I: Unpacking a; echo done"
    )
    debian.run_debootstrap(["sh", "-c", script], lines.append)
    assert lines == ["  Retrieving packages", "  Unpacking packages"]


def test_a_failure_shows_the_command_and_the_end_of_its_output() -> None:
    script = "for n in $(seq 50); do echo line $n; done; echo the mirror is gone >&2; exit 3"
    with pytest.raises(Unavailable, match=r"the mirror is gone") as caught:
        debian.run_debootstrap(["sh", "-c", script], print)
    assert "line 5\n" not in str(caught.value)
    assert "line 49\n" in str(caught.value)
    with pytest.raises(Unavailable, match=r"`false` failed"):
        debian.run_command(["false"])


def test_the_suite_and_the_mirror_are_this_host_s_own() -> None:
    suite, mirror = debian.find_release()
    assert suite.isalpha()
    assert mirror.startswith(("http://", "https://", "file:", "mirror"))


def test_the_base_is_named_by_its_release_and_its_content() -> None:
    repository, _, tag = debian.compute_base_tag().partition(":")
    assert repository == "mcpruntime-base"
    assert tag.startswith(debian.read_host_suite() + "-")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_learns_what_needs_root() -> None:
    script = (
        "import os; os.setgid(65534); os.setuid(65534); from %s import debian; "
        "debian.check_requirements()"
    )
    # The modules are imported before the change of user, who may not be able to read them.
    imported = f"import {debian.__name__}; " + script % debian.__name__.rpartition(".")[0]
    done = subprocess.run(
        [sys.executable, "-c", imported], check=False, capture_output=True, text=True
    )
    assert "Run `sudo mcpruntime-server image build` once" in done.stderr
