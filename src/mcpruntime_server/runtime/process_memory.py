"""How this process returns memory to the system.

Large messages come and go. The C library keeps the memory of freed blocks between others that are
still used, and it learns from each large block that is freed to keep even larger ones: after many
answers of some hundred kilobytes a server would stay tens of megabytes larger.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from anyio import sleep, to_thread

if TYPE_CHECKING:
    from ctypes import CDLL

# A block of this size is a mapping of its own, returned when it is freed. Output comes in such.
LARGE_BLOCK_BYTES = 32 * 1024
TOP_BYTES = 4 * 1024 * 1024  # that may be free at the end of the heap
M_MMAP_THRESHOLD = -3  # of glibc's `mallopt`
M_TRIM_THRESHOLD = -1
INTERVAL_S = 5.0  # between two looks whether anything runs


async def return_free_memory(is_quiet: Callable[[], bool]) -> None:
    """Return free memory to the system whenever work ends, where the C library is glibc.

    Runs until it is cancelled. Large blocks are returned at once.
    """
    await to_thread.run_sync(return_large_blocks)
    has_worked = True
    while True:
        await sleep(INTERVAL_S)
        if not is_quiet():
            has_worked = True
        elif has_worked:
            has_worked = False
            await to_thread.run_sync(trim_heap)


@cache
def find_c_library() -> CDLL:
    """Return the C library of this process."""
    import ctypes  # which takes milliseconds

    return ctypes.CDLL(None)


def return_large_blocks() -> None:
    """Let freed blocks of memory return to the system."""
    set_option = getattr(find_c_library(), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        set_option(M_TRIM_THRESHOLD, TOP_BYTES)


def trim_heap() -> None:
    """Return the free pages between blocks that are in use."""
    trim = getattr(find_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)
