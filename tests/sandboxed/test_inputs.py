"""Inputs as code sees them, compared with the same operations on the whole text in memory.

Blocks are small, so that every kind of boundary occurs.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcpruntime_server.protocol.payloads import InputDescription
from mcpruntime_server.sandboxed.library import input_scan, input_source, inputs
from mcpruntime_server.sandboxed.library.input_source import InputChanged, InputError
from mcpruntime_server.sandboxed.library.inputs import AllInputs, Input, InputList

WORDS = st.sampled_from(["a", "needle", "ä", "€", "😀", "\n", "\n\n", "\r\n", " ", "x" * 20])
TEXTS = st.lists(WORDS, max_size=60).map("".join)
BYTES = st.lists(WORDS.map(str.encode) | st.binary(min_size=1, max_size=3), max_size=60).map(
    b"".join
)


SMALL = (
    (input_source, "BLOCK_BYTES", 16),
    (input_source, "PACKED_READ_BYTES", 8),
    (input_scan, "MAX_LINE_BYTES", 64),
    (input_scan, "PART_OVERLAP_BYTES", 16),
    (input_scan, "MATCH_MARGIN_BYTES", 4),
)


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in SMALL:
            patch.setattr(module, name, value)
        yield


def describe_file(
    path: str, start: int = 0, end: int | None = None, problem: str = ""
) -> InputDescription:
    info = os.stat(path)
    return {
        "id": f"{path}:{info.st_mtime_ns}",
        "name": os.path.basename(path),
        "path": path,
        "size": info.st_size,
        "modified_ns": info.st_mtime_ns,
        "problem": problem,
        "start": start,
        "end": end,
    }


@pytest.fixture
def given_as(tmp_path: Path) -> Callable[..., Input]:
    def give(data: bytes | str, name: str = "input") -> Input:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return Input(describe_file(str(path)))

    return give


class Files:
    """Inputs of any bytes, plain and packed, whose files are removed at the end."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._count = 0

    def give(self, data: bytes) -> Input:
        self._count += 1
        path = f"{self._folder}/{self._count}"
        Path(path).write_bytes(data)
        return Input(describe_file(path))

    def both(self, data: bytes) -> list[Input]:
        return [self.give(data), self.give(gzip.compress(data))]


@pytest.fixture(scope="module")
def files() -> Iterator[Files]:
    with tempfile.TemporaryDirectory() as folder:
        yield Files(folder)


def lines_of(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line[:-1] if line.endswith(b"\r") else line for line in lines]


