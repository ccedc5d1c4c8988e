"""Imports of what takes long to load."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def import_without_collection() -> Iterator[None]:
    """Collect no garbage inside the block, and examine none of its objects later.

    What is imported stays alive. Examining it again and again takes a tenth of a start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
