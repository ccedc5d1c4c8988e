"""The package `tools` as code in a sandbox sees it: imports, calls, errors, batches, listings."""

from __future__ import annotations

import asyncio
import copy
import importlib
import inspect
import json
import os
import pickle
import pydoc
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpruntime_server.protocol import library_names
from mcpruntime_server.protocol.payloads import ToolDescription
from mcpruntime_server.protocol.presentation import present_value
from mcpruntime_server.sandboxed.library import models, tools
from mcpruntime_server.sandboxed.library.results import (
    AttributeDict,
    Slots,
    map_concurrently,
    wrap_dicts,
)

GIT = '''
"""The tools of git."""
from __future__ import annotations
from typing import Any
from tools import shim

__all__ = ["git_log", "git_show", "echo"]

@shim("git", unset=("since",))
def git_log(repo_path: str, max_count: int = 10, since: str = None) -> str:
    """Shows the commit logs."""

@shim("git", renamed={"class_": "class", "per_page": "per page"})
def git_show(class_: str, per_page: int | None = None) -> Any:
    """Shows one commit."""

@shim("git")
def echo(value: Any = None, **more: Any) -> Any:
    """Answers with its arguments."""
'''


class Bench:
    """The far end of the calls: serves one shim and answers every tool with what it was sent."""

    def __init__(self) -> None:
        self.shims = {"git": GIT}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.failure: tools.HostError | None = None

    def call(self, target: str, args: dict[str, Any]) -> Any:
        self.calls.append((target, args))
        if target == "catalog.servers":
            return list(self.shims)
        if target == "catalog.shim":
            if args["server"] not in self.shims:
                raise tools.HostError(
                    "unknown_tool", f"no server {args['server']!r}. Did you mean 'git'?"
                )
            if not self.shims[args["server"]]:
                raise tools.HostError("unavailable", "down does not answer")
            return {"source": self.shims[args["server"]]}
        if self.failure:
            raise self.failure
        return {"target": target, "args": args}

    async def acall(self, target: str, args: dict[str, Any]) -> Any:
        await asyncio.sleep(0)
        return self.call(target, args)

    @property
    def sent(self) -> list[tuple[str, dict[str, Any]]]:
        return [call for call in self.calls if call[0].startswith("tools.")]


@pytest.fixture
def bench() -> Iterator[Bench]:
    finders = list(sys.meta_path)
    bench = Bench()
    tools.install_tools(bench.call, bench.acall)
    yield bench
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name == "tools" or name.startswith("tools.")]:
        del sys.modules[name]


@pytest.fixture
def git(bench: Bench) -> Any:
    return importlib.import_module("tools.git")


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code, names)
    return names


