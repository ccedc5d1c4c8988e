"""Servers for tests to kill: `child.py MODE DATA_DIR SESSION [DURABILITY]`.

Each printed line is a promise.
"""

from __future__ import annotations

import itertools
import resource
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
from anyio import to_thread

from mcpruntime_server.errors import JournalFailed, NotFound
from mcpruntime_server.journal.archive import import_session
from mcpruntime_server.journal.events import (
    CallFinished,
    Event,
    FileEntry,
    FilesChanged,
    OutputWritten,
    RunFinished,
    RunStarted,
    RunValue,
    TipMoved,
)
from mcpruntime_server.journal.retention import collect_garbage
from mcpruntime_server.journal.store import Durability, Journal, open_journal

LARGE = "large" * 10_000


def print_line(text: object) -> None:
    print(text, flush=True)


async def claim_session(journal: Journal, session: str) -> int:
    try:
        await journal.claim_session(session)
    except NotFound:
        await journal.create_session(session, None, "me")
    last = await journal.load_events(session)
    return last[-1].sequence if last else 0


async def append_for_ever(journal: Journal, session: str) -> None:
    """Print the sequence number of each event once it is recorded."""
    n = await claim_session(journal, session)
    while True:
        for _ in range(n % 4 + 1):
            n = journal.append(
                session, OutputWritten("stdout", LARGE if n % 11 == 0 else f"line {n}")
            ).sequence
        await journal.flush()
        print_line(n)


async def append_200(journal: Journal, session: str) -> None:
    await claim_session(journal, session)
    for number in range(200):
        journal.append(session, OutputWritten("stdout", str(number)))
        await journal.flush()
    print_line("done")


async def wander_for_ever(journal: Journal, session: str) -> None:
    """Run, rewind and lose runs; print the number of each event once it is recorded."""
    n = await claim_session(journal, session)
    runs: list[str | None] = [
        None,
        *(row.id for row in await journal.list_runs(session) if "undone" not in row.flags),
    ]
    tip = (await journal.list_sessions())[0].tip
    while True:
        run = f"r_{n}"
        journal.append(session, RunStarted(run, tip, n + 1, "1", "<step>", 1.0, seed="s"), run)
        flags = [["files"], ["undone"]][n % 5 == 0]
        ends: list[Event] = [
            RunFinished("ok", flags=flags),
            FilesChanged({run: {"digest": "", "size": n, "mode": 0}}),
        ]
        for event in ends:
            n = journal.append(session, event, run).sequence
        if "files" in flags:
            runs.append(run)
            tip = run
        if n % 4 == 0:
            left, tip = tip, runs[n % len(runs)]
            n = journal.append(session, TipMoved(tip, left)).sequence
        await journal.flush()
        print_line(n)


async def collect_for_ever(journal: Journal, _: str) -> None:
    """Create sessions and collect all but the last; print how many there have been."""
    later = time.time() + 100 * 24 * 3600
    for number in itertools.count():
        session, run = f"s_{secrets.token_hex(8)}", f"r_{secrets.token_hex(8)}"
        await journal.create_session(session, None, "me")
        digest = await journal.put_blob(run.encode())
        journal.append(session, RunStarted(run, None, 1, "1", "<step>", 1.0, seed="s"), run)
        for line in range(600):
            journal.append(session, OutputWritten("stdout", f"line {line}"), run)
        value: RunValue = {"kind": "json", "text": LARGE + run, "type": "str", "cut": False}
        journal.append(
            session,
            RunFinished(
                "ok",
                value,
                flags=["files"],
            ),
            run,
        )
        journal.append(
            session, FilesChanged({"a": {"digest": digest, "size": len(run), "mode": 0o644}}), run
        )
        await collect_garbage(journal, 1, 0, now=later)
        await journal.release_session(session)
        print_line(number)


async def import_for_ever(journal: Journal, archive: str) -> None:
    """Import the same archive again and again; print how often."""
    for number in itertools.count():
        await import_session(journal, Path(archive), "me")
        print_line(number)


