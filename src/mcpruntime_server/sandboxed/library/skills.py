"""The package `skills`, each skill a module that can be called like its function `run`.

A module is made at its first import, from source that the host has. `skills.weather_report` is the
active version, `skills.weather_report.v2` an exact one. A skill without an active version has a
module, too (it is in `inactive_skills`), because Python imports it on the way to an exact version;
any other use of it fails in this run. A guide is also a module: its documentation is text that
was written for agents, and its attribute `folder` is the folder with its files.

Rule 1: as in `tools`: standard library only, Python >= 3.9, and nothing here knows how a call
travels.
Rule 2: the first import of a module fixes its version for the life of the interpreter.
Rule 3: the use of a version is reported once a run. A failed report never changes what the code
gets.
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
from . import packages, tools
from .planned import PlannedResult
from .tools import HostError, host

TYPE_CHECKING = False  # importing `typing` would slow down every start of a sandbox
if TYPE_CHECKING:
    from typing import Any, Callable

    from ...protocol.payloads import PresentedValue, SkillDescription, SkillSource, SkillUse

ENTRY_FUNCTION = "run"  # the function that a skill is
VERSION_PATTERN = r"v[1-9][0-9]{0,5}"
ADDRESS_PATTERN = r"\b0x[0-9a-fA-F]{6,16}\b"  # in reprs; each interpreter has others
INACTIVE_STATES = ("draft", "quarantined", "retired")  # error kinds: no version is active
MAX_CASE_CHARS = 16_000  # of the inputs and of the output of a case, each as JSON
MAX_ERROR_CHARS = 1_000
COROUTINE_FLAG = 0x80  # of a code object, as in `inspect`, which costs too much to import
READ_ONLY_MODE = 0o444


class SkillUnavailableError(ImportError):
    """A skill cannot be imported; `kind` says why.

    No version of it is active, or its source is not that of a skill.
    """

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
        if re.fullmatch(VERSION_PATTERN, name) and not exact:
            return self._import_version(skill, name)
        if self.__name__ in inactive_skills:
            raise SkillUnavailableError(*inactive_skills[self.__name__])
        if self.__dict__.get("is_guide"):
            return self._get_guide_attribute(skill, name)
        if ENTRY_FUNCTION not in self.__dict__:
            current = importlib.import_module(self.__name__)
            if current is not self:  # this module is from an earlier run, without an active version
                return getattr(current, name)
        raise AttributeError(missing_name_message(self, name))

    def _import_version(self, skill: str, version: str) -> ModuleType:
        try:
            return importlib.import_module(f"{self.__name__}.{version}")
        except ModuleNotFoundError as error:
            if error.name != skill:
                raise
            raise AttributeError(str(error)) from None

    def _get_guide_attribute(self, guide: str, name: str) -> Any:
        if name == "folder":
            self.folder = unpack_guide(guide)
            return self.folder
        module = self.__name__
        raise AttributeError(
            f"{module} is a guide and has no {name!r}: print({module}.__doc__) to read it; "
            f"its files are in {module}.folder."
        )


class SkillFinder:
    """Finds and loads `skills.<skill>` and `skills.<skill>.v<number>`."""

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        """Return the spec of a skill's module; raises `ImportError` for another name inside one."""
        package, _dot, rest = fullname.partition(".")
        if package != SKILLS_PACKAGE or not rest:
            return None
        skill, *inner = rest.split(".")
        if skill.startswith("_"):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        if len(inner) > 1 or (inner and not re.fullmatch(VERSION_PATTERN, inner[0])):
            parent = sys.modules[fullname.rpartition(".")[0]]
            raise ImportError(missing_name_message(parent, inner[-1]))
        loader: Any = self
        return ModuleSpec(fullname, loader, origin=f"<{fullname}>", is_package=True)

    def create_module(self, spec: ModuleSpec) -> SkillModule:
        """Return a module that can be called."""
        return SkillModule(spec.name)

    def exec_module(self, module: SkillModule) -> None:
        """Fetch the source and execute it."""
        _, skill, *exact = module.__name__.split(".")
        version = int(exact[0].removeprefix("v")) if exact else None
        try:
            source = fetch_skill(skill, version)
        except SkillUnavailableError as error:
            if exact or error.kind not in INACTIVE_STATES:
                raise
            module.__doc__ = str(error)
            inactive_skills[module.__name__] = (str(error), error.kind)
            return
        guide = source.get("guide")
        if type(guide) is str:
            module.__doc__ = guide
            module.__dict__["is_guide"] = True
        else:
            execute_skill(module, skill, source)


