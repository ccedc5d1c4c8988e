"""The package `tools`, through which code calls the tools of MCP servers.

`install_tools` puts `tools` into `sys.modules`. A server's module is made at its first import, from
source (a *shim*) that the host generates. The functions of a shim are plain `def`s under the
decorator `shim`, which turns a call of the function into a call of the tool.

Rule 1: standard library only, Python >= 3.9, and few imports: this module is part of every start of
a sandbox.
Rule 2: nothing here knows how a call travels; `install_tools` gets two functions, one that blocks
and one for asyncio.
Rule 3: a wrong name of a server, tool or parameter fails here, and the error lists the right names.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

from ...protocol.library_names import TOOLS_PACKAGE
from ...protocol.suggestions import did_you_mean, find_misspelled, find_similar
from .planned import PlanEnded, PlannedResult, check_no_planned_result
from .results import Slot, Slots, map_concurrently, wrap_dicts

TYPE_CHECKING = False  # importing `typing` would slow down every start of a sandbox
if TYPE_CHECKING:
    from typing import Any, Awaitable, Callable, Iterable, Iterator, Mapping, NoReturn, Sequence

    from ...protocol.payloads import JsonObject, ToolListing

VAR_KEYWORDS_FLAG = 0x08  # of a code object: the function takes `**kwargs`
MAX_LISTED_NAMES = 50  # that an error lists
MAX_SERVERS_CHARS = 500  # of the names in `help(tools)`
MAX_TOOLS_CHARS = 3_500  # of the names and summaries in the help on a server
MIN_SUMMARY_CHARS = 12  # a shorter one says nothing
MAX_SUMMARY_CHARS = 120
UNDESCRIBED = ("Parameters (", "Returns: ", "Returns (")  # a docstring without a description
WORD = r"\w+"
SCALAR_TYPES = {"str", "int", "float", "bool", "None", "list"}  # in an annotation without records

# errors -------------------------------------------------------------------------------------------


class HostError(Exception):
    """The host answered a call with an error; `kind` is for programs, `data` is plain JSON."""

    def __init__(self, kind: str, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.data = data


class ToolError(Exception):
    """A tool call failed.

    `tool` is like "git.git_log", `arguments` are those sent; `message`, `kind` and `data` (plain
    JSON) say why.
    """

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
    """A tool was called with a parameter that it does not have, or without a required one."""

    __module__ = TOOLS_PACKAGE


class ToolDeniedError(ToolError):
    """A call is not allowed, by the server's settings or by the person who was asked."""

    __module__ = TOOLS_PACKAGE


class ToolUnavailableError(ToolError, ImportError):
    """The module of a server cannot be made because the server does not answer."""

    __module__ = TOOLS_PACKAGE


TOOL_ERROR_TYPES: dict[str, type[ToolError]] = {  # by the kind of the host's error
    "invalid_arguments": ToolArgumentError,
    "denied": ToolDeniedError,
}


def raise_tool_error(error: HostError, tool: str, arguments: Any) -> NoReturn:
    """Raise the `ToolError` that code sees instead of `error`."""
    error_type = TOOL_ERROR_TYPES.get(error.kind, ToolError)
    data = wrap_dicts(error.data)
    raise error_type(
        error.message, tool=tool, arguments=arguments, kind=error.kind, data=data
    ) from None


# calls --------------------------------------------------------------------------------------------


class HostFunctions:
    """The two functions through which every call leaves the sandbox; `install_tools` sets them."""

    call: Callable[..., Any]  # target, arguments, and bytes for the handler if there are any
    acall: Callable[[str, JsonObject], Awaitable[Any]]


host = HostFunctions()


def call_host(target: str, arguments: JsonObject, tool: str) -> Any:
    """Call the host; raises `ToolError` with the name `tool`."""
    check_no_planned_result(arguments)
    try:
        return wrap_dicts(host.call(target, arguments))
    except HostError as error:
        return _planned_result(error, tool, arguments)


async def call_host_async(target: str, arguments: JsonObject, tool: str) -> Any:
    """Call the host from asyncio; raises `ToolError` with the name `tool`."""
    check_no_planned_result(arguments)
    try:
        return wrap_dicts(await host.acall(target, arguments))
    except HostError as error:
        return _planned_result(error, tool, arguments)


