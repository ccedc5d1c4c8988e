"""Search over tools: what is found, and in which order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.capabilities.full_text import split_words
from mcpruntime_server.capabilities.tools.tool_index import ToolIndex

ROWS = [
    ("git", "git_log", "Shows the commit logs", "repo_path max_count"),
    ("git", "git_commit", "Records changes to the repository", "repo_path message"),
    ("files", "searchFiles", "Finds files by pattern", "path pattern"),
    ("mail", "send", "Sends a message to somebody about a commit", "recipient"),
]


def index() -> ToolIndex:
    made = ToolIndex()
    for server in ("git", "files", "mail"):
        made.replace_server(server, [row for row in ROWS if row[0] == server])
    return made


def test_a_name_counts_more_than_a_description() -> None:
    assert index().search("commit", 10)[0] == ("git", "git_commit")
    assert len(index().search("commit", 10)) == 3


def test_words_match_by_stem_and_by_beginning_and_in_parameters() -> None:
    assert index().search("searching", 10) == [("files", "searchFiles")]
    assert index().search("patt", 10) == [("files", "searchFiles")]
    assert index().search("recipient", 10) == [("mail", "send")]
    assert index().search("search_files", 1) == [("files", "searchFiles")]


def test_a_server_can_be_replaced_and_the_number_found_is_limited() -> None:
    made = index()
    made.replace_server("git", [])
    assert made.search("commit", 10) == [("mail", "send")]
    assert len(index().search("commit", 1)) == 1


def test_names_are_taken_apart() -> None:
    assert split_words("getHTTPUrl-for_allItems 2") == [
        "get",
        "HTTPUrl",
        "for",
        "all",
        "Items",
        "2",
    ]


@given(st.text())
def test_no_query_is_an_error(query: str) -> None:
    assert isinstance(index().search(query, 10), list)


def test_syntax_in_a_query_is_only_text() -> None:
    for query in (
        '"',
        "a AND",
        "NEAR(",
        "name:git",
        "*",
        "-",
        "NOT x",
        "a" * 100_000,
        "x " * 10_000,
    ):
        index().search(query, 10)
