"""Hints: the way out of common failures, for the model that reads an error.

Rule 1: a hint is given only if the exception proves its cause. A wrong hint costs more than none.
Rule 2: a hint is short, and no part of the exception: code that catches it sees nothing of it.
Rule 3: nothing here calls user code. Objects are inspected only where their types are known.
"""

from __future__ import annotations

import os
import re
import sys

from ...protocol.presentation import INPUT_NAMES, JSON_WORDS
from ...protocol.sandbox_facts import MAX_NAMED_PACKAGES, MAX_NAMED_RULES, list_some

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Callable, Iterator, List, Optional, Tuple

    from ...protocol.payloads import SandboxFacts

MAX_CHAIN = 20  # exceptions that caused another
MAX_PATH_CHARS = 300
MAX_NAME_CHARS = 80
MAX_NAMED_FETCHERS = 3
OWN_PACKAGES = ("tools", "skills", "knowledge", "llm")  # their errors say what to do
HOME_FOLDERS = ("/home/", "/Users/", "/root/", "~")
WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]")
NO_NETWORK_ERRNOS = (101, 113)  # ENETUNREACH, EHOSTUNREACH
CALL = re.compile(r"\b([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\s*\(")
DICT_METHOD = re.compile(r"\.(items|keys|values|get|pop|copy|update|clear|setdefault)\b(?!\s*\()")
NOT_AWAITABLE = (
    "can't be used in 'await' expression",
    "can't be awaited",
    "an awaitable is required",
)
DISTRIBUTIONS = {  # of modules that have another name
    "Crypto": "pycryptodome",
    "MySQLdb": "mysqlclient",
    "OpenSSL": "pyopenssl",
    "PIL": "pillow",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "git": "gitpython",
    "jwt": "pyjwt",
    "magic": "python-magic",
    "pptx": "python-pptx",
    "psycopg2": "psycopg2-binary",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "usb": "pyusb",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
METHOD_TYPE = "builtin_function_or_method"


def find_hint(exc: BaseException, facts: SandboxFacts, read_line: Callable[[str, int], str]) -> str:
    """Return the way out of a failure in one or two lines, or "".

    `read_line` returns a line of a file that code runs from.
    """
    if isinstance(exc, ModuleNotFoundError):
        return _missing_module_hint(exc, facts)
    if isinstance(exc, FileNotFoundError):
        return _missing_file_hint(exc, facts)
    if isinstance(exc, NameError):
        return _missing_name_hint(exc)
    if facts["is_isolated"] and any(map(_is_network_error, _iter_chain(exc))):
        return _network_hint(facts)
    if isinstance(exc, (TypeError, AttributeError)):
        return _misuse_hint(exc, read_line)
    return ""


def list_packages() -> List[str]:
    """Return the names of the installed packages, for people who want to import them."""
    from importlib import metadata

    found = {str(each.metadata["Name"] or "") for each in metadata.distributions()}
    return sorted(found - {"", "pip", "setuptools", "wheel"}, key=str.lower)


def _missing_module_hint(exc: ModuleNotFoundError, facts: SandboxFacts) -> str:
    name = (exc.name or "").partition(".")[0]
    is_pythons_own = exc.args[:1] and str(exc.args[0]).startswith("No module named")
    if not name or not is_pythons_own or name in OWN_PACKAGES or name in sys.modules:
        return ""
    if name in getattr(sys, "stdlib_module_names", ()):
        return ""
    name = name[:MAX_NAME_CHARS]
    installed = list_some(list_packages(), MAX_NAMED_PACKAGES) or "nothing"
    way_out = "The user can add packages to `[sandbox] packages`."
    if facts["packages_folder"]:
        way_out = f"packages.install({DISTRIBUTIONS.get(name, name)!r}) adds it."
    elif facts["is_isolated"]:
        way_out = f"pip cannot reach anything from here. {way_out}"
    return f"{name} is not installed. Installed: {installed}. {way_out}"


def _missing_name_hint(exc: NameError) -> str:
    name = getattr(exc, "name", None)  # Python >= 3.10
    if name in INPUT_NAMES:
        return "This run has no input: run_code(code=..., context=[...]) gives it one."
    if name in JSON_WORDS:
        return f"{name} is JSON; Python writes {JSON_WORDS[name]}."
    return ""


def _missing_file_hint(exc: FileNotFoundError, facts: SandboxFacts) -> str:
    path = exc.filename
    if not facts["is_isolated"] or not isinstance(path, str):
        return ""
    path = path[:MAX_PATH_CHARS]
    if any(_is_below(path, mount.partition(" ")[0]) for mount in facts["mounts"]):
        return ""
    if _is_below(path, os.getcwd()):
        return ""
    if any(_is_below(path, root) for root in facts["roots"]):
        return (
            f"{path!r} is a path of the user's machine. Run the code with "
            f"context=[{path!r}] and read it as CONTEXT (its file is CONTEXT.path)."
        )
    if path.startswith(HOME_FOLDERS) or WINDOWS_PATH.match(path):
        roots = list_some(facts["roots"], MAX_NAMED_FETCHERS)
        allowed = f"files below {roots} come with context=[path]" if roots else "none are allowed"
        return (
            f"The sandbox does not see the user's machine: {allowed}. "
            "The user can allow folders with `[server] context_roots`."
        )
    return ""


def _is_below(path: str, folder: str) -> bool:
    return bool(folder) and (path == folder or path.startswith(folder.rstrip("/") + "/"))


def _iter_chain(exc: Optional[BaseException]) -> Iterator[BaseException]:
    """Yield an exception and those that caused it."""
    for _ in range(MAX_CHAIN):
        if exc is None:
            return
        yield exc
        reason = exc.__dict__.get("reason") if type(exc).__name__ == "URLError" else None
        if isinstance(reason, BaseException):
            yield reason
        exc = exc.__cause__ or exc.__context__


def _is_network_error(exc: BaseException) -> bool:
    if not isinstance(exc, OSError):
        return False
    resolves = getattr(sys.modules.get("socket"), "gaierror", None)
    return (resolves is not None and isinstance(exc, resolves)) or exc.errno in NO_NETWORK_ERRNOS


def _network_hint(facts: SandboxFacts) -> str:
    if facts["web_rules"]:
        rules = list_some(facts["web_rules"], MAX_NAMED_RULES)
        return f"Only web requests leave the sandbox, as the settings allow: {rules}."
    fetchers = list_some(facts["fetchers"], MAX_NAMED_FETCHERS)
    if fetchers:
        return f"There is no network here. Tools that can fetch: {fetchers}."
    return "There is no network here. tools.search('fetch url') finds tools that may fetch."


def _misuse_hint(exc: BaseException, read_line: Callable[[str, int], str]) -> str:
    """Return what to write instead, if the line that failed proves what was meant."""
    message = exc.args[0] if exc.args and isinstance(exc.args[0], str) else ""
    frame, number = _last_frame(exc)
    if frame is None or not message:
        return ""
    line = read_line(frame.f_code.co_filename, number)
    if any(part in message for part in NOT_AWAITABLE):
        for name in CALL.findall(line):
            if _is_tool(frame, name):
                return (
                    f"{name}(...) returns its result at once. With await: `await {name}.aio(...)`."
                )
    if METHOD_TYPE in message:
        found = DICT_METHOD.search(line)
        if found:
            name = found.group(1)
            return f'`.{name}` is a method of dicts. The key is reached by ["{name}"].'
    return ""


def _last_frame(exc: BaseException) -> Tuple[Optional[FrameType], int]:
    """Return the frame of user code that an exception was raised in, and its line."""
    entry = exc.__traceback__
    while entry is not None and entry.tb_next is not None:
        entry = entry.tb_next
    return (entry.tb_frame, entry.tb_lineno) if entry is not None else (None, 0)


def _is_tool(frame: FrameType, name: str) -> bool:
    """Return whether a dotted name in a frame is the function of a tool."""
    first, *rest = name.split(".")
    value: Any = frame.f_locals.get(first, frame.f_globals.get(first))
    for part in rest:
        if not isinstance(value, type(sys)):
            return False
        value = value.__dict__.get(part)
    return isinstance(value, type(_is_tool)) and {"aio", "parameters"} <= value.__dict__.keys()
