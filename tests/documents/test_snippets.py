"""The Python in the documents is executed: in a sandbox of a real server, or as a program.

The blocks of a page are steps of one session, in their order. A block with a file name
(`title="over_stdio.py"`) is a program of its own. Comments before a block say what else is needed:

- `<!-- setup: CODE -->`: code of a step before it;
- `<!-- context: JSON -->`: the input of its step;
- `<!-- fails: ERROR -->`: the exception that it shows;
- `<!-- tool: NAME -->`: the JSON block is a call of this tool; `r_...` is the run of step 3;
- `<!-- untested: REASON -->`: it is only compiled.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench import fake_llm
from mcpruntime_server.cli.demo.sample_repository import make_repository

from ..helpers.server_connection import COMMAND, ServerConnection, connect_server, write_settings
from ..upstreams import real_server
from .markdown import DOCUMENTS, ROOT, CodeBlock, list_blocks, read_document

SANDBOX_PAGES = [
    document
    for document in DOCUMENTS
    if any(
        block.language == "python" and "title=" not in block.options
        for block in list_blocks(document)
    )
]
PROGRAMS = [
    block
    for document in DOCUMENTS
    for block in list_blocks(document, "python")
    if "title=" in block.options and "untested" not in block.notes
    if 'title="providers/' not in block.options  # tests/capabilities/knowledge runs it
]
MAX_UNTESTED_BLOCKS = 7
SAVED_STEP = 2  # index of the step whose run the tutorial saves
TRAVEL = """\
# Travel

## Trains
Second class.

## Hotels
A hotel may have three stars.
How many stars it has is on the bill.
"""


@pytest.fixture(scope="module")
async def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents call /data/project."""
    folder = tmp_path_factory.mktemp("documents") / "project"
    await make_repository(folder)
    return folder


def write_document_settings(folder: Path, model_url: str) -> Path:
    """Write the settings that the documents use, and the files that they name."""
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "travel.md").write_text(TRAVEL)
    connection = sqlite3.connect(folder / "shop.db")
    connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, total REAL)")
    connection.close()
    servers = {name: real_server(name, folder) for name in ("git", "time")}
    entries = {
        name: {"command": server.command, "args": list(server.args)}
        for name, server in servers.items()
    }
    return write_settings(
        folder,
        mcpServers=entries,
        knowledge={
            "handbook": {"path": "docs", "title": "House rules"},
            "shop": {"sqlite": "shop.db", "samples": 3},
        },
        llm={"model": "json", "api_base": model_url, "api_key": fake_llm.API_KEY},
        server={"data_dir": str(folder / "data"), "result_items": 50},
    )


@pytest.fixture(scope="module")
async def server(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[ServerConnection]:
    with ExitStack() as stack:
        model = stack.enter_context(fake_llm.start_model_server())
        settings = write_document_settings(tmp_path_factory.mktemp("server"), model.url)
        async with connect_server(settings) as connection:
            yield connection


class PageReader:
    """Executes the blocks of one page in a session of its own."""

    def __init__(self, server: ServerConnection, page: Path, repository: Path) -> None:
        self.session = "night" if page.stem == "tutorial" else page.stem
        self.runs: list[str] = []
        self._server = server
        self._repository = repository

    async def execute(self, block: CodeBlock) -> None:
        """Execute a block if it is one for a server; what it promises must be true."""
        if block.language == "json" and "tool" in block.notes:
            await self._call_tool(block.notes["tool"], json.loads(block.text))
        if block.language != "python" or "title=" in block.options:
            return
        if "untested" in block.notes:
            compile(block.text, str(block.document), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            return
        if "setup" in block.notes:
            await self._run(block.notes["setup"])
        options = {}
        if "context" in block.notes:
            options["context"] = [json.loads(block.notes["context"])]
        await self._run(block.text, block.notes.get("fails", ""), **options)

    async def _run(self, code: str, error: str = "", **options: Any) -> None:
        local = code.replace("/data/project", str(self._repository))
        answer = await self._server.run(local, self.session, **options)
        assert answer.status == ("error" if error else "ok"), f"{code}\n{answer.text}"
        assert error in answer.text
        self.runs.append(answer.run)

    async def _call_tool(self, name: str, arguments: Mapping[str, Any]) -> None:
        given = dict(arguments)
        if given.get("run") == "r_...":
            given["run"] = self.runs[SAVED_STEP]
        result = await self._server.client.call_tool(name, given)
        assert not result.is_error, result
        if name == "save_skill":
            assert (result.structured_content or {})["state"] == "active", result


@pytest.mark.parametrize("page", SANDBOX_PAGES, ids=str)
async def test_the_python_of_a_page_runs(
    server: ServerConnection, repository: Path, page: Path
) -> None:
    reader = PageReader(server, page, repository)
    for block in list_blocks(page):
        await reader.execute(block)


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.options)
def test_the_programs_of_the_documents_run(block: CodeBlock, tmp_path: Path) -> None:
    settings = write_settings(tmp_path)
    program = tmp_path / "program.py"
    program.write_text(block.text)
    environment = {
        **os.environ,
        "MCPRUNTIME_CONFIG": str(settings),
        "PATH": f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}",
    }
    code = block.text.replace(
        'args=["--stdio"]', f'args=["--config", {str(settings)!r}, "--stdio"]'
    )
    program.write_text(code)
    finished = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split()[-1:] in (["45"], ["42"]), finished.stdout


def test_few_blocks_are_not_executed_and_each_says_why() -> None:
    untested = [
        block
        for document in DOCUMENTS
        for block in list_blocks(document, "python")
        if "untested" in block.notes
    ]
    assert len(untested) <= MAX_UNTESTED_BLOCKS
    for block in untested:
        for path in re.findall(r"tests/[\w/]+(?:\.py)?", block.notes["untested"]):
            assert (ROOT / path).exists(), path


async def test_every_tool_and_parameter_is_documented(server: ServerConnection) -> None:
    page = read_document("docs/model-view.md")
    named = set(re.findall(r"`(\w+)`", page))
    for tool in (await server.client.list_tools()).tools:
        assert {tool.name, *tool.input_schema["properties"]} <= named, tool.name
        if tool.name == "run_code":
            assert set((tool.output_schema or {})["properties"]) <= named
    prompts = {prompt.name for prompt in (await server.client.list_prompts()).prompts}
    assert prompts <= named
