"""System calls that Python has no function for, and what they protect.

All processes of a sandbox have one user id, so the Linux kernel would let each read and write the
memory of the others. A process with closed memory is left out: neither `/proc/PID/mem` nor `ptrace`
reaches it, and its files in /proc belong to root. A fork inherits that; a program that is executed
starts with open memory. Rule: `ctypes` is not imported, because that takes milliseconds.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any

PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36


def call_libc(name: str, *arguments: object) -> int:
    """Call a function of the C library with numbers and bytes; return its result."""
    from _ctypes import call_function, dlopen, dlsym

    own_program: Any = None
    result: int = call_function(dlsym(dlopen(own_program, 0), name), arguments)
    return result


def become_subreaper() -> None:
    """Become the parent of every orphan below this process, as `init` is without asking."""
    if sys.platform == "linux":
        call_libc("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def close_memory() -> None:
    """Keep other processes from reading and writing the memory of this one; raises OSError."""
    if call_libc("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError("the memory of a process could not be closed")


class OwnProcFiles:
    """A context in which this process may write its own files in /proc; its memory is open then.

    If it was open before, it stays open.
    """

    def __enter__(self) -> None:
        self._was_open = sys.platform != "linux" or call_libc("prctl", PR_GET_DUMPABLE, 0, 0, 0, 0)
        if not self._was_open:
            call_libc("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)

    def __exit__(self, *exc_info: object) -> None:
        if not self._was_open:
            close_memory()
