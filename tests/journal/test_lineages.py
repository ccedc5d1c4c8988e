"""The tree of runs: tips, lineages, forks and files match a simple model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.errors import JournalFailed, NotFound
from mcpruntime_server.journal.events import (
    FileEntry,
    FilesChanged,
    OutputWritten,
    RunFinished,
    RunResumed,
    RunStarted,
    TipMoved,
)
from mcpruntime_server.journal.store import Journal, open_journal


def started(
    run: str, step: int = 1, parent: str | None = None, key: str | None = None
) -> RunStarted:
    return RunStarted(
        run, parent, step, "1 + 1", f"<step {step}>", 120.0, idempotency_key=key, seed="s"
    )


def entry(number: int) -> FileEntry:
    return {"digest": f"{number:064}", "size": number, "mode": 0o644}


def ran(
    journal: Journal, session: str, run: str, parent: str | None, *flags: str, step: int = 1
) -> None:
    journal.append(session, started(run, step, parent), run)
    journal.append(session, RunFinished("ok", flags=list(flags)), run)


async def tip(journal: Journal, session: str = "s_1") -> str | None:
    return (await journal.find_session(session, "me")).tip


# tips ---------------------------------------------------------------------------------------------


async def test_the_tip_of_a_run_whose_interpreter_died_is_its_parent_again(
    journal: Journal,
) -> None:
    ran(journal, "s_1", "r_1", None)
    journal.append("s_1", started("r_2", 2, "r_1"), "r_2")
    assert await tip(journal) == "r_2"
    journal.append("s_1", RunFinished("crashed", flags=["undone", "files"]), "r_2")
    assert await tip(journal) == "r_1"
    assert (await journal.load_run("r_2")).flags == {"undone", "files"}
    ran(journal, "s_1", "r_3", None, "undone")
    assert await tip(journal) is None


async def test_a_moved_tip_stays_when_the_previous_tip_is_undone(
    journal: Journal,
) -> None:
    ran(journal, "s_1", "r_1", None)
    ran(journal, "s_1", "r_2", "r_1")
    journal.append("s_1", started("r_3", 3, "r_2"), "r_3")
    journal.append("s_1", TipMoved("r_1", "r_3"))
    journal.append("s_1", RunFinished("crashed", flags=["undone"]), "r_3")
    assert await tip(journal) == "r_1"


async def test_the_tip_can_move_to_nothing_and_back(journal: Journal) -> None:
    ran(journal, "s_1", "r_1", None)
    journal.append("s_1", TipMoved(None, "r_1"))
    assert await tip(journal) is None
    journal.append("s_1", TipMoved("r_1", None))
    assert await tip(journal) == "r_1"


async def test_a_tip_that_is_not_a_run_is_rejected_and_changes_nothing(journal: Journal) -> None:
    ran(journal, "s_1", "r_1", None)
    journal.append("s_1", TipMoved("r_9", "r_1"))
    with pytest.raises(
        JournalFailed,
        match="could not be recorded: The tip of session 's_1' cannot move to run 'r_9'",
    ):
        await journal.flush()
    assert await tip(journal) == "r_1"
    assert await journal.load_events("s_1", event_type=TipMoved) == []


@pytest.mark.parametrize("parent", ["r_1", "r_9"])
async def test_a_run_can_start_only_from_an_earlier_run(journal: Journal, parent: str) -> None:
    journal.append("s_1", started("r_1", 1, parent), "r_1")
    with pytest.raises(JournalFailed, match="could not be recorded"):
        await journal.flush()
    assert await journal.list_runs("s_1") == []


# lines --------------------------------------------------------------------------------------------


async def test_a_fork_shares_the_lineage_of_its_origin(journal: Journal) -> None:
    ran(journal, "s_1", "r_1", None)
    ran(journal, "s_1", "r_2", "r_1", step=2)
    fork = await journal.create_session("s_2", "idea", "me", tip="r_1", purpose="fork")
    assert (fork.tip, fork.origin, fork.purpose, fork.run_count) == ("r_1", "r_1", "fork", 0)
    assert fork == await journal.find_session("idea", "me")
    ran(journal, "s_2", "r_3", "r_1", step=2)
    assert [(row.id, row.session_id) for row in await journal.load_lineage("r_3")] == [
        ("r_1", "s_1"),
        ("r_3", "s_2"),
    ]
    assert [row.id for row in await journal.load_lineage("r_2")] == ["r_1", "r_2"]
    assert await journal.load_lineage(None) == []


async def test_an_unknown_run_has_no_lineage_no_files_and_no_forks(journal: Journal) -> None:
    with pytest.raises(NotFound, match="There is no run 'r_9'"):
        await journal.load_lineage("r_9")
    with pytest.raises(NotFound, match="There is no run 'r_9'"):
        await journal.load_files_at("r_9")
    with pytest.raises(NotFound, match="There is no run 'r_9'"):
        await journal.create_session("s_2", None, "me", tip="r_9")
    assert len(await journal.list_sessions()) == 1
    assert await journal.load_files_at(None) == ({}, [])


async def test_a_lineage_of_thousands_of_runs_is_read_quickly(journal: Journal) -> None:
    parent = None
    for number in range(3000):
        ran(journal, "s_1", f"r_{number}", parent, step=number + 1)
        parent = f"r_{number}"
    assert [row.step for row in await journal.load_lineage(parent)] == list(range(1, 3001))


# files --------------------------------------------------------------------------------------------


async def test_runs_whose_announced_files_were_lost_are_named(
    journal: Journal,
) -> None:
    ran(journal, "s_1", "r_1", None, "files")
    journal.append("s_1", FilesChanged({"a": entry(1), "b": entry(2)}), "r_1")
    ran(journal, "s_1", "r_2", "r_1", "files")
    ran(journal, "s_1", "r_3", "r_2", "files")
    journal.append("s_1", FilesChanged({"a": entry(3)}, ["b"]), "r_3")
    assert await journal.load_files_at("r_1") == ({"a": entry(1), "b": entry(2)}, [])
    assert await journal.load_files_at("r_3") == ({"a": entry(3)}, ["r_2"])


async def test_several_file_changes_of_one_run_apply_in_order(journal: Journal) -> None:
    journal.append("s_1", started("r_1"), "r_1")
    journal.append("s_1", FilesChanged({"a": entry(1)}), "r_1")
    journal.append("s_1", RunFinished("ok", flags=["files"]), "r_1")
    journal.append("s_1", FilesChanged({"b": entry(2)}, ["a"]), "r_1")
    assert await journal.load_files_at("r_1") == ({"b": entry(2)}, [])
    assert len(await journal.load_events("s_1", run_id="r_1")) == 4


async def test_a_damaged_list_of_files_is_named_and_other_lineages_are_intact(
    journal: Journal,
) -> None:
    ran(journal, "s_1", "r_1", None, "files")
    ran(journal, "s_1", "r_2", None, "files")
    journal.append(
        "s_1", FilesChanged({f"file{number}": entry(number) for number in range(1000)}), "r_2"
    )
    await journal.flush()
    (blob,) = [path for path in journal.blobs.root.rglob("*") if path.is_file()]
    blob.write_bytes(b"{")
    with pytest.raises(JournalFailed, match="is damaged"):
        await journal.load_files_at("r_2")
    blob.unlink()
    with pytest.raises(JournalFailed, match=r"Event 5 of session 's_1' in .* is damaged: The blob"):
        await journal.load_files_at("r_2")
    assert await journal.load_files_at("r_1") == ({}, ["r_1"])
    assert [row.id for row in await journal.load_lineage("r_2")] == ["r_2"]


# requests, interrupted runs, pins -----------------------------------------------------------------


async def test_the_newest_run_with_an_idempotency_key_is_found_in_its_session(
    journal: Journal,
) -> None:
    await journal.create_session("s_2", None, "me")
    journal.append("s_1", started("r_1", key="k \ud800"), "r_1")
    journal.append("s_1", started("r_2", key="k \ud800"), "r_2")
    journal.append("s_2", started("r_3", key="k \ud800"), "r_3")
    found = await journal.find_run_by_key("s_1", "k \ud800")
    assert found is not None
    assert found.id == "r_2"
    assert await journal.find_run_by_key("s_1", "other") is None


async def test_unfinished_runs_of_sessions_without_a_live_server_are_interrupted(
    journal: Journal, tmp_path: Path
) -> None:
    async with open_journal(tmp_path) as other:
        await other.create_session("s_2", None, "you")
        journal.append("s_1", started("r_1"), "r_1")
        other.append("s_2", started("r_2"), "r_2")
        ran(other, "s_2", "r_3", None)
        await other.flush()
        assert await journal.list_interrupted_runs() == []
    assert [(session.id, run.id) for session, run in await journal.list_interrupted_runs()] == [
        ("s_2", "r_2")
    ]
    await journal.release_session("s_1")
    assert [run.id for _, run in await journal.list_interrupted_runs()] == ["r_2", "r_1"]
    assert [run.id for _, run in await journal.list_interrupted_runs("me")] == ["r_1"]


async def test_a_resumed_run_keeps_its_place_in_the_lineage(
    journal: Journal, tmp_path: Path
) -> None:
    journal.append("s_1", started("r_1"), "r_1")
    journal.append("s_1", OutputWritten("stdout", "before"), "r_1")
    await journal.release_session("s_1")
    async with open_journal(tmp_path) as other:
        await other.claim_session("s_1")
        assert await other.list_interrupted_runs() == []
        other.append("s_1", RunResumed(0), "r_1")
        other.append("s_1", RunFinished("ok", flags=["files"]), "r_1")
        other.append("s_1", FilesChanged({"a": entry(1)}), "r_1")
        other.append("s_1", OutputWritten("stdout", "of another"), "r_2")
        assert [stored.sequence for stored in await other.load_events("s_1", run_id="r_1")] == [
            1,
            2,
            3,
            4,
            5,
        ]
        assert (await other.load_run("r_1")).status == "ok"


async def test_pins_keep_their_reasons_until_they_are_removed(journal: Journal) -> None:
    ran(journal, "s_1", "r_1", None)
    ran(journal, "s_1", "r_2", "r_1")
    await journal.pin_run("r_2", "a skill")
    await journal.pin_run("r_1", "by hand \ud800")
    await journal.pin_run("r_2", "another skill")
    assert await journal.load_pins() == {"r_1": "by hand \\ud800", "r_2": "another skill"}
    await journal.unpin_run("r_1")
    await journal.unpin_run("r_1")
    assert await journal.load_pins() == {"r_2": "another skill"}
    with pytest.raises(NotFound, match="There is no run 'r_9'"):
        await journal.pin_run("r_9", "nothing")


# against a model ----------------------------------------------------------------------------------


@dataclass
class Model:
    """The expected state: the parent and the changes of each run, the tip of each session."""

    parents: dict[str, str | None] = field(default_factory=dict)
    changes: dict[str, list[FilesChanged]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    undone: set[str] = field(default_factory=set)
    tips: dict[str, str | None] = field(default_factory=dict)

    def line(self, run: str | None) -> list[str]:
        return [] if run is None else [*self.line(self.parents[run]), run]

    def files(self, run: str | None) -> tuple[dict[str, FileEntry], list[str]]:
        files: dict[str, FileEntry] = {}
        line = [each for each in self.line(run) if each not in self.undone]
        for each in line:
            for change in self.changes[each]:
                files = {path: kept for path, kept in files.items() if path not in change.removed}
                files.update(change.changed)
        return files, [each for each in line if each in self.lost]


paths = st.sampled_from("abcd")
a_change = st.builds(
    FilesChanged,
    st.dictionaries(paths, st.builds(entry, st.integers(0, 99)), max_size=3),
    st.lists(paths, max_size=2),
)
a_run = st.tuples(
    st.just("run"), st.sampled_from(["ok", "undone", "lost"]), st.lists(a_change, max_size=2)
)
others = st.tuples(st.sampled_from(["rewind", "fork", "switch"]), st.integers(0, 99))


async def act(
    journal: Journal, model: Model, session: str, steps: Sequence[tuple[object, ...]]
) -> None:
    for number, step in enumerate(steps):
        kept = [run for run in model.parents if run not in model.undone]
        match step:
            case ("run", str(end), list(changes)):
                run = f"r_{number}"
                model.parents[run] = model.tips[session]
                model.changes[run] = changes
                flags = {
                    "ok": ["files"] if changes else [],
                    "undone": ["undone", "files"],
                    "lost": ["files"],
                }[end]
                journal.append(session, started(run, number, model.tips[session]), run)
                journal.append(session, RunFinished("ok", flags=flags), run)
                for change in [] if end == "lost" else changes:
                    journal.append(session, change, run)
                if end == "lost":
                    model.lost.add(run)
                    model.changes[run] = []
                if end == "undone":
                    model.undone.add(run)
                else:
                    model.tips[session] = run
            case ("rewind", int(choice)):
                to = [None, *kept][choice % (len(kept) + 1)]
                journal.append(session, TipMoved(to, model.tips[session]))
                model.tips[session] = to
            case ("fork", int(choice)) if kept:
                session = f"s_{number}_fork"
                model.tips[session] = kept[choice % len(kept)]
                await journal.create_session(
                    session, None, "me", tip=model.tips[session], purpose="fork"
                )
            case ("switch", int(choice)):
                session = list(model.tips)[choice % len(model.tips)]


@given(st.lists(a_run | others, max_size=25))
def test_tips_lineages_and_files_match_a_simple_model(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[object, ...]]
) -> None:
    model = Model(tips={"s_1": None})

    async def compare() -> None:
        folder = tmp_path_factory.mktemp("data")
        async with open_journal(folder) as journal:
            await journal.create_session("s_1", None, "me")
            await act(journal, model, "s_1", steps)
        async with open_journal(folder) as journal:
            assert {row.id: row.tip for row in await journal.list_sessions()} == model.tips
            for run in (None, *model.parents):
                assert [row.id for row in await journal.load_lineage(run)] == model.line(run)
                assert await journal.load_files_at(run) == model.files(run)

    anyio.run(compare)
