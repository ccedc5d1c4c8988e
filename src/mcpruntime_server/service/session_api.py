"""The routes for sessions: lists, files, and going back, forking and executing again."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from ..errors import NotFound
from ..journal.events import FileEntry
from ..journal.progress import ReportProgress, ignore_progress
from ..journal.rows import RunRow, SessionRow
from ..runtime import time_travel
from ..runtime.run import Run
from ..runtime.run_history import load_recorded_run
from ..runtime.runtime import Runtime
from ..server.replay_tool import describe_writes
from ..server.session_resolver import CLIENT_PURPOSES
from ..server.workspace_resources import guess_type
from .api_models import (
    FileDocument,
    FilePage,
    FileQuery,
    FilesQuery,
    ForkRequest,
    PositionDocument,
    RerunComparison,
    RerunDocument,
    RerunRequest,
    RewindRequest,
    SessionDocument,
    SessionPage,
    SessionsQuery,
)
from .api_services import ApiServices
from .authentication import find_principal
from .documents import build_run_document, build_run_summary, build_session_summary
from .file_response import build_file_response
from .requests import document_response, read_body, read_query

MAX_LISTED_RUNS = 500
BEGINNING_TIER = "parked"  # of a session before its first step: nothing has to be restored


class SessionApi:
    """The handlers of the routes."""

    def __init__(self, services: ApiServices) -> None:
        self._runtime = services.runtime
        self._journal = services.runtime.journal
        self._package_names = services.package_names

    # reading ------------------------------------------------------------------------------------

    async def list_sessions(self, request: Request) -> Response:
        """Return a page of sessions, the last used first."""
        query = read_query(request, SessionsQuery)
        before = None if query.cursor is None else decode_cursor(query.cursor)
        principal = find_principal(request.scope)
        rows = await self._journal.page_sessions(
            principal, CLIENT_PURPOSES, before, query.limit + 1
        )
        shown = rows[: query.limit]
        page = SessionPage(
            sessions=[build_session_summary(row) for row in shown],
            next_cursor=encode_cursor(shown[-1]) if len(rows) > len(shown) else None,
        )
        return document_response(page)

    async def show_session(self, request: Request) -> Response:
        """Return a session with its last runs."""
        row = await self._find_session(request)
        tip = await self._journal.load_run(row.tip) if row.tip else None
        runs = await self._journal.list_runs(row.id)
        summary = build_session_summary(row)
        document = SessionDocument(
            **summary.model_dump(),
            tip=row.tip,
            step=tip.step if tip else 0,
            runs=[build_run_summary(each) for each in runs[-MAX_LISTED_RUNS:]],
        )
        return document_response(document)

    async def list_files(self, request: Request) -> Response:
        """Return a page of the files in the workspace of a session."""
        query = read_query(request, FilesQuery)
        row, target, files, lost = await self._load_files(request, query.run)
        paths = sorted(path for path in files if query.after is None or path > query.after)
        shown = paths[: query.limit]
        page = FilePage(
            session=row.id,
            run=None if target is None else target.id,
            files=[
                FileDocument(
                    path=path,
                    size=files[path]["size"],
                    digest=files[path]["digest"],
                    mime_type=guess_type(path),
                )
                for path in shown
            ],
            next_after=shown[-1] if len(paths) > len(shown) else None,
            runs_with_lost_files=lost,
        )
        return document_response(page)

    async def read_file(self, request: Request) -> Response:
        """Return the content of a workspace file."""
        query, path = read_query(request, FileQuery), request.path_params["path"]
        row, _, files, _ = await self._load_files(request, query.run)
        if path not in files:
            raise NotFound(
                f"The workspace of session {row.id} has no file {path!r:.200}.",
                remedy=f"GET /sessions/{row.id}/files lists the files.",
            )
        return await build_file_response(request, self._journal, path, files[path])

    async def _load_files(
        self, request: Request, run_id: str | None
    ) -> tuple[SessionRow, RunRow | None, Mapping[str, FileEntry], list[str]]:
        """Return a session, a run of it (the tip, if none is named), and the files at its end."""
        row = await self._find_session(request)
        await self._runtime.wait_for_files(row.id)
        row = await self._find_session(request)
        target = await time_travel.find_target(self._journal, row, None, run_id)
        files, lost = await self._journal.load_files_at(target.id if target else None, [])
        return row, target, files, lost

    async def _find_session(self, request: Request) -> SessionRow:
        """Return the session of the address, which has its id or its name."""
        handle = request.path_params["session"]
        try:
            return await self._journal.find_session(handle, find_principal(request.scope))
        except NotFound:
            raise NotFound(
                f"There is no session {handle!r:.80}.", remedy="GET /sessions lists the sessions."
            ) from None

    # what changes it ------------------------------------------------------------------------------

    async def rewind_session(self, request: Request) -> Response:
        """Continue a session from another step."""
        row = await self._find_session(request)
        body = await read_body(request, RewindRequest)
        session = await self._runtime.find_session(row.id, row.principal)
        rewound = await time_travel.rewind_session(
            self._runtime, session, body.step, body.run, cancel=body.cancel
        )
        not_undone = describe_writes(rewound.remaining_writes)
        return document_response(await self._describe_position(row, rewound.run, not_undone))

    async def delete_session(self, request: Request) -> Response:
        """Delete a session with everything that is recorded of it."""
        await self._runtime.delete_session(await self._find_session(request))
        return Response(status_code=204)

    async def fork_session(self, request: Request) -> Response:
        """Create a session that starts from a step of this one."""
        row = await self._find_session(request)
        body = await read_body(request, ForkRequest)
        session = await time_travel.fork_session(
            self._runtime, row, body.step, body.run, body.name, row.principal
        )
        forked, tip = (
            await self._journal.load_session(session.id),
            await self._journal.load_run(str(session.tip)),
        )
        document = await self._describe_position(forked, tip)
        return document_response(document, 201, {"Location": f"/sessions/{session.id}"})

    async def _describe_position(
        self, session: SessionRow, at: RunRow | None, not_undone: list[str] | None = None
    ) -> PositionDocument:
        tier = BEGINNING_TIER
        if at is not None:
            tier = await time_travel.restore_tier(self._runtime, at)
        return PositionDocument.model_validate(
            {
                "session": session.id,
                "name": session.name,
                "run": None if at is None else at.id,
                "step": 0 if at is None else at.step,
                "tier": tier,
                "not_undone": not_undone or [],
            }
        )

    async def rerun_session(self, request: Request) -> Response:
        """Execute a step again, or all of them, and compare with the recording."""
        row = await self._find_session(request)
        body = await read_body(request, RerunRequest)
        time_travel.check_live_targets(body.live, self._package_names())
        return document_response(await rerun_steps(self._runtime, row, body))


async def rerun_steps(
    runtime: Runtime,
    row: SessionRow,
    body: RerunRequest,
    report: ReportProgress = ignore_progress,
) -> RerunDocument:
    """Execute steps of a session again, in a session of their own, and report which one it is."""
    journal = runtime.journal
    await runtime.wait_for_files(row.id)
    targets = await time_travel.find_rerun_targets(
        journal,
        row,
        body.step,
        body.run,
        only_last=body.code is not None or bool(body.answers),
        following=body.following,
    )
    waiting = list(targets)

    async def watch(run: Run) -> None:
        number = len(targets) - len(waiting) + 1
        part = f", {number} of {len(targets)}" if len(targets) > 1 else ""
        report(f"Step {waiting.pop(0).step} is executed again{part}.")
        await wait_or_cancel(run)

    rerun = await time_travel.rerun_runs(
        runtime,
        targets,
        row.principal,
        code=body.code,
        answers=[time_travel.ChangedAnswer(**each.model_dump()) for each in body.answers],
        changed=0 if body.following else -1,
        live=body.live,
        watch=watch,
    )
    scratch = await journal.load_session(rerun.session.id)
    runs = []
    for made in rerun.reports:
        recorded = await load_recorded_run(journal, await journal.load_run(made.run_id))
        runs.append(build_run_document(recorded.row, scratch, made, recorded.code))
    return RerunDocument(
        session=scratch.id,
        runs=runs,
        comparisons=[
            RerunComparison(run=run, differences=names) for run, names in rerun.differences.items()
        ],
    )


async def wait_or_cancel(run: Run) -> None:
    """Wait until a run has finished; it is cancelled if nobody waits for it any more."""
    try:
        await run.wait_until_finished()
    finally:
        run.cancel()


def encode_cursor(row: SessionRow) -> str:
    """Return the cursor of the page that follows a session."""
    return f"{row.last_used_at!r}~{row.id}"


def decode_cursor(cursor: str) -> tuple[float, str]:
    """Return when the last session of a page was used, and its id."""
    time, _, session_id = cursor.partition("~")
    return float(time), session_id