class TestImports:
    def test_every_form_of_import_finds_the_server(self, bench: Bench) -> None:
        names = run(
            "import tools\nimport tools.git\nfrom tools.git import git_log\nfrom tools import git\n"
            "same = tools.git.git_log is git_log is git.git_log"
        )
        assert names["same"]
        assert [call[0] for call in bench.calls] == ["catalog.shim"]

    def test_a_server_is_imported_at_its_first_use(self, bench: Bench) -> None:
        assert (
            run("import tools\nanswer = tools.git.git_log('.')")["answer"].target
            == "tools.git.git_log"
        )

    def test_an_unknown_server_suggests_a_similar_name(self, bench: Bench) -> None:
        for code in ("import tools.gti", "from tools import gti", "from tools.gti import git_log"):
            with pytest.raises(ModuleNotFoundError, match="Did you mean 'git'"):
                run(code)
        with pytest.raises(AttributeError, match="Did you mean 'git'"):
            run("import tools\ntools.gti")

    def test_an_unknown_tool_suggests_a_similar_name(self, git: Any) -> None:
        with pytest.raises(ImportError, match=r"no tool 'git_lgo'. Did you mean 'git_log'"):
            run("from tools.git import git_lgo")
        with pytest.raises(AttributeError, match=r"Did you mean 'git_log'.*git_show"):
            run("import tools\ntools.git.git_lgo")

    def test_a_server_that_does_not_answer_is_an_import_error_and_a_tool_error(
        self, bench: Bench
    ) -> None:
        bench.shims["down"] = ""
        for error in (ImportError, tools.ToolError):
            with pytest.raises(error, match="down does not answer"):
                run("import tools.down")

    def test_probing_for_private_names_does_not_call_the_host(self, bench: Bench) -> None:
        assert not hasattr(sys.modules["tools"], "__wrapped__")
        assert not hasattr(sys.modules["tools"], "_repr_html_")
        assert bench.calls == []

    def test_refresh_makes_the_next_import_see_the_new_shim(self, bench: Bench, git: Any) -> None:
        old = git.git_log
        bench.shims["git"] = GIT.replace("def echo", "def grown")
        tools.forget_stale_modules(["git", "never_imported"])
        assert run("from tools.git import grown")["grown"]().target == "tools.git.grown"
        assert old("x").target == "tools.git.git_log"

    def test_a_tool_added_after_the_import_is_found(self, bench: Bench, git: Any) -> None:
        bench.shims["git"] = GIT.replace('"echo"]', '"echo", "grown", "later"]').replace(
            "def echo", "def grown"
        ) + ('\n@shim("git")\ndef later() -> Any:\n    "New too."\n')
        assert git.grown().target == "tools.git.grown"
        assert run("from tools.git import later")["later"]().target == "tools.git.later"
        with pytest.raises(AttributeError, match="Did you mean 'later'"):
            _ = git.latre

    def test_a_server_that_is_gone_still_suggests_a_similar_tool(
        self, bench: Bench, git: Any
    ) -> None:
        bench.shims["git"] = ""
        with pytest.raises(AttributeError, match="Did you mean 'git_log'"):
            _ = git.git_lgo

    def test_installing_again_replaces_the_connection_and_keeps_the_modules(
        self, bench: Bench, git: Any
    ) -> None:
        other = Bench()
        tools.install_tools(other.call, other.acall)
        git.git_log("x")
        assert bench.sent == []
        assert len(other.sent) == 1
        assert sum(isinstance(finder, tools.ToolFinder) for finder in sys.meta_path) == 1

    def test_help_on_the_package_lists_the_servers_and_starts_none(self, bench: Bench) -> None:
        bench.shims["down"] = ""
        text = pydoc.plain(pydoc.render_doc(sys.modules["tools"]))
        assert "Servers: git, down." in text
        assert "tools.search" in text
        assert {call[0] for call in bench.calls} == {"catalog.servers"}

    def test_a_star_import_leaves_pythons_own_names_alone(self, bench: Bench) -> None:
        names = run("from tools import *")
        assert "ToolError" in names
        assert not {"list", "map"} & names.keys()

    def test_the_source_of_a_shim_can_be_read(self, git: Any) -> None:
        assert "Shows the commit logs" in inspect.getsource(git.git_log)

    def test_help_shows_the_typed_signature_and_the_docs(self, git: Any) -> None:
        text = pydoc.plain(pydoc.render_doc(git.git_log))
        assert (
            "git_log(repo_path: 'str', max_count: 'int' = 10, since: 'str' = None) -> 'str'" in text
        )
        assert "Shows the commit logs." in text
        assert "git_show" in pydoc.plain(pydoc.render_doc(git))


