"""What the pages work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from ..capabilities.skills.saving import SkillSaver
from ..errors import NotFound
from ..journal.rows import RunRow, SessionRow
from ..journal.store import Journal
from ..runtime.run_history import find_own_run
from ..service.api_services import ApiServices
from ..service.authentication import find_principal
from .page_rendering import LIST_REMEDY, PageRenderer, missing_page
from .web_access import WebAccess


@dataclass(frozen=True)
class ViewerServices:
    """What the handlers of pages get: the parts of the server, and how a page is made."""

    api: ApiServices
    find_saver: Callable[[str], SkillSaver]  # of a principal
    access: WebAccess
    renderer: PageRenderer

    @property
    def journal(self) -> Journal:
        """Where everything is recorded."""
        return self.api.runtime.journal

    async def find_session(self, request: Request) -> SessionRow:
        """Return the session of the address, which is the caller's."""
        handle = request.path_params["session"]
        try:
            return await self.journal.find_session(handle, find_principal(request.scope))
        except NotFound:
            raise missing_page("session of that name") from None

    async def find_run(self, request: Request) -> tuple[RunRow, SessionRow]:
        """Return the run of the address and its session; both are the caller's."""
        run_id, principal = request.path_params["run_id"], find_principal(request.scope)
        return await find_own_run(self.journal, run_id, principal, LIST_REMEDY)
