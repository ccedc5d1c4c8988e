"""What a sandbox says of itself, and the hints of common failures, as a client gets them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mcpruntime_server.config import SandboxSettings
from mcpruntime_server.sandbox.image import choose_tag

from ..helpers.server_connection import ServerConnection, connect_server, write_settings
from .conftest import upstream_entry

ROOT = "/nowhere/of-the-user"


@pytest.fixture(scope="module")
async def guided(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    """A server with a folder of the user, a mount and an upstream."""
    folder = tmp_path_factory.mktemp("guided")
    mounted = folder / "mounted"
    mounted.mkdir()
    settings = write_settings(
        folder,
        mcpServers={
            "lively": upstream_entry("lively"),
            "dies": upstream_entry("raw", "dies"),
            "collapses": upstream_entry("raw", "collapses"),
        },
        server={"context_roots": [ROOT]},
        sandbox={"mounts": [f"{mounted}:/data"]},
    )
    async with connect_server(settings) as connection:
        yield connection


async def test_the_instructions_and_help_say_what_the_sandbox_is(guided: ServerConnection) -> None:
    instructions = guided.client.instructions or ""
    printed = (await guided.run("help()")).stdout
    for text in (instructions, printed):
        assert "in a container without network, with " in text
        assert "numpy" in text
        assert f"context=[path] gives code a file below {ROOT} as CONTEXT; mounted: /data." in text
        assert f"export(path) copies one to {guided.data_dir}/exports." in text
        assert "A run may take 120 s" in text
    assert len(printed.splitlines()) == 4


async def test_the_first_instructions_name_the_python_that_the_sandbox_has(
    guided: ServerConnection,
) -> None:
    version = await guided.evaluate("import platform\nplatform.python_version()")
    assert f"Python {version} in a container" in (guided.client.instructions or "")


async def test_an_image_of_the_users_own_is_asked_for_its_python(tmp_path: Path) -> None:
    image = choose_tag(SandboxSettings())  # as an own image, its label is not believed
    settings = write_settings(tmp_path, sandbox={"image": image, "pool_size": 1})
    async with connect_server(settings) as first:
        version = await first.evaluate("import platform\nplatform.python_version()")
        assert f"Python {version} in a container" in (first.client.instructions or "")
    settings = write_settings(tmp_path, sandbox={"image": image, "pool_size": 0})
    async with connect_server(settings) as second:  # the journal knows it
        assert f"Python {version} in a container" in (second.client.instructions or "")


@pytest.mark.parametrize("env", [{}, {"DOCKER_HOST": "unix:///nowhere/docker.sock"}])
async def test_without_an_image_or_an_engine_no_version_is_named(
    tmp_path: Path, env: dict[str, str]
) -> None:
    settings = write_settings(tmp_path, sandbox={"image": "localhost:1/nothing:here"})
    async with connect_server(settings, env) as connection:
        assert "\nPython in a container" in (connection.client.instructions or "")


async def test_help_on_tools_is_short_and_shows_the_ways_to_call(guided: ServerConnection) -> None:
    printed = (await guided.run("help(tools)")).stdout
    assert len(printed) <= 2_000
    for text in (
        "tools.map(fn, items",
        "tools.search(",
        "tools.list(",
        "Servers: lively, dies, collapses.",
    ):
        assert text in printed


async def test_help_on_inputs_is_short(guided: ServerConnection) -> None:
    code = "help(CONTEXT)\nhelp(CONTEXT_DATA)"
    answer = await guided.run(code, context=[{"text": "a\nb"}])
    half = answer.stdout[: len(answer.stdout) // 2]
    assert answer.stdout == half * 2
    assert len(half) <= 2_000
    for name in (".grep(", ".map(", ".lines(", ".chunks("):
        assert name in half


HINTS: list[tuple[str, str]] = [
    ("import requests", "requests is not installed. Installed: "),
    ("import requests", "packages.install('requests') adds it."),
    (f"open('{ROOT}/a.csv')", f"context=['{ROOT}/a.csv']"),
    ("open('/home/someone/a.csv')", "The sandbox does not see the user's machine"),
    (
        "import urllib.request\nurllib.request.urlopen('http://example.com')",
        "There is no network here.",
    ),
    (
        "from tools.lively import echo\nawait echo('a')",
        "echo(...) returns its result at once. With await: `await echo.aio(...)`.",
    ),
    ("await tools.lively.echo('a')", "`await tools.lively.echo.aio(...)`"),
    ("help(CONTEXT)", "This run has no input: run_code(code=..., context=[...]) gives it one."),
    ('{"a": null}', "null is JSON; Python writes None."),
    (
        "o = {'items': [1]}\nfor each in o.items:\n    pass",
        'The key is reached by ["items"].',
    ),
]


@pytest.mark.parametrize(("code", "hint"), HINTS)
async def test_an_error_names_the_way_out(guided: ServerConnection, code: str, hint: str) -> None:
    answer = await guided.run(code, "a session without input")
    assert answer.status == "error"
    assert hint in answer.error["hint"], answer.text
    assert "Did you mean" not in answer.text
    assert f"hint: {answer.error['hint']}" in answer.text


@pytest.mark.parametrize(
    "code",
    [
        "raise ModuleNotFoundError('requests')",
        "import tools.nothing",
        "open('missing.csv')",
        "open('/data/missing.csv')",
        "raise FileNotFoundError('/home/someone/a.csv')",
        "async def f():\n    return 1\nawait 5",
        "[1].items",
        "1 / 0",
        "raise OSError('no network')",
    ],
)
async def test_an_error_with_another_cause_has_no_hint(guided: ServerConnection, code: str) -> None:
    answer = await guided.run(code)
    assert answer.status == "error"
    assert "hint" not in answer.error, answer.text


async def test_code_that_catches_an_error_sees_nothing_of_a_hint(guided: ServerConnection) -> None:
    code = "try:\n    import requests\nexcept ImportError as exc:\n    caught = exc\nstr(caught)"
    assert await guided.evaluate(code) == "No module named 'requests'"


async def test_a_failed_run_with_a_hint_replays(guided: ServerConnection) -> None:
    answer = await guided.run("import requests", session="replayed")
    replayed = await guided.replay("rerun", "replayed", step=answer.step)
    assert "differ" not in replayed.text.lower(), replayed.text


async def test_an_upstream_that_died_names_its_stderr_and_its_log(guided: ServerConnection) -> None:
    answer = await guided.run("import tools.dies")
    assert "upstream-dies.log and ends with 'I cannot go on'" in answer.error["message"]


async def test_an_upstream_that_dies_during_a_call_names_its_stderr_and_its_log(
    guided: ServerConnection,
) -> None:
    code = (
        "try:\n    tools.collapses.grow()\n"
        "except tools.ToolError as exc:\n    caught = exc\n[caught.kind, str(caught)]"
    )
    kind, message = await guided.evaluate(code)
    assert kind == "unavailable"
    log = guided.data_dir / "logs" / "upstream-collapses.log"
    assert "disconnected while it worked on grow" in message
    assert f"Its stderr is in {log} and ends with 'first' | 'MY_TOKEN=***' |" in message
    assert "'the disk is full'." in message


async def test_a_failed_name_resolution_names_the_tools_that_fetch(tmp_path: Path) -> None:
    fetching = {"web": upstream_entry("web"), "lively": upstream_entry("lively")}
    async with connect_server(write_settings(tmp_path, mcpServers=fetching)) as server:
        # They are known to the first server that listed them, not only to the next one.
        assert "fetch" in str(await server.evaluate("tools.list('web')"))
        answer = await server.run("import socket\nsocket.getaddrinfo('example.com', 443)")
        assert answer.error["hint"] == (
            "There is no network here. Tools that can fetch: web.fetch, web.browse_page."
        )


async def test_help_on_a_large_server_is_short_and_help_on_a_tool_is_complete(
    tmp_path: Path,
) -> None:
    settings = write_settings(tmp_path, mcpServers={"web": upstream_entry("web")})
    async with connect_server(settings) as server:
        printed = (await server.run("help(tools.web)")).stdout
        assert len(printed) <= 4_000
        assert "fetch  Return the page at an address.\n" in printed
        names = await server.evaluate("dir(tools.web)")
        assert len(names) == 46
        assert all(f"\n{name}  " in printed for name in names)
        assert "help(tools.web.fetch) shows" in printed
        printed = (await server.run("help(tools.web.fetch)")).stdout
        assert "fetch(url: 'str', headers: 'dict[str, str] | None' = None" in printed
        assert "It is cut after 5,000 characters." in printed
        assert "url* (str)" in printed


async def test_a_failed_name_resolution_without_tools_that_fetch_names_the_search(
    guided: ServerConnection,
) -> None:
    await guided.run("tools.list()")
    answer = await guided.run("import socket\nsocket.getaddrinfo('example.com', 443)")
    assert answer.error["hint"] == (
        "There is no network here. tools.search('fetch url') finds tools that may fetch."
    )


async def test_a_listing_with_an_upstream_that_died_says_so_as_a_value(
    guided: ServerConnection,
) -> None:
    value = await guided.evaluate("tools.list('lively')[:0] or tools.search('zzzz')")
    assert "no tools found" in value
    assert "! The upstream dies cannot be reached" in value


@pytest.mark.parametrize(
    "code", ["list(tools.search('zzzz'))", "[each.name for each in tools.list('dies')]"]
)
async def test_an_empty_value_made_of_a_listing_comes_with_its_problems(
    guided: ServerConnection, code: str
) -> None:
    answer = await guided.run(code)
    assert (answer.status, answer.value) == ("ok", [])
    assert answer.stderr.count("! The upstream dies cannot be reached") == 1
    assert "! The upstream dies cannot be reached" in answer.text
