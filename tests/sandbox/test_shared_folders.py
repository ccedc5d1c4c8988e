"""The inputs folder of a container: read-only, its own, removed with it, and optional."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import docker
import pytest
from anyio.abc import SocketStream, UNIXSocketStream

from mcpruntime_server.config import SandboxSettings
from mcpruntime_server.protocol.wire import INPUTS_FOLDER, MARKER_FILE
from mcpruntime_server.sandbox import image
from mcpruntime_server.sandbox.docker_backend import (
    DATA_FOLDER_LABEL,
    data_folder_digest,
    parse_owner,
)
from mcpruntime_server.sandbox.shared_folders import SharedFolders
from tests.helpers.forged_messages import signal_supervisor
from tests.helpers.server_connection import ServerConnection, connect_server, write_settings

LOOK = """
import errno, json, os
def attempt(function):
    try:
        function()
        return "done"
    except OSError as exc:
        return errno.errorcode[exc.errno]
path = CONTEXT.path
[path.rpartition("/")[0], {
    "write": attempt(lambda: open(path, "r+")),
    "create": attempt(lambda: open("/context/new", "w")),
    "remove": attempt(lambda: os.unlink(path)),
    "rename": attempt(lambda: os.rename(path, "/context/other")),
    "chmod": attempt(lambda: os.chmod(path, 0o777)),
    "touch": attempt(lambda: os.utime(path)),
    "link": attempt(lambda: os.link(path, "/context/hard")),
    "link out": attempt(lambda: os.link(path, "/workspace/hard")),
}, sorted(os.listdir("/context"))]
"""
COPY = """
import os, shutil, subprocess
path = CONTEXT.path
copies = [shutil.copy(path, "copied.txt"), shutil.copy2(path, "copied2.txt")]
copies.append(shutil.copytree(os.path.dirname(path), "tree") + "/" + os.path.basename(path))
subprocess.run(["cp", "-p", path, "by-cp.txt"], check=True)
for copy in [*copies, "by-cp.txt"]:
    with open(copy, "a") as file:
        file.write(" and more")