class TestCalls:
    def test_arguments_are_passed_by_position_or_by_name(self, bench: Bench, git: Any) -> None:
        git.git_log("a", 3)
        git.git_log(max_count=3, repo_path="a")
        assert bench.sent == [("tools.git.git_log", {"repo_path": "a", "max_count": 3})] * 2

    def test_what_is_left_out_is_not_sent(self, bench: Bench, git: Any) -> None:
        git.git_log("a")
        git.git_log("a", since=None)
        git.git_show("x", per_page=None)
        assert [args for _, args in bench.sent] == [
            {"repo_path": "a"},
            {"repo_path": "a"},
            {"class": "x", "per page": None},
        ]

    def test_a_renamed_parameter_accepts_both_names(self, bench: Bench, git: Any) -> None:
        git.git_show(**{"class": "x", "per page": 2})
        git.git_show(class_="x", per_page=2)
        assert [args for _, args in bench.sent] == [{"class": "x", "per page": 2}] * 2

    def test_a_tool_with_open_parameters_gets_any_argument(self, bench: Bench, git: Any) -> None:
        git.echo(1, other=2)
        assert bench.sent[0][1] == {"value": 1, "other": 2}

    def test_an_argument_that_looks_misspelled_is_refused_by_an_open_tool(
        self, bench: Bench, git: Any
    ) -> None:
        with pytest.raises(tools.ToolArgumentError, match="Did you mean 'value'"):
            git.echo(vaule=1)
        git.echo(1, value_2=2, values=3)  # `value` is given, so it was not misspelled
        assert bench.sent == [("tools.git.echo", {"value": 1, "value_2": 2, "values": 3})]

    def test_a_path_is_sent_as_text(self, bench: Bench, git: Any) -> None:
        git.git_log(Path("/tmp"))
        assert bench.sent[0][1] == {"repo_path": "/tmp"}

    @pytest.mark.parametrize(
        ("args", "kwargs", "problem"),
        [
            (("a",), {"max_cuont": 1}, "has no parameter 'max_cuont'. Did you mean 'max_count'?"),
            ((), {}, "needs 'repo_path'."),
            (("a", 1, "b", 2), {}, "takes at most 3 positional arguments, got 4."),
            (("a",), {"repo_path": "b"}, "got two values for 'repo_path'."),
        ],
    )
    def test_wrong_parameters_fail_before_anything_is_sent(
        self, bench: Bench, git: Any, args: Any, kwargs: Any, problem: str
    ) -> None:
        for error in (TypeError, tools.ToolError):
            with pytest.raises(error) as caught:
                git.git_log(*args, **kwargs)
            assert str(caught.value) == (
                f"git.git_log {problem} Parameters: repo_path*, max_count, since (* = required)."
            )
        assert bench.sent == []

    def test_a_failed_call_raises_an_error_with_all_details(self, bench: Bench, git: Any) -> None:
        bench.failure = tools.HostError("tool_error", "no such repository", {"code": 128})
        with pytest.raises(tools.ToolError) as caught:
            git.git_log("a")
        error = caught.value
        assert (error.tool, error.arguments, error.message) == (
            "git.git_log",
            {"repo_path": "a"},
            "no such repository",
        )
        assert (error.kind, error.data.code) == ("tool_error", 128)
        assert str(error) == "git.git_log: no such repository"
        assert error.__suppress_context__
        assert type(error).__module__ == "tools"
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.kind, again.data) == (str(error), "tool_error", {"code": 128})

    def test_arguments_that_the_host_refuses_are_argument_errors(
        self, bench: Bench, git: Any
    ) -> None:
        bench.failure = tools.HostError("invalid_arguments", "max_count is no integer")
        with pytest.raises(TypeError, match="max_count is no integer"):
            git.git_log("a")

    async def test_aio_does_the_same_for_asyncio(self, bench: Bench, git: Any) -> None:
        answers = await asyncio.gather(*(git.git_log.aio(str(number)) for number in range(3)))
        assert [answer.args.repo_path for answer in answers] == ["0", "1", "2"]
        with pytest.raises(tools.ToolArgumentError):
            await git.git_log.aio()
        bench.failure = tools.HostError("timeout", "too slow")
        with pytest.raises(tools.ToolError, match="too slow"):
            await git.git_log.aio("a")


