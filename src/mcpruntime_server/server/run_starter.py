"""Starts runs for requests, whatever protocol they came by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..capabilities.inputs.sources import resolve_context
from ..capabilities.inputs.store import InputStore
from ..config import SandboxSettings
from ..errors import InvalidRequest
from ..runtime.run import Run
from ..runtime.runtime import Runtime
from ..runtime.session import Session


class RunStarter:
    """Starts runs in sessions that are open."""

    def __init__(self, settings: SandboxSettings, runtime: Runtime, inputs: InputStore) -> None:
        self._settings = settings
        self._runtime = runtime
        self._inputs = inputs

    async def start_run(
        self,
        session: Session,
        code: str,
        timeout_s: float | None,
        idempotency_key: str | None,
        *,
        detached: bool,
        dry_run: bool,
        shows_pages: bool = False,
        context: Sequence[Any] | None,
    ) -> Run:
        """Start a run, or return the one that the same request has started; see `Session`.

        Nothing is awaited before `session` is used.
        """
        inputs = None
        if context is not None:
            with session.keep_open():
                await self._runtime.wait_for_files(session.id)
                inputs = await resolve_context(self._inputs, context, session.tip)
        most_s = self._settings.max_timeout_s
        if timeout_s is not None and timeout_s > most_s:
            raise InvalidRequest(
                f"A run may take at most {most_s:g} s, and {timeout_s:g} s were requested.",
                remedy="Do it in several runs, or raise `max_timeout_s` under [sandbox].",
            )
        return session.start_run(
            code,
            timeout_s or self._settings.timeout_s,
            idempotency_key,
            detached=detached,
            dry_run=dry_run,
            shows_pages=shows_pages,
            context=inputs,
        )
