"""Search over tools: what is found, and in which order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.capabilities.full_text import split_words
from mcpruntime_server.capabilities.tools.tool_index import ToolIndex, ToolRow


def row(server: str, tool: str, summary: str = "", parameters: str = "", **more: str) -> ToolRow:
    texts = {"description": "", "notes": "", **more}
    return ToolRow(server, tool, summary, parameters=parameters, **texts)


ROWS = [
    row("git", "git_log", "Shows the commit logs", "repo_path max_count"),
    row("git", "git_commit", "Records changes to the repository", "repo_path message"),
    row("files", "searchFiles", "Finds files by pattern", "path pattern"),
    row("mail", "send", "Sends a message to somebody about a commit", "recipient"),
]


def index() -> ToolIndex:
    made = ToolIndex()
    for server in ("git", "files", "mail"):
        made.replace_server(server, [each for each in ROWS if each.server == server])
    return made


def test_a_name_counts_more_than_a_description() -> None:
    assert index().search("commit", 10)[0] == ("git", "git_commit")
    assert len(index().search("commit", 10)) == 3


def test_words_match_by_stem_and_by_beginning_and_in_parameters() -> None:
    assert index().search("searching", 10) == [("files", "searchFiles")]
    assert index().search("patt", 10) == [("files", "searchFiles")]
    assert index().search("recipient", 10) == [("mail", "send")]
    assert index().search("search_files", 1) == [("files", "searchFiles")]


def build_index(*rows: ToolRow) -> ToolIndex:
    made = ToolIndex()
    for server in {each.server for each in rows}:
        made.replace_server(server, [each for each in rows if each.server == server])
    return made


def test_a_long_description_does_not_make_a_name_count_less() -> None:
    made = build_index(
        row("a", "delete_branch", "Removes it.", description="Some other words. " * 200),
        row("a", "list_commits", "Shows what each branch has."),
    )
    assert made.search("branch", 1) == [("a", "delete_branch")]


def test_small_words_of_a_question_do_not_count() -> None:
    made = build_index(
        row("a", "notify", "How do I tell you what is in it and to whom it is for."),
        row("a", "create_invoice", "Creates an invoice"),
    )
    assert made.search("how do I create an invoice for you", 5) == [("a", "create_invoice")]
    assert made.search("what is it", 5) == [("a", "notify")]


def test_a_server_that_the_query_names_comes_first() -> None:
    made = build_index(row("jira", "create_issue"), row("github_api", "create_issue"))
    assert made.search("create issue jira", 1) == [("jira", "create_issue")]
    assert made.search("create github api issue", 1) == [("github_api", "create_issue")]


def test_plurals_and_other_forms_of_a_word_match() -> None:
    made = build_index(row("a", "get_entities"), row("a", "createDeletionRequest"))
    assert made.search("entity", 1) == [("a", "get_entities")]
    assert made.search("deletes requested", 1) == [("a", "createDeletionRequest")]


def test_what_is_said_about_parameters_is_found_after_all_else() -> None:
    made = build_index(
        row("a", "export", notes="the currency of the amounts"), row("a", "convert", "Any currency")
    )
    assert made.search("currency", 5) == [("a", "convert"), ("a", "export")]


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
