"""Keeps the pieces of large contents that code sends ahead of the call that names them.

The host gets the files of a workspace only at the end of a run, and a call has no room for much
data. So the content of an export, or of the body of a web request, comes with calls of its own.
The pieces are blobs of the journal: a run that a crash has interrupted has them still.

Rule 1: a call can name the pieces that its own run has sent, each as often as it was sent. Blobs
of other runs, sessions and principals are no pieces, even if code knows their digests.
Rule 2: a run can send as many bytes as a workspace holds, on all servers that execute it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

from anyio.to_thread import run_sync

from ..errors import CallFailed, NotFound
from ..journal.call_scope import CallScope, current_call_scope
from ..journal.store import Journal
from ..protocol.payloads import JsonObject

UPLOAD_TARGET = "uploads.piece"
MAX_PIECE_BYTES = 4 * 1024 * 1024
MIN_CHARGE_BYTES = 4096  # of a piece, however small: it is a file of the journal
MAX_KNOWN_RUNS = 1_000


class Uploads:
    """The pieces that runs have sent; a run can send `max_run_bytes`."""

    def __init__(self, journal: Journal, max_run_bytes: int) -> None:
        self._journal = journal
        self._max_run_bytes = max_run_bytes
        self._run_bytes: OrderedDict[str, int] = OrderedDict()  # received, by run

    async def handle_call(self, target: str, args: JsonObject) -> str:
        """Keep a piece and return its digest; raises `CallFailed`."""
        if target != UPLOAD_TARGET:
            raise CallFailed("not_found", f"There is no {target!r:.100}.")
        scope = current_call_scope()
        if len(scope.data) > MAX_PIECE_BYTES:
            raise CallFailed("invalid_arguments", f"A piece has at most {MAX_PIECE_BYTES:,} bytes.")
        if scope.run_id not in self._run_bytes:
            recorded = await self._count_recorded_bytes(scope)
            self._run_bytes.setdefault(scope.run_id, recorded)
        received = self._run_bytes.pop(scope.run_id)
        self._run_bytes[scope.run_id] = received  # as the run seen last
        if len(self._run_bytes) > MAX_KNOWN_RUNS:
            self._run_bytes.popitem(last=False)
        received += max(len(scope.data), MIN_CHARGE_BYTES)
        if received > self._max_run_bytes:
            raise CallFailed(
                "too_large",
                f"A run can send {self._max_run_bytes:,} bytes of files and of large bodies, as "
                "many as its workspace holds.",
                remedy="Send less, or raise [sandbox] workspace_mb.",
            )
        self._run_bytes[scope.run_id] = received
        return await self._journal.put_blob(scope.data)

    async def check_pieces(self, pieces: Sequence[str]) -> None:
        """Raise `CallFailed` unless the run of the current call has sent these pieces."""
        sent = await self._load_sent_pieces(current_call_scope())
        if unknown := Counter(pieces) - Counter(sent):
            raise CallFailed(
                "invalid_arguments",
                f"This run has not sent the piece {next(iter(unknown)):.80} so often.",
                remedy="Send the content of a call in the run that makes the call.",
            )

    async def _load_sent_pieces(self, scope: CallScope) -> list[str]:
        return await self._journal.load_call_texts(scope.session_id, scope.run_id, UPLOAD_TARGET)

    async def _count_recorded_bytes(self, scope: CallScope) -> int:
        """Return what a run has sent to an earlier server, or long ago."""
        pieces = await self._load_sent_pieces(scope)
        return await run_sync(lambda: sum(map(self._charge_stored_piece, pieces)))

    def _charge_stored_piece(self, digest: str) -> int:
        try:
            size = self._journal.blobs.blob_path(digest).stat().st_size
        except (NotFound, OSError):
            size = 0
        return max(size, MIN_CHARGE_BYTES)


def list_pieces(answer: Any) -> list[str]:
    """Return the blob that the answer to a piece names."""
    return [answer] if isinstance(answer, str) else []