class TestAttributeDicts:
    def test_keys_are_attributes_at_every_depth(self) -> None:
        data = wrap_dicts({"bugs": [{"key": "A-1", "tags": [["x", {"deep": 1}]]}]})
        assert data.bugs[0].key == "A-1"
        assert data.bugs[0].tags[0][1].deep == 1

    def test_an_attribute_dict_is_plain_json_data_to_other_code(self) -> None:
        plain = {"a": [1, {"b": None}], "items": 3}
        data = wrap_dicts(json.loads(json.dumps(plain)))
        assert data == plain
        assert isinstance(data, dict)
        assert json.dumps(data) == json.dumps(plain)
        assert repr(data) == repr(plain)
        assert {**data} == plain

    def test_copies_keep_attribute_access_and_pickles_are_plain(self) -> None:
        data = wrap_dicts({"a": {"b": [1]}})
        for copied in (copy.copy(data), data.copy(), copy.deepcopy(data)):
            assert copied == data
            assert copied.a.b == [1]
        assert copy.deepcopy(data).a is not data.a
        assert b"mcpruntime" not in pickle.dumps(data)
        assert type(pickle.loads(pickle.dumps(data))["a"]) is dict

    def test_a_key_named_like_a_dict_method_is_reachable_by_brackets(self) -> None:
        data = wrap_dicts({"items": [1], "keys": 2})
        assert data["items"] == [1]
        assert callable(data.items)

    def test_a_missing_key_suggests_a_similar_one(self) -> None:
        with pytest.raises(AttributeError, match=r"Did you mean 'status'.*Keys: 'status', 'id'"):
            _ = wrap_dicts({"status": 1, "id": 2}).stauts

    def test_setting_an_attribute_sets_the_key(self) -> None:
        data = wrap_dicts({})
        data.seen = True
        assert data == {"seen": True}

    def test_hostile_keys_are_never_called(self) -> None:
        data = wrap_dicts(
            {"__deepcopy__": "x", "__reduce__": "x", "__class__": "x", "__array__": "x"}
        )
        assert copy.deepcopy(data) == data
        assert isinstance(data, AttributeDict)
        assert not hasattr(data, "__array__")


