"""Generated modules are correct for valid tools and safe for hostile ones."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pydoc
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import types

from mcpruntime_server.capabilities.tools.shim_generator import (
    MODULE_HEADER,
    checked_name,
    describe_module,
    python_literal,
    render_shim,
    source_digest,
)
from mcpruntime_server.capabilities.tools.signatures import format_signature
from mcpruntime_server.capabilities.tools.tool_results import parse_text
from mcpruntime_server.sandboxed.library import tools
from tests.capabilities.tools.test_schema_annotations import SCHEMA
from tests.upstreams.hostile import ESCAPES, NAMES, TOOLS

GOLDEN = Path(__file__).parent / "golden" / "tracker.py.txt"
TRACKER = [
    types.Tool(
        name="create-issue",
        description=(
            "Open an issue in a repository. It gets the next free number.\n\n"
            "    Indented text stays so."
        ),
        input_schema={
            "type": "object",
            "required": ["repo", "labels"],
            "properties": {
                "title": {
                    "type": "string",
                    "minLength": 1,
                    "description": "What it is about",
                    "default": "Untitled",
                },
                "repo": {"type": "string", "description": "owner/name"},
                "labels": {"type": "array", "items": {"enum": ["bug", "idea"]}, "maxItems": 5},
                "class": {"$ref": "#/$defs/Class"},
                "due in": {"type": "integer", "minimum": 0, "description": "Days from now"},
                "parent": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            },
            "$defs": {
                "Class": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "from": {"type": "string"}},
                    "required": ["name"],
                }
            },
        },
        output_schema={
            "type": "object",
            "title": "Issue",
            "properties": {
                "number": {"type": "integer"},
                "children": {"type": "array", "items": {"$ref": "#"}},
            },
            "required": ["number"],
        },
    ),
    types.Tool(
        name="count",
        input_schema={"type": "object", "additionalProperties": True},
        output_schema={
            "type": "object",
            "title": "countOutput",
            "properties": {"result": {"type": "integer"}},
            "required": ["result"],
        },
    ),
    types.Tool(name="export", description="Export everything", input_schema={"type": "object"}),
]
OBSERVED = {
    "export": {
        "type": ["object"],
        "properties": {"rows": {"type": ["integer"]}},
        "required": ["rows"],
    }
}


@pytest.fixture
def sent() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The package `tools`, and what was sent through it."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def call(target: str, args: dict[str, Any]) -> Any:
        calls.append((target, args))
        return None

    async def acall(target: str, args: dict[str, Any]) -> Any:
        return call(target, args)

    finders = list(sys.meta_path)
    tools.install_tools(call, acall)
    yield calls
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name == "tools" or name.startswith("tools.")]:
        del sys.modules[name]


def execute(source: str) -> ModuleType:
    module = ModuleType("tools.made")
    exec(compile(source, "<made>", "exec", dont_inherit=True), module.__dict__)
    return module


def kinds_of(source: str) -> list[type[ast.stmt]]:
    return [type(node) for node in ast.parse(source, feature_version=(3, 9)).body]


class TestGolden:
    def test_a_module_reads_as_it_always_did(self) -> None:
        source = render_shim(describe_module("tracker", "tracker", TRACKER, OBSERVED))
        if os.environ.get("UPDATE_GOLDEN"):
            GOLDEN.write_text(source)
        assert source == GOLDEN.read_text(), (
            "run with UPDATE_GOLDEN=1 if the change is meant, and read the difference"
        )

    def test_it_imports_and_its_functions_call_the_tools(
        self, sent: list[tuple[str, dict[str, Any]]]
    ) -> None:
        module = execute(GOLDEN.read_text())
        module.create_issue("a/b", ["bug"], class_={"name": "x"}, due_in=3)
        module.count(anything=1)
        assert sent == [
            (
                "tools.tracker.create_issue",
                {"repo": "a/b", "labels": ["bug"], "class": {"name": "x"}, "due in": 3},
            ),
            ("tools.tracker.count", {"anything": 1}),
        ]

    def test_help_says_what_a_caller_needs(self, sent: Any) -> None:
        text = pydoc.plain(pydoc.render_doc(execute(GOLDEN.read_text()).create_issue))
        assert (
            "create_issue(repo: 'str', labels: \"list[Literal['bug', 'idea']]\", title: 'str' "
            "= 'Untitled'"
        ) in text
        assert "Open an issue in a repository." in text
        assert 'class_ (Class | None): Shape: {"name": str, "from"?: str}' in text
        assert "due_in (int | None): Days from now [>= 0]" in text
        assert 'Returns: {"number": int, "children"?: [' in text

    def test_a_listing_shows_one_line(self) -> None:
        module = describe_module("t", "t", TRACKER)
        shown = {tool.name: (format_signature(module, tool), tool.summary) for tool in module.tools}
        assert shown["count"] == ("(**extra: Any) -> int", "")
        assert shown["create_issue"] == (
            "(repo: str, labels: list[Literal['bug', 'idea']], title: str = 'Untitled', "
            "class_: {name: str, from?: str} | None = None, due_in: int | None = None, "
            "parent: int | None = None) -> CreateIssueResult "
            "where CreateIssueResult = {number: int, children?: list[CreateIssueResult]}",
            "Open an issue in a repository.",
        )

    def test_none_means_left_out_only_where_null_is_not_taken(
        self, sent: list[tuple[str, dict[str, Any]]]
    ) -> None:
        module = execute(GOLDEN.read_text())
        module.create_issue("a/b", [], due_in=None, parent=None)
        assert sent[0][1] == {"repo": "a/b", "labels": [], "parent": None}

    def test_values_that_a_schema_does_not_allow_are_refused_before_a_call(self, sent: Any) -> None:
        mode = {"enum": ["fast", "slow"]}
        tool = types.Tool(
            name="start",
            input_schema={
                "properties": {
                    "mode": mode,
                    "level": {"anyOf": [{"enum": [1, 2]}, {"type": "null"}]},
                    "in": {"const": "here"},
                    "free": {"anyOf": [mode, {"type": "string"}]},
                },
                "required": ["mode"],
            },
        )
        start = execute(render_shim(describe_module("made", "made", [tool]))).start
        refused: list[tuple[str, dict[str, Any]]] = [
            (r"mode = 'fats'. Did you mean 'fast'\? Allowed: 'fast', 'slow'.", {"mode": "fats"}),
            (r"level = 3. Allowed: 1, 2, None.", {"mode": "fast", "level": 3}),
            (r"mode = None", {"mode": None}),
            (r"mode = \[\]", {"mode": []}),
            (r"in_ = 'there'", {"mode": "fast", "in": "there"}),
        ]
        for problem, arguments in refused:
            with pytest.raises(tools.ToolArgumentError, match=problem):
                start(**arguments)
        assert sent == []
        start("slow", level=None, in_=None, free="any")
        assert sent == [("tools.made.start", {"mode": "slow", "level": None, "free": "any"})]

    def test_values_of_items_and_fields_are_checked_before_a_call(self, sent: Any) -> None:
        step = {
            "properties": {
                "kind": {"enum": ["build", "test"]},
                "needs": {"type": "array", "items": {"$ref": "#/$defs/Step"}},
                "free": {"type": "string"},
            },
            "required": ["kind"],
        }
        tool = types.Tool(
            name="plan",
            input_schema={
                "properties": {
                    "labels": {"type": "array", "items": {"enum": ["bug", "idea"]}},
                    "steps": {
                        "anyOf": [
                            {"type": "array", "items": {"$ref": "#/$defs/Step"}},
                            {"type": "null"},
                        ]
                    },
                    "either": {
                        "oneOf": [
                            {"properties": {"kind": {"const": "a"}}},
                            {"properties": {"kind": {"const": "b"}}},
                        ]
                    },
                },
                "$defs": {"Step": step},
            },
        )
        plan = execute(render_shim(describe_module("made", "made", [tool]))).plan
        build = {"kind": "build"}
        refused: list[tuple[str, dict[str, Any]]] = [
            (r"labels\[1\] = 'bugs'. Did you mean 'bug'\?", {"labels": ["bug", "bugs"]}),
            (r"steps\[0\]\['kind'\] = 'lint'. Allowed: 'build',", {"steps": [{"kind": "lint"}]}),
            (
                r"steps\[0\]\['needs'\]\[0\]\['kind'\] = 1",
                {"steps": [{**build, "needs": [{"kind": 1}]}]},
            ),
        ]
        for problem, arguments in refused:
            with pytest.raises(tools.ToolArgumentError, match=problem):
                plan(**arguments)
        assert sent == []
        # Another type is left to the server, as are branches that allow any type.
        accepted: list[dict[str, Any]] = [
            {"labels": ["idea"], "steps": [{**build, "free": "any", "other": 1}], "either": {}},
            {"labels": "bug", "steps": None, "either": {"kind": "b"}},
            {"labels": (), "steps": [1, "a", None]},
        ]
        for arguments in accepted:
            plan(**arguments)
        assert [call for _, call in sent] == accepted

    def test_branches_keys_and_other_parameters_are_checked_before_a_call(self, sent: Any) -> None:
        mode = {"enum": ["fast", "slow"]}
        tool = types.Tool(
            name="start",
            input_schema={
                "properties": {
                    "mode": {"anyOf": [mode, {"type": "integer"}]},
                    "by": {
                        "type": "object",
                        "properties": {"name": {"type": "string"}},
                        "additionalProperties": False,
                    },
                },
                "additionalProperties": {"type": "array", "items": mode},
            },
        )
        start = execute(render_shim(describe_module("made", "made", [tool]))).start
        refused: list[tuple[str, dict[str, Any]]] = [
            (
                r"made.start does not accept mode = 'fats'. Did you mean 'fast'\? "
                r"Allowed: 'fast', 'slow', an integer. Parameters: mode, by",
                {"mode": "fats"},
            ),
            (r"by\['nane'\]. Did you mean 'name'\? Allowed keys: 'name'.", {"by": {"nane": "x"}}),
            (r"other\[0\] = 'x'. Allowed: 'fast', 'slow'.", {"other": ["x"]}),
        ]
        for problem, arguments in refused:
            with pytest.raises(tools.ToolArgumentError, match=problem):
                start(**arguments)
        assert sent == []
        start(mode=7, by={"name": "x"}, other=["fast"])
        assert len(sent) == 1

    def test_a_tool_with_the_name_of_a_builtin_does_not_hide_it(self, sent: Any) -> None:
        made = [
            types.Tool(name=name, input_schema={"type": "object"})
            for name in ("list", "open", "open_", "search")
        ]
        module = describe_module("made", "made", made)
        source = render_shim(module)
        assert module.function_names == ["list_", "open__", "open_", "search"]
        names: dict[str, Any] = {}
        exec(source, names)
        assert not {"list", "open"} & names.keys()
        for name in module.function_names:
            names[name](any_name=1)
        assert [target for target, _ in sent] == [
            f"tools.made.{name}" for name in ("list", "open", "open_", "search")
        ]

    def test_the_docs_say_what_is_parsed(self) -> None:
        [tool] = describe_module(
            "made", "made", [types.Tool(name="x", input_schema={"type": "object"})]
        ).tools
        assert "a text that is a JSON object or array as a whole is parsed" in tool.doc
        assert [parse_text(text) for text in ('{"a": 1}', "[1]", "5", "true", "{a} b")] == [
            {"a": 1},
            [1],
            "5",
            "true",
            "{a} b",
        ]


class TestHostile:
    def test_a_module_is_not_much_longer_than_the_tools_and_few_megabytes(self) -> None:
        words = [f"{n:070}" for n in range(19)]
        schema = {"type": "object", "properties": {"a": {"enum": words}, "b": {"const": "c" * 300}}}
        parameters = {f"p{n}": {"$ref": f"#/$defs/{n % 3}"} for n in range(100)}
        root = {"$defs": {"0": {"enum": words}, "1": schema, "2": {"const": "c" * 300}}}
        tools = [
            types.Tool(name=f"t{n}", input_schema={**root, "properties": parameters})
            for n in range(30)
        ]
        size = sum(len(tool.model_dump_json()) for tool in tools)
        module = describe_module("made", "made", tools)
        assert len(render_shim(module)) < size + 6_000_000
        assert module.tools[0].parameters[0].choices
        assert not module.tools[-1].parameters[0].note

    def test_every_hostile_tool_yields_a_module_that_only_defines_names(self, sent: Any) -> None:
        module = describe_module("hostile", "hostile", TOOLS)
        source = render_shim(module)
        functions = execute(source)
        assert len(module.tools) == len(TOOLS)
        assert sent == []
        for tool in module.tools:
            assert inspect.getdoc(getattr(functions, tool.function_name)) is not None
        assert len(source) < 400_000

    def test_names_that_collide_are_reported(self) -> None:
        module = describe_module("hostile", "hostile", TOOLS)
        assert any("'a-b' is renamed to" in problem for problem in module.problems)

    @pytest.mark.parametrize("text", [*ESCAPES, *NAMES])
    def test_every_text_survives_as_a_literal(self, text: str) -> None:
        assert ast.literal_eval(python_literal(text)) == text

    def test_a_name_that_is_not_sanitised_is_refused(self) -> None:
        with pytest.raises(ValueError, match="not a sanitised name"):
            checked_name("a b")

    @given(
        name=st.text(),
        description=st.text() | st.sampled_from(ESCAPES),
        schema=SCHEMA,
        output=SCHEMA,
    )
    def test_any_tool_yields_exactly_its_function(
        self, name: str, description: str, schema: Any, output: Any
    ) -> None:
        tool = types.Tool.model_construct(
            name=name,
            title=None,
            description=description,
            input_schema=schema if isinstance(schema, dict) else {"properties": {"a": schema}},
            output_schema=output if isinstance(output, dict) else None,
        )
        module = describe_module("any", name, [tool])
        source = render_shim(module)
        made = [
            ast.ClassDef if record.fits_class_body else ast.Assign for record in module.typed_dicts
        ]
        assert kinds_of(source) == [*MODULE_HEADER, *made, ast.FunctionDef]
        function = ast.parse(source).body[-1]
        assert isinstance(function, ast.FunctionDef)
        assert ast.get_docstring(function, clean=False) == module.tools[0].doc

    @given(st.text())
    def test_a_description_comes_through_as_it_is(self, description: str) -> None:
        module = describe_module(
            "any", "any", [types.Tool(name="t", description=description, input_schema={})]
        )
        assert module.tools[0].doc.startswith(inspect.cleandoc(description))


class TestWriting:
    def test_the_same_source_has_the_same_digest(self) -> None:
        assert source_digest("a") == source_digest("a") != source_digest("b")
        assert source_digest("").startswith("sha256:")

    def test_a_shim_is_importable_under_its_name(
        self, sent: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = GOLDEN.read_text()
        monkeypatch.setattr(tools.host, "call", lambda target, args: {"source": source})
        module = importlib.import_module("tools.tracker")
        assert module.__all__ == ["create_issue", "count", "export"]
