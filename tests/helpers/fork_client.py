"""Stands for a process that the fork server starts: `fork_client.py SOCKET ARGUMENT...`.

Imports little, because that is the time that it takes: the modules below `signal` and `socket` do
not import `enum` and `selectors`.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import array
import os
import sys


def main() -> int:
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.connect(sys.argv[1])
    request = {
        "arguments": [sys.argv[0], *sys.argv[2:]],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }
    descriptors = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
    data = ascii(request).encode() + b"\n"
    sent = connection.sendmsg([data], [descriptors])
    connection.sendall(data[sent:])
    with open(connection.fileno(), "rb", closefd=False) as answers:
        pid = int(answers.readline())
        with open(f"{sys.argv[1]}.{os.getpid()}", "w") as file:  # for `forked_pid`
            file.write(str(pid))
        for number in (_signal.SIGTERM, _signal.SIGINT):
            _signal.signal(number, lambda number, _: os.kill(pid, number))
        return int(answers.readline() or b"1")


if __name__ == "__main__":
    code = main()
    if code < 0:
        _signal.signal(-code, _signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
