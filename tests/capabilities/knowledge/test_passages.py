"""Any text is split into passages whose spans are exact."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.capabilities.knowledge.boundaries import (
    MAX_BOUNDARIES,
    SCANNERS,
    guess_format,
)
from mcpruntime_server.capabilities.knowledge.passages import (
    MAX_PASSAGE_CHARS,
    PassageSpan,
    split_passages,
)

SYNTAX = [
    *(
        "# ",
        "## a\n",
        "---\n",
        "===\n",
        "```\n",
        "{",
        "}",
        "[",
        "]",
        '"',
        '"a":',
        ",",
        "\\",
        ":",
        "- ",
        "  ",
        "a = 1\n",
    ),
    *(
        "[a]\n",
        "create table t (\n",
        ";\n",
        "\n",
        "\r\n",
        "\n\n",
        "word ",
        "x" * 700,
        ". ",
        "\t",
        "é",
        "\u2028",
    ),
]
texts = st.lists(st.one_of(st.sampled_from(SYNTAX), st.text(max_size=5)), max_size=60).map("".join)


def titles(text: str, kind: str) -> list[str]:
    return [piece.title for piece in split_passages(text, kind)]


def check(text: str, pieces: list[PassageSpan]) -> None:
    lines, covered, end = text.split("\n"), "", 0
    for piece in pieces:
        body = text[piece.start : piece.end]
        assert end <= piece.start < piece.end
        assert 0 < len(body) <= MAX_PASSAGE_CHARS
        assert text[end : piece.start].strip() == ""
        within = "\n".join(lines[piece.first_line - 1 : piece.last_line])
        assert body in within
        assert not piece.is_lines or body == within.removesuffix("\r")
        covered, end = covered + body, piece.end
    assert text[end:].strip() == ""


@given(texts, st.sampled_from(sorted(SCANNERS)))
def test_passages_are_ordered_parts_of_their_text_without_gaps(text: str, kind: str) -> None:
    check(text, split_passages(text, kind))


def test_markdown_passages_have_the_path_of_their_headings() -> None:
    text = (
        "intro\n\n# Guide\n\n## Install\n\nRun it.\n\n### Linux\napt\n\n"
        "Use\n===\n\n```sh\n# no heading\n```\n\n## Errors ##\nnone\n"
    )
    found = [
        (piece.title, text[piece.start : piece.end].partition("\n")[0])
        for piece in split_passages(text, "markdown")
    ]
    assert found == [
        ("", "intro"),
        ("Guide > Install", "# Guide"),
        ("Guide > Install > Linux", "### Linux"),
        ("Use", "Use"),
        ("Use > Errors", "## Errors ##"),
    ]


def test_front_matter_is_not_a_heading() -> None:
    assert titles("---\ntitle: x\n---\n\n# A\n\ntext\n", "markdown") == ["", "A"]


def test_data_passages_have_the_path_of_their_keys() -> None:
    long = "x" * 600
    data = {
        "server": {"port": 1, "note": long, "more": long, "last": long},
        "users": [{"name": long * 3}, {"name": long}],
    }
    assert titles(json.dumps(data), "json")[-2:] == ["users[0].name", "users[1]"]
    assert titles(json.dumps(data, indent=2), "json")[0] == "server"
    server = f"server:\n  port: 1\n  note: {long}\n  'more': {long}\n"
    yaml = f"{server}users:\n  - name: {long}\n    age: 3\n"
    assert titles(yaml, "yaml") == ["server", "users"]
    toml = f'[server]\nport = 1\nnote = "{long}"\n\n[[users]]\nname = "{long}"\nage = 3\n'
    assert titles(toml, "toml") == ["server", "users"]


def test_table_passages_name_their_columns_and_rows() -> None:
    text = "id,name\n" + "".join(f'{number},"a\nb {"x" * 200}"\n' for number in range(2, 20))
    pieces = split_passages(text, "csv")
    assert pieces[0].title == "rows 1-8 of id,name"
    assert pieces[1].title == "rows 9-15 of id,name"
    assert (pieces[1].first_line, pieces[1].last_line) == (16, 29)


def test_create_statements_are_passages_of_their_own() -> None:
    text = (
        "-- shop\nCREATE TABLE IF NOT EXISTS a (\n id int\n);\n"
        "insert into a values (1);\ncreate unique index b on a (id);\n"
    )
    assert titles(text, "sql") == ["table a", "", "index b"]
    assert titles("insert into a\n values (1);\ncreate view b as select 1;\n", "sql") == [
        "",
        "view b",
    ]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json", "[" * 200_000),
        ("json", '{"a":' * 100_000 + "1" + "}" * 100_000),
        ("json", '"' + "\\" * 500_001),
        (
            "yaml",
            "a: &a [x, x]\n"
            + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [*a, *a, *a]\n" for n in range(20)),
        ),
        ("yaml", "".join(f"{' ' * n}k{n}:\n" for n in range(1000))),
        ("csv", 'a,b\n1,"' + "cell " * 200_000 + '"\n2,x\n'),
        ("csv", '"' * 100_001 + "\n" * 1000),
        ("markdown", "#" * 100_000 + " x\n" + "=" * 100_000),
        ("markdown", "```" * 50_000),
        ("sql", "create " * 50_000 + ";\n" * 50_000),
        ("toml", "[" * 200_000),
        ("lines", "{}\n" * (MAX_BOUNDARIES + 10)),
        ("text", "a\n\n" * (MAX_BOUNDARIES + 10)),
        ("json", "[" + "1," * 500_000 + "1]"),
    ],
)
def test_hostile_texts_are_split_like_others(kind: str, text: str) -> None:
    pieces = split_passages(text, kind)
    assert sum(piece.end - piece.start for piece in pieces) > 0
    assert max(piece.end - piece.start for piece in pieces) <= MAX_PASSAGE_CHARS


def test_formats_follow_suffixes() -> None:
    names = [
        "a.md",
        "b/C.JSON",
        "x.yml",
        "x.tsv",
        "notes",
        "a.b/c",
        "x.py",
        "schema.sql",
        "x.jsonl",
        "x.cfg",
    ]
    kinds = ["markdown", "json", "yaml", "csv", "text", "text", "text", "sql", "lines", "toml"]
    assert [guess_format(name) for name in names] == kinds