# modules of skills without an active version: the error message, and the kind of error
inactive_skills: dict[str, tuple[str, str]] = {}


def fetch_skill(skill: str, version: int | None) -> SkillSource:
    """Return a skill from the host; raises `ModuleNotFoundError` or `SkillUnavailableError`."""
    try:
        answer = host.call("skills.source", {"skill": skill, "version": version})
    except HostError as error:
        if error.kind == "unknown_skill":
            # Not the full name, because `from skills import x` ignores an error with that name.
            raise ModuleNotFoundError(error.message, name=skill) from None
        raise SkillUnavailableError(error.message, error.kind) from None
    fields = {"source": str, "version": int, "state": str}
    has_fields = type(answer) is dict and all(
        type(answer.get(name)) is kind for name, kind in fields.items()
    )
    if not has_fields:
        raise SkillUnavailableError(
            f"The host's answer for the skill {skill!r} is not a skill: "
            f"it needs {', '.join(fields)}."
        )
    source: SkillSource = answer
    return source


def unpack_guide(guide: str) -> Any:
    """Return a new folder with the files of a guide, as a `Path`."""
    import base64
    import tempfile
    from pathlib import Path

    files = tools.call_host("skills.files", {"skill": guide}, f"skills.{guide}.folder")
    folder = Path(tempfile.mkdtemp(prefix=f"{guide}-"))
    for relative_path, data in files.items():
        path = folder / relative_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))
        path.chmod(READ_ONLY_MODE)
    return folder


def execute_skill(module: SkillModule, skill: str, answer: SkillSource) -> None:
    """Execute a skill's source in its module.

    Raises `SkillUnavailableError` if it is not the source of a skill, and whatever the source
    raises.
    """
    version = f"{skill}@{answer['version']}"
    module.__file__ = f"<{module.__name__}>"  # `inspect` looks for it, and `linecache` has it
    try:
        code = tools.compile_module(module, answer["source"])
    except SyntaxError as error:
        raise SkillUnavailableError(
            f"The skill {version} is not Python: line {error.lineno}: {error.msg}."
        ) from None
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:
        # It has NUL bytes or surrogates, or is nested too deeply.
        raise SkillUnavailableError(f"The skill {version} cannot be compiled: {error}.") from None
    if answer.get("wheels"):
        packages.add_wheels(packages.PackagesModule.folder, answer["wheels"])
    exec(code, module.__dict__)
    run = module.__dict__.get(ENTRY_FUNCTION)
    if run is None:
        raise SkillUnavailableError(f"The skill {version} has no function {ENTRY_FUNCTION!r}.")
    if not callable(run):
        raise SkillUnavailableError(f"In the skill {version}, {ENTRY_FUNCTION!r} is no function.")
    reporter = UseReporter(skill, answer["version"], answer["state"], module.__file__, run)
    module.__dict__[ENTRY_FUNCTION] = wrap_run(run, reporter)


def missing_name_message(module: ModuleType, name: str) -> str:
    """Return a message that says what a module has, and that `name` is none of it."""
    if getattr(module.__spec__, "_initializing", False):
        return (
            f"cannot import name {name!r} from partially initialized module {module.__name__!r} "
            "(most likely due to a circular import): "
            "skills that import each other must do so inside their functions."
        )
    names = [key for key in module.__dict__ if not key.startswith("_")]
    hint = did_you_mean(name, names)
    return f"{module.__name__} has no {name!r}. {hint}It has: {tools.join_first_names(names)}."


