"""What sandboxed code sees of skills: the package `skills`, each skill a module that is called as its function `run`.

A module is made at its first import, of source that the host has. `skills.weather_report` is the version in use,
`skills.weather_report.v2` an exact one. A skill of which no version is in use has a module too (it is in `unused`),
because Python imports it on the way to an exact version; whatever else is wanted of it fails, in this run. A guide is a
module too: its documentation is a text that somebody has written for agents, and `folder` is where its files are.

Rule 1: as in `guest`: standard library only, Python >= 3.9, and nothing here knows how a call travels.
Rule 2: the first import of a module fixes its version for the life of the interpreter.
Rule 3: the use of a version is told once a run; what comes of telling it never changes what the code gets.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from ...protocol.library_names import SKILLS_PACKAGE
from ...protocol.presentation import describe_error, present_value, truncate_json
from ...protocol.suggestions import did_you_mean
from . import tools
from .planned import PlannedResult
from .tools import HostError, host

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Callable

ENTRY_FUNCTION = "run"  # the function that a skill is
VERSION_PATTERN = re.compile(
    r"v(0|[1-9][0-9]{0,5})", re.ASCII
)  # v0 is what is being checked, before it has a number
ADDRESS_PATTERN = re.compile(
    r"\b0x[0-9a-fA-F]{6,16}\b"
)  # in the repr of objects; another one in every interpreter
INACTIVE_STATES = (
    "draft",
    "quarantined",
    "retired",
)  # kinds of error: the skill is there, and no version of it is in use
MAX_CASE_CHARS = 16_000  # of inputs and of an output, each as JSON
MAX_ERROR_CHARS = 1_000
GUIDE_ATTRIBUTE_MESSAGE = (
    "{0} is a guide and has no {1!r}: print({0}.__doc__) to read it; its files are in {0}.folder."
)
COROUTINE_FLAG = 0x80  # code flag, as in `inspect`, without the cost of importing that


class SkillUnavailableError(ImportError):
    """A skill cannot be imported: no version of it is in use, or its source is no skill; `kind` says which."""

    __module__ = SKILLS_PACKAGE

    def __init__(self, message: str, kind: str = "unavailable") -> None:
        super().__init__(message)
        self.kind = kind


# the modules --------------------------------------------------------------------------------------


class SkillModule(ModuleType):
    """The module of one version of a skill."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, ENTRY_FUNCTION)(*args, **kwargs)

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(getattr(self, ENTRY_FUNCTION))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        _, skill, *exact = self.__name__.split(".")
        if VERSION_PATTERN.fullmatch(name) and not exact:
            try:
                return importlib.import_module(f"{self.__name__}.{name}")
            except ModuleNotFoundError as error:
                if error.name != skill:
                    raise
                raise AttributeError(str(error)) from None
        if self.__name__ in inactive_skills:
            raise SkillUnavailableError(*inactive_skills[self.__name__])
        if self.__dict__.get("is_guide"):
            if name == "folder":
                self.folder = unpack_guide(skill)
                return self.folder
            raise AttributeError(GUIDE_ATTRIBUTE_MESSAGE.format(self.__name__, name))
        if ENTRY_FUNCTION not in self.__dict__:
            current = importlib.import_module(self.__name__)
            if current is not self:  # this one is of an earlier run, when no version was in use
                return getattr(current, name)
        raise AttributeError(missing_name_message(self, name))


