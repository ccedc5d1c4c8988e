"""Steps that are executed again from a page, which shows which one it is and can cancel them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ..journal.progress import ReportProgress
from ..runtime.time_travel import check_live_targets
from ..service.api_models import RerunRequest
from ..service.requests import read_body
from ..service.session_api import rerun_steps
from .progress_stream import ProgressResponse
from .viewer_services import ViewerServices


class RerunPages:
    """The handler of what a dialog sends."""

    def __init__(self, services: ViewerServices) -> None:
        self._services = services

    async def rerun(self, request: Request) -> Response:
        """Execute steps again, and stream which one it is and what is different."""
        row = await self._services.find_session(request)
        body = await read_body(request, RerunRequest)
        api = self._services.api
        check_live_targets(body.live, api.package_names())

        async def execute(report: ReportProgress) -> str:
            return (await rerun_steps(api.runtime, row, body, report)).model_dump_json()

        return ProgressResponse(execute, api.is_stopping)
