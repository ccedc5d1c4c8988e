"""For which call a task works."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from mcpruntime_server.journal.call_scope import (
    ENDLESS_ROOM,
    CallScope,
    ReplyRoom,
    begin_call,
    current_reply_room,
    end_call,
    enter_call_scope,
    find_call_scope,
)


class Room:
    """A sandbox that gets no more answers."""

    has_room = False

    async def wait_for_room(self) -> None:
        raise AssertionError


async def refuse_request(request: Any) -> None:
    raise AssertionError


def test_a_task_keeps_nothing_of_a_call_that_it_has_answered() -> None:
    room: ReplyRoom = Room()
    begin_call("me", room)
    scope = CallScope("s_1", "r_1", "me", refuse_request, nullcontext, print, print)
    enter_call_scope(scope)
    assert (find_call_scope(), current_reply_room()) == (scope, room)
    end_call()
    assert (find_call_scope(), current_reply_room()) == (None, ENDLESS_ROOM)