class SkillFinder:
    """Finds and loads `skills.<skill>` and `skills.<skill>.v<number>`."""

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        """Return the spec of a skill's module; another name below one is something that it does not have."""
        package, _dot, rest = fullname.partition(".")
        if package != SKILLS_PACKAGE or not rest:
            return None
        skill, *below = rest.split(".")
        if skill.startswith("_"):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        if len(below) > 1 or (below and not VERSION_PATTERN.fullmatch(below[0])):
            raise ImportError(
                missing_name_message(sys.modules[fullname.rpartition(".")[0]], below[-1])
            )
        return ModuleSpec(fullname, self, origin=f"<{fullname}>", is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> SkillModule:
        """Return a module that can be called."""
        return SkillModule(spec.name)

    def exec_module(self, module: SkillModule) -> None:
        """Fetch the source and run it."""
        _, skill, *exact = module.__name__.split(".")
        try:
            found = fetch_skill(skill, int(exact[0][1:]) if exact else None)
        except SkillUnavailableError as error:
            if exact or error.kind not in INACTIVE_STATES:
                raise
            module.__doc__ = str(error)
            inactive_skills[module.__name__] = (str(error), error.kind)
        else:
            if type(found.get("guide")) is str:
                module.__doc__ = found["guide"]
                module.__dict__["is_guide"] = True
            else:
                execute_skill(module, skill, found)


inactive_skills: dict[
    str, tuple[str, str]
] = {}  # modules of skills of which no version is in use: why, and the kind of error


def fetch_skill(skill: str, version: int | None) -> dict[str, Any]:
    """Return a skill as the host has it; raises `ModuleNotFoundError` or `SkillUnavailableError`."""
    try:
        found = host.call("skills.source", {"skill": skill, "version": version})
    except HostError as error:
        if error.kind == "unknown_skill":
            # `name` is not the full name: the import system swallows an error of that name in `from skills import x`.
            raise ModuleNotFoundError(error.message, name=skill) from None
        raise SkillUnavailableError(error.message, error.kind) from None
    fields = {"source": str, "version": int, "state": str}
    if type(found) is not dict or any(
        type(found.get(name)) is not kind for name, kind in fields.items()
    ):
        raise SkillUnavailableError(
            f"The host's answer for the skill {skill!r} is not a skill: it needs {', '.join(fields)}."
        )
    return found


def unpack_guide(guide: str) -> Any:
    """Return a new folder with the files of a guide, as a `Path`."""
    import base64
    import tempfile
    from pathlib import Path

    found = tools.call_host("skills.files", {"skill": guide}, f"skills.{guide}.folder")
    folder = Path(tempfile.mkdtemp(prefix=f"{guide}-"))
    for path, data in found.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(base64.b64decode(data))
        place.chmod(0o444)
    return folder


def execute_skill(module: SkillModule, skill: str, found: dict[str, Any]) -> None:
    """Run a skill's source in its module; raises `SkillUnavailableError` if it is no skill, and whatever it raises."""
    version = f"{skill}@{found['version']}"
    module.__file__ = f"<{module.__name__}>"  # which `linecache` has, and `inspect` asks for
    try:
        code = tools.compile_module(module, found["source"])
    except SyntaxError as error:
        raise SkillUnavailableError(
            f"The skill {version} is not Python: line {error.lineno}: {error.msg}."
        ) from None
    except (
        ValueError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:  # NUL, surrogates, too deep
        raise SkillUnavailableError(f"The skill {version} cannot be compiled: {error}.") from None
    exec(code, module.__dict__)
    run = module.__dict__.get(ENTRY_FUNCTION)
    if not callable(run):
        what = "has no function" if run is None else "has something else than a function as"
        raise SkillUnavailableError(f"The skill {version} {what} {ENTRY_FUNCTION!r}.")
    module.__dict__[ENTRY_FUNCTION] = wrap_run(
        run, UseReporter(skill, found["version"], found["state"], module.__file__, run)
    )


def missing_name_message(module: ModuleType, name: str) -> str:
    """Return the message that says what `module` has instead of `name`."""
    if getattr(module.__spec__, "_initializing", False):
        return (
            f"cannot import name {name!r} from partially initialized module {module.__name__!r} (most likely due to a "
            "circular import): skills that import each other must do so inside their functions."
        )
    names = [key for key in module.__dict__ if not key.startswith("_")]
    listed = ", ".join(names[:50]) + (", ..." if len(names) > 50 else "")
    return f"{module.__name__} has no {name!r}. {did_you_mean(name, names)}It has: {listed}."


# use ----------------------------------------------------------------------------------------------

reported_uses: dict[
    tuple[str, int, bool], object
] = {}  # what this run has told: a version worked, or failed


def reset_for_run() -> None:
    """Tell uses anew, and look again for the skills of which no version was in use."""
    reported_uses.clear()
    package = sys.modules.get(SKILLS_PACKAGE)
    for name in inactive_skills:
        sys.modules.pop(name, None)
        if isinstance(package, SkillsPackage):
            package.__dict__.pop(name.partition(".")[2], None)
    inactive_skills.clear()


class UseReporter:
    """Tells the host how calls of one version went, with the case that they make unless it is `active`.

    Nothing is told once a call was planned instead of made: what came of it is not known.
    """

    def __init__(
        self, skill: str, version: int, state: str, file: str, run: Callable[..., Any]
    ) -> None:
        self.skill = skill
        self.version = version
        self.file = file
        self.run = run
        self.records_cases = state != "active"

    def capture_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return a copy of a call's arguments by parameter, or None: not wanted, too large or not JSON data."""
        if (
            not self.records_cases
            or PlannedResult.any_created
            or (self.skill, self.version, True) in reported_uses
        ):
            return None
        import inspect

        try:
            bound = inspect.signature(self.run).bind(*args, **kwargs)
            bound.apply_defaults()
            text, is_cut = truncate_json(bound.arguments, MAX_CASE_CHARS)
        except Exception:  # noqa: BLE001 - whatever the arguments are, the call is to be made
            return None
        return None if is_cut else json.loads(text)

    def report_success(self, inputs: Any, result: Any) -> None:
        """A call has returned `result`."""
        self.report_use(
            True,
            inputs,
            lambda: {
                "error": "",
                **({"output": self.present_output(result)} if self.records_cases else {}),
            },
        )

    def present_output(self, result: Any) -> dict[str, Any]:
        """Return `result` as the value of a run is told, so that it is the same when the run is repeated."""
        shown = present_value(result, MAX_CASE_CHARS)
        return (
            shown
            if shown["kind"] == "json"
            else {**shown, "text": ADDRESS_PATTERN.sub("0x...", shown["text"])}
        )

    def report_failure(self, inputs: Any, error: Exception) -> None:
        """A call has raised `error`; arguments that `run` does not take are the caller's failure."""
        is_callers = (
            isinstance(error, TypeError)
            and error.__traceback__ is not None
            and not error.__traceback__.tb_next
        )
        if not is_callers:
            self.report_use(False, inputs, lambda: {"error": self.describe_failure(error)})

    def describe_failure(self, error: Exception) -> str:
        """Return the error and the last line of the skill that it passed."""
        shown = describe_error(error, (self.file,), MAX_ERROR_CHARS * 2)
        at, line = error.__traceback__, 0
        while at is not None:
            if at.tb_frame.f_code.co_filename == self.file:
                line = at.tb_lineno
            at = at.tb_next
        text = f"{shown['type']}: {shown['message']}" + (f" (line {line})" if line else "")
        return ADDRESS_PATTERN.sub("0x...", text)

    def report_use(self, ok: bool, inputs: Any, details: Callable[[], dict[str, Any]]) -> None:
        """Tell the host that a call ended, the first time in a run that one ends so."""
        mine = object()
        if (
            PlannedResult.any_created
            or reported_uses.setdefault((self.skill, self.version, ok), mine) is not mine
        ):
            return
        try:
            report = {"skill": self.skill, "version": self.version, "ok": ok, **details()}
            host.call("skills.used", report if inputs is None else {**report, "inputs": inputs})
        except Exception:  # noqa: BLE001, S110 - the code has its result, and nothing else is its business
            pass


def wrap_run(run: Callable[..., Any], uses: UseReporter) -> Callable[..., Any]:
    """Return `run`, its uses told; what is asynchronous stays so."""

    @functools.wraps(run)
    def call(*args: Any, **kwargs: Any) -> Any:
        inputs = uses.capture_inputs(args, kwargs)
        try:
            result = run(*args, **kwargs)
        except Exception as error:
            uses.report_failure(inputs, error)
            raise
        uses.report_success(inputs, result)
        return result

    @functools.wraps(run)
    async def acall(*args: Any, **kwargs: Any) -> Any:
        inputs = uses.capture_inputs(args, kwargs)
        try:
            result = await run(*args, **kwargs)
        except Exception as error:
            uses.report_failure(inputs, error)
            raise
        uses.report_success(
            inputs, result
        )  # blocks the loop for a moment: what awaits could be cancelled, and lose the result
        return result

    return (
        acall if getattr(getattr(run, "__code__", None), "co_flags", 0) & COROUTINE_FLAG else call
    )


# finding skills -----------------------------------------------------------------------------------


class SkillInfo:
    """One skill in a listing; its repr is one line."""

    __slots__ = ("name", "signature", "state", "summary", "version")

    def __init__(self, found: dict[str, Any]) -> None:
        self.name, self.version, self.state = found["name"], found["version"], found["state"]
        self.signature, self.summary = found["signature"], found["summary"]

    def __repr__(self) -> str:
        return f"{self.name}{self.signature}" + (f"  # {self.summary}" if self.summary else "")


class SkillList(list[SkillInfo]):
    """Skills, one a line in its repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "no skills found"


def search(query: str, limit: int = 10) -> SkillList:
    """Return the skills whose names, descriptions, signatures or code match `query`, best first."""
    found = tools.call_host("skills.search", {"query": query, "limit": limit}, "skills.search")
    try:
        return SkillList(map(SkillInfo, found["skills"]))
    except (KeyError, TypeError):
        raise SkillUnavailableError(
            "The host's answer to the search is not a list of skills."
        ) from None


def list_skills() -> list[str]:
    """Return the names of all skills that are in use."""
    found = tools.call_host("skills.names", {}, "skills.list")
    return [name for name in found if type(name) is str] if type(found) is list else []


def load(skill: str) -> ModuleType:
    """Return the module of a skill, "weather-report" or, for an exact version, "weather_report@2"."""
    name, at, version = skill.strip().replace("-", "_").partition("@")
    version = version if version[:1] == "v" else f"v{version}"
    if not name.isidentifier() or (
        at and (version == "v0" or not VERSION_PATTERN.fullmatch(version))
    ):
        raise ValueError(
            f"{skill!r:.80} names no skill: write 'weather_report' or, for a version, 'weather_report@2'."
        )
    return importlib.import_module(
        f"{SKILLS_PACKAGE}.{name}.{version}" if at else f"{SKILLS_PACKAGE}.{name}"
    )


# the package --------------------------------------------------------------------------------------

SKILLS_EXPORTS: dict[str, Any] = {
    "search": search,
    "list": list_skills,
    "load": load,
    "SkillUnavailableError": SkillUnavailableError,
}


class SkillsPackage(tools.HostPackage):
    """The module `skills`."""

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        # The skills are listed here and not by `dir`: `help` gets every name that `dir` lists, which would run them.
        try:
            listed = ", ".join(list_skills())
        except tools.ToolError:
            listed = ""
        return f"{SKILLS_DOC}\nSkills: {listed or 'none'}.\n"


def install_skills() -> ModuleType:
    """Make `import skills` work, with calls going where `guest.install` has them go; may be called again."""
    return tools.install_package(SkillsPackage, SKILLS_PACKAGE, SKILLS_EXPORTS, SkillFinder)


SKILLS_DOC = """Code that was kept because it works, each skill a module that is called as its function `run`.

skills.weather_report(city="Oslo")            from skills.weather_report import run
skills.search("words")                        the skills that fit, best first: names, parameters, what they do
help(skills.weather_report.run)               parameters, types, what it does
skills.pdf_forms.__doc__, skills.pdf_forms.folder        a guide: what it says, and the folder with its files
skills.weather_report.v2(...)                 an exact version; also skills.load("weather_report@2")
"""