class TestMap:
    def test_slots_are_in_the_order_of_the_items(self, bench: Bench, git: Any) -> None:
        slots = sys.modules["tools"].map(git.git_log, ["a", "b", "c"])
        assert [slot.value.args.repo_path for slot in slots] == ["a", "b", "c"]

    def test_a_failure_is_the_outcome_of_one_item(self, bench: Bench) -> None:
        slots = map_concurrently(lambda number: 1 // number, [1, 0, 1])
        assert [slot.ok for slot in slots] == [True, False, True]
        assert isinstance(slots[1].error, ZeroDivisionError)
        assert repr(slots).startswith("2 ok, 1 failed\n[0] <ok 1>\n[1] <failed ZeroDivisionError: ")

    def test_even_an_exit_is_the_outcome_of_one_item(self) -> None:
        assert isinstance(map_concurrently(sys.exit, [3])[0].error, SystemExit)

    def test_items_run_at_the_same_time_up_to_the_limit(self) -> None:
        barrier = threading.Barrier(4)
        slots = map_concurrently(lambda _: barrier.wait(timeout=30), range(4), max_concurrency=4)
        assert all(slot.ok for slot in slots)

    def test_an_empty_batch_is_fine_and_a_limit_below_one_is_refused(self) -> None:
        assert map_concurrently(str, []) == []
        with pytest.raises(ValueError, match="at least 1, not 0"):
            map_concurrently(str, [1], max_concurrency=0)

    def test_the_repr_of_a_large_batch_is_bounded(self) -> None:
        slots = map_concurrently(lambda _: "x" * 10_000, range(500))
        assert isinstance(slots, Slots)
        assert len(repr(slots)) < 10_000
        assert repr(slots).endswith("... and 480 more")

    @pytest.mark.parametrize(
        "use",
        [
            len,
            iter,
            list,
            sum,
            lambda slot: slot["x"],
            lambda slot: slot[0],
            lambda slot: "x" in slot,
            lambda slot: slot.title,
        ],
    )
    def test_a_slot_that_is_used_as_a_value_names_its_value(self, use: Any) -> None:
        [slot] = map_concurrently(str, [1])
        with pytest.raises((TypeError, AttributeError), match=r"\[slot.value for slot in slots"):
            use(slot)
        assert slot
        assert copy.deepcopy(slot).value == "1"

    def test_dicts_of_arguments_as_items_name_the_lambda_that_spreads_them(
        self, bench: Bench, git: Any
    ) -> None:
        batches = sys.modules["tools"].map
        items = [{"repo_path": "a", "max_count": 2}, {"repo_path": "b"}]
        with pytest.raises(
            TypeError, match=r"tools.map\(lambda item: git_log\(\*\*item\), items\)"
        ):
            batches(git.git_log, items)
        assert bench.sent == []
        assert all(slot.ok for slot in batches(lambda item: git.git_log(**item), items))
        batches(git.echo, [{"value": 1}])  # its first parameter may be a dict
        assert bench.sent[-1][1] == {"value": {"value": 1}}

    def test_an_interrupt_ends_the_wait_and_starts_nothing_more(
        self, default_interrupts: None
    ) -> None:
        started: list[int] = []
        interrupted = threading.Event()

        def work(number: int) -> None:
            started.append(number)
            if number == 0:
                os.kill(os.getpid(), signal.SIGINT)
            interrupted.wait(timeout=10)

        with pytest.raises(KeyboardInterrupt):
            map_concurrently(work, range(10), max_concurrency=2)
        interrupted.set()
        for thread in threading.enumerate():
            if thread.name.startswith("tools.map"):
                thread.join(timeout=30)
        assert len(started) <= 2


class TestListings:
    def test_a_listing_prints_as_lines_and_is_a_list_of_objects(self) -> None:
        entry: ToolDescription = {
            "server": "git",
            "tool": "git_log",
            "signature": "(repo_path)",
            "summary": "Logs.",
            "effect": "read",
        }
        listing = tools.ToolList({"tools": [entry], "problems": ["tracker does not answer"]})
        assert repr(listing) == "git.git_log(repo_path)  # Logs.\n! tracker does not answer"
        assert isinstance(listing, list)
        assert (listing[0].name, listing[0].effect) == ("git.git_log", "read")
        assert repr(tools.ToolList({"tools": [], "problems": []})) == "no tools found"

    def test_an_empty_listing_shows_what_is_missing_as_a_value(self) -> None:
        listing = tools.ToolList({"tools": [], "problems": ["tracker cannot be reached"]})
        shown = present_value(listing, 1000)
        assert shown["text"] == "no tools found\n! tracker cannot be reached"

    def test_a_tool_with_the_name_of_a_builtin_is_an_attribute_under_it_too(
        self, bench: Bench
    ) -> None:
        bench.shims["files"] = (
            'from tools import shim\n__all__ = ["list_"]\n'
            '@shim("files", tool="list")\ndef list_():\n    "Lists."\n'
        )
        names = run("import tools\nfrom tools.files import *\nfound = tools.files.list()")
        assert names["found"].target == "tools.files.list"
        assert "list_" in names
        assert "list" not in names

    def test_dir_of_a_server_lists_its_tools_alone(self, git: Any) -> None:
        assert dir(git) == ["echo", "git_log", "git_show"]

    def test_a_refused_listing_is_a_tool_error(self, bench: Bench) -> None:
        bench.failure = tools.HostError("unknown_tool", "no server 'x'")
        with pytest.raises(tools.ToolError, match=r"tools.list: no server 'x'"):
            sys.modules["tools"].list("x")


def test_importing_the_tools_library_stays_cheap() -> None:
    code = (
        "import sys, typing, functools, importlib\nbefore = set(sys.modules)\n"
        "import mcpruntime_server.sandboxed.library.tools\nprint(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = [name for name in eval(done.stdout) if not name.startswith("mcpruntime_server")]
    assert set(ours) <= {
        "__future__",
        "importlib.machinery",
        "_frozen_importlib",
        "_frozen_importlib_external",
    }


def test_library_and_host_agree_on_the_names_that_code_gets() -> None:
    assert tuple(tools.TOOLS_EXPORTS) == library_names.TOOLS_NAMES
    assert tuple(models.MODEL_EXPORTS) == library_names.MODEL_NAMES