def _planned_result(error: HostError, tool: str, arguments: Any) -> PlannedResult:
    """Return the result of a call that was planned instead of made.

    Raises `ToolError` for any other error.
    """
    if error.kind == "planned":
        return PlannedResult(tool, error.data["call"])
    raise_tool_error(error, tool, arguments)


class ToolParameters:
    """The parameters of a shim's function, read from its code.

    Turns a Python call into the tool's arguments.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        tool: str,
        renamed: Mapping[str, str],
        unset: Sequence[str],
        choices: Mapping[str, Any],
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
        self.choices = choices
        first = function.__annotations__.get(self.names[0], "") if self.names else ""
        self.takes_object_first = not set(re.findall(WORD, str(first))) <= SCALAR_TYPES

    def bind_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> JsonObject:
        """Return the arguments to send, without those left out; raises `ToolArgumentError`."""
        if len(args) > len(self.names):
            self.raise_argument_error(
                f"takes at most {len(self.names)} positional arguments, got {len(args)}."
            )
        bound = dict(zip(self.names, args))  # noqa: B905 - Python 3.9 has no `strict`
        for key, value in kwargs.items():
            name = key if key in self.wire_names else self.python_names.get(key, key)
            if name in bound:
                self.raise_argument_error(f"got two values for {name!r}.")
            bound[name] = value
        missing = [name for name in self.required if name not in bound]
        for name in bound:
            if name not in self.wire_names:
                self.check_extra_argument(name, missing, bound)
        if missing:
            self.raise_argument_error(f"needs {', '.join(map(repr, missing))}.")
        if self.choices:
            self.check_choices(bound)
        return {
            self.wire_names.get(name, name): serialize_argument(value)
            for name, value in bound.items()
            if self.is_sent(name, value)
        }

    def check_extra_argument(self, name: str, missing: Sequence[str], bound: Any) -> None:
        """Raise `ToolArgumentError` for an argument that the tool does not name.

        A tool that accepts others gets it, unless it looks like a misspelling, or like a parameter
        that is missing.
        """
        if self.accepts_extra:
            meant = find_misspelled(name, self.names, bound) or find_similar(name, missing)
        else:
            meant = find_similar(name, self.names)
        if meant or not self.accepts_extra:
            hint = f" Did you mean {meant!r}?" if meant else ""
            self.raise_argument_error(f"has no parameter {name[:80]!r}.{hint}")

    def check_choices(self, bound: Mapping[str, Any]) -> None:
        """Raise `ToolArgumentError` for an argument that the tool does not allow."""
        from .argument_checks import EXTRA_NAME, ArgumentChecker

        others = self.choices.get(EXTRA_NAME, ())
        for name, value in bound.items():
            allowed = self.choices.get(name, () if name in self.wire_names else others)
            if allowed and self.is_sent(name, value):
                refusal = ArgumentChecker().find_refusal(name, value, allowed)
                if refusal is not None:
                    self.raise_argument_error(refusal.format())

    def check_items(self, items: Sequence[Any]) -> None:
        """Raise `ToolArgumentError` if each item of a batch is a dict of this tool's arguments."""
        if not items or self.takes_object_first:
            return
        if all(isinstance(item, dict) and item and self.knows_names(item) for item in items):
            function = self.tool.rpartition(".")[2]
            raise ToolArgumentError(
                f"tools.map calls {function}(item), and the items are dicts of its arguments. "
                f"Spread them: tools.map(lambda item: {function}(**item), items).",
                kind="invalid_arguments",
            )

    def knows_names(self, names: Iterable[Any]) -> bool:
        """Return whether all of `names` are parameters."""
        return all(name in self.wire_names or name in self.python_names for name in names)

    def is_sent(self, name: str, value: Any) -> bool:
        """Return whether a value is sent; None means "left out" if the tool refuses null."""
        return value is not None or name not in self.omitted_when_none

    def raise_argument_error(self, problem: str) -> NoReturn:
        """Raise the error for a wrong call, with the parameters of the tool."""
        listed = ", ".join(name + "*" * (name in self.required) for name in self.names)
        listing = f"Parameters: {listed} (* = required)." if listed else "It takes no parameters."
        raise ToolArgumentError(f"{self.tool} {problem} {listing}", kind="invalid_arguments")


