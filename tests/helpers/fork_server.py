"""Starts Python processes in 30 ms instead of a second, by forking one that has imported the SDK.

Started as `python -m tests.helpers.fork_server SOCKET`, it listens there until its stdin ends.
`fork_client.py` is what tests start: it passes its file descriptors, arguments and environment, and
lives as long as the process that is forked for it. That is a real process: it runs
`mcpruntime-server`, or a script.
"""

from __future__ import annotations

import array
import ast
import gc
import os
import runpy
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from .loop_watch import IS_MEASURED, watch_main_loop

REQUEST_BYTES = 1 << 20
SCRIPT = "--script"
USED_MODULES = (
    "anyio._backends._asyncio",
    "anyio._core._subprocesses",
    "docker",
    "jinja2",
    "jsonschema_rs",
    "mcp.server.mcpserver",
    "mcpruntime_server.app.serving",
    "mcpruntime_server.capabilities.packages.package_installer",
    "mcpruntime_server.cli.serve",
    "rich.logging",
)


def main(path: str) -> None:
    import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the processes that are forked
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in readable:
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                serve(connection, path)
            connection.close()


def import_everything() -> None:
    """Do what servers do once: import modules, some of them late, and derive what is constant."""
    import importlib

    from mcpruntime_server.sandbox.bundle import build_bundle

    for name in USED_MODULES:
        importlib.import_module(name)
    build_bundle()
    derive_tools()
    with suppress(ImportError):  # an earlier version, which is attacked, has no such function
        from mcpruntime_server.viewer.page_rendering import compile_pages

        compile_pages()
    gc.freeze()


def derive_tools() -> None:
    """Build each tool once without what answers it, so that its schemas are known."""
    from mcpruntime_server.server.ask_tool import build_ask_tool
    from mcpruntime_server.server.mcp_server import build_replay_tool, build_run_tool
    from mcpruntime_server.server.skill_tools import build_skill_tools

    nobody: Any = None
    build_run_tool(nobody, (), 0)
    build_replay_tool(nobody, nobody, nobody)
    build_skill_tools(nobody)
    build_ask_tool(nobody)


def serve(connection: socket.socket, path: str) -> None:
    """Fork the process that a client asks for; send its id, and its exit status at the end."""
    request, descriptors = receive_request(connection)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        connection.close()
        become(request, descriptors, Path(f"{path}.{os.getpid()}.stalls"))
    for descriptor in descriptors:
        os.close(descriptor)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    connection.sendall(b"%d\n" % pid)
    exited = os.pidfd_open(pid)
    watched: list[Any] = [exited, connection]
    readable, _, _ = select.select(watched, [], [])
    if exited not in readable:  # the client was killed
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def receive_request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, ancillary, _, _ = connection.recvmsg(REQUEST_BYTES, socket.CMSG_SPACE(3 * 4))
    while not data.endswith(b"\n"):
        data += connection.recv(REQUEST_BYTES)
    descriptors = array.array("i")
    for _, _, content in ancillary:
        descriptors.frombytes(content)
    return ast.literal_eval(data.decode()), list(descriptors)


def become(request: dict[str, Any], descriptors: list[int], stalls: Path) -> None:
    """Turn this process into the requested one, and run it to its end."""
    if IS_MEASURED:
        watch_main_loop(stalls)
    os.setsid()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    code: Any = 1
    try:
        code = run()
    except SystemExit as exc:
        code = exc.code
    except BaseException:  # noqa: BLE001 - shown as the interpreter would
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def run() -> int:
    if sys.argv[1] == SCRIPT:
        sys.argv = sys.argv[2:]
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
        return 0
    from mcpruntime_server.cli import main as run_command

    return run_command(sys.argv[1:])


if __name__ == "__main__":
    main(sys.argv[1])