# use ----------------------------------------------------------------------------------------------

# the outcomes that this run has reported: skill, version, whether it worked
reported_uses: dict[tuple[str, int, bool], object] = {}


def reset_for_run() -> None:
    """Start a run: report uses again, and look again for skills that had no active version."""
    reported_uses.clear()
    package = sys.modules.get(SKILLS_PACKAGE)
    for name in inactive_skills:
        sys.modules.pop(name, None)
        if isinstance(package, SkillsPackage):
            package.__dict__.pop(name.partition(".")[2], None)
    inactive_skills.clear()


class UseReporter:
    """Reports to the host how calls of one version ended.

    Unless the version is active, the report has the inputs and the output, so that it can become a
    case. Nothing is reported after a call has been planned instead of made, because its outcome is
    unknown.
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
        """Return a copy of the arguments by parameter.

        None if they are not needed, too large, or not JSON data.
        """
        is_reported = (self.skill, self.version, True) in reported_uses
        if not self.records_cases or PlannedResult.any_created or is_reported:
            return None
        import inspect

        try:
            bound = inspect.signature(self.run).bind(*args, **kwargs)
            bound.apply_defaults()
            text, is_truncated = truncate_json(bound.arguments, MAX_CASE_CHARS)
        except Exception:  # noqa: BLE001 - whatever the arguments are, the call must be made
            return None
        return None if is_truncated else json.loads(text)

    def report_success(self, inputs: Any, result: Any) -> None:
        """Report that a call has returned `result`."""

        def describe() -> SkillUse:
            if self.records_cases:
                return {"error": "", "output": self.present_output(result)}
            return {"error": ""}

        self.report_use(True, inputs, describe)

    def present_output(self, result: Any) -> PresentedValue:
        """Return `result` like the value of a run, without what differs in a repetition."""
        shown: PresentedValue = present_value(result, MAX_CASE_CHARS)  # type: ignore[assignment]
        if shown["kind"] != "json":
            shown["text"] = re.sub(ADDRESS_PATTERN, "0x...", shown["text"])
        return shown

    def report_failure(self, inputs: Any, error: Exception) -> None:
        """Report that a call has raised `error`, unless the caller passed the wrong arguments."""
        has_entered_run = error.__traceback__ is None or error.__traceback__.tb_next is not None
        if isinstance(error, TypeError) and not has_entered_run:
            return
        self.report_use(False, inputs, lambda: {"error": self.describe_failure(error)})

    def describe_failure(self, error: Exception) -> str:
        """Return an error, and the last line of the skill in its traceback."""
        shown = describe_error(error, (self.file,), MAX_ERROR_CHARS * 2)
        line = 0
        frame = error.__traceback__
        while frame is not None:
            if frame.tb_frame.f_code.co_filename == self.file:
                line = frame.tb_lineno
            frame = frame.tb_next
        text = f"{shown['type']}: {shown['message']}" + (f" (line {line})" if line else "")
        return re.sub(ADDRESS_PATTERN, "0x...", text)

    def report_use(self, ok: bool, inputs: Any, describe: Callable[[], SkillUse]) -> None:
        """Report the outcome of a call, if it is the first such outcome in the run."""
        marker = object()
        key = (self.skill, self.version, ok)
        if PlannedResult.any_created or reported_uses.setdefault(key, marker) is not marker:
            return
        try:
            use: SkillUse = {"skill": self.skill, "version": self.version, "ok": ok, **describe()}
            if inputs is not None:
                use["inputs"] = inputs
            host.call("skills.used", use)
        except Exception:  # noqa: BLE001, S110 - the code has its result and must not notice
            pass


def wrap_run(run: Callable[..., Any], reporter: UseReporter) -> Callable[..., Any]:
    """Return a function that calls `run` and reports its outcome.

    It is a coroutine function if `run` is.
    """

    @functools.wraps(run)
    def call(*args: Any, **kwargs: Any) -> Any:
        inputs = reporter.capture_inputs(args, kwargs)
        try:
            result = run(*args, **kwargs)
        except Exception as error:
            reporter.report_failure(inputs, error)
            raise
        reporter.report_success(inputs, result)
        return result

    @functools.wraps(run)
    async def acall(*args: Any, **kwargs: Any) -> Any:
        inputs = reporter.capture_inputs(args, kwargs)
        try:
            result = await run(*args, **kwargs)
        except Exception as error:
            reporter.report_failure(inputs, error)
            raise
        # This blocks the loop for a moment. If it awaited, a cancellation could lose the result.
        reporter.report_success(inputs, result)
        return result

    flags = getattr(getattr(run, "__code__", None), "co_flags", 0)
    return acall if flags & COROUTINE_FLAG else call


# finding skills -----------------------------------------------------------------------------------


class SkillInfo:
    """One skill in a listing; its repr is one line."""

    __slots__ = ("name", "signature", "state", "summary", "version")

    def __init__(self, data: SkillDescription) -> None:
        self.name = data["name"]
        self.version = data["version"]
        self.state = data["state"]
        self.signature = data["signature"]
        self.summary = data["summary"]

    def __repr__(self) -> str:
        return f"{self.name}{self.signature}" + (f"  # {self.summary}" if self.summary else "")


class SkillList(list[SkillInfo]):
    """Skills, one a line in the repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "no skills found"


