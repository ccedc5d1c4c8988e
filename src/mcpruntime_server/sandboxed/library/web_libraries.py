"""Lets the HTTP libraries use the web proxy that do not look for one by themselves.

Most libraries find it through the usual variables. Two do so only when they are told to. And one
does not notice that a connection was closed while it was idle.
"""

from __future__ import annotations

import os
from select import select

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable


def install_web_libraries(run_after_import: Callable[[str, Callable[[Any], None]], None]) -> None:
    """Adapt the libraries when code imports them."""
    run_after_import("aiohttp", adapt_aiohttp)
    run_after_import("urllib3", adapt_urllib3)
    run_after_import("http.client", adapt_http_client)


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


def adapt_http_client(module: ModuleType) -> None:
    """Let a connection that was closed while it was idle be opened again."""
    connection = module.HTTPConnection
    put_request = connection.putrequest

    def put_request_anew(self: Any, *args: Any, **kwargs: Any) -> None:
        is_idle = self.sock is not None and self._HTTPConnection__state == module._CS_IDLE
        if is_idle and select([self.sock], [], [], 0)[0]:
            self.close()
        put_request(self, *args, **kwargs)

    connection.putrequest = put_request_anew
