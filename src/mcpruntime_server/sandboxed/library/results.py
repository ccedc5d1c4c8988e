"""What comes back into sandboxed code: results that read like objects, and the outcomes of batches.

Rule 1: standard library only, Python >= 3.9, and few imports: this module is part of every sandbox's start.
Rule 2: a result is JSON data and stays so: `Record` is a dict to everything that asks.
Rule 3: nothing here knows where results come from.
"""

from __future__ import annotations

from ...protocol.suggestions import did_you_mean
from .planned import PlanEnded

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable


MAX_MAP_THREADS = 256  # of one `map_concurrently`; a sandbox's process limit counts threads too
MAX_REPR_SLOTS = 20  # slots that the repr of a batch spells out
MAX_REPR_CHARS = 200  # of one value in the repr of a slot


class AttributeDict(dict[str, "Any"]):
    """A dict whose keys are attributes too; a key that is also a dict method is reachable by `[]` alone."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        # No dunder key is an attribute: copy, pickle, numpy and others look for dunder names and call what they find.
        if name in self and not (name.startswith("__") and name.endswith("__")):
            return self[name]
        keys = [key for key in self if isinstance(key, str)]
        known = ", ".join(map(repr, keys[:30])) + (", ..." if len(keys) > 30 else "")
        raise AttributeError(
            f"no key {name!r} in this result. {did_you_mean(name, keys)}Keys: {known or 'none'}."
        )

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __dir__(self) -> Iterable[str]:
        return [
            *super().__dir__(),
            *(key for key in self if isinstance(key, str) and key.isidentifier()),
        ]

    def copy(self) -> AttributeDict:
        """Return a shallow copy that still allows attribute access."""
        return AttributeDict(self)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> AttributeDict:
        from copy import deepcopy

        copied = memo[id(self)] = AttributeDict()
        copied.update((key, deepcopy(value, memo)) for key, value in self.items())
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a plain dict, so that the file can be read where this module is not."""
        return dict, (), None, None, iter(self.items())


def wrap_dicts(value: Any) -> Any:
    """Return JSON data with every dict in it made a `Record`; lists are changed in place."""
    kind = type(value)
    if kind is dict:
        return AttributeDict((key, wrap_dicts(item)) for key, item in value.items())
    if kind is list:
        for index, item in enumerate(value):
            if type(item) is dict or type(item) is list:
                value[index] = wrap_dicts(item)
    return value


class Slot:
    """The outcome of one item of a batch: `ok`, and then `value`, or else `error` (the exception)."""

    __slots__ = ("error", "ok", "value")

    def __init__(self, value: Any = None, error: BaseException | None = None) -> None:
        self.ok = error is None
        self.value = value
        self.error = error

    def __repr__(self) -> str:
        text = repr(self.value) if self.ok else f"{type(self.error).__name__}: {self.error}"
        text = text if len(text) <= MAX_REPR_CHARS else text[:MAX_REPR_CHARS] + "..."
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
    """Call `fn(item)` for every item, up to `max_concurrency` at a time; return one slot each, in order.

    A slot has `.ok`, `.value` and `.error`; a failure never stops the others. `fn` is any callable; it runs in threads.
    """
    import threading
    from contextvars import copy_context
    from itertools import chain, islice

    if max_concurrency < 1:
        raise ValueError(f"max_concurrency must be at least 1, not {max_concurrency}.")
    todo = list(items)
    slots = Slots([None] * len(todo))
    queue = iter(enumerate(todo))
    stopped = threading.Event()

    def work(first: tuple[int, Any]) -> None:
        for index, item in chain((first,), queue):
            if stopped.is_set():
                return
            slots[index] = run_item(fn, item)

    threads = [
        threading.Thread(
            target=copy_context().run, args=(work, first), name=f"tools.map-{first[0]}", daemon=True
        )
        for first in islice(
            queue, min(max_concurrency, MAX_MAP_THREADS)
        )  # so that a replay gives each the same one
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stopped.set()  # an interrupted map starts nothing more
    for slot in slots:
        if isinstance(slot.error, PlanEnded):  # of the whole run, and no item's outcome
            raise slot.error
    return slots


def run_item(fn: Callable[[Any], Any], item: Any) -> Slot:
    """Return the outcome of `fn(item)`."""
    try:
        return Slot(fn(item))
    except BaseException as error:  # noqa: BLE001 - in a thread even SystemExit is one item's outcome
        return Slot(error=error)