async def end_runs_for_ever(journal: Journal, session: str) -> None:
    """End runs that name two blobs each, and print their numbers once their ends are durable."""
    await claim_session(journal, session)
    first = len(await journal.list_runs(session))
    for number in itertools.count(first):
        run, parent = f"r_{number}", f"r_{number - 1}" if number else None
        journal.append(session, RunStarted(run, parent, number, "1", "<step>", 1.0, seed="s"), run)
        value = RunValue(kind="json", text=LARGE + run, type="str", cut=False)
        journal.append(session, RunFinished("ok", value, flags=["files"]), run)
        digests = await journal.put_blobs([f"{run} {name}".encode() for name in "ab"])
        entries = {
            digest: FileEntry(digest=digest, size=len(run) + 2, mode=0o644) for digest in digests
        }
        journal.append(session, FilesChanged(entries), run)
        await journal.sync()
        print_line(number)


async def sync_until_killed(journal: Journal, session: str) -> None:
    """Print that an event is safe, or why it is not; wait for a line before the next ones."""
    await claim_session(journal, session)
    for count in (1, 200, 1):  # ext4 has room for some more at the end of a file
        for _ in range(count):
            journal.append(session, OutputWritten("stdout", "x" * 10_000))
        try:
            await journal.sync()
            print_line("safe")
        except JournalFailed as exc:
            print_line(exc)
        await journal.flush()
        await to_thread.run_sync(sys.stdin.readline)


async def hold(journal: Journal, session: str) -> None:
    """Own a session until killed."""
    await claim_session(journal, session)
    print_line("holding")
    await anyio.sleep_forever()


async def fill_the_disk(journal: Journal, session: str, large: bool) -> None:
    """Append until the disk is full, then with room again; print the error and the last number."""
    await claim_session(journal, session)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, unlimited[1]))
    try:
        while True:
            journal.append(session, CallFinished(1, LARGE * 20 if large else "x" * 5000))
            await journal.flush()
    except JournalFailed as exc:
        print_line(exc)
    journal.append(session, OutputWritten("stdout", "appended while the disk was full"))
    print_line(len(await journal.load_events(session)))
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    await journal.flush()
    print_line(journal.append(session, OutputWritten("stdout", "after")).sequence)


async def rewind_on_a_full_disk(journal: Journal, session: str) -> None:
    """Move the tip on a full disk; print the errors, and the tip before and after there is room."""
    await claim_session(journal, session)
    for run, parent in (("r_1", None), ("r_2", "r_1")):
        journal.append(session, RunStarted(run, parent, 1, "1", "<step>", 1.0, seed="s"), run)
    await journal.flush()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE,
        (journal.data_dir.joinpath("journal.db-wal").stat().st_size, unlimited[1]),
    )
    journal.append(session, TipMoved("r_1", "r_2"))
    for attempt in (
        journal.flush(),
        journal.create_session("s_2", None, "me", tip="r_1"),
        journal.pin_run("r_1", "kept"),
    ):
        try:
            await attempt
        except JournalFailed as exc:
            print_line(exc)
    print_line(
        [
            (await journal.list_sessions())[0].tip,
            len(await journal.load_lineage("r_2")),
            await journal.load_files_at("r_2"),
        ]
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    await journal.create_session("s_2", None, "me", tip="r_1")
    print_line((await journal.find_session(session, "me")).tip)


async def fill_with_rows(journal: Journal, session: str) -> None:
    await fill_the_disk(journal, session, large=False)


async def fill_with_blobs(journal: Journal, session: str) -> None:
    await fill_the_disk(journal, session, large=True)


MODES: dict[str, Callable[[Journal, str], Awaitable[None]]] = {
    "append_for_ever": append_for_ever,
    "append_200": append_200,
    "wander_for_ever": wander_for_ever,
    "collect_for_ever": collect_for_ever,
    "import_for_ever": import_for_ever,
    "end_runs_for_ever": end_runs_for_ever,
    "sync_until_killed": sync_until_killed,
    "rewind_on_a_full_disk": rewind_on_a_full_disk,
    "hold": hold,
    "fill_with_rows": fill_with_rows,
    "fill_with_blobs": fill_with_blobs,
}


async def main(mode: str, data_dir: str, session: str, durability: Durability) -> None:
    async with open_journal(Path(data_dir), durability=durability) as journal:
        await MODES[mode](journal, session)


if __name__ == "__main__":
    chosen: Durability = "disk" if sys.argv[4:] == ["disk"] else "process"
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3], chosen)
