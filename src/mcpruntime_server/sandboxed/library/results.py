"""What calls return to code: JSON objects with attributes, and the outcomes of batches.

Rule 1: standard library only, Python >= 3.9, and few imports: this module is part of every start of
a sandbox.
Rule 2: a result is JSON data and stays so: to everything that checks, an `AttributeDict` is a dict.
Rule 3: nothing here knows where results come from.
"""

from __future__ import annotations

from ...protocol.suggestions import did_you_mean
from .planned import PlanEnded

TYPE_CHECKING = False  # importing `typing` would slow down every start of a sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator, Tuple


MAX_MAP_THREADS = (
    256  # of one `map_concurrently`; the process limit of a sandbox counts threads, too
)
MAX_REPR_SLOTS = 20  # that the repr of a batch lists
MAX_REPR_CHARS = 200  # of one value in the repr of a slot
MAX_LISTED_KEYS = 30  # that an error names
SLOT_HINT = "The result of the item is its .value: [slot.value for slot in slots if slot.ok]."


class AttributeDict(dict[str, "Any"]):
    """A dict whose keys are attributes, too.

    A key that is also the name of a dict method can be reached by `[]` alone.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        # Special names are left out: copy, pickle, numpy and others call what they find there.
        if name in self and not (name.startswith("__") and name.endswith("__")):
            return self[name]
        keys = [key for key in self if isinstance(key, str)]
        known = ", ".join(map(repr, keys[:MAX_LISTED_KEYS]))
        if len(keys) > MAX_LISTED_KEYS:
            known += ", ..."
        hint = did_you_mean(name, keys)
        raise AttributeError(f"no key {name!r} in this result. {hint}Keys: {known or 'none'}.")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __dir__(self) -> Iterable[str]:
        keys = [key for key in self if isinstance(key, str) and key.isidentifier()]
        return [*super().__dir__(), *keys]

    def copy(self) -> AttributeDict:
        """Return a shallow copy with attributes."""
        return AttributeDict(self)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> AttributeDict:
        from copy import deepcopy

        copied = memo[id(self)] = AttributeDict()
        copied.update((key, deepcopy(value, memo)) for key, value in self.items())
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a plain dict, so that Python without this module can read the file."""
        return dict, (), None, None, iter(self.items())


def wrap_dicts(value: Any) -> Any:
    """Return JSON data with every dict replaced by an `AttributeDict`.

    Lists are changed in place.
    """
    kind = type(value)
    if kind is dict:
        return AttributeDict((key, wrap_dicts(item)) for key, item in value.items())
    if kind is list:
        for index, item in enumerate(value):
            if type(item) is dict or type(item) is list:
                value[index] = wrap_dicts(item)
    return value


class Slot:
    """The outcome of one item of a batch: `ok` and `value`, or else `error` (the exception).

    What would use it as the value itself fails, and the error names `.value`.
    """

    __slots__ = ("error", "ok", "value")

    def __init__(self, value: Any = None, error: BaseException | None = None) -> None:
        self.ok = error is None
        self.value = value
        self.error = error

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a slot has no {name!r}: it has .ok, .value and .error. {SLOT_HINT}")

    def __bool__(self) -> bool:
        return True  # without this, `__len__` would be asked

    def __len__(self) -> int:
        raise TypeError(f"a slot has no len(). {SLOT_HINT}")

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(f"a slot cannot be iterated. {SLOT_HINT}")

    def __getitem__(self, key: Any) -> Any:
        raise TypeError(f"a slot has no items. {SLOT_HINT}")

    def __contains__(self, item: Any) -> bool:
        raise TypeError(f"a slot contains nothing. {SLOT_HINT}")

    def __repr__(self) -> str:
        text = repr(self.value) if self.ok else f"{type(self.error).__name__}: {self.error}"
        if len(text) > MAX_REPR_CHARS:
            text = text[:MAX_REPR_CHARS] + "..."
        return f"<ok {text}>" if self.ok else f"<failed {text}>"


class Slots(list["Any"]):
    """The outcomes of a batch, in the order of its items."""

    __slots__ = ()

    def __repr__(self) -> str:
        failed = sum(not slot.ok for slot in self)
        lines = [f"{len(self) - failed} ok, {failed} failed"]
        lines += [f"[{index}] {slot!r}" for index, slot in enumerate(self[:MAX_REPR_SLOTS])]
        if len(self) > MAX_REPR_SLOTS:
            lines.append(f"... and {len(self) - MAX_REPR_SLOTS} more")
        return "\n".join(lines)


def map_concurrently(
    fn: Callable[[Any], Any], items: Iterable[Any], max_concurrency: int = 16
) -> Slots:
    """Call `fn(item)` for every item, up to `max_concurrency` at once; return a slot for each.

    The slots are in the order of the items and have `.ok`, `.value` and `.error`. A failure never
    stops the others. `fn` is any callable; it runs in threads.

    A replay returns the same slots if `fn` uses only its item, answers to calls, clocks, and
    randomness of its own (`uuid`, `secrets`, `random.Random()`). How threads alternate between
    calls, and so what they append to a shared list or draw from `random` itself, is not repeated.
    """
    import threading
    from contextvars import copy_context
    from itertools import chain, islice

    if max_concurrency < 1:
        raise ValueError(f"max_concurrency must be at least 1, not {max_concurrency}.")
    all_items = list(items)
    slots = Slots([None] * len(all_items))
    queue = iter(enumerate(all_items))
    stopped = threading.Event()

    def work(first: Tuple[int, Any]) -> None:
        thread: Any = threading.current_thread()
        first_name = getattr(threads[0], "_replay_name", "")
        for index, item in chain((first,), queue):
            if stopped.is_set():
                return
            # What an item observes is recorded for the item: another thread may get it in a replay.
            thread._job_name = f"{first_name}.i{index}"
            slots[index] = run_item(fn, item)

    # Each thread gets its first item here, so that in a replay it gets the same one.
    threads = [
        threading.Thread(
            target=copy_context().run,
            args=(work, first),
            name=f"tools.map-{first[0]}",
            daemon=True,
        )
        for first in islice(queue, min(max_concurrency, MAX_MAP_THREADS))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stopped.set()  # an interrupted map starts nothing more
    for slot in slots:
        if isinstance(slot.error, PlanEnded):  # it ends the whole run, not one item
            raise slot.error
    return slots


def run_item(fn: Callable[[Any], Any], item: Any) -> Slot:
    """Return the outcome of `fn(item)`."""
    try:
        return Slot(fn(item))
    except BaseException as error:  # noqa: BLE001 - in a thread, it may be SystemExit
        return Slot(error=error)
