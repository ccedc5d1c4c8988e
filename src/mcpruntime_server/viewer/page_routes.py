"""All addresses of the viewer, in one table: what handles each, and who may use it.

`/ui/api` has the routes of the HTTP API for browsers that are logged in: the same handlers, scopes
and answers, with a cookie instead of a bearer token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, request_response

from ..capabilities.skills.saving import SkillSaver
from ..config.scopes import Scope
from ..service.api import answer_errors, bind_api_handlers, end_with_client
from ..service.api_services import ApiServices
from ..service.authentication import Authentication
from ..service.method_routes import join_methods
from .approval_pages import ApprovalPages
from .browser_logins import BrowserLogins
from .compression import compress
from .file_pages import FilePages
from .page_rendering import STATIC_PATH, PageRenderer
from .rerun_pages import RerunPages
from .saving_pages import SavingPages
from .session_pages import SessionListPages
from .skill_pages import SkillPages
from .step_lists import StepLists
from .step_pages import StepPages
from .variable_sources import VariableSources
from .viewer_services import ViewerServices
from .web_access import LOGIN_PATH, PageHandler, WebAccess

API_PREFIX = "/ui/api"
SESSION_PATH = "/s/{session}"
STEP_PATH = "/s/{session}/{run_id}"
READ: tuple[Scope, ...] = ("read",)
RUN: tuple[Scope, ...] = ("run",)


@dataclass(frozen=True)
class PageRoute:
    """An address of the viewer: `handler` is a method of its `owner`.

    `is_page` says that people see it, errors included; `ends_with_client`, that work which may take
    long is not done for a browser that has left.
    """

    path: str
    owner: Callable[[ViewerServices], Any]
    handler: Callable[[Any, Request], Awaitable[Response]]
    scopes: tuple[Scope, ...] = READ
    method: str = "GET"
    is_page: bool = True
    is_compressed: bool = False
    ends_with_client: bool = False


PAGE_ROUTES = (
    PageRoute("/", SessionListPages, SessionListPages.show_sessions),
    PageRoute(SESSION_PATH, StepPages, StepPages.show_session),
    PageRoute(
        f"{SESSION_PATH}/steps",
        StepLists,
        StepLists.list_steps,
        is_page=False,
        is_compressed=True,
    ),
    PageRoute(
        f"{SESSION_PATH}/steps/rows",
        StepLists,
        StepLists.list_rows,
        is_page=False,
        is_compressed=True,
    ),
    PageRoute(f"{SESSION_PATH}/rerun", RerunPages, RerunPages.rerun, RUN, "POST", is_page=False),
    PageRoute(f"{SESSION_PATH}/changes", StepPages, StepPages.follow_session, is_page=False),
    PageRoute(STEP_PATH, StepPages, StepPages.show_step),
    PageRoute(f"{STEP_PATH}/panel", StepPages, StepPages.show_panel, is_compressed=True),
    PageRoute(
        f"{STEP_PATH}/output",
        StepPages,
        StepPages.show_output,
        is_compressed=True,
        ends_with_client=True,
    ),
    PageRoute(
        f"{STEP_PATH}/output/size",
        StepPages,
        StepPages.measure_output,
        is_page=False,
        ends_with_client=True,
    ),
    PageRoute(f"{STEP_PATH}/media/{{number:int}}", StepPages, StepPages.send_media),
    PageRoute(f"{STEP_PATH}/file", FilePages, FilePages.download_file),
    PageRoute(f"{STEP_PATH}/diff", FilePages, FilePages.show_diff, is_compressed=True),
    PageRoute(
        f"{STEP_PATH}/sources",
        VariableSources,
        VariableSources.list_sources,
        is_page=False,
        is_compressed=True,
    ),
    PageRoute(
        f"{STEP_PATH}/skill", SavingPages, SavingPages.preview_skill, RUN, is_compressed=True
    ),
    PageRoute(
        f"{STEP_PATH}/skill", SavingPages, SavingPages.save_skill, RUN, "POST", is_page=False
    ),
    PageRoute("/skills", SkillPages, SkillPages.show_skills),
    PageRoute("/skills/{name}", SkillPages, SkillPages.show_skill),
    PageRoute("/skills/{name}/state", SkillPages, SkillPages.change_state, RUN, "POST", False),
    PageRoute("/approvals", ApprovalPages, ApprovalPages.show_queue),
    PageRoute("/approvals/count", ApprovalPages, ApprovalPages.count_questions, is_page=False),
    PageRoute("/approvals/changes", ApprovalPages, ApprovalPages.follow_queue, is_page=False),
)


def bind_page_handlers(services: ViewerServices) -> list[tuple[PageRoute, PageHandler]]:
    """Return every route of a page, or a part of one, with its handler."""
    owners = {owner: owner(services) for owner in {each.owner for each in PAGE_ROUTES}}
    bound = []
    for each in PAGE_ROUTES:
        handler: PageHandler = partial(each.handler, owners[each.owner])
        if not each.is_page:
            handler = answer_errors(handler)
        if each.ends_with_client:
            handler = end_with_client(handler)
        bound.append((each, compress(handler) if each.is_compressed else handler))
    return bound


def build_page_routes(
    api: ApiServices,
    find_saver: Callable[[str], SkillSaver],
    logins: BrowserLogins,
    authentication: Authentication,
    *,
    needs_token: bool,
) -> Sequence[BaseRoute]:
    """Return the routes of the viewer for the application."""
    renderer = PageRenderer()
    access = WebAccess(authentication, logins, renderer, needs_token=needs_token)
    services = ViewerServices(api, find_saver, access, renderer)
    pages = (
        (each.path, each.method, access.protect(handler, each.scopes, is_page=each.is_page))
        for each, handler in bind_page_handlers(services)
    )
    api_routes = (
        (
            f"{API_PREFIX}{each.path}",
            each.method,
            access.protect(handler, each.scopes, is_page=False),
        )
        for each, handler in bind_api_handlers(api)
    )
    open_to_all = (
        (LOGIN_PATH, "GET", request_response(access.show_login)),
        (LOGIN_PATH, "POST", request_response(access.log_in)),
        ("/logout", "POST", request_response(access.log_out)),
        ("/ui/login", "GET", request_response(access.tell_login)),
        (
            f"{STATIC_PATH}/{{version}}/{{name}}",
            "GET",
            request_response(compress(renderer.send_static)),
        ),
    )
    return join_methods([*pages, *api_routes, *open_to_all])