def shown(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def is_plain(data: bytes) -> bool:
    return not data.startswith(b"\x1f\x8b\x08")


# passes -------------------------------------------------------------------------------------------


@given(BYTES.filter(is_plain))
def test_lines_do_not_depend_on_block_boundaries(files: Files, data: bytes) -> None:
    wanted = [shown(line) for line in lines_of(data)]
    for each in files.both(data):
        assert [line.text for line in each.lines()] == wanted
        assert each.line_count() == len(wanted)
        assert each.size == len(each) == len(data)
        for start, end in ((1, None), (2, 5), (-2, None), (0, 1), (1, -1)):
            assert [line.text for line in each.lines(start, end)] == wanted[start:end]


@given(TEXTS)
def test_iteration_yields_lines_as_text_and_long_lines_in_parts(files: Files, text: str) -> None:
    [plain, packed] = files.both(text.encode())
    found = list(plain)
    assert found == list(packed)
    lines = [shown(line) for line in lines_of(text.encode())]
    if all(len(line.encode()) < 40 for line in lines):
        assert found == lines
    assert "".join(found).replace("\r", "") == "".join(lines).replace("\r", "")


@given(
    TEXTS,
    st.sampled_from(
        ["needle", "ä", "e{2}", "^a", "a$", r"\w+ \w", "x.*x", "[^a]€", r"\s", "", "(?<=a)n"]
    ),
)
def test_grep_returns_the_lines_that_match_one_by_one(
    files: Files, text: str, pattern: str
) -> None:
    lines = [shown(line) for line in lines_of(text.encode())]
    if any(len(line.encode()) > 40 for line in lines):
        return  # in a long line, each match is a slice of its own
    wanted = [(number, line) for number, line in enumerate(lines) if re.search(pattern, line)]
    for each in files.both(text.encode()):
        assert [(hit.line, hit.text) for hit in each.grep(pattern)] == wanted
        assert len(each.grep(pattern.upper(), ignore_case=True)) >= len(wanted) or "\\" in pattern


@example(
    b"aaaaaaaaaaaaaaa\n\naaa", 3, 1, "lines"
)  # the only break is in the part that the chunk before has covered
@given(
    BYTES.filter(is_plain),
    st.integers(1, 40),
    st.integers(0, 39),
    st.sampled_from(["chars", "lines", "paragraphs"]),
)
def test_chunks_cover_the_whole_text_and_are_never_too_long(
    files: Files, data: bytes, size: int, overlap: int, by: str
) -> None:
    overlap %= size
    for each in files.both(data):
        chunks = list(each.chunks(size, overlap, by))
        assert all(len(chunk.text) <= size for chunk in chunks)
        at = 0
        for before, chunk in zip([None, *chunks], chunks, strict=False):
            assert chunk.start <= at < chunk.end
            if before is not None:
                assert chunk.start > before.start
                assert len(data[chunk.start : at].decode("utf-8", "surrogateescape")) <= overlap
            at = chunk.end
        assert at == len(data)


@given(TEXTS, st.integers(0, 80), st.integers(0, 80))
def test_slices_end_between_characters_and_adjacent_ones_join_without_loss(
    files: Files, text: str, one: int, two: int
) -> None:
    data = text.encode()
    first, last = sorted((one, two))
    for each in files.both(data):
        slices = each.slice(0, first), each.slice(first, last), each.slice(last)
        assert "".join(each.text for each in slices) == text
        assert each.slice(first, last).slice(1).text == each.slice(first, last).text.encode()[
            1:
        ].decode(errors="ignore") or any(ord(char) > 127 for char in text)


@given(TEXTS, st.integers(0, 12))
def test_a_sample_has_distinct_lines_in_their_order(files: Files, text: str, n: int) -> None:
    [plain, _] = files.both(text.encode())
    starts = [line.start for line in plain.lines()]
    taken = [line.start for line in plain.sample(n)]
    assert len(taken) == min(n, len(starts))
    assert sorted(set(taken)) == taken
    assert set(taken) <= set(starts)


def test_chunks_end_after_lines_paragraphs_or_anywhere_as_requested(
    given_as: Callable[..., Input],
) -> None:
    text = given_as("one\ntwo\n\nthree\nfour\n")
    assert [chunk.text for chunk in text.chunks(12)] == ["one\ntwo\n\n", "three\nfour\n"]
    assert [chunk.text for chunk in text.chunks(15, by="paragraphs")] == [
        "one\ntwo\n\n",
        "three\nfour\n",
    ]
    assert [chunk.text for chunk in text.chunks(12, overlap=8, by="lines")][1].startswith("two\n")
    assert [chunk.text for chunk in text.chunks(10, by="chars")] == [
        "one\ntwo\n\nt",
        "hree\nfour\n",
    ]
    with pytest.raises(ValueError, match="Did you mean 'lines'"):
        text.chunks(10, by="line")
    with pytest.raises(ValueError, match="overlap < max_chars"):
        text.chunks(10, overlap=10)


def test_records_and_rows_name_the_line_that_is_wrong(given_as: Callable[..., Input]) -> None:
    assert list(given_as('\ufeff{"a": 1}\n\n[2]\r\n').records()) == [{"a": 1}, [2]]
    with pytest.raises(InputError, match="Line 1 is not JSON"):
        list(given_as("1\n{").records())
    rows = given_as('\ufeffname,say\r\nann,"one\ntwo"\nbob,x\n').rows()
    assert list(rows) == [{"name": "ann", "say": "one\ntwo"}, {"name": "bob", "say": "x"}]
    assert list(given_as("1;2\n3;4").rows(header=False, delimiter=";")) == [["1", "2"], ["3", "4"]]
    with pytest.raises(InputError, match="is not CSV"):
        list(given_as('"' + "x" * (inputs.MAX_FIELD_CHARS + 1)).rows())


@given(text=TEXTS, end=st.sampled_from(["\n", "\r\n"]))
@example(text="x" * 200, end="\r\n")
def test_records_and_rows_are_complete_even_if_lines_are_long(
    files: Files, text: str, end: str
) -> None:
    words = [text, "more", ""]
    for found in files.both(
        "".join(json.dumps(each, ensure_ascii=False) + end for each in words).encode()
    ):
        assert list(found.records()) == words
    words = [each.replace("\r", "") for each in words]  # all line endings become \n
    for found in files.both(end.join(["a,b", *(f'"{each}","{each}"' for each in words)]).encode()):
        assert [[row["a"], row["b"]] for row in found.rows()] == [[each, each] for each in words]


def test_long_csv_fields_are_read_and_too_long_lines_are_refused(
    given_as: Callable[..., Input], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [len(row["b"]) for row in given_as(f"a,b\n1,{'x' * 200_000}").rows()] == [200_000]
    monkeypatch.setattr(inputs, "MAX_TEXT_BYTES", 1000)
    with pytest.raises(InputError, match="A line of 'input' has over 1,000 bytes"):
        list(given_as(f"1\n{'2' * 2000}\n").records())


@given(data=TEXTS, text=TEXTS)
@example(data="one\ntwo", text="e\nt")
@example(data="", text="")
def test_a_text_that_spans_lines_is_found_in_an_input(files: Files, data: str, text: str) -> None:
    for part in (text, data[len(data) // 3 : len(data) // 2]):
        for found in files.both(data.encode()):
            assert (part in found) == (part in data)


def test_an_empty_file_is_an_empty_input(given_as: Callable[..., Input]) -> None:
    empty = given_as("")
    assert (empty.text, list(empty), len(empty.lines()), len(empty.chunks(5)), empty.sample(3)) == (
        "",
        [],
        0,
        0,
        [],
    )
    assert not empty
    assert list(empty.rows()) == list(empty.records()) == []
    assert repr(empty) == "<input 'input' 0 bytes ''>"


def test_an_unknown_attribute_of_an_input_lists_the_known_ones(
    given_as: Callable[..., Input],
) -> None:
    with pytest.raises(
        AttributeError, match=r"Did you mean 'chunks'\? It has chunks, .*, text, to_argument"
    ):
        given_as("x").chunk  # noqa: B018
    assert not hasattr(given_as("x"), "__fspath__")


def test_slices_are_found_again_at_each_use_and_counted_once(
    given_as: Callable[..., Input],
) -> None:
    found = given_as("a\nb\na b\n").grep("a")
    assert [len(found), found[0].text, found[-1].text, [each.text for each in found[1:]]] == [
        2,
        "a",
        "a b",
        ["a b"],
    ]
    assert found.map(lambda each: each.text.upper())[1].value == "A B"
    assert bool(found)
    with pytest.raises(IndexError, match="2 slices"):
        found[2]
    assert repr(given_as("x").grep("y")) == "no slices"
    with pytest.raises(InputError, match="not a regular expression"):
        given_as("x").grep("(")


def test_brackets_return_slices_and_errors_say_what_else_there_is(
    given_as: Callable[..., Input],
) -> None:
    each = given_as("one\ntwo\nthree")
    assert [str(each[:3]), str(each[4:7]), str(each[-5:]), str(each[4:][:3])] == [
        "one",
        "two",
        "three",
        "two",
    ]
    for which in (0, "one", slice(0, 5, 2)):
        with pytest.raises(TypeError, match=r"\[start:end\] is a slice of it"):
            each[which]
    with pytest.raises(InputError, match=r"CONTEXT_DATA\['a'\].slice"):
        AllInputs([given_as("x", "a"), given_as("y", "b")])[:1]


def test_passes_go_through_several_inputs_and_offsets_need_one(
    given_as: Callable[..., Input],
) -> None:
    several = AllInputs([given_as("a1\na2", "a"), given_as("b1\nb2\n", "b"), given_as("", "c")])
    assert list(several) == ["a1", "a2", "b1", "b2"]
    assert [line.text for line in several.lines(1, 3)] == ["a2", "b1"]
    assert [(hit.name, hit.line) for hit in several.grep("2")] == [("a", 1), ("b", 1)]
    assert [slot.value for slot in several.map(lambda each: each.name)] == ["a", "b"]
    assert len(several.sample(3)) == 3
    assert "b1" in several
    assert "c1" not in several
    with pytest.raises(InputError, match=r"CONTEXT_DATA\['a'\].slice"):
        several.slice(0, 1)
    listed = InputList([given_as("x", "data.csv")])
    assert (listed[0], listed.names, len(listed)) == (listed["data.csv"], ["data.csv"], 1)
    with pytest.raises(KeyError, match="Did you mean"):
        listed["data.cvs"]


def test_the_namespace_has_the_inputs_of_the_run_and_keeps_the_codes_names(
    tmp_path: Path,
) -> None:
    (tmp_path / "one").write_text("1")
    namespace: dict[str, Any] = {"x": 1}
    inputs.set_context(namespace, [describe_file(str(tmp_path / "one"))])
    context = namespace["CONTEXT"]
    namespace["CONTEXT_DATA"] = "mine"
    inputs.set_context(namespace, [describe_file(str(tmp_path / "one"))])
    assert namespace["CONTEXT"] is context
    assert namespace["CONTEXT_DATA"] == "mine"
    inputs.set_context(namespace, [])
    assert namespace == {"x": 1}


def test_an_input_that_is_a_part_of_a_file_gives_nothing_else_of_it(tmp_path: Path) -> None:
    path = tmp_path / "whole"
    path.write_text("secret\nmine 1\nmine 2\nsecret\n")
    part = Input(describe_file(str(path), start=7, end=21))
    assert part.text == "mine 1\nmine 2\n"
    assert [hit.line for hit in part.grep("2")] == [1]
    assert part.slice(-7).text == "mine 2\n"
    assert [line.text for line in part.lines(1)] == ["mine 2"]
    with pytest.raises(InputError, match="a part of a file"):
        part.path  # noqa: B018


# what is not as it was ----------------------------------------------------------------------------


def test_a_file_that_changes_during_a_pass_is_an_error(
    given_as: Callable[..., Input],
) -> None:
    for change in (
        lambda path: os.truncate(path, 50),
        lambda path: os.utime(path, ns=(1, 1)),
        os.unlink,
    ):
        context = given_as("line\n" * 40)
        lines = iter(context.lines())
        next(lines)
        change(context.source.path)
        with pytest.raises(InputChanged, match="'input'"):
            list(lines)


def test_a_problem_that_the_host_knows_is_raised_at_the_first_read(tmp_path: Path) -> None:
    context = Input(describe_file(str(tmp_path), problem="It is gone."))
    assert "It is gone." in repr(context)
    with pytest.raises(InputChanged, match=r"It is gone\."):
        context.peek()


def test_damaged_gzip_is_an_error_but_padding_and_several_members_are_read(
    given_as: Callable[..., Input],
) -> None:
    packed = gzip.compress(b"one\n") + gzip.compress(b"two\n")
    assert list(given_as(packed)) == ["one", "two"]
    assert list(given_as(packed + bytes(10))) == ["one", "two"]
    data = random.Random(1).randbytes(2000)
    with pytest.raises(InputError, match="is truncated after"):
        list(given_as(gzip.compress(data)[:-100]).lines())
    broken = bytearray(gzip.compress(data))
    broken[1000] ^= 255
    with pytest.raises(InputError, match="damaged"):
        list(given_as(bytes(broken)).lines())


def test_a_gzip_bomb_is_stopped_and_takes_no_memory(
    given_as: Callable[..., Input], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_source, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(input_source, "MAX_UNPACKED_BYTES", 10 << 20)
    bomb = given_as(gzip.compress(bytes(20 << 20)))
    with pytest.raises(InputError, match="holds more than"):
        bomb.line_count()
    assert bomb.peek(3) == "\0\0\0"


def test_compressed_input_is_read_in_any_order(
    given_as: Callable[..., Input], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_source, "INITIAL_GAP_BYTES", 100)
    monkeypatch.setattr(input_source, "MAX_RESUME_POINTS", 4)
    data = b"".join(b"%05d\n" % number for number in range(2000))
    context = given_as(gzip.compress(data))
    shuffled = random.Random(2).sample(range(2000), 300)
    assert [context.slice(6 * each, 6 * each + 5).text for each in shuffled] == [
        f"{each:05}" for each in shuffled
    ]
    assert context.size == len(data)
    assert context.slice(-6).text == "01999\n"


def test_too_much_for_one_text_is_refused_with_a_remedy(
    given_as: Callable[..., Input], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MAX_TEXT_BYTES", 10)
    for data in (b"x" * 11, gzip.compress(b"x" * 11)):
        with pytest.raises(InputError, match=r"\.chunks\(max_chars\)"):
            str(given_as(data))
    assert str(given_as("x" * 10)) == "x" * 10


def test_a_match_in_a_very_long_line_comes_with_the_text_around_it(
    given_as: Callable[..., Input],
) -> None:
    text = "x" * 300 + "needle" + "y" * 300 + "\nneedle\n" + "z" * 200
    assert [hit.text for hit in given_as(text).grep("need+le")] == ["xxxxneedleyyyy", "needle"]
    assert len(given_as("ä" * 500).grep("ä{3}$")) == 1


# references ---------------------------------------------------------------------------------------


def test_slices_are_sent_as_references_and_compressed_ones_as_text(
    given_as: Callable[..., Input],
) -> None:
    context = given_as("one\ntwo")
    [_, line] = context.lines()
    assert line.to_argument() == {"$slice": {"input": context.id, "start": 4, "end": 7}}
    assert given_as(gzip.compress(b"one\ntwo")).slice(4).to_argument() == "two"
    json.dumps(line.to_argument())


def test_a_line_of_many_megabytes_takes_no_memory(tmp_path: Path) -> None:
    code = """
import resource, sys
from mcpruntime_server.sandboxed.library import inputs
import os
path = sys.argv[1]
info = os.stat(path)
description = dict(
    id="x", name="x", path=path, size=info.st_size, modified_ns=info.st_mtime_ns,
    problem="", start=0, end=None,
)
context = inputs.Input(description)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert [line.size for line in context.lines()] == [info.st_size]
assert sum(len(part) for part in context) == info.st_size
assert len(context.grep("ab")) == 0 and len(context.grep("needle")) == 1
assert sum(each.size for each in context.chunks(100_000)) == info.st_size
assert [line.size for line in context.sample(3)] == [info.st_size]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    path = tmp_path / "line"
    with path.open("wb") as file:
        for number in range(128):
            file.write(
                b"a" * (1 << 20) if number != 77 else b"a" * 500_000 + b"needle" + b"a" * 548_570
            )
    grown_kb = int(await_output(code, str(path)))
    assert grown_kb < 32 * 1024


def await_output(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
