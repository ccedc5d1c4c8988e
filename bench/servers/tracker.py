"""An issue tracker: issues are searched by words, read, assigned and commented on."""

from __future__ import annotations

from typing_extensions import TypedDict

from .base import StatefulServer, find_record

server = StatefulServer("tracker")
MAX_FOUND = 20


class Issue(TypedDict):
    """An issue with its comments; `assignee` is "" if it has none."""

    id: int
    title: str
    body: str
    is_open: bool
    assignee: str
    comments: list[str]


@server.tool(reads=True)
async def search_issues(words: str, is_open: bool = True) -> list[Issue]:
    """Return the first 20 issues whose title or body has all words; capitals do not matter."""
    wanted = words.lower().split()
    found: list[Issue] = [
        each
        for each in server.read_state()["issues"]
        if each["is_open"] == is_open
        and all(word in f"{each['title']} {each['body']}".lower() for word in wanted)
    ]
    return found[:MAX_FOUND]


@server.tool()
async def assign_issue(id: int, assignee: str) -> bool:
    """Assign an issue to a person."""
    with server.change_state() as state:
        find_record(state["issues"], "id", id)["assignee"] = assignee
    return True


@server.tool()
async def comment_on_issue(id: int, text: str) -> int:
    """Add a comment to an issue and return how many it has."""
    with server.change_state() as state:
        comments: list[str] = find_record(state["issues"], "id", id)["comments"]
        comments.append(text)
        return len(comments)


if __name__ == "__main__":
    server.run()