def search(query: str, limit: int = 10) -> SkillList:
    """Return the skills whose names, descriptions, signatures or code match `query`, best first."""
    answer = tools.call_host("skills.search", {"query": query, "limit": limit}, "skills.search")
    try:
        return SkillList(map(SkillInfo, answer["skills"]))
    except (KeyError, TypeError):
        raise SkillUnavailableError(
            "The host's answer to the search is not a list of skills."
        ) from None


def list_skills() -> list[str]:
    """Return the names of all active skills."""
    names = tools.call_host("skills.names", {}, "skills.list")
    return [name for name in names if type(name) is str] if type(names) is list else []


def load(skill: str) -> ModuleType:
    """Return the module of a skill, "weather-report", or of a version, "weather_report@2"."""
    name, at, version = skill.strip().replace("-", "_").partition("@")
    version = f"v{version.removeprefix('v')}"
    is_exact = re.fullmatch(VERSION_PATTERN, version) is not None
    if not name.isidentifier() or (at and not is_exact):
        raise ValueError(
            f"{skill!r:.80} names no skill: "
            "write 'weather_report' or, for a version, 'weather_report@2'."
        )
    module = f"{SKILLS_PACKAGE}.{name}"
    return importlib.import_module(f"{module}.{version}" if at else module)


# the package --------------------------------------------------------------------------------------

SKILLS_EXPORTS: dict[str, Any] = {
    "search": search,
    "list": list_skills,
    "load": load,
    "SkillUnavailableError": SkillUnavailableError,
}


class SkillsPackage(tools.HostPackage):
    """The package `skills`; its documentation lists the skills."""

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        # Not in `dir`: `help` reads every attribute in `dir`, which would execute all skills.
        try:
            listed = ", ".join(list_skills())
        except tools.ToolError:
            listed = ""
        return f"{SKILLS_DOC}\nSkills: {listed or 'none'}.\n"


def install_skills() -> ModuleType:
    """Make `import skills` work; calls go where `install_tools` sends them.

    It may be called again.
    """
    return tools.install_package(SkillsPackage, SKILLS_PACKAGE, SKILLS_EXPORTS, SkillFinder)


SKILLS_DOC = """Code that was kept because it works, each skill a module that can be called.

skills.weather_report(city="Oslo")    from skills.weather_report import run
skills.search("words")                the matching skills, best first: name, parameters, summary
help(skills.weather_report.run)       parameters, types, what it does
skills.pdf_forms.__doc__              the text of a guide; skills.pdf_forms.folder has its files
skills.weather_report.v2(...)         an exact version; also skills.load("weather_report@2")
"""
