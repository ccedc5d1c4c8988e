"""Archives of strangers take neither memory nor time that the settings do not allow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.helpers.commands import run_command
from tests.helpers.hostile_archives import Blobs, build_blob, build_event, build_step, write_archive
from tests.helpers.server_connection import (
    COMMAND,
    ServerConnection,
    connect_server,
    write_settings,
)

from .bystander import MAX_GROWTH_MB, observe

MAX_TIMEOUT_S = 2.0
FIELDS: dict[str, Callable[[], bytes]] = {  # made when they are used, because they are large
    "many objects": lambda: b"[" + b"{}," * 4_000_000 + b"{}]",
    "many numbers": lambda: b"[" + b"0," * 9_000_000 + b"0]",
    "many texts": lambda: b'["",' + b'"",' * 4_000_000 + b'""]',
    "many keys": lambda: b"{" + b",".join(b'"%d":0' % n for n in range(1_500_000)) + b"}",
    "nesting": lambda: b"[" * 3_000_000,
    "nesting that ends": lambda: b"[" * 150 + b"]" * 150,
    "a long text": lambda: b'"' + b"a" * 80_000_000 + b'"',
}


# A process of its own, because the memory of a process that starts another one counts as its.
MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def import_archive(settings: Path, archive: Path) -> tuple[int, str, float]:
    """Return exit status and stderr of an import, and the most memory it took, in MB."""
    command = [COMMAND, "--config", str(settings), "replay", "import", str(archive)]
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, *command], capture_output=True, text=True, check=True
    )
    status, memory_kb = measured.stdout.split()
    return int(status), measured.stderr, float(memory_kb) / 1e3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archives")


@pytest.fixture(scope="module")
def usual_memory_mb(folder: Path) -> float:
    """The memory that importing an honest archive takes."""
    archive = write_archive(folder / "honest.zip", build_step("1"))
    status, _, memory_mb = import_archive(write_settings(folder / "honest"), archive)
    assert status == 0
    return memory_mb


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_expands_is_refused_in_little_memory(
    folder: Path, usual_memory_mb: float, field: str
) -> None:
    digest, data = build_blob(FIELDS[field]())
    call = {"call_id": 1, "target": "x", "effect": "read", "nth": 0}
    start, finish = build_step("1")
    made = build_event(2, "call_started", call, large_fields={"args": digest})
    events = [start, made, {**finish, "sequence": 3}]
    archive = write_archive(folder / f"{field}.zip", events, {digest: data})
    settings = write_settings(folder / field)
    status, said, memory_mb = import_archive(settings, archive)
    assert status != 0
    assert "is rejected" in said
    assert memory_mb <= usual_memory_mb + MAX_GROWTH_MB
    blobs = folder / field / "data" / "blobs"
    assert not [path for path in blobs.rglob("*") if path.is_file()]
    listed = run_command("--config", settings, "replay", "list", "--json")
    assert "strange" not in listed.stdout


def test_an_archive_that_expands_to_a_disk_is_refused(folder: Path) -> None:
    blobs: Blobs = dict(build_blob(bytes([n]) * 25_000_000) for n in range(4))
    archive = write_archive(folder / "bomb.zip", build_step("1"), blobs)
    assert archive.stat().st_size < 1_000_000
    status, said, _ = import_archive(write_settings(folder / "bomb"), archive)
    assert status != 0
    assert "which its size allows" in said
    assert not [each for each in (folder / "bomb/data/blobs").rglob("*") if each.is_file()]


@pytest.fixture(scope="module")
async def imported(folder: Path) -> AsyncIterator[ServerConnection]:
    """A server with a session whose step never ends, and may take years."""
    limits = {"timeout_s": 1.0, "max_timeout_s": MAX_TIMEOUT_S}
    settings = write_settings(folder / "imported", sandbox=limits)
    archive = write_archive(folder / "endless.zip", build_step("x = 1\nwhile True: pass"))
    assert import_archive(settings, archive)[0] == 0
    async with connect_server(settings) as server:
        yield server


async def test_a_step_that_never_ends_is_rebuilt_within_the_limit(
    imported: ServerConnection,
) -> None:
    async with observe(imported):
        answer = await imported.run("1+1", "strange", timeout_s=MAX_TIMEOUT_S, wait_s=60)
        assert answer.status in ("ok", "error", "crashed"), answer.text


async def test_a_step_that_never_ends_is_executed_again_within_the_limit(
    imported: ServerConnection,
) -> None:
    async with observe(imported):
        answer = await imported.replay("rerun", "strange", step=1)
        assert f"after {MAX_TIMEOUT_S:g} s" in answer.text or "timeout" in answer.text


async def test_nobody_may_ask_for_more_than_the_limit(imported: ServerConnection) -> None:
    answer = await imported.run("1+1", "mine", timeout_s=MAX_TIMEOUT_S + 1)
    assert answer.is_error
    assert "at most 2 s" in answer.text
    endless = await imported.run("while True: pass", "mine", timeout_s=MAX_TIMEOUT_S)
    assert endless.status == "timeout"
    assert "no run may take longer" in endless.text
