"""Lets the HTTP libraries use the web proxy that do not look for one by themselves.

Most libraries find it through the usual variables. Two do so only when they are told to. And one
does not notice that a connection was closed while it was idle. Those without an event loop number
their requests, so that a replay gives each its own answer (`connection_order`).
"""

from __future__ import annotations

import os
from select import select

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable, Tuple

    Address = Tuple[str, int]

ORDER_HEADER = "X-Sandbox-Request"  # with the number of a request; it ends at the proxy


def install_web_libraries(
    run_after_import: Callable[[str, Callable[[Any], None]], None],
    proxy: Address,
    next_request: Callable[[], int],
) -> None:
    """Adapt the libraries when code imports them; `next_request` returns a request's number."""
    run_after_import("aiohttp", adapt_aiohttp)
    run_after_import("urllib3", adapt_urllib3)
    run_after_import("http.client", lambda module: adapt_http_client(module, proxy, next_request))
    for name in ("httpcore", "httpcore2"):
        run_after_import(name, lambda module: adapt_httpcore(module, proxy, next_request))


def adapt_aiohttp(module: ModuleType) -> None:
    """Let each session look at the variables, as if `trust_env=True` were the default."""
    module.ClientSession.__init__.__kwdefaults__["trust_env"] = True


def adapt_urllib3(module: ModuleType) -> None:
    """Turn each `PoolManager` into a `ProxyManager`."""
    pool_manager, proxy_manager = module.PoolManager, module.ProxyManager
    initialize = pool_manager.__init__

    def initialize_manager(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is not pool_manager:
            initialize(self, *args, **kwargs)
            return
        self.__class__ = proxy_manager
        proxy_manager.__init__(self, os.environ["https_proxy"], *args, **kwargs)

    pool_manager.__init__ = initialize_manager


def adapt_http_client(module: ModuleType, proxy: Address, next_request: Callable[[], int]) -> None:
    """Number requests, and let a connection that was closed while it was idle be opened again."""
    connection = module.HTTPConnection
    put_request, end_headers = connection.putrequest, connection.endheaders

    def put_request_anew(self: Any, *args: Any, **kwargs: Any) -> None:
        is_idle = self.sock is not None and self._HTTPConnection__state == module._CS_IDLE
        if is_idle and select([self.sock], [], [], 0)[0]:
            self.close()
        put_request(self, *args, **kwargs)

    def end_headers_numbered(self: Any, *args: Any, **kwargs: Any) -> None:
        if (self.host, self.port) == proxy:
            connection.putheader(self, ORDER_HEADER, str(next_request()))
        end_headers(self, *args, **kwargs)

    connection.putrequest, connection.endheaders = put_request_anew, end_headers_numbered


def adapt_httpcore(module: ModuleType, proxy: Address, next_request: Callable[[], int]) -> None:
    """Number the requests of the client without an event loop."""
    connection = module._sync.http11.HTTP11Connection
    send_headers = connection._send_request_headers

    def send_headers_numbered(self: Any, request: Any) -> None:
        is_request = request.method != b"CONNECT"  # which only a new connection needs
        if is_request and self._network_stream.get_extra_info("server_addr") == proxy:
            number = (ORDER_HEADER.encode(), str(next_request()).encode())
            kept = [each for each in request.headers if each[0] != number[0]]
            request.headers = [*kept, number]
        send_headers(self, request=request)

    connection._send_request_headers = send_headers_numbered