[open(copy).read() for copy in [path, *copies, "by-cp.txt"]]
"""


@pytest.fixture(scope="module", autouse=True)
async def sandbox_image(anyio_backend: str) -> None:
    await image.build_image(SandboxSettings(), print)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerConnection]:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "large.txt").write_bytes(b"0123456789abcde\n" * (17 << 16))
    roots = {"context_roots": [str(tmp_path / "files")]}
    async with connect_server(
        write_settings(tmp_path, sandbox={"pool_size": 0}, server=roots)
    ) as connection:
        yield connection


async def test_code_can_read_its_inputs_and_change_nothing_of_them(
    server: ServerConnection, tmp_path: Path
) -> None:
    large = tmp_path / "files" / "large.txt"
    large.chmod(0o666)  # it is not for want of permission
    before = large.stat()
    found = await server.run(LOOK, context=[str(large)])
    place, outcomes, names = found.value
    assert place == "/context"
    assert set(outcomes.values()) <= {"EROFS", "EXDEV", "EACCES"}, outcomes
    assert len(names) == 2
    [shared] = (server.data_dir / "inputs").glob("*/*.txt")
    assert not shared.samefile(large)  # so that no lock of the code is one of the file
    after = large.stat()
    assert (before.st_mtime_ns, before.st_mode, before.st_size) == (
        after.st_mtime_ns,
        after.st_mode,
        after.st_size,
    )
    assert (await server.run("len(CONTEXT.grep('9abc')), CONTEXT.size")).value == [
        17 << 16,
        17 << 20,
    ]


async def test_no_sandbox_sees_the_inputs_of_another(
    server: ServerConnection, tmp_path: Path
) -> None:
    await server.run("1", "one", context=[{"text": "secret of one"}])
    await server.run("1", "two", context=[{"text": "secret of two"}])
    look = "import os; [open(f'/context/{name}').read() for name in os.listdir('/context')]"
    one, two = await server.evaluate(look, "one"), await server.evaluate(look, "two")
    assert "secret of one" in one
    assert "secret of two" in two
    assert not {"secret of one"} & set(two)
    assert not {"secret of two"} & set(one)
    assert await server.evaluate("import os; os.listdir('/context')", "three") == [MARKER_FILE]
    assert (server.data_dir / "inputs").stat().st_mode & 0o077 == 0


async def test_the_folders_are_removed_with_their_sandboxes(server: ServerConnection) -> None:
    await server.run("1", context=[{"text": "x"}])
    assert len(list((server.data_dir / "inputs").iterdir())) == 1
    [before] = os.listdir(server.data_dir / "inputs")
    await signal_supervisor(before, "SIGKILL")
    assert (await server.run("CONTEXT.text")).value == "x"
    with anyio.fail_after(30):
        while before in os.listdir(server.data_dir / "inputs"):
            await server.run("1")


def test_folders_of_dead_servers_are_removed(tmp_path: Path) -> None:
    folders = SharedFolders(tmp_path / "inputs")
    folders.remove_orphans(lambda _: True)
    assert parse_owner("mcpruntime-a-b-0123") == "a-b"
    for name in ("mcpruntime-dead-1", "mcpruntime-live-1"):
        assert (folders.create_folder(name) / MARKER_FILE).read_text() == name
    folders.remove_orphans(lambda name: "dead" in name)
    assert os.listdir(folders.root) == ["mcpruntime-live-1"]


# engines elsewhere --------------------------------------------------------------------------------


@asynccontextmanager
async def forwarded() -> AsyncIterator[str]:
    """Yield the address of the engine over a network, as one on another machine has."""
    client = docker.APIClient()
    path = client.base_url.partition("://")[2] if "unix" in client.base_url else ""
    client.close()
    socket = (
        os.environ.get("DOCKER_HOST", "").removeprefix("unix://") or path or "/var/run/docker.sock"
    )

    async def handle(near: SocketStream) -> None:
        async with (
            near,
            await anyio.connect_unix(socket) as far,
            anyio.create_task_group() as tasks,
        ):

            async def pump(
                source: SocketStream | UNIXSocketStream, target: SocketStream | UNIXSocketStream
            ) -> None:
                try:
                    async for data in source:
                        await target.send(data)
                    await target.send_eof()
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    tasks.cancel_scope.cancel()

            tasks.start_soon(pump, near, far)
            tasks.start_soon(pump, far, near)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        yield f"tcp://127.0.0.1:{port}"
        tasks.cancel_scope.cancel()


async def test_a_remote_engine_gets_copies_of_inputs_and_no_large_ones(
    tmp_path: Path,
) -> None:
    (tmp_path / "files").mkdir()
    large = tmp_path / "files" / "large.txt"
    large.write_bytes(b"x" * (17 << 20))
    roots = {"context_roots": [str(tmp_path / "files")]}
    path = write_settings(tmp_path, sandbox={"pool_size": 0}, server=roots)
    async with forwarded() as address, connect_server(path, {"DOCKER_HOST": address}) as server:
        found = await server.run(LOOK, context=[{"text": "over"}])
        place, outcomes, names = found.value
        assert place == "/context"
        assert set(outcomes.values()) <= {"EACCES", "EPERM", "EXDEV"}, outcomes
        assert len(names) == 1
        copied = await server.run(COPY)
        assert copied.value == ["over", *["over and more"] * 4], copied.text
        refused = await server.run("1", context=[str(large)])
        assert "the engine is on another machine" in refused.text
        assert await server.evaluate("CONTEXT.text") == "over"
        volumes = find_input_volumes(server.data_dir)
        assert len(volumes) == 1
        assert list_volumes().issuperset(volumes)
    assert list_volumes().isdisjoint(volumes)


async def test_a_remote_engine_gets_databases_that_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "large.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (zeroblob(17000000))")
        database.commit()
    settings = write_settings(
        tmp_path,
        sandbox={"pool_size": 0, "workspace_mb": 64, "memory_mb": 384},
        server={"context_roots": [str(tmp_path / "files")]},
    )
    code = (
        "import sqlite3; sqlite3.connect(f'file:{CONTEXT.path}?mode=ro', uri=True)"
        ".execute('SELECT length(x) FROM t').fetchall()"
    )
    async with forwarded() as address, connect_server(settings, {"DOCKER_HOST": address}) as server:
        found = await server.run(code, context=[str(path)])
        assert found.value == [[17_000_000]], found.text


async def test_copies_of_shared_inputs_are_writable(server: ServerConnection) -> None:
    copied = await server.run(COPY, context=[{"text": "over"}])
    assert copied.value == ["over", *["over and more"] * 4], copied.text


def find_input_volumes(data_dir: Path) -> list[str]:
    """Return the names of the volumes of inputs that the sandboxes of a data folder have."""
    client = docker.APIClient()
    label = f"{DATA_FOLDER_LABEL}={data_folder_digest(data_dir)}"
    try:
        return [
            mount["Name"]
            for container in client.containers(all=True, filters={"label": label})
            for mount in container["Mounts"]
            if mount["Destination"] == INPUTS_FOLDER and mount["Type"] == "volume"
        ]
    finally:
        client.close()


def list_volumes() -> set[str]:
    """Return the names of all volumes of the engine."""
    client = docker.APIClient()
    try:
        return {volume["Name"] for volume in client.volumes()["Volumes"] or ()}
    finally:
        client.close()
