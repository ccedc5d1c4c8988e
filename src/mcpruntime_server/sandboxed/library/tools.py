"""What sandboxed code sees of the host: the package `tools` and its errors.

`install` puts `tools` into `sys.modules`. A server's module is made at its first import, from source (a *shim*) that
the host generates; the shim's functions are plain `def`s under the decorator `shim`, which turns them into calls.

Rule 1: standard library only, Python >= 3.9, and few imports: this module is part of every sandbox's start.
Rule 2: nothing here knows how a call travels; `install` is handed two functions, a blocking one and its async twin.
Rule 3: names that cannot be right (a server, a tool, a parameter) fail here, with the names that would be.
"""

from __future__ import annotations

import functools
import importlib
import sys
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

from ...protocol.library_names import TOOLS_PACKAGE
from ...protocol.suggestions import did_you_mean
from .planned import PlanEnded, PlannedResult, check_no_planned_result
from .results import Slot, map_concurrently, wrap_dicts

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Awaitable, Callable, Iterable, Mapping, NoReturn, Sequence

VAR_KEYWORDS_FLAG = 0x08  # code flag: the function takes `**kwargs`

# errors -------------------------------------------------------------------------------------------


class HostError(Exception):
    """The host's answer to a call was an error; `kind` is for programs, `data` is plain JSON."""

    def __init__(self, kind: str, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.data = data


class ToolError(Exception):
    """A tool call failed: `tool` ("git.git_log"), `arguments` as sent, `message`, `kind`, `data` (plain JSON)."""

    __module__ = TOOLS_PACKAGE

    def __init__(
        self,
        message: str,
        *,
        tool: str = "",
        arguments: Any = None,
        kind: str = "tool_error",
        data: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.tool = tool
        self.arguments = arguments
        self.kind = kind
        self.data = data

    def __str__(self) -> str:
        return f"{self.tool}: {self.message}" if self.tool else self.message


class ToolArgumentError(ToolError, TypeError):
    """A tool was called with parameters that it does not have, or without one that it needs."""

    __module__ = TOOLS_PACKAGE


class ToolDeniedError(ToolError):
    """A call is not allowed: by the server's settings, or by the person who was asked."""

    __module__ = TOOLS_PACKAGE


class ToolUnavailableError(ToolError, ImportError):
    """A server's module cannot be made because the server does not answer."""

    __module__ = TOOLS_PACKAGE


TOOL_ERROR_TYPES: dict[str, type[ToolError]] = {
    "invalid_arguments": ToolArgumentError,
    "denied": ToolDeniedError,
}  # by kind


def raise_tool_error(error: HostError, tool: str, arguments: Any) -> NoReturn:
    """Raise the `ToolError` that sandboxed code is to see instead of `error`."""
    cls = TOOL_ERROR_TYPES.get(error.kind, ToolError)
    raise cls(
        error.message, tool=tool, arguments=arguments, kind=error.kind, data=wrap_dicts(error.data)
    ) from None


# calls --------------------------------------------------------------------------------------------


class HostConnection:
    """The two functions through which everything leaves the sandbox; replaced by `install`."""

    call: Callable[[str, dict[str, Any]], Any]
    acall: Callable[[str, dict[str, Any]], Awaitable[Any]]


host = HostConnection()


def call_host(target: str, arguments: dict[str, Any], tool: str) -> Any:
    """Call the host; raises `ToolError`, in the name of `tool`."""
    if PlannedResult.any_created:
        check_no_planned_result(arguments)
    try:
        return wrap_dicts(host.call(target, arguments))
    except HostError as error:
        if error.kind == "planned":
            return PlannedResult(tool, error.data["call"])
        raise_tool_error(error, tool, arguments)


async def call_host_async(target: str, arguments: dict[str, Any], tool: str) -> Any:
    """Call the host from asyncio; raises `ToolError`, in the name of `tool`."""
    if PlannedResult.any_created:
        check_no_planned_result(arguments)
    try:
        return wrap_dicts(await host.acall(target, arguments))
    except HostError as error:
        if error.kind == "planned":
            return PlannedResult(tool, error.data["call"])
        raise_tool_error(error, tool, arguments)


class ToolParameters:
    """What a shim's function takes, read off its code; turns a Python call into a tool's arguments."""

    def __init__(
        self,
        function: Callable[..., Any],
        tool: str,
        renamed: Mapping[str, str],
        unset: Sequence[str],
    ) -> None:
        code = function.__code__
        defaults = len(function.__defaults__ or ())
        self.tool = tool
        self.names = code.co_varnames[: code.co_argcount]
        self.required = self.names[: code.co_argcount - defaults]
        self.accepts_extra = bool(code.co_flags & VAR_KEYWORDS_FLAG)
        self.wire_names = {name: renamed.get(name, name) for name in self.names}
        self.python_names = {wire: name for name, wire in self.wire_names.items()}
        self.omitted_when_none = frozenset(unset)

    def bind_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments to send, without those left out; raises `ToolArgumentError`."""
        if len(args) > len(self.names):
            self.raise_argument_error(
                f"takes at most {len(self.names)} positional arguments, got {len(args)}."
            )
        given = dict(zip(self.names, args))  # noqa: B905 - Python 3.9 has no `strict`
        for key, value in kwargs.items():
            name = key if key in self.wire_names else self.python_names.get(key, key)
            if name in given:
                self.raise_argument_error(f"got two values for {name!r}.")
            if name not in self.wire_names and not self.accepts_extra:
                self.raise_argument_error(
                    f"has no parameter {key!r}. {did_you_mean(key, self.names)}".rstrip()
                )
            given[name] = value
        missing = [name for name in self.required if name not in given]
        if missing:
            self.raise_argument_error(f"needs {', '.join(map(repr, missing))}.")
        return {
            self.wire_names.get(name, name): serialize_argument(value)
            for name, value in given.items()
            if self.is_sent(name, value)
        }

    def is_sent(self, name: str, value: Any) -> bool:
        """Return whether `value` is sent: None stands for "left out" where the tool does not take null."""
        return value is not None or name not in self.omitted_when_none

    def raise_argument_error(self, problem: str) -> NoReturn:
        """Raise the error for a call that cannot be right, with the parameters that would be."""
        listed = ", ".join(name + "*" * (name in self.required) for name in self.names)
        listing = f"Parameters: {listed} (* = required)." if listed else "It takes no parameters."
        raise ToolArgumentError(f"{self.tool} {problem} {listing}", kind="invalid_arguments")


def serialize_argument(value: Any) -> Any:
    """Return `value`, or the text of a path or of a piece of an input: what is not JSON and is passed all the time."""
    if hasattr(value, "to_argument"):
        return value.text
    return value.__fspath__() if hasattr(value, "__fspath__") else value


def shim(
    server: str, renamed: Mapping[str, str] = {}, unset: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function of a shim call the tool of its name; `.aio` is its async twin.

    `renamed` maps Python names to the tool's own where they differ; `unset` names the parameters for which None
    means "left out". The function's body never runs: its signature and docstring are what `help` shows.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        tool = f"{server}.{function.__name__}"
        target = f"{TOOLS_PACKAGE}.{tool}"
        bind = ToolParameters(function, tool, renamed, unset).bind_arguments

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return call_host(target, bind(args, kwargs), tool)

        @functools.wraps(function)
        async def aio(*args: Any, **kwargs: Any) -> Any:
            return await call_host_async(target, bind(args, kwargs), tool)

        aio.__qualname__ = f"{function.__qualname__}.aio"
        call.aio = aio  # type: ignore[attr-defined] # functions take attributes, and `help` reads functions best
        return call

    return decorate


# finding tools ------------------------------------------------------------------------------------


class ToolInfo:
    """One tool in a listing; `name` is "git.git_log", and its repr is one line."""

    __slots__ = ("effect", "name", "server", "signature", "summary")

    def __init__(self, server: str, tool: str, signature: str, summary: str, effect: str) -> None:
        self.name = f"{server}.{tool}"
        self.server = server
        self.signature = signature
        self.summary = summary
        self.effect = effect

    def __repr__(self) -> str:
        return f"{self.name}{self.signature}" + (f"  # {self.summary}" if self.summary else "")


class ToolList(list[ToolInfo]):
    """Tools, one a line in its repr; `problems` says which servers could not be asked, and why."""

    __slots__ = ("problems",)

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__(ToolInfo(**tool) for tool in answer["tools"])
        self.problems: list[str] = answer["problems"]

    def __repr__(self) -> str:
        lines = [repr(tool) for tool in self] or ["no tools found"]
        return "\n".join(lines + [f"! {problem}" for problem in self.problems])


def search(query: str, limit: int = 10) -> ToolList:
    """Return the tools whose names, descriptions or parameters match `query`, best first."""
    return ToolList(call_host("catalog.search", {"query": query, "limit": limit}, "tools.search"))


def list_tools(server: str | None = None) -> ToolList:
    """Return all tools, or those of one server."""
    return ToolList(
        call_host("catalog.list", {} if server is None else {"server": server}, "tools.list")
    )


# the package --------------------------------------------------------------------------------------

TOOLS_EXPORTS: dict[str, Any] = {
    "search": search,
    "list": list_tools,
    "map": map_concurrently,
    "shim": shim,
    "Slot": Slot,
    "ToolError": ToolError,
    "ToolArgumentError": ToolArgumentError,
    "ToolDeniedError": ToolDeniedError,
    "ToolUnavailableError": ToolUnavailableError,
    "PlanEnded": PlanEnded,
}


class HostPackage(ModuleType):
    """A package whose modules come from the host: each is imported when it is first named."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        try:
            return importlib.import_module(f"{self.__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != name:
                raise  # it is there, and what it imports is not
            raise AttributeError(str(error)) from None


class ToolsPackage(HostPackage):
    """The module `tools`."""

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        # The servers are listed here and not by `dir`: `help` gets every name that `dir` lists, which would start them.
        return f"{TOOLS_DOC}\nServers: {', '.join(list_servers()) or 'none'}.\n"


class ToolFinder:
    """Finds and loads `tools.<server>`, and says what is there instead of what is not."""

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        """Return the spec of a server's module; a name below one is a tool that it does not have."""
        parts = fullname.split(".")
        if parts[0] != TOOLS_PACKAGE or len(parts) < 2:
            return None
        if len(parts) > 2:
            raise ImportError(missing_tool_message(sys.modules[".".join(parts[:2])], parts[2]))
        return ModuleSpec(fullname, self, origin=f"<{fullname}>", is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Let the import system make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fetch the shim and run it."""
        module.__getattr__ = functools.partial(resolve_missing_tool, module)  # type: ignore[method-assign]
        execute_shim(module, fetch_shim(get_server_name(module)))


def get_server_name(module: ModuleType) -> str:
    """Return the name of the server whose module this is."""
    return module.__name__.rpartition(".")[2]


def execute_shim(module: ModuleType, source: str) -> None:
    """Run a shim in its module."""
    exec(compile_module(module, source), module.__dict__)
    module.__dict__["_source"] = source


def compile_module(module: ModuleType, source: str) -> CodeType:
    """Return the code of a module that the host sent; its source is kept for tracebacks and `inspect.getsource`."""
    import linecache

    filename = f"<{module.__name__}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return compile(source, filename, "exec", dont_inherit=True)


def fetch_shim(server: str, is_refresh: bool = False) -> str:
    """Return the source of a server's shim; raises `ModuleNotFoundError` or `ToolUnavailableError`."""
    try:
        source: str = host.call("catalog.shim", {"server": server, "fresh": is_refresh})["source"]
    except HostError as error:
        if error.kind == "unknown_tool":
            # `name` is not the full name: the import system swallows an error of that name in `from tools import x`.
            raise ModuleNotFoundError(error.message, name=server) from None
        raise ToolUnavailableError(
            error.message, tool=server, kind=error.kind, data=error.data
        ) from None
    return source


def resolve_missing_tool(module: ModuleType, name: str) -> Any:
    """Return the tool `name` if the server has got it since its module was made; raises `AttributeError`."""
    if name.startswith("_"):
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
    try:
        source = fetch_shim(get_server_name(module), is_refresh=True)
    except ImportError:
        source = module.__dict__.get("_source", "")
    if source != module.__dict__.get("_source"):
        execute_shim(module, source)
        if name in module.__dict__:
            return module.__dict__[name]
    raise AttributeError(missing_tool_message(module, name))


def missing_tool_message(module: ModuleType, name: str) -> str:
    """Return the message that says what `module` has instead of `name`."""
    names: list[str] = module.__dict__.get("__all__", [])
    listed = ", ".join(names[:50]) + (", ..." if len(names) > 50 else "")
    return f"{module.__name__} has no tool {name!r}. {did_you_mean(name, names)}Tools: {listed or 'none'}."


def list_servers() -> list[str]:
    """Return the names of all servers' modules, or none where the host cannot be asked."""
    try:
        return list(host.call("catalog.servers", {}))
    except HostError:
        return []


def install_tools(
    call: Callable[[str, dict[str, Any]], Any],
    acall: Callable[[str, dict[str, Any]], Awaitable[Any]],
) -> ModuleType:
    """Make `import tools` work, with every call going through `call` or `acall`; may be called again.

    Both raise `HostError`. `call` blocks and is called from any thread; `acall` is called on the running event loop.
    """
    host.call = call
    host.acall = acall
    return install_package(ToolsPackage, TOOLS_PACKAGE, TOOLS_EXPORTS, ToolFinder)


def install_package(
    package_type: type[HostPackage],
    name: str,
    exports: Mapping[str, Any],
    finder: Callable[[], Any],
) -> ModuleType:
    """Make the package `name` importable, if it is not, with what is `public` in it; return it."""
    package = sys.modules.get(name)
    if not isinstance(package, package_type):
        package = sys.modules[name] = package_type(name)
        package.__path__ = []
        package.__dict__.update(
            exports, __all__=sorted(exports.keys() - {"list", "map"})
        )  # a star import keeps Python's
        sys.meta_path.insert(0, finder())
    return package


def forget_stale_modules(servers: Iterable[str]) -> None:
    """Forget the modules of these servers, so that the next import sees their new shims.

    Functions that code has already imported go on working: a tool is called by its name.
    """
    package = sys.modules[TOOLS_PACKAGE]
    for server in servers:
        name = f"{TOOLS_PACKAGE}.{server}"
        if sys.modules.pop(name, None) is not None:
            package.__dict__.pop(server, None)


TOOLS_DOC = """The MCP servers that this code may use, each a module: `from tools.git import git_log`.

tools.search("words")      the tools that fit, best first      tools.list("git")   all tools of a server
help(tools.git.git_log)    parameters, types, output           await git_log.aio(...)   the same from asyncio
tools.map(fn, items)       many calls at once; one slot each: .ok .value .error
A failed call raises tools.ToolError (.tool .arguments .message .kind .data). Results are JSON data: r["key"] or r.key.
"""
