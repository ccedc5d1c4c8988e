"""All addresses of the viewer, in one table: what handles each, and who may use it.

`/ui/api` has the routes of the HTTP API for browsers that are logged in: the same handlers, scopes
and answers, with a cookie instead of a bearer token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.routing import BaseRoute, request_response

from ..capabilities.skills.saving import SkillSaver
from ..config.scopes import Scope
from ..service.api import bind_api_handlers
from ..service.api_services import ApiServices
from ..service.authentication import Authentication
from ..service.method_routes import join_methods
from .approval_pages import ApprovalPages
from .browser_logins import BrowserLogins
from .compression import compress
from .file_pages import FilePages
from .page_rendering import STATIC_PATH, PageRenderer
from .saving_pages import SavingPages
from .session_pages import SessionListPages
from .skill_pages import SkillPages
from .step_lists import StepLists
from .step_pages import StepPages
from .variable_sources import VariableSources
from .viewer_services import ViewerServices
from .web_access import LOGIN_PATH, PageHandler, WebAccess

API_PREFIX = "/ui/api"
READ: tuple[Scope, ...] = ("read",)
RUN: tuple[Scope, ...] = ("run",)


@dataclass(frozen=True)
class PageRoute:
    """An address of the viewer; `is_page` says that people see it, errors included."""

    path: str
    handler: PageHandler
    scopes: tuple[Scope, ...] = READ
    method: str = "GET"
    is_page: bool = True


def list_page_routes(services: ViewerServices) -> list[PageRoute]:
    """Return the addresses of all pages and of their parts."""
    sessions, steps, lists = SessionListPages(services), StepPages(services), StepLists(services)
    approvals, files, skills = ApprovalPages(services), FilePages(services), SkillPages(services)
    saving, sources = SavingPages(services), VariableSources(services)
    session_path, step_path = "/s/{session}", "/s/{session}/{run_id}"
    return [
        PageRoute("/", sessions.show_sessions),
        PageRoute(session_path, steps.show_session),
        PageRoute(f"{session_path}/steps", compress(lists.list_steps), is_page=False),
        PageRoute(f"{session_path}/steps/rows", compress(lists.list_rows), is_page=False),
        PageRoute(f"{session_path}/changes", steps.follow_session, is_page=False),
        PageRoute(step_path, steps.show_step),
        PageRoute(f"{step_path}/panel", compress(steps.show_panel)),
        PageRoute(f"{step_path}/output", compress(steps.show_output)),
        PageRoute(f"{step_path}/output/size", steps.measure_output, is_page=False),
        PageRoute(f"{step_path}/file", files.download_file),
        PageRoute(f"{step_path}/diff", compress(files.show_diff)),
        PageRoute(f"{step_path}/sources", compress(sources.list_sources), is_page=False),
        PageRoute(f"{step_path}/skill", compress(saving.preview_skill), RUN),
        PageRoute(f"{step_path}/skill", saving.save_skill, RUN, "POST", is_page=False),
        PageRoute("/skills", skills.show_skills),
        PageRoute("/skills/{name}", skills.show_skill),
        PageRoute("/skills/{name}/state", skills.change_state, RUN, "POST", is_page=False),
        PageRoute("/approvals", approvals.show_queue),
        PageRoute("/approvals/count", approvals.count_questions, is_page=False),
        PageRoute("/approvals/changes", approvals.follow_queue, is_page=False),
        PageRoute(f"{step_path}/media/{{number:int}}", steps.send_media),
    ]


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
        (each.path, each.method, access.protect(each.handler, each.scopes, is_page=each.is_page))
        for each in list_page_routes(services)
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
