"""What an upstream sends although nobody has asked for it: requests, notifications, odd answers.

Rule 1: what nobody here would use is dropped before the SDK sees it: progress and log messages,
cancellations, answers to requests that nobody has made. The SDK starts a task for each message.
Rule 2: everything costs something, and an upstream may spend so much per second. Past that, nobody
reads what it writes until it has saved enough: it waits in `write`, and the server has no queue.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp import MCPError, types

from .message_limits import LARGE_BYTES, LIMIT_ERROR_CODE, MessageLimits
from .repeatable_event import RepeatableEvent

BURST_S = 0.1  # an upstream that was silent may spend so much at once
DROPPED_COST = 0.05  # messages; the SDK takes some fifty times as long as dropping one
BYTES_PER_COST = 100_000
MAX_OPEN_REQUESTS = 1_000  # of the SDK, whose answers are waited for
MAX_ID_CHARS = 256
UNUSED_METHODS = {
    f"notifications/{name}"
    for name in (
        "cancelled",
        "message",
        "progress",
        "prompts/list_changed",
        "resources/list_changed",
        "resources/updated",
    )
}
STREAM_FAILED_PREFIX = "SSE stream failed"  # of the SDK's message if reading a stream raises
TOOLS_CHANGED = "notifications/tools/list_changed"

logger = logging.getLogger(__name__)


@dataclass
class MessageBudget:
    """How many messages an upstream may still send that nobody has asked for."""

    per_second: float
    is_exceeded: bool = False  # at any time on this connection
    _left: float = field(init=False)
    _counted_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._left = self._most
        self._counted_at = time.monotonic()

    @property
    def _most(self) -> float:
        return max(1.0, self.per_second * BURST_S)

    def charge(self, messages: float) -> None:
        """Spend so much."""
        self._left -= messages

    def wait_s(self) -> float:
        """Return the seconds until the upstream may be read again; 0 if it may be read now."""
        if self._left > 0:
            return 0.0
        now = time.monotonic()
        self._left += (now - self._counted_at) * self.per_second
        self._left, self._counted_at = min(self._left, self._most), now
        if self._left > 0:
            return 0.0
        self.is_exceeded = True
        return (BURST_S / 2) - self._left / self.per_second


class MessageFilter:
    """Decides for one connection which messages reach the SDK, and how fast."""

    def __init__(self, limits: MessageLimits, upstream: str = "") -> None:
        self.limits = limits
        self.budget = MessageBudget(limits.messages_per_s)
        self.tools_changed = RepeatableEvent()
        self.invalid_messages = 0
        self.last_problem: ValueError | None = None  # of an answer to the SDK that was refused
        self.stream_problem: ValueError | None = None  # for which an event stream was ended here
        self._upstream = upstream
        self._open_requests: OrderedDict[int | str, None] = OrderedDict()
        self._is_logged = False

    def expect_answer(self, request_id: int | str) -> None:
        """Let the answer to a request of the SDK pass."""
        self._open_requests[request_id] = None
        if len(self._open_requests) > MAX_OPEN_REQUESTS:
            self._open_requests.popitem(last=False)

    @property
    def oldest_request(self) -> int | str | None:
        """The request of the SDK that has waited longest."""
        return next(iter(self._open_requests), None)

    def expects_answer(self, request_id: int | str) -> bool:
        """Return whether a request of the SDK waits for an answer."""
        return request_id in self._open_requests

    def takes_answer(self, request_id: Any) -> bool:
        """Return whether a request of the SDK waits for this answer, which is then the only one."""
        if isinstance(request_id, str) and request_id.isdecimal() and len(request_id) < 20:
            request_id = int(request_id)  # some servers answer a number with its digits
        if type(request_id) not in (int, str) or request_id not in self._open_requests:
            return False
        del self._open_requests[request_id]
        return True

    def admits(self, message: Any, size: int) -> bool:
        """Return whether the SDK gets a message of `size` bytes."""
        if not isinstance(message, Mapping):
            return self.refuse_line(size)
        method, request_id = message.get("method"), message.get("id")
        if method is None and self.takes_answer(request_id):
            return True
        passes = size <= LARGE_BYTES and self._is_useful(method, message)
        self.budget.charge((1.0 if passes else DROPPED_COST) + size / BYTES_PER_COST)
        return passes

    def refuse_line(self, size: int) -> bool:
        """Count a line that is not a message, and return False."""
        self.invalid_messages += 1
        self.budget.charge(DROPPED_COST + size / BYTES_PER_COST)
        return False

    def _is_useful(self, method: Any, message: Mapping[str, Any]) -> bool:
        request_id, params = message.get("id"), message.get("params")
        if not isinstance(method, str) or method in UNUSED_METHODS:
            return False
        if method == TOOLS_CHANGED and not (isinstance(params, Mapping) and params.get("_meta")):
            self.tools_changed.set()  # many announce no more than one does
            return False
        return not isinstance(request_id, str) or len(request_id) <= MAX_ID_CHARS

    def find_problem(self, error: Exception) -> ValueError | None:
        """Return why an answer to the SDK was refused here, if that is what `error` says."""
        if not isinstance(error, MCPError):
            return None
        if error.code == types.CONNECTION_CLOSED and error.message.startswith(STREAM_FAILED_PREFIX):
            return self.stream_problem
        problem = self.last_problem
        is_refusal = error.code == LIMIT_ERROR_CODE and str(problem) == error.message
        return problem if is_refusal else None

    def wait_s(self) -> float:
        """Return the seconds until the upstream may be read again."""
        seconds = self.budget.wait_s()
        if seconds and not self._is_logged:
            self._is_logged = True
            logger.warning(
                "the upstream %s sends more than %g messages a second that nobody has asked for; "
                "it is read more slowly",
                self._upstream,
                self.limits.messages_per_s,
            )
        return seconds