def serialize_argument(value: Any) -> Any:
    """Return an argument as it is sent: a path or a slice of an input becomes text."""
    if hasattr(value, "to_argument"):
        return value.text
    return value.__fspath__() if hasattr(value, "__fspath__") else value


def shim(
    server: str,
    renamed: Mapping[str, str] = {},
    unset: Sequence[str] = (),
    choices: Mapping[str, Any] = {},
    tool: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that makes a function call the tool of its name; `.aio` is for asyncio.

    `tool` is the name of the tool if the function has another one, `choices` has what
    parameters accept, where that is known, in the form of `argument_checks`.

    `renamed` maps Python names to the tool's own names where they differ; `unset` names the
    parameters for which None means "left out". The body of the function never runs: `help` shows
    its signature and docstring.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        full_name = f"{server}.{tool or function.__name__}"
        target = f"{TOOLS_PACKAGE}.{full_name}"
        parameters = ToolParameters(function, full_name, renamed, unset, choices)
        bind = parameters.bind_arguments

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return call_host(target, bind(args, kwargs), full_name)

        @functools.wraps(function)
        async def aio(*args: Any, **kwargs: Any) -> Any:
            return await call_host_async(target, bind(args, kwargs), full_name)

        call.parameters = parameters  # type: ignore[attr-defined] # `help` shows functions best
        aio.__qualname__ = f"{function.__qualname__}.aio"
        call.aio = aio  # type: ignore[attr-defined]
        return call

    return decorate


def map_tools(fn: Callable[[Any], Any], items: Iterable[Any], max_concurrency: int = 16) -> Slots:
    """Call `fn(item)` for every item, up to `max_concurrency` at once; return a slot for each.

    The slots are in the order of the items and have `.ok`, `.value` and `.error`. A failure never
    stops the others. `fn` is any callable; it runs in threads. For items that are dicts of
    arguments: `tools.map(lambda item: fn(**item), items)`.
    """
    all_items = list(items)
    parameters = getattr(fn, "parameters", None)
    if isinstance(parameters, ToolParameters):
        parameters.check_items(all_items)
    return map_concurrently(fn, all_items, max_concurrency)


map_tools.__name__ = map_tools.__qualname__ = "map"

# finding tools ------------------------------------------------------------------------------------


class ToolInfo:
    """One tool in a listing; `name` is like "git.git_log", and the repr is one line."""

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
    """Tools, one a line in the repr; `problems` says which servers are missing, and why.

    Code that iterates makes a value of its own, which does not show the problems, such as `[]`.
    They are printed then, once.
    """

    __slots__ = ("_are_problems_shown", "problems")

    def __init__(self, answer: ToolListing) -> None:
        super().__init__(ToolInfo(**tool) for tool in answer["tools"])
        self.problems = answer["problems"]
        self._are_problems_shown = not self.problems

    def __iter__(self) -> Iterator[ToolInfo]:
        if not self._are_problems_shown:
            self._are_problems_shown = True
            for problem in self.problems:
                print(f"! {problem}", file=sys.stderr)
        return super().__iter__()

    def __repr__(self) -> str:
        lines = [repr(tool) for tool in super().__iter__()] or ["no tools found"]
        return "\n".join(lines + [f"! {problem}" for problem in self.problems])


def search(query: str, limit: int = 10) -> ToolList:
    """Return the tools whose names, descriptions or parameters match `query`, best first."""
    return ToolList(call_host("catalog.search", {"query": query, "limit": limit}, "tools.search"))


def list_tools(server: str | None = None) -> ToolList:
    """Return all tools, or those of one server."""
    arguments = {} if server is None else {"server": server}
    return ToolList(call_host("catalog.list", arguments, "tools.list"))


# the package --------------------------------------------------------------------------------------

TOOLS_EXPORTS: dict[str, Any] = {
    "search": search,
    "list": list_tools,
    "map": map_tools,
    "shim": shim,
    "Slot": Slot,
    "ToolError": ToolError,
    "ToolArgumentError": ToolArgumentError,
    "ToolDeniedError": ToolDeniedError,
    "ToolUnavailableError": ToolUnavailableError,
    "PlanEnded": PlanEnded,
}


class HostPackage(ModuleType):
    """A package whose modules come from the host: an attribute imports the module of that name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        try:
            return importlib.import_module(f"{self.__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != name:
                raise  # the module exists, and something that it imports does not
            raise AttributeError(str(error)) from None


class ToolsPackage(HostPackage):
    """The package `tools`; its documentation lists the servers."""

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        # Not in `dir`: `help` reads every attribute in `dir`, which would start all servers.
        return self._help_text

    @property
    def _help_text(self) -> str:
        """What `help(tools)` prints: how tools are found and called, and the servers."""
        servers = list_servers()
        shown: list[str] = []
        room = MAX_SERVERS_CHARS
        for server in servers:
            room -= len(server) + 2
            if room < 0:
                shown.append(f"and {len(servers) - len(shown)} more (tools.list() has all)")
                break
            shown.append(server)
        return f"{TOOLS_DOC}\nServers: {', '.join(shown) or 'none'}.\n"


class ServerModule(ModuleType):
    """The module of one server; its documentation has one line for each tool."""

    @property
    def _help_text(self) -> str:
        """What `help` prints of a server: names, summaries, and how to see a tool in full."""
        server = get_server_name(self)
        names: list[str] = self.__dict__.get("__all__", [])
        if not names:
            return f"The MCP server {server} has no tools.\n"
        width = MAX_TOOLS_CHARS // len(names) - 1
        lines: list[str] = []
        room = MAX_TOOLS_CHARS
        for name in names:
            summary_chars = min(width - len(name) - 2, MAX_SUMMARY_CHARS)
            line = f"{name}  {summarize(self.__dict__.get(name), summary_chars)}".rstrip()
            room -= len(line) + 1
            if room < 0:
                lines.append(f"and {len(names) - len(lines)} more")
                break
            lines.append(line)
        listed, example = "\n".join(lines), f"{self.__name__}.{names[0]}"
        return (
            f"The MCP server {server}, {len(names)} tools: "
            f"`from {self.__name__} import {names[0]}`.\n\n{listed}\n\n"
            f'help({example}) shows one in full, tools.list("{server}") all signatures, '
            'tools.search("words") finds.\n'
        )


def summarize(function: Any, max_chars: int) -> str:
    """Return the first sentence of the docstring of a tool, or "" if it does not fit or is none."""
    text = " ".join((getattr(function, "__doc__", "") or "").partition("\n\n")[0].split())
    if max_chars < MIN_SUMMARY_CHARS or text.startswith(UNDESCRIBED):
        return ""
    end = text.find(". ")
    sentence = text[: end + 1] if end > 0 else text
    return sentence if len(sentence) <= max_chars else f"{sentence[: max_chars - 3].rstrip()}..."


class ToolFinder:
    """Finds and loads `tools.<server>`; an import of an unknown name fails with the known ones."""

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        """Return the spec of a server's module.

        Raises `ImportError` for a name inside a server's module.
        """
        parts = fullname.split(".")
        if parts[0] != TOOLS_PACKAGE or len(parts) < 2:
            return None
        if len(parts) > 2:
            raise ImportError(missing_tool_message(sys.modules[".".join(parts[:2])], parts[2]))
        loader: Any = self
        return ModuleSpec(fullname, loader, origin=f"<{fullname}>", is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return an empty module."""
        return ServerModule(spec.name)

    def exec_module(self, module: Any) -> None:
        """Fetch the shim and execute it."""
        module.__getattr__ = functools.partial(resolve_missing_tool, module)
        module.__dir__ = lambda: sorted(module.__dict__.get("__all__", ()))
        execute_shim(module, fetch_shim(get_server_name(module)))


def get_server_name(module: ModuleType) -> str:
    """Return the name of a module's server."""
    return module.__name__.rpartition(".")[2]


def execute_shim(module: ModuleType, source: str) -> None:
    """Execute a shim in its module."""
    exec(compile_module(module, source), module.__dict__)
    module.__dict__["_source"] = source


def compile_module(module: ModuleType, source: str) -> CodeType:
    """Return the code of a module from the host.

    Its source is kept for tracebacks and `inspect.getsource`.
    """
    import linecache

    filename = f"<{module.__name__}>"
    lines = source.splitlines(keepends=True)
    linecache.cache[filename] = (len(source), None, lines, filename)
    return compile(source, filename, "exec", dont_inherit=True)


def fetch_shim(server: str, is_refresh: bool = False) -> str:
    """Return the source of a server's shim.

    Raises `ModuleNotFoundError` or `ToolUnavailableError`.
    """
    try:
        answer = host.call("catalog.shim", {"server": server, "fresh": is_refresh})
    except HostError as error:
        if error.kind == "unknown_tool":
            # Not the full name, because `from tools import x` ignores an error with that name.
            raise ModuleNotFoundError(error.message, name=server) from None
        raise ToolUnavailableError(
            error.message, tool=server, kind=error.kind, data=error.data
        ) from None
    source: str = answer["source"]
    return source


def resolve_missing_tool(module: ModuleType, name: str) -> Any:
    """Return a tool that the server has added since its module was made.

    Raises `AttributeError`.
    """
    if name.startswith("_"):
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
    known = module.__dict__.get(f"{name}_")  # of a tool that has the name of a builtin
    parameters = getattr(known, "parameters", None)
    if isinstance(parameters, ToolParameters) and parameters.tool.endswith(f".{name}"):
        return known
    known_source = module.__dict__.get("_source", "")
    try:
        source = fetch_shim(get_server_name(module), is_refresh=True)
    except ImportError:
        source = known_source
    if source != known_source:
        execute_shim(module, source)
        if name in module.__dict__:
            return module.__dict__[name]
    raise AttributeError(missing_tool_message(module, name))


def missing_tool_message(module: ModuleType, name: str) -> str:
    """Return a message that says which tools a module has, and that `name` is none of them."""
    names: list[str] = module.__dict__.get("__all__", [])
    hint = did_you_mean(name, names)
    return (
        f"{module.__name__} has no tool {name!r}. {hint}Tools: {join_first_names(names) or 'none'}."
    )


def join_first_names(names: Sequence[str]) -> str:
    """Return the first names as a comma-separated list."""
    return ", ".join(names[:MAX_LISTED_NAMES]) + (", ..." if len(names) > MAX_LISTED_NAMES else "")


def list_servers() -> list[str]:
    """Return the names of all servers' modules; none if the host cannot be asked."""
    try:
        return list(host.call("catalog.servers", {}))
    except HostError:
        return []


def install_tools(
    call: Callable[[str, JsonObject], Any],
    acall: Callable[[str, JsonObject], Awaitable[Any]],
) -> ModuleType:
    """Make `import tools` work, with every call going through `call` or `acall`.

    It may be called again. Both functions raise `HostError`. `call` blocks and is called from any
    thread; `acall` is called on the running event loop.
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
    """Make a package importable, if it is not yet, with `exports` in it; return it."""
    package = sys.modules.get(name)
    if not isinstance(package, package_type):
        package = sys.modules[name] = package_type(name)
        package.__path__ = []
        starred = sorted(exports.keys() - {"list", "map"})  # a star import keeps Python's own
        package.__dict__.update(exports, __all__=starred)
        sys.meta_path.insert(0, finder())
    return package


def forget_stale_modules(servers: Iterable[str]) -> None:
    """Remove the modules of servers, so that the next import gets their new shims.

    Functions that code has already imported keep working, because a tool is called by its name.
    """
    package = sys.modules[TOOLS_PACKAGE]
    for server in servers:
        name = f"{TOOLS_PACKAGE}.{server}"
        if sys.modules.pop(name, None) is not None:
            package.__dict__.pop(server, None)


TOOLS_DOC = """The MCP servers for this code, each a module: `from tools.git import git_log`.

tools.search("words", limit=10)         the matching tools with signatures, best first
tools.list("git")                       the tools of a server; of all without a name
tools.map(fn, items, max_concurrency=16)
    calls fn(item) for all items at once; a slot each, in order: .ok .value .error
    values = [slot.value for slot in tools.map(git_log, repos) if slot.ok]
    items that are dicts of arguments: tools.map(lambda item: fn(**item), items)
help(tools.git.git_log)                 parameters, types and result of a tool
await git_log.aio(...)                  the same call for asyncio; without .aio it blocks

A failed call raises tools.ToolError (.tool .arguments .message .kind .data):
ToolArgumentError before anything is sent, ToolDeniedError if it is not allowed,
ToolUnavailableError if a server does not answer. Results are JSON data: r["key"] or r.key;
keys like "items" that dicts have as methods only as r["items"].
"""
