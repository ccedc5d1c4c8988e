"""Code for a sandbox that speaks the protocol of the link itself.

`FORGE` is for the worker: `say` writes to its sockets. `speak_for_supervisor` executes code as root
beside the container, where `say_outside` writes to the link: nothing else gets so far. `run` is the
number of the second run of a session.
"""

from __future__ import annotations

import anyio
from anyio import to_thread
from docker import APIClient

from mcpruntime_server.protocol import wire
from mcpruntime_server.sandbox.docker_engine import DockerEngine

from .server_connection import ServerConnection, ToolAnswer

START_TIMEOUT_S = 30
FRAMES = f"""
import json, os, stat, time
KINDS = {[cls.__name__ for cls in wire.MESSAGE_TYPES]}
run = 2
def frame(name, head, data=None):
    head = head if isinstance(head, bytes) else json.dumps(head).encode()
    body = bytes([KINDS.index(name)]) + head + (b'' if data is None else b'\\n' + data)
    return len(body).to_bytes(4, 'big') + body
"""
FORGE = f"""{FRAMES}
def say(data):
    for fd in range(3, 1024):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, data)
        except OSError: pass
"""
FORGE_OUTSIDE = f"""{FRAMES}
import ctypes, socket
PIDFD_GETFD = 438  # a system call; a socket cannot be opened through /proc
def is_link(entry):
    return int(entry) >= 200 and os.readlink('/proc/1/fd/' + entry).startswith('socket:')
def say_outside(data):
    link = int(next(filter(is_link, sorted(os.listdir('/proc/1/fd'), key=int))))
    copy = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, os.pidfd_open(1), link, 0)
    assert copy >= 0, os.strerror(ctypes.get_errno())
    with socket.socket(fileno=copy) as sock:
        sock.settimeout({START_TIMEOUT_S})  # it does not block, and the server may read slowly
        try: sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError): raise SystemExit  # the server has closed it
running = '/proc/1/root/tmp/running'
while not os.path.exists(running): time.sleep(0.01)
os.remove(running)
"""
STARTED = "open('/tmp/running', 'w').close()\n"  # run by the worker before `speak_for_supervisor`
KILLED_STATUS = 137  # with the container that it is beside


async def find_container(server: ServerConnection, session: str) -> str:
    """Return the container of a session."""
    return str(await server.evaluate("open('/context/.here').read()", session))


async def speak_for_supervisor(container: str, code: str) -> None:
    """Execute `code` as root beside a container once a run in it has executed `STARTED`."""
    engine = DockerEngine()
    helper = f"{container}-helper"

    def execute(client: APIClient) -> None:
        client.create_container(
            client.inspect_container(container)["Image"],
            ["python3", "-c", FORGE_OUTSIDE + code],
            name=helper,
            user="0",
            host_config=client.create_host_config(
                network_mode="none",
                pid_mode=f"container:{container}",
                cap_add=["SYS_PTRACE"],
                security_opt=["seccomp=unconfined"],
            ),
        )
        client.start(helper)
        status = client.wait(helper, timeout=START_TIMEOUT_S)["StatusCode"]
        assert status in (0, KILLED_STATUS), client.logs(helper).decode()

    try:
        await engine.call_api(execute)
    finally:
        with anyio.CancelScope(shield=True):
            await engine.call_api(lambda client: client.remove_container(helper, force=True))
            await to_thread.run_sync(engine.close)


async def signal_supervisor(container: str, name: str) -> None:
    """Send the supervisor a signal, which only the engine can."""
    engine = DockerEngine()
    try:
        await engine.call_api(lambda client: client.kill(container, name))
    finally:
        await to_thread.run_sync(engine.close)


async def run_compromised(
    server: ServerConnection, session: str, outside: str, code: str, timeout_s: float = 30.0
) -> ToolAnswer:
    """Run `code` in a session while its supervisor is made to execute `outside`."""
    container = await find_container(server, session)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(speak_for_supervisor, container, outside)
        answer = await server.run(STARTED + code, session, timeout_s=timeout_s)
    return answer  # noqa: RET504 - a task group may swallow what its block returns
