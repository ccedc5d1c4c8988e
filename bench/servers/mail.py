"""A mailbox: folders in pages, messages, and an outbox that accepts known addresses only."""

from __future__ import annotations

from typing_extensions import TypedDict

from .base import StatefulServer, ToolError, find_record, next_id

server = StatefulServer("mail")
PAGE_SIZE = 10


class MessageInfo(TypedDict):
    """What a list shows of a message."""

    id: int
    sender: str
    subject: str
    is_read: bool


class MessagePage(TypedDict):
    """Some messages; `next_page` is 0 on the last page."""

    messages: list[MessageInfo]
    next_page: int


class Message(TypedDict):
    """A whole message."""

    id: int
    folder: str
    sender: str
    subject: str
    body: str
    is_read: bool


class SentMessage(TypedDict):
    """A message that was sent."""

    id: int
    to: str
    subject: str
    body: str


@server.tool(reads=True)
async def list_messages(folder: str = "inbox", page: int = 1) -> MessagePage:
    """Return the messages of a folder, the newest first, ten on a page."""
    found: list[MessageInfo] = [
        {key: each[key] for key in ("id", "sender", "subject", "is_read")}  # type: ignore[misc]
        for each in server.read_state()["messages"]
        if each["folder"] == folder
    ]
    here = found[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
    return {"messages": here, "next_page": page + 1 if len(found) > page * PAGE_SIZE else 0}


@server.tool(reads=True)
async def read_message(id: int) -> Message:
    """Return a whole message; this does not mark it as read."""
    found: Message = find_record(server.read_state()["messages"], "id", id)  # type: ignore[assignment]
    return found


@server.tool()
async def mark_read(id: int) -> bool:
    """Mark a message as read."""
    with server.change_state() as state:
        find_record(state["messages"], "id", id)["is_read"] = True
    return True


@server.tool()
async def move_message(id: int, folder: str) -> bool:
    """Move a message into a folder; fails if the folder does not exist."""
    with server.change_state() as state:
        if folder not in state["folders"]:
            raise ToolError(f"There is no folder {folder!r}: {', '.join(state['folders'])}.")
        find_record(state["messages"], "id", id)["folder"] = folder
    return True


@server.tool()
async def send_message(to: str, subject: str, body: str) -> SentMessage:
    """Send a message; fails if the address is not in the contacts."""
    with server.change_state() as state:
        if to not in state["contacts"]:
            raise ToolError(f"The address {to!r} is not in the contacts.")
        sent = state["sent"]
        message: SentMessage = {"id": next_id(sent), "to": to, "subject": subject, "body": body}
        sent.append(message)
    return message


@server.tool(reads=True)
async def list_contacts() -> list[str]:
    """Return all addresses."""
    result: list[str] = server.read_state()["contacts"]
    return result


if __name__ == "__main__":
    server.run()
