"""The scenarios of the multi-turn categories, and their gold trajectories as programs."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..results import ROOT

ENVIRONMENT = ROOT / ".venvs" / "bfcl"
PYTHON = ENVIRONMENT / "bin" / "python"
CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
SERVER_NAME = "bfcl"

Parameters = Mapping[str, Sequence[str]]  # the names of the parameters of each tool, in order


@dataclass(frozen=True)
class Scenario:
    """A conversation with its gold calls; `turns` has their source texts."""

    name: str
    category: str
    config: dict[str, Any]
    classes: list[str]
    turns: list[list[str]]

    @property
    def calls(self) -> int:
        """The number of gold calls."""
        return sum(map(len, self.turns))

    def as_request(self) -> dict[str, Any]:
        """Return what the judge and the server have to know."""
        return {
            "id": self.name,
            "config": self.config,
            "classes": self.classes,
            "turns": self.turns,
            "long_context": self.category == "long_context",
        }


def data_folder() -> Path:
    """Return the data of the leaderboard; raises `FileNotFoundError` unless it is installed."""
    found = next(ENVIRONMENT.glob("lib/python*/site-packages/bfcl_eval/data"), None)
    if found is None or not PYTHON.exists():
        raise FileNotFoundError("The leaderboard is not installed: run scripts/test-bfcl.")
    return found


def read_scenarios(categories: Sequence[str]) -> list[Scenario]:
    """Return all scenarios of some categories."""
    data = data_folder()
    scenarios = []
    for category in categories:
        file = f"BFCL_v4_multi_turn_{category}.json"
        answers = {each["id"]: each for each in read_lines(data / "possible_answer" / file)}
        scenarios += [
            Scenario(
                each["id"],
                category,
                each["initial_config"],
                each["involved_classes"],
                answers[each["id"]]["ground_truth"],
            )
            for each in read_lines(data / file)
        ]
    return scenarios


def read_parameters() -> Parameters:
    """Return the parameters of all tools."""
    documents = (data_folder() / "multi_turn_func_doc").glob("*.json")
    return {
        each["name"]: list(each["parameters"]["properties"])
        for file in documents
        for each in read_lines(file)
    }


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one a line."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def write_program(scenario: Scenario, parameters: Parameters) -> str:
    """Return the gold trajectory as a program; its value has a list of results for each turn.

    The value is a JSON text, because results present integers beyond 2**53 as texts.
    """
    turns = [[name_arguments(call, parameters) for call in turn] for turn in scenario.turns]
    names = dict.fromkeys(ast.unparse(call.func) for turn in turns for call in turn)
    lines = ["import json", f"from tools.{SERVER_NAME} import {', '.join(names)}", "json.dumps(["]
    for turn in turns:
        lines += ["    [", *(f"        {ast.unparse(call)}," for call in turn), "    ],"]
    return "\n".join([*lines, "])"])


def name_arguments(source: str, parameters: Parameters) -> ast.Call:
    """Return a gold call in which each argument has the name of its parameter."""
    call = ast.parse(source.strip(), mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"A gold call is no call of a tool: {source!r}.")
    names = parameters[call.func.id]
    positional = [ast.keyword(name, value) for name, value in zip(names, call.args, strict=False)]
    return ast.Call(call.func, [], [*positional, *call.keywords])
