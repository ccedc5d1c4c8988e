"""Many pieces of inputs, found when somebody looks at them.

Rule: standard library only, Python >= 3.9, and imported only when a run has an input.
"""

from __future__ import annotations

from itertools import islice

from .results import Slots, map_concurrently

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator, List, Optional

    from .inputs import InputSlice

MAX_CACHED_SLICES = 50_000  # pieces that are remembered when they have been counted
MAX_SHOWN_SLICES = 10  # pieces in a repr


class InputSlices:
    """Pieces that are found when they are asked for: iterate, `.first(n)`, `[i]`, `len()`, `.map(fn)`.

    Each look is a pass over the input, until they have been counted and are few enough to be kept.
    """

    __slots__ = ("_count", "_kept", "_make")
    __module__ = "__main__"

    def __init__(self, make: Callable[[], Iterator[InputSlice]]) -> None:
        self._make = make
        self._kept: Optional[List[InputSlice]] = None
        self._count: Optional[int] = None

    def __iter__(self) -> Iterator[InputSlice]:
        return iter(self._kept) if self._kept is not None else self._make()

    def __len__(self) -> int:
        if self._count is None:
            count, kept = 0, []
            for piece in self._make():
                count += 1
                if count <= MAX_CACHED_SLICES:
                    kept.append(piece)
            self._count = count
            if count <= MAX_CACHED_SLICES:
                self._kept = kept
        return self._count

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            first, last, step = which.indices(len(self))
            return list(islice(self, first, last, step)) if step > 0 else list(self)[which]
        place = which + len(self) if which < 0 else which
        found = next(islice(self, place, None), None) if place >= 0 else None
        if found is None:
            raise IndexError(f"there are {len(self):,} pieces, and none at {which}")
        return found

    def first(self, n: int = MAX_SHOWN_SLICES) -> List[InputSlice]:
        """Return the first `n` of them."""
        return list(islice(self, n))

    def map(self, fn: Callable[[InputSlice], Any], max_concurrency: int = 16) -> Slots:
        """Call `fn(piece)` for each, several at a time; return a slot each: `.ok`, `.value`, `.error`."""
        return map_concurrently(fn, self, max_concurrency)

    def __repr__(self) -> str:
        shown = self.first(MAX_SHOWN_SLICES + 1)
        lines = [repr(piece) for piece in shown[:MAX_SHOWN_SLICES]] or ["no pieces"]
        return "\n".join(lines + ["..."] * (len(shown) > MAX_SHOWN_SLICES))
