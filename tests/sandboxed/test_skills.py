"""The package `skills` as code in a sandbox sees it: imports, versions, reports, bad sources."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import pickle
import pydoc
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from mcpruntime_server.sandboxed.library import skills, tools
from mcpruntime_server.sandboxed.library.planned import PlanEnded, PlannedResult
from mcpruntime_server.sandboxed.library.results import map_concurrently

REPORT = '''
"""Weather, as a skill."""

def run(city: str = "Oslo", *days: int, unit: str = "C") -> dict:
    """Reports the weather of a city."""
    if city == "Atlantis":
        raise LookupError(f"no {city}")
    return {"city": city, "days": len(days), "unit": unit}
'''
COMPOSED = (
    "from skills.weather_report import run as report\n\ndef run(): return report('Rome')['city']\n"
)


class Bench:
    """The host: it has sources by name and version; the last active version is used."""

    def __init__(self) -> None:
        self.versions: dict[str, list[tuple[str, str]]] = {"weather_report": [(REPORT, "active")]}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.answer: Any = None  # returned instead of anything else
        self.refuses_uses = False

    def add(self, name: str, source: str, state: str = "active") -> None:
        self.versions.setdefault(name, []).append((source, state))

    def call(self, target: str, args: dict[str, Any]) -> Any:
        self.calls.append((target, args))
        if self.answer is not None:
            return self.answer
        if target == "skills.names":
            return list(self.versions)
        if target == "skills.source":
            return self.source(args["skill"], args["version"])
        if target == "skills.search":
            return {"skills": [FOUND]}
        if target == "skills.used" and self.refuses_uses:
            raise tools.HostError("unavailable", "the journal is full")
        return None

    async def acall(self, target: str, args: dict[str, Any]) -> Any:
        return self.call(target, args)

    def source(self, name: str, version: int | None) -> dict[str, Any]:
        versions = self.versions.get(name, [])
        if not versions or (version or 1) > len(versions):
            raise tools.HostError(
                "unknown_skill", f"no skill {name!r}. Did you mean 'weather_report'?"
            )
        active = [number for number, (_, state) in enumerate(versions, 1) if state == "active"]
        if version is None and not active:
            raise tools.HostError(
                versions[-1][1], f"{name} has no version in use. Import {name}.v1 to try it."
            )
        number = version or active[-1]
        source, state = versions[number - 1]
        return {"skill": name, "version": number, "source": source, "state": state, "digest": "d"}

    @property
    def used(self) -> list[dict[str, Any]]:
        return [args for target, args in self.calls if target == "skills.used"]

    @property
    def asked(self) -> list[tuple[str, int | None]]:
        return [
            (args["skill"], args["version"])
            for target, args in self.calls
            if target == "skills.source"
        ]


FOUND = {
    "name": "weather_report",
    "version": 2,
    "signature": '(city: str = "Oslo") -> dict',
    "summary": "Reports the weather.",
    "state": "active",
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    finders = list(sys.meta_path)
    bench = Bench()
    monkeypatch.setattr(PlannedResult, "any_created", False)
    tools.install_tools(bench.call, bench.acall)
    skills.install_skills()
    skills.reset_for_run()
    yield bench
    skills.reset_for_run()
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tools", "skills")]:
        del sys.modules[name]


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def loaded() -> list[str]:
    return sorted(name for name in sys.modules if name.startswith("skills."))


class TestImports:
    def test_every_form_of_import_finds_the_same_skill(self, bench: Bench) -> None:
        names = run(
            "import skills\nimport skills.weather_report\nfrom skills.weather_report import run\n"
            "from skills import weather_report\nloaded = skills.load('weather-report')\n"
            "same = skills.weather_report.run is run is weather_report.run is loaded.run"
        )
        assert names["same"]
        assert bench.asked == [("weather_report", None)]

    def test_a_module_is_called_as_its_function(self, bench: Bench) -> None:
        assert run("import skills\nr = skills.weather_report(city='Rome')")["r"]["city"] == "Rome"
        assert (
            run("import skills\nr = skills.weather_report('Rome', 1, 2, unit='F')")["r"]["days"]
            == 2
        )

    def test_the_first_import_fixes_the_version(self, bench: Bench) -> None:
        old = run("from skills.weather_report import run")["run"]
        bench.add("weather_report", "def run(): return 2")
        skills.reset_for_run()
        assert run("from skills.weather_report import run")["run"] is old
        assert run("import skills\nr = skills.weather_report.v2()")["r"] == 2

    @pytest.mark.parametrize(
        "code",
        [
            "import skills\nrun = skills.weather_report.v2",
            "from skills.weather_report.v2 import run",
            "from skills.weather_report import v2 as run",
            "import skills\nrun = skills.load('weather_report@2')",
            "import skills\nrun = skills.load('weather-report@v2')",
        ],
    )
    @pytest.mark.parametrize("state", ["active", "draft", "retired"])
    def test_an_exact_version_is_importable_in_any_state(
        self, bench: Bench, code: str, state: str
    ) -> None:
        bench.add("weather_report", "def run(): return 2", state)
        assert run(code)["run"]() == 2
        assert (
            run("import skills\nr = skills.weather_report")["r"]
            is not sys.modules["skills.weather_report.v2"]
        )

    @pytest.mark.parametrize("state", ["draft", "quarantined", "retired"])
    def test_a_skill_without_an_active_version_is_importable_by_version_only(
        self, bench: Bench, state: str
    ) -> None:
        bench.add("lonely", "def run(): return 1", state)
        assert run("from skills.lonely.v1 import run\nr = run()")["r"] == 1
        assert run("import skills\nr = skills.lonely.v1()")["r"] == 1
        for code in (
            "from skills.lonely import run",
            "import skills\nskills.lonely()",
            "import skills\nskills.lonely.run",
        ):
            for error in (ImportError, skills.SkillUnavailableError):
                with pytest.raises(error, match=r"no version in use. Import lonely.v1") as caught:
                    run(code)
                assert caught.value.kind == state  # type: ignore[attr-defined]

    def test_a_skill_that_becomes_active_is_found_in_the_next_run(self, bench: Bench) -> None:
        bench.add("lonely", "def run(): return 1", "draft")
        held = run("from skills import lonely")["lonely"]
        bench.add("lonely", "def run(): return 2")
        skills.reset_for_run()
        assert run("from skills.lonely import run")["run"]() == 2
        assert held() == 2

    def test_a_host_that_does_not_answer_is_an_import_error(self, bench: Bench) -> None:
        bench.add("gone", "", "unavailable")
        with pytest.raises(skills.SkillUnavailableError):
            run("import skills.gone")
        assert loaded() == []

    def test_an_unknown_skill_suggests_a_similar_name(self, bench: Bench) -> None:
        for code in (
            "import skills.weather",
            "from skills import weather",
            "from skills.weather import run",
        ):
            with pytest.raises(ModuleNotFoundError, match="Did you mean 'weather_report'"):
                run(code)
        for code in ("skills.weather", "skills.weather_report.v9"):
            with pytest.raises(AttributeError, match="Did you mean 'weather_report'"):
                run(f"import skills\n{code}")
        with pytest.raises(ModuleNotFoundError, match="Did you mean"):
            run("from skills.weather_report.v9 import run")

    def test_an_unknown_name_in_a_skill_lists_the_known_ones(self, bench: Bench) -> None:
        for code in (
            "from skills.weather_report import rnu",
            "from skills.weather_report.v1 import rnu",
            "import skills.weather_report.v1.v1",
        ):
            with pytest.raises(ImportError, match="It has: run"):
                run(code)
        with pytest.raises(AttributeError, match="Did you mean 'run'"):
            run("import skills\nskills.weather_report.rnu")
        with pytest.raises(AttributeError, match="has no 'v01'"):
            run("import skills\nskills.weather_report.v01")

    def test_private_names_do_not_call_the_host(self, bench: Bench) -> None:
        package = sys.modules["skills"]
        assert not hasattr(package, "_repr_html_")
        with pytest.raises(ModuleNotFoundError):
            run("import skills._secret")
        assert bench.calls == []
        assert not hasattr(package.weather_report, "_repr_html_")

    @pytest.mark.parametrize(
        "name", ["", "@", "a.b", "weather report", "weather_report@", "x@0", "x@2.1", "../x"]
    )
    def test_an_invalid_skill_name_is_not_loaded(self, bench: Bench, name: str) -> None:
        with pytest.raises(ValueError, match="names no skill: write 'weather_report'"):
            skills.load(name)
        assert bench.calls == []

    def test_a_skill_may_use_another(self, bench: Bench) -> None:
        bench.add("composed", COMPOSED)
        assert run("import skills\nr = skills.composed()")["r"] == "Rome"
        assert [use["skill"] for use in bench.used] == ["weather_report", "composed"]

    def test_a_missing_import_in_a_skill_does_not_look_like_a_missing_skill(
        self, bench: Bench
    ) -> None:
        bench.add("composed", COMPOSED.replace("weather", "wether"))
        for code in ("import skills\nskills.composed", "import skills.composed"):
            with pytest.raises(ModuleNotFoundError, match="no skill 'wether_report'"):
                run(code)

    def test_a_circular_import_of_skills_is_explained(self, bench: Bench) -> None:
        bench.add("one", "from skills.two import run as two\ndef run(): return two()")
        bench.add("two", "from skills.one import run as one\ndef run(): return one()")
        with pytest.raises(
            ImportError,
            match=r"'run' from partially initialized module 'skills.one'.*circular import",
        ):
            run("import skills.one")
        assert loaded() == []
        bench.add("two", "import skills\ndef run(): return skills.one.__name__")
        assert run("import skills\nr = skills.one()")["r"] == "skills.one"

    def test_a_skill_that_calls_its_importer_during_import_is_explained(self, bench: Bench) -> None:
        bench.add("one", "import skills.two\ndef run(): return 1")
        bench.add("two", "import skills.one\nskills.one()\ndef run(): return 2")
        with pytest.raises(AttributeError, match="circular import"):
            run("import skills.one")
        assert loaded() == []

    def test_threads_that_import_at_the_same_time_get_one_module(self, bench: Bench) -> None:
        barrier = threading.Barrier(8)

        def get(_: int) -> Any:
            barrier.wait(timeout=30)
            return importlib.import_module("skills.weather_report").run

        assert len({slot.value for slot in map_concurrently(get, range(8))}) == 1
        assert bench.asked == [("weather_report", None)]

    def test_installing_again_keeps_the_modules(self, bench: Bench) -> None:
        before = importlib.import_module("skills.weather_report")
        assert skills.install_skills() is sys.modules["skills"]
        assert importlib.import_module("skills.weather_report") is before
        assert sum(isinstance(finder, skills.SkillFinder) for finder in sys.meta_path) == 1


class TestReading:
    def test_help_shows_the_skills_signature_and_docs(self, bench: Bench) -> None:
        module = importlib.import_module("skills.weather_report")
        signature = "(city: str = 'Oslo', *days: int, unit: str = 'C') -> dict"
        text = pydoc.plain(pydoc.render_doc(module.run))
        assert f"run{signature}" in text
        assert "Reports the weather of a city." in text
        assert f"run{signature}" in pydoc.plain(pydoc.render_doc(module))
        assert str(inspect.signature(module)) == str(inspect.signature(module.run)) == signature  # type: ignore[arg-type]

    def test_the_source_of_a_skill_can_be_read(self, bench: Bench) -> None:
        module = importlib.import_module("skills.weather_report")
        assert inspect.getsource(module.run).startswith("def run(city")
        assert inspect.getsource(module) == REPORT

    def test_tracebacks_show_the_skills_own_lines(self, bench: Bench) -> None:
        with pytest.raises(LookupError) as caught:
            run("import skills\nskills.weather_report('Atlantis')")
        text = "".join(traceback.format_exception(caught.value))
        assert 'File "<skills.weather_report>", line 7, in run' in text
        assert 'raise LookupError(f"no {city}")' in text

    def test_help_on_the_package_lists_the_skills_and_runs_none(self, bench: Bench) -> None:
        bench.add("broken", "raise SystemExit")
        text = pydoc.plain(pydoc.render_doc(sys.modules["skills"]))
        assert "Skills: weather_report, broken." in text
        assert bench.asked == []
        assert {"search", "list", "load", "SkillUnavailableError"} <= set(
            dir(sys.modules["skills"])
        )
        assert sys.modules["skills"].list() == ["weather_report", "broken"]

    def test_help_works_without_a_host(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(target: str, args: dict[str, Any]) -> Any:
            raise tools.HostError("unavailable", "no")

        monkeypatch.setattr(tools.host, "call", fail)
        assert "Skills: none." in (sys.modules["skills"].__doc__ or "")

    def test_a_star_import_leaves_pythons_own_names_alone(self, bench: Bench) -> None:
        names = run("from skills import *")
        assert "search" in names
        assert "list" not in names

    def test_a_search_result_prints_as_lines_and_is_a_list_of_objects(self, bench: Bench) -> None:
        found = sys.modules["skills"].search("weather", limit=3)
        assert repr(found) == 'weather_report(city: str = "Oslo") -> dict  # Reports the weather.'
        assert (found[0].name, found[0].version, found[0].state) == ("weather_report", 2, "active")
        assert bench.calls == [("skills.search", {"query": "weather", "limit": 3})]
        assert repr(skills.SkillList()) == "no skills found"

    @pytest.mark.usefixtures("bench")
    def test_errors_can_be_pickled_and_belong_to_the_package(self) -> None:
        error = pickle.loads(pickle.dumps(skills.SkillUnavailableError("no", "draft")))
        assert (str(error), error.kind, type(error).__module__) == ("no", "draft", "skills")


class TestUses:
    def test_success_and_failure_are_reported_once_each_per_run(self, bench: Bench) -> None:
        report = importlib.import_module("skills.weather_report").run
        for city in ["Oslo", "Atlantis"] * 50:
            with contextlib.suppress(LookupError):
                report(city)
        ok = {"skill": "weather_report", "version": 1, "ok": True, "error": ""}
        assert bench.used == [ok, {**ok, "ok": False, "error": "LookupError: no Atlantis (line 7)"}]
        skills.reset_for_run()
        report("Oslo")
        assert bench.used[2:] == [ok]

    def test_an_inactive_version_reports_a_case(self, bench: Bench) -> None:
        bench.add("weather_report", REPORT, "draft")
        report = importlib.import_module("skills.weather_report.v2").run
        report("Rome", 1, 2)
        case = bench.used[0]
        assert case["inputs"] == {"city": "Rome", "days": [1, 2], "unit": "C"}
        assert case["output"] == {
            "kind": "json",
            "type": "dict",
            "text": '{"city": "Rome", "days": 2, "unit": "C"}',
            "cut": False,
        }
        with pytest.raises(LookupError):
            report("Atlantis")
        assert (bench.used[1]["ok"], "output" in bench.used[1]) == (False, False)

    def test_reported_inputs_are_those_before_the_call(self, bench: Bench) -> None:
        bench.add("eater", "def run(items):\n    items.clear()\n    return items", "draft")
        importlib.import_module("skills.eater.v1").run([1, 2])
        assert bench.used[0]["inputs"] == {"items": [1, 2]}

    @pytest.mark.parametrize(
        "value", [object(), {1, 2}, float("nan"), "x" * 20_000, [[0] * 200] * 200, {1: 2}, b"x"]
    )
    def test_inputs_that_are_large_or_not_json_are_left_out(self, bench: Bench, value: Any) -> None:
        bench.add("same", "def run(value): return value", "draft")
        importlib.import_module("skills.same.v1").run(value)
        assert "inputs" not in bench.used[0]
        assert len(bench.used[0]["output"]["text"]) < 17_000
        assert " 0x7" not in bench.used[0]["output"]["text"]

    def test_a_failed_report_does_not_affect_the_code(self, bench: Bench) -> None:
        bench.refuses_uses = True
        assert run("import skills\nr = skills.weather_report()")["r"]["city"] == "Oslo"
        with pytest.raises(LookupError):
            run("import skills\nskills.weather_report('Atlantis')")
        assert len(bench.used) == 2

    def test_results_and_errors_without_a_repr_do_not_affect_the_code(self, bench: Bench) -> None:
        bench.add(
            "rude",
            "class Rude(Exception):\n"
            "    def __repr__(self): raise ValueError\n    __str__ = __repr__\n"
            "def run(fails):\n    if fails: raise Rude\n    return Rude()",
            "draft",
        )
        rude = importlib.import_module("skills.rude.v1").run
        assert type(rude(False)).__name__ == "Rude"
        with pytest.raises(importlib.import_module("skills.rude.v1").Rude):
            rude(True)

    def test_wrong_arguments_are_not_reported_as_a_failure_of_the_skill(self, bench: Bench) -> None:
        with pytest.raises(TypeError, match="unexpected keyword argument 'town'"):
            run("import skills\nskills.weather_report(town='Oslo')")
        assert bench.used == []
        bench.add("wrong", "def run(): return 1 + 'x'")
        with pytest.raises(TypeError):
            run("import skills\nskills.wrong()")
        assert bench.used[0]["error"].endswith("(line 1)")

    def test_an_exit_or_an_interrupt_is_not_reported_as_a_failure(self, bench: Bench) -> None:
        bench.add("quits", "def run(error): raise error")
        for error in (KeyboardInterrupt, SystemExit):
            with pytest.raises(error):
                importlib.import_module("skills.quits").run(error)
        assert bench.used == []

    def test_uses_with_planned_calls_are_not_reported(self, bench: Bench) -> None:
        bench.add(
            "looks",
            "def run(value, look): return len(value) if look else {'value': value}",
            "draft",
        )
        looks = importlib.import_module("skills.looks.v1").run
        planned = PlannedResult("git.git_log", 1)
        assert looks(planned, False)["value"] is planned
        with pytest.raises(PlanEnded):
            looks(planned, True)
        PlannedResult.first_end = None
        assert bench.used == []

    async def test_an_asynchronous_skill_stays_asynchronous(self, bench: Bench) -> None:
        bench.add(
            "slow",
            "import asyncio\nasync def run(n):\n    await asyncio.sleep(0)\n    return 1 / n",
            "draft",
        )
        slow: Any = importlib.import_module("skills.slow.v1")
        assert inspect.iscoroutinefunction(slow.run)
        assert list(await asyncio.gather(slow(1), slow.run(2))) == [1.0, 0.5]
        with pytest.raises(ZeroDivisionError):
            await slow(0)
        assert [(use["ok"], use["error"]) for use in bench.used] == [
            (True, ""),
            (False, "ZeroDivisionError: division by zero (line 4)"),
        ]

    async def test_a_cancelled_skill_is_not_reported_as_failed(self, bench: Bench) -> None:
        bench.add(
            "waits", "async def run(event, started):\n    started.set()\n    await event.wait()"
        )
        started = asyncio.Event()
        task = asyncio.ensure_future(
            importlib.import_module("skills.waits").run(asyncio.Event(), started)
        )
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.used == []


class TestBadSources:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("x = 1\ndef run(:\n", r"bad@1 is not Python: line 2: "),
            ("x = '\0'\ndef run(): pass", r"bad@1 (cannot be compiled|is not Python): .*null"),
            ("def run(): return '\udc80'", r"bad@1 cannot be compiled: "),
            ("x = " + "(" * 5_000 + ")" * 5_000, r"bad@1 (cannot be compiled|is not Python)"),
            ("", r"bad@1 has no function 'run'"),
            ("run = 3", r"In the skill bad@1, 'run' is no function"),
        ],
    )
    def test_a_source_that_is_no_skill_is_refused_and_leaves_no_module(
        self, bench: Bench, source: str, message: str
    ) -> None:
        bench.add("bad", source)
        for code in (
            "import skills.bad",
            "from skills.bad.v1 import run",
            "import skills\nskills.bad()",
        ):
            with pytest.raises(skills.SkillUnavailableError, match=message):
                run(code)
            assert loaded() == []

    @pytest.mark.parametrize("failure", [SystemExit, KeyboardInterrupt, ValueError, AttributeError])
    def test_a_source_that_fails_during_import_leaves_no_module(
        self, bench: Bench, failure: type[BaseException]
    ) -> None:
        bench.add("bad", f"def run(): pass\nraise {failure.__name__}('no')")
        with pytest.raises(failure, match="no"):
            run("import skills.bad")
        assert loaded() == []
        assert "bad" not in sys.modules["skills"].__dict__

    def test_a_large_source_is_imported(self, bench: Bench) -> None:
        bench.add("large", "TEXT = '" + "x" * (1 << 20) + "'\ndef run(): return len(TEXT)")
        assert run("import skills\nr = skills.large()")["r"] == 1 << 20

    @pytest.mark.parametrize(
        "answer",
        [
            [],
            "source",
            {},
            {"source": 3, "version": 1, "state": "active"},
            {"source": "", "version": "1", "state": ""},
        ],
    )
    def test_an_invalid_answer_for_a_skill_is_an_import_error(
        self, bench: Bench, answer: Any
    ) -> None:
        bench.answer = answer
        with pytest.raises(
            skills.SkillUnavailableError, match="The host's answer for the skill 'weather_report'"
        ):
            run("import skills.weather_report")

    @pytest.mark.parametrize(
        "answer", [[], "x", {}, {"skills": 3}, {"skills": [3]}, {"skills": [{"name": "x"}]}]
    )
    def test_an_invalid_answer_to_a_search_is_an_error(self, bench: Bench, answer: Any) -> None:
        bench.answer = answer
        with pytest.raises(skills.SkillUnavailableError, match="not a list of skills"):
            skills.search("x")
        assert skills.list_skills() == [name for name in answer if isinstance(answer, list)]


def test_importing_the_package_stays_cheap() -> None:
    code = (
        "import sys, typing, functools, importlib, json\nbefore = set(sys.modules)\n"
        "import mcpruntime_server.sandboxed.library.skills\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = [name for name in eval(done.stdout) if not name.startswith("mcpruntime_server")]
    assert set(ours) <= {
        "__future__",
        "importlib.machinery",
        "_frozen_importlib",
        "_frozen_importlib_external",
    }
