"""Ends the processes of an upstream if the server cannot do it itself any more.

A client that ends the server closes its stdin and kills it two seconds later. An upstream that
ignores the end of its own stdin would outlive both, with its credentials and its locks.

Rule 1: the guardian is a shell of one megabyte that waits for a line from the server. The kernel
closes their pipe when the server ends, whatever ended it; the shell then ends the process group of
the upstream. It needs nothing of Linux alone, so macOS has it, too.
Rule 2: it is in a session of its own, so that what is sent to the server's group does not reach it.
Rule 3: without a shell, upstreams are ended only by the server itself. A process that leaves its
group (`setsid`) is out of reach for both.
"""

from __future__ import annotations

import logging
import subprocess
from contextlib import suppress

GUARD = """\
trap '' HUP INT TERM
read -r _ && exit
kill -s TERM -- "-$1"
sleep 1
kill -s KILL -- "-$1"
"""
SHELL = "/bin/sh"
PATH = "/usr/bin:/bin"  # of `sleep`
NAME = "mcpruntime-server-guardian"  # as lists of processes show it

logger = logging.getLogger(__name__)


class ProcessGuardian:
    """Watches over one process group."""

    def __init__(self, group: int) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                [SHELL, "-c", GUARD, NAME, str(group)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": PATH},
                bufsize=0,
                start_new_session=True,
            )
        except OSError as exc:
            logger.warning("upstreams may outlive a server that is killed: %s", exc)

    def dismiss(self) -> None:
        """End the guardian: the group has ended."""
        if self._process is None or self._process.stdin is None:
            return
        with suppress(OSError):
            self._process.stdin.write(b"\n")
        self._process.stdin.close()
        self._process.wait()  # it exits at once
