"""Fuzz each target for some minutes: `python -m tests.fuzzing [--minutes N] [--seed N] [NAME...]`.

An input that breaks a reader is written to `finds/TARGET/`, where `test_fuzzing.py` replays it for
ever. Inputs with a new outcome are changed further.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from types import FrameType

import anyio

from .targets import TARGETS, Target, name_outcome

FINDS = Path(__file__).parent / "finds"
MAX_MEMORY_BYTES = 3 << 30  # an input that needs more is a find
MAX_STALL_S = 20.0  # of processor time; then the input is stopped
MAX_OUTCOME_CHARS = 3_000
MAX_CORPUS = 2_000
MAX_FINDS = 20  # of one target


class Stalled(Exception):
    """An input took too much processor time."""


@dataclass
class Progress:
    """What came of fuzzing one target."""

    executions: int = 0
    outcomes: set[str] = field(default_factory=set)
    finds: dict[str, bytes] = field(default_factory=dict)  # by what happened
    longest_s: float = 0.0  # of processor time, for one input


async def execute(target: Target, data: bytes) -> tuple[str, float]:
    """Return what came of an input, and its processor time; raises whatever a reader does."""
    started = time.process_time()
    with stall_detection():
        outcome = await target.run(data)
    elapsed = time.process_time() - started
    assert len(outcome) <= MAX_OUTCOME_CHARS, f"an error has {len(outcome):,} characters"
    if elapsed > target.max_cpu_s:
        raise Stalled(f"an input of {len(data):,} bytes took {elapsed:.1f} s")
    return outcome, elapsed


@contextmanager
def stall_detection() -> Iterator[None]:
    """Raise `Stalled` where the program is after `MAX_STALL_S` of processor time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stalled("an input was stopped")

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MAX_STALL_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


async def fuzz(
    target: Target, random: Random, seconds: float, max_executions: int = sys.maxsize
) -> Progress:
    """Feed changed inputs to a target for so many seconds."""
    progress = Progress()
    corpus = list(target.seeds)
    end = time.monotonic() + seconds
    while time.monotonic() < end and progress.executions < max_executions:
        data = random.choice(corpus)
        for _ in range(random.choice((1, 1, 2, 4))):
            data = target.mutate(random, data)
        progress.executions += 1
        try:
            text, elapsed = await execute(target, data)
        except Exception as exc:  # noqa: BLE001 - that is what is looked for
            record_find(progress, exc, data)
            if len(progress.finds) == MAX_FINDS:
                break
            continue
        progress.longest_s = max(progress.longest_s, elapsed)
        outcome = name_outcome(text)
        if outcome not in progress.outcomes:
            progress.outcomes.add(outcome)
            if len(corpus) < MAX_CORPUS:
                corpus.append(data)
    return progress


def record_find(progress: Progress, exc: Exception, data: bytes) -> None:
    """Keep the shortest input of each kind of failure."""
    place = traceback.extract_tb(exc.__traceback__)[-1]
    name = f"{type(exc).__name__} in {place.name}: {name_outcome(str(exc))}"
    known = progress.finds.get(name)
    if known is None or len(data) < len(known):
        progress.finds[name] = data


def main() -> int:
    """Fuzz targets one after the other; return 1 if something was found."""
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(TARGETS)}")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    found = 0
    for name in options.names or TARGETS:
        random = Random(f"{name} {options.seed}")
        progress = anyio.run(fuzz, TARGETS[name], random, options.minutes * 60)
        found += len(progress.finds)
        print(
            f"{name}: {progress.executions:,} executions with seed {options.seed}, "
            f"{len(progress.outcomes)} outcomes, longest {progress.longest_s * 1e3:.0f} ms, "
            f"{len(progress.finds)} finds",
            flush=True,
        )
        for what, data in progress.finds.items():
            path = FINDS / name / sha256(data).hexdigest()[:12]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            print(f"  {what}: {path}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
