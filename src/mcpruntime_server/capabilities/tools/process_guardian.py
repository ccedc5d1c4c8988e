"""Ends the processes of an upstream that the server cannot end itself.

A client that ends the server closes its stdin and kills it two seconds later. An upstream that
ignores the end of its own stdin would outlive both, with its credentials and its locks. So would a
process that has left the group of its upstream, as daemons and browsers do, whatever ends the
server.

Rule 1: the guardian is a shell of one megabyte that waits for a line from the server. The kernel
closes their pipe when the server ends, whatever ended it; the shell then ends the process group of
the upstream. It needs nothing of Linux alone, so macOS has it, too.
Rule 2: it is in a session of its own, so that what is sent to the server's group does not reach it.
Rule 3: where the server may make cgroups, an upstream begins in one of its own (`process_cgroup`),
and everything in it ends: neither a new session, nor a second fork, nor a cleared environment leads
out of it. Elsewhere, what has left the group is known by a mark in its environment, which every
process inherits. Both need Linux. To adopt orphans instead (`PR_SET_CHILD_SUBREAPER`), the guardian
would have to stand between the server and each upstream, as an interpreter of ten megabytes.
Rule 4: without a shell, upstreams are ended only by the server itself.
"""

from __future__ import annotations

import logging
import secrets
import subprocess
from contextlib import suppress
from pathlib import Path

import anyio

MARK = "MCPRUNTIME_UPSTREAM"  # the variable that marks the processes of an upstream
GUARD = """\
trap '' HUP INT TERM
end_marked() {
  found=$(grep -lszxF -e "$MARKED" /proc/[0-9]*/environ | cut -d/ -f3)
  [ -z "$CGROUP" ] || found="$found $(cat "$CGROUP/cgroup.procs")"
  found=${found# }
  [ -z "$found" ] || kill -s "$1" $found
}
MARKED=$2
CGROUP=$3
read -r _ || kill -s TERM -- "-$1"
end_marked TERM
if [ -n "$found" ] || kill -s 0 -- "-$1"; then
  sleep 1
  kill -s KILL -- "-$1"
  end_marked KILL
  end_marked KILL
  [ -z "$CGROUP" ] || echo 1 > "$CGROUP/cgroup.kill"
fi
[ -z "$CGROUP" ] || rmdir "$CGROUP" || { sleep 1; rmdir "$CGROUP"; }
"""
SHELL = "/bin/sh"
PATH = "/usr/bin:/bin"  # of `sleep`, `grep`, `cat`, `cut` and `rmdir`
NAME = "mcpruntime-server-guardian"  # as lists of processes show it
END_TIMEOUT_S = 5.0  # for the guardian to end what has left the group
END_POLL_S = 0.005

logger = logging.getLogger(__name__)


def make_mark() -> dict[str, str]:
    """Return the variable that marks the processes of one upstream."""
    return {MARK: secrets.token_hex(16)}


class ProcessGuardian:
    """Watches over one process group, and over what has left it.

    That is what has the same `mark`, or is in the `cgroup` of the upstream, which it removes.
    """

    def __init__(self, group: int, mark: dict[str, str], cgroup: Path | None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        [marked] = (f"{name}={value}" for name, value in mark.items())
        try:
            self._process = subprocess.Popen(
                [SHELL, "-c", GUARD, NAME, str(group), marked, str(cgroup or "")],
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

    async def dismiss(self) -> None:
        """Let the guardian end what has left the group, which has ended itself; wait for it."""
        if self._process is None or self._process.stdin is None:
            return
        with suppress(OSError):
            self._process.stdin.write(b"\n")
        self._process.stdin.close()
        with anyio.move_on_after(END_TIMEOUT_S):
            while self._process.poll() is None:  # noqa: ASYNC110 - nobody announces its end
                await anyio.sleep(END_POLL_S)
