"""What sandboxed code sees of skills: the package `skills`, its modules fetched when they are named.

`skills.weather_report` is the version in use, and callable as its `run` is; `skills.weather_report.v2` is exactly that
one. The first import fixes the version for the life of the interpreter.

Rule 1: standard library only, Python >= 3.9, and few imports: this module is part of every sandbox's start.
Rule 2: that a skill was used is told to the host at most once for each outcome in a run, so that loops cost nothing.
"""

from __future__ import annotations

import functools
import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from .guest import HostError, ask, define, host
from .results import did_you_mean

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Mapping, Optional, Set, Tuple

PACKAGE = "skills"
ENTRY = "run"
COROUTINE = 0x80  # code flag: the function is `async def`
ERROR_CHARS = 300


class SkillUnavailableError(ImportError):
    """A skill is there and not in use, or cannot be had now; the message says why."""

    __module__ = PACKAGE


class Skill(ModuleType):
    """The module of a skill; calling it calls its `run`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if is_version(name) and self.__name__.count(".") == 1:
            return importlib.import_module(f"{self.__name__}.{name}")
        if name.startswith("_") or "_source" in self.__dict__:
            raise AttributeError(missing(self, name))
        load(self)  # it was no more than the parent of an exact version until now
        if name not in self.__dict__:
            raise AttributeError(missing(self, name))
        return self.__dict__[name]


def missing(module: ModuleType, name: str) -> str:
    """Return the message that says what `module` has instead of `name`."""
    names = [each for each in module.__dict__ if not each.startswith("_")]
    return f"{module.__name__} has no {name!r}. {did_you_mean(name, names)}".rstrip()


def is_version(name: str) -> bool:
    """Return whether `name` is that of an exact version: `v2`."""
    return name[:1] == "v" and name[1:].isdigit() and name.isascii()


class Finder:
    """Finds and loads `skills.<name>` and `skills.<name>.v<number>`."""

    def find_spec(self, fullname: str, *_: Any) -> Optional[ModuleSpec]:
        """Return the spec of a skill's module."""
        parts = fullname.split(".")
        if parts[0] != PACKAGE or not 2 <= len(parts) <= 3 or (len(parts) == 3 and not is_version(parts[2])):
            return None
        return ModuleSpec(fullname, self, origin=f"<{fullname}>", is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a module that can be called."""
        return Skill(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Fetch a skill's source and run it; one that is not in use is only the parent of its exact versions."""
        try:
            load(module)
        except SkillUnavailableError:
            if is_version(module.__name__.rpartition(".")[2]):
                raise


def load(module: ModuleType) -> None:
    """Make `module` what the host says that it is; raises `ModuleNotFoundError` or `SkillUnavailableError`."""
    _, name, *version = module.__name__.split(".")
    wanted = int(version[0][1:]) if version else None
    try:
        found: Dict[str, Any] = host.call("skills.source", {"skill": name, "version": wanted})
    except HostError as error:
        if error.kind == "unknown_skill":
            # `name` is not the full name: the import system swallows an error of that name in `from skills import x`.
            raise ModuleNotFoundError(error.message, name=name) from None
        raise SkillUnavailableError(error.message, name=module.__name__) from None
    try:
        define(module, found["source"])
    except (SyntaxError, ValueError) as error:
        raise SkillUnavailableError(f"The code of the skill {name} is broken: {error}", name=module.__name__) from None
    run = module.__dict__.get(ENTRY)
    if not callable(run):
        raise SkillUnavailableError(f"The skill {name} has no function `{ENTRY}`.", name=module.__name__)
    module.__dict__[ENTRY] = counted(run, found["skill"], found["version"])


# who uses what ------------------------------------------------------------------------------------

told: Set[Tuple[str, int, bool]] = set()  # in this run


def begin() -> None:
    """A new run begins."""
    told.clear()


def counted(run: Callable[..., Any], skill: str, version: int) -> Callable[..., Any]:
    """Return `run`, telling the host how its calls end."""
    flags = getattr(getattr(run, "__code__", None), "co_flags", 0)
    if flags & COROUTINE:

        @functools.wraps(run)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            try:
                value = await run(*args, **kwargs)
            except Exception as error:
                await atell(skill, version, error)
                raise
            await atell(skill, version, None)
            return value

        return awaited

    @functools.wraps(run)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            value = run(*args, **kwargs)
        except Exception as error:
            tell(skill, version, error)
            raise
        tell(skill, version, None)
        return value

    return called


def news_of(skill: str, version: int, error: Optional[Exception]) -> Optional[Dict[str, Any]]:
    """Return what the host is to be told of a call that ended; None if it knows."""
    key = (skill, version, error is None)
    if key in told:
        return None
    told.add(key)
    text = f"{type(error).__name__}: {error}"[:ERROR_CHARS] if error is not None else ""
    return {"skill": skill, "version": version, "ok": error is None, "error": text}


def tell(skill: str, version: int, error: Optional[Exception]) -> None:
    """Tell the host how a call ended; that it cannot be told is no matter to the code."""
    news = news_of(skill, version, error)
    if news is not None:
        try:
            host.call("skills.used", news)
        except HostError:
            pass


async def atell(skill: str, version: int, error: Optional[Exception]) -> None:
    """Do as `tell` does, from asyncio."""
    news = news_of(skill, version, error)
    if news is not None:
        try:
            await host.acall("skills.used", news)
        except HostError:
            pass


# finding skills -----------------------------------------------------------------------------------


class SkillInfo:
    """One skill in a listing; its repr is one line."""

    __slots__ = ("name", "signature", "summary", "version")

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.name: str = found["name"]
        self.version: int = found["version"]
        self.signature: str = found["signature"]
        self.summary: str = found["summary"]

    def __repr__(self) -> str:
        return f"{self.name}{self.signature}" + (f"  # {self.summary}" if self.summary else "")


class Listing(list[SkillInfo]):
    """Skills, one a line in its repr."""

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "no skills found"


def search(query: str, limit: int = 10) -> Listing:
    """Return the skills that fit `query`, best first."""
    found = ask("skills.search", {"query": query, "limit": limit}, "skills.search")
    return Listing(map(SkillInfo, found["skills"]))


def load_skill(name: str) -> ModuleType:
    """Return the module of a skill by its name, or of an exact version: "weather_report@2"."""
    skill, _, version = name.strip().replace("-", "_").partition("@")
    dotted = f"{PACKAGE}.{skill}" + (f".v{version.lstrip('v')}" if version else "")
    return importlib.import_module(dotted)


def names() -> List[str]:
    """Return the names of all skills in use, or none where the host cannot be asked."""
    try:
        return list(host.call("skills.names", {}))
    except HostError:
        return []


# the package --------------------------------------------------------------------------------------

PUBLIC: Dict[str, Any] = {"search": search, "load": load_skill, "SkillUnavailableError": SkillUnavailableError}


class Package(ModuleType):
    """The module `skills`: a skill is imported when it is first named."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
        try:
            return importlib.import_module(f"{PACKAGE}.{name}")
        except ModuleNotFoundError as error:
            raise AttributeError(str(error)) from None

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return f"{DOC}\nSkills: {', '.join(names()) or 'none yet'}.\n"


def install() -> ModuleType:
    """Make `import skills` work, through the host that `guest.install` was given; may be called again."""
    package = sys.modules.get(PACKAGE)
    if not isinstance(package, Package):
        package = sys.modules[PACKAGE] = Package(PACKAGE)
        package.__path__ = []
        package.__dict__.update(PUBLIC, __all__=sorted(PUBLIC))
        sys.meta_path.insert(0, Finder())
    return package


DOC = """Code that has worked and was kept, each skill a module: `from skills.weather_report import run`.

skills.search("words")      the skills that fit, best first     help(skills.weather_report)   what it takes and does
skills.weather_report(...)  the same as its run(...)            skills.weather_report.v2      exactly that version
"""
