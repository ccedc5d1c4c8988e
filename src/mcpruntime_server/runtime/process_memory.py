"""How this process returns memory to the system.

Large messages come and go. The C library keeps the memory of freed blocks between others that are
still used, and it learns from each large block that is freed to keep even larger ones: after many
answers of some hundred kilobytes a server would stay tens of megabytes larger.
"""

from __future__ import annotations

LARGE_BLOCK_BYTES = 256 * 1024  # a block of this size is a mapping of its own, returned when freed
TOP_BYTES = 4 * 1024 * 1024  # that may be free at the end of the heap
M_MMAP_THRESHOLD = -3  # of glibc's `mallopt`
M_TRIM_THRESHOLD = -1


def return_large_blocks() -> None:
    """Let freed blocks of memory return to the system, where the C library is glibc."""
    import ctypes  # which takes milliseconds

    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        set_option(M_TRIM_THRESHOLD, TOP_BYTES)
