"""Code for a sandbox that speaks the protocol of the link itself.

`say` writes to the sockets of the worker, `say_outside` to the link of the supervisor. `run` is the
number of the second run of a session.
"""

from __future__ import annotations

FORGE = """
import json, os, stat, time
from mcpruntime_sandbox.protocol import wire
def frame(name, head, data=None):
    kind = [cls.__name__ for cls in wire.MESSAGE_TYPES].index(name)
    head = head if isinstance(head, bytes) else json.dumps(head).encode()
    body = bytes([kind]) + head + (b'' if data is None else b'\\n' + data)
    return len(body).to_bytes(4, 'big') + body
def say(data):
    for fd in range(3, 1024):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, data)
        except OSError: pass
def say_outside(data):
    parent = f'/proc/{os.getppid()}/fd'
    for entry in os.listdir(parent):
        try:
            if int(entry) >= 200: os.write(os.open(f'{parent}/{entry}', os.O_WRONLY), data)
        except OSError: pass
run = 2
"""
