"""Stands for a process that the fork server starts: `fork_client.py SOCKET ARGUMENT...`.

Imports little, because that is the time that it takes.
"""

import array
import json
import os
import signal
import socket
import sys


def main() -> int:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    request = {
        "arguments": [sys.argv[0], *sys.argv[2:]],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }
    descriptors = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
    data = json.dumps(request).encode() + b"\n"
    sent = connection.sendmsg([data], [descriptors])
    connection.sendall(data[sent:])
    with connection.makefile("rb") as answers:
        pid = int(answers.readline())
        with open(f"{sys.argv[1]}.{os.getpid()}", "w") as file:  # for `forked_pid`
            file.write(str(pid))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        return int(answers.readline() or b"1")


if __name__ == "__main__":
    code = main()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
