"""One route for each path, so that the answer to a method that it lacks names all that it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send


class MethodDispatcher:
    """The applications of one path, by method."""

    def __init__(self, apps: Mapping[str, ASGIApp]) -> None:
        self._apps = apps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application of its method; HEAD is answered as GET is."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await self._apps[method](scope, receive, send)


def join_methods(rows: Iterable[tuple[str, str, ASGIApp]]) -> list[Route]:
    """Return a route for each path in `rows`, which have a path, a method and an application."""
    by_path: dict[str, dict[str, ASGIApp]] = {}
    for path, method, app in rows:
        by_path.setdefault(path, {})[method] = app
    return [
        Route(path, MethodDispatcher(apps), methods=list(apps)) for path, apps in by_path.items()
    ]
