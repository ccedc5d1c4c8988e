"""Connections to upstreams that work, that do not, and that fail later."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvicorn

from mcpruntime_server.capabilities.large_calls import open_large_calls
from mcpruntime_server.capabilities.tools.observed_shapes import LargeValue
from mcpruntime_server.capabilities.tools.upstream import Upstream, open_upstreams
from mcpruntime_server.config import UpstreamSettings
from mcpruntime_server.errors import CallFailed
from mcpruntime_server.journal.events import find_encoded
from mcpruntime_server.protocol import wire
from tests.upstreams import own_server

SOON = 30.0  # seconds; only a test that fails waits so long


@asynccontextmanager
async def one(settings: UpstreamSettings, folder: Path) -> AsyncIterator[Upstream]:
    async with open_upstreams({"up": settings}, folder, folder / "logs") as upstreams:
        with anyio.fail_after(SOON):
            yield upstreams["up"]


@pytest.fixture
async def lively(tmp_path: Path) -> AsyncIterator[Upstream]:
    async with one(own_server("lively"), tmp_path) as upstream:
        yield upstream


async def changed(upstream: Upstream) -> None:
    """Return when the tool list of `upstream` is another."""
    event = anyio.Event()
    upstream.add_change_listener(event.set)
    await upstream.call_tool("grow", {})
    await event.wait()


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class TestConnecting:
    async def test_an_upstream_starts_when_it_is_first_needed(self, lively: Upstream) -> None:
        assert (lively.status.state, lively.known_tools) == ("idle", None)
        assert "echo" in [tool.name for tool in await lively.list_tools()]
        assert lively.status.state == "ready"

    async def test_everybody_shares_one_connection(self, lively: Upstream) -> None:
        pids: list[int] = []

        async def ask() -> None:
            pids.append(await lively.call_tool("pid", {}))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(ask)
        assert len(pids) == 10
        assert len(set(pids)) == 1

    async def test_calls_run_at_the_same_time(self, lively: Upstream) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(lively.call_tool, "meet", {"number": 5})

    async def test_no_more_calls_than_allowed_run_at_the_same_time(self, tmp_path: Path) -> None:
        crowds: list[int] = []

        async def ask() -> None:
            crowds.append(await upstream.call_tool("crowd", {}))

        async with (
            one(own_server("lively", max_concurrency=2), tmp_path) as upstream,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(12):
                tasks.start_soon(ask)
        assert len(crowds) == 12
        assert max(crowds) <= 2

    async def test_a_disabled_upstream_is_left_out(self, tmp_path: Path) -> None:
        async with open_upstreams(
            {"up": own_server("lively", disabled=True)}, tmp_path, tmp_path
        ) as upstreams:
            assert upstreams == {}

    async def test_a_child_process_gets_a_minimal_environment_and_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET_OF_THE_SERVER", "not for children")
        async with one(own_server("lively", env={"MODE": "test"}), tmp_path) as upstream:
            environment = await upstream.call_tool("environment", {})
        assert environment["MODE"] == "test"
        assert "SECRET_OF_THE_SERVER" not in environment

    @pytest.mark.parametrize(
        ("mode", "kind", "words"),
        [
            ("dies", "unavailable", "it exited before it was ready"),
            ("silent", "unavailable", "it was not ready within 1 s"),
            ("garbage", "protocol", "lines that are not MCP messages"),
            ("shapeless", "protocol", "not a valid Tool"),
        ],
    )
    async def test_an_upstream_that_cannot_be_reached_says_why(
        self, tmp_path: Path, mode: str, kind: str, words: str
    ) -> None:
        async with one(own_server("raw", mode, timeout_s=1), tmp_path) as upstream:
            for ask in (upstream.list_tools(), upstream.call_tool("grow", {})):
                with pytest.raises(CallFailed) as caught:
                    await ask
                assert caught.value.kind == kind
                assert "The upstream up cannot be reached" in caught.value.message
                assert words in caught.value.message
                assert "[mcpServers.up]" in caught.value.remedy
            assert upstream.status.state == "failed"

    async def test_a_missing_command_is_named_and_not_tried_again_at_once(
        self, tmp_path: Path
    ) -> None:
        settings = UpstreamSettings.from_mapping(
            {"command": "no-such-command", "args": ["--token", "hunter2hunter2"]}
        )
        async with one(settings, tmp_path) as upstream:
            for _ in range(3):
                with pytest.raises(CallFailed, match="'no-such-command': No such file") as caught:
                    await upstream.list_tools()
                assert "hunter2" not in str(caught.value)

    async def test_all_who_wait_for_a_connection_learn_that_it_failed(self, tmp_path: Path) -> None:
        failures: list[CallFailed] = []

        async def ask() -> None:
            with pytest.raises(CallFailed) as caught:
                await upstream.list_tools()
            failures.append(caught.value)

        async with (
            one(own_server("raw", "silent", timeout_s=1), tmp_path) as upstream,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(5):
                tasks.start_soon(ask)
        assert len({id(failure) for failure in failures}) == 5

    async def test_a_waiting_caller_gets_an_error_at_shutdown(self, tmp_path: Path) -> None:
        failures: list[str] = []

        async def ask(upstream: Upstream) -> None:
            with pytest.raises(CallFailed) as caught:
                await upstream.list_tools()
            failures.append(caught.value.message)

        async with (
            anyio.create_task_group() as tasks,
            one(own_server("raw", "silent"), tmp_path) as upstream,
        ):
            tasks.start_soon(ask, upstream)
            await anyio.wait_all_tasks_blocked()
        assert failures == ["The upstream up is shutting down."]

    async def test_lines_that_are_no_messages_are_passed_over(self, tmp_path: Path) -> None:
        async with one(own_server("raw", "noisy"), tmp_path) as upstream:
            assert await upstream.call_tool("grow", {}) == "ok"

    async def test_a_wedged_upstream_is_killed_with_its_children(self, tmp_path: Path) -> None:
        async with one(own_server("raw", "stubborn", str(tmp_path / "pids")), tmp_path) as upstream:
            await upstream.list_tools()
            pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
            assert all(map(is_alive, pids))
        with anyio.fail_after(SOON):
            while any(map(is_alive, pids)):
                await anyio.lowlevel.checkpoint()


class TestCalls:
    @pytest.mark.parametrize(
        ("tool", "arguments", "answer"),
        [
            ("echo", {"text": "a", "times": 2}, "aa"),
            ("numbers", {"count": 3}, [0, 1, 2]),
            (
                "bug",
                {"key": "A"},
                {"key": "A", "tags": ["a"], "parent": {"key": "P-1", "tags": [], "parent": None}},
            ),
            ("as_json", {"text": '{"a": 1}'}, {"a": 1}),
            ("blocks", {"texts": ["a", "[1]"]}, ["a", [1]]),
            ("picture", {}, {"type": "image", "mimeType": "image/png", "data": "iVBORw=="}),
        ],
    )
    async def test_an_answer_is_plain_data(
        self, lively: Upstream, tool: str, arguments: Any, answer: Any
    ) -> None:
        assert await lively.call_tool(tool, arguments) == answer

    async def test_what_the_tool_says_no_to_is_a_tool_error(self, lively: Upstream) -> None:
        with pytest.raises(CallFailed, match="fail") as caught:
            await lively.call_tool("fail", {"reason": "because"})
        assert caught.value.kind == "tool_error"

    async def test_an_answer_against_its_own_schema_is_the_upstreams_fault(
        self, lively: Upstream
    ) -> None:
        with pytest.raises(
            CallFailed, match=r"The upstream up answered lies in violation of its own contract"
        ) as caught:
            await lively.call_tool("lies", {})
        assert caught.value.kind == "protocol"

    async def test_a_tool_that_asks_for_input_is_a_tool_error(self, tmp_path: Path) -> None:
        async with one(own_server("raw", "asks"), tmp_path) as upstream:
            with pytest.raises(CallFailed, match="grow asks for input, which") as caught:
                await upstream.call_tool("grow", {})
            assert caught.value.kind == "tool_error"

    async def test_a_line_without_end_ends_the_connection(self, tmp_path: Path) -> None:
        settings = own_server("raw", "endless", answer_mb=1)
        async with one(settings, tmp_path) as upstream:
            with pytest.raises(CallFailed, match="answered grow with more than 1 MB") as caught:
                await upstream.call_tool("grow", {})
            assert caught.value.kind == "too_large"
            assert "raise `answer_mb` under [mcpServers.up]" in caught.value.remedy
            with anyio.fail_after(SOON):
                while upstream.status.state == "ready":
                    await anyio.lowlevel.checkpoint()

    async def test_a_call_that_takes_too_long_is_given_up_and_the_connection_kept(
        self, tmp_path: Path
    ) -> None:
        async with one(own_server("lively", timeout_s=4), tmp_path) as upstream:
            pid = await upstream.call_tool("pid", {})
            with pytest.raises(CallFailed, match=r"up.hang did not answer within 4 s") as caught:
                await upstream.call_tool("hang", {})
            assert caught.value.kind == "timeout"
            assert await upstream.call_tool("pid", {}) == pid

    async def test_a_crash_during_a_call_is_reported_and_the_next_call_reconnects(
        self, lively: Upstream
    ) -> None:
        pid = await lively.call_tool("pid", {})
        with pytest.raises(CallFailed, match="disconnected while it worked on crash") as caught:
            await lively.call_tool("crash", {})
        assert caught.value.kind == "unavailable"
        assert await lively.call_tool("pid", {}) != pid

    async def test_calls_in_flight_share_the_fate_of_a_crash(self, lively: Upstream) -> None:
        kinds: list[str] = []

        async def wait() -> None:
            with pytest.raises(CallFailed) as caught:
                await lively.call_tool("hang", {})
            kinds.append(caught.value.kind)

        await lively.list_tools()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(CallFailed):
                await lively.call_tool("crash", {})
        assert kinds == ["unavailable"] * 3

    async def test_an_upstream_that_died_idle_is_started_for_the_next_call(
        self, lively: Upstream
    ) -> None:
        pid = await lively.call_tool("pid", {})
        os.kill(pid, 9)
        while lively.status.state == "ready":
            await anyio.lowlevel.checkpoint()
        assert await lively.call_tool("pid", {}) != pid

    async def test_a_cancelled_call_leaves_the_connection_in_order(self, lively: Upstream) -> None:
        pid = await lively.call_tool("pid", {})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lively.call_tool, "hang", {})
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert await lively.call_tool("pid", {}) == pid


class TestChanges:
    async def test_a_current_server_that_grows_is_listed_anew(self, lively: Upstream) -> None:
        await lively.list_tools()
        generation = lively.generation
        await changed(lively)
        assert "grown" in [tool.name for tool in await lively.list_tools()]
        assert lively.generation == generation + 1

    async def test_an_older_server_that_grows_is_listed_anew(self, tmp_path: Path) -> None:
        async with one(own_server("raw", "fine"), tmp_path) as upstream:
            assert [tool.name for tool in await upstream.list_tools()] == ["grow"]
            await changed(upstream)
            assert [tool.name for tool in await upstream.list_tools()] == ["grow", "grown"]

    async def test_connecting_again_to_the_same_tools_is_no_change(self, lively: Upstream) -> None:
        await lively.list_tools()
        with pytest.raises(CallFailed):
            await lively.call_tool("crash", {})
        await lively.call_tool("pid", {})
        assert lively.generation == 1


class TestSecrets:
    async def test_no_credential_comes_back_in_a_result_an_error_or_the_log(
        self, tmp_path: Path
    ) -> None:
        async with one(
            own_server("lively", env={"API_TOKEN": "s3cret-s3cret"}), tmp_path
        ) as upstream:
            assert (
                json.loads(json.dumps(await upstream.call_tool("environment", {})))["API_TOKEN"]
                == "***"
            )
            assert await upstream.call_tool("echo", {"text": "say s3cret-s3cret"}) == "say ***"
            with pytest.raises(CallFailed) as caught:
                await upstream.call_tool("no s3cret-s3cret tool", {})
            assert "s3cret" not in str(caught.value)
            log = upstream.log_file
        assert '"API_TOKEN": "***"' in log.read_text()
        assert "s3cret" not in log.read_text()

    async def test_an_upstream_that_died_shows_its_last_stderr_and_where_its_log_is(
        self, tmp_path: Path
    ) -> None:
        async with one(own_server("raw", "dies"), tmp_path) as upstream:
            with pytest.raises(CallFailed) as caught:
                await upstream.list_tools()
            assert f"Its stderr is in {upstream.log_file} and ends with " in caught.value.remedy
            assert "I cannot go on" in caught.value.remedy


async def encode_arguments(text: str) -> Mapping[str, Any]:
    """Return large arguments as a call from a sandbox has them."""
    call = wire.Call(1, 1, "tools.lively.echo", {"text": text})
    async with open_large_calls() as calls:
        args = (await calls.read(wire.encode_message(call)[wire.HEADER_BYTES :])).args
    assert find_encoded(args) is not None
    return args


def decode_value(value: Any) -> Any:
    """Return a large value as data, without the wrapper of a tool that is not listed yet."""
    assert isinstance(value, LargeValue)
    found = value.decode()
    return found["result"] if isinstance(found, dict) else found


async def test_large_arguments_arrive_as_they_are(lively: Upstream) -> None:
    text = '\n"\\\u20ac' * 150_000
    assert decode_value(await lively.call_tool("echo", await encode_arguments(text))) == text


class WebServer:
    """The server `lively` over HTTP in this process; a restart keeps its port."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.headers: list[dict[bytes, bytes]] = []
        self.status = 0
        self.legacy = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp?api_key=k3y-in-the-url"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        from mcp.server import MCPServer

        server = MCPServer("web")
        server.add_tool(lambda text: text, name="echo")
        inner = server.streamable_http_app()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                self.headers.append(dict(scope["headers"]))
                if self.status:
                    await send(
                        {"type": "http.response.start", "status": self.status, "headers": []}
                    )
                    await send({"type": "http.response.body", "body": b""})
                    return
                body, has_more = b"", True
                while has_more:
                    message = await receive()
                    body += message["body"]
                    has_more = message["more_body"]
                if self.legacy and b"server/discover" in body:
                    await send({"type": "http.response.start", "status": 404, "headers": []})
                    await send({"type": "http.response.body", "body": b""})
                    return
                first = iter([{"type": "http.request", "body": body, "more_body": False}])
                await inner(scope, lambda: replay(first, receive), send)
                return
            await inner(scope, receive, send)

        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        web = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=0))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(web.serve, [listener])
            yield
            web.should_exit = True


async def replay(first: Iterator[Any], receive: Any) -> Any:
    """Return the message that was already taken, and then those that follow."""
    return next(first, None) or await receive()


class TestHttp:
    async def test_a_server_over_http_answers_and_gets_its_headers(self, tmp_path: Path) -> None:
        web = WebServer()
        settings = UpstreamSettings.from_mapping(
            {"url": web.url, "headers": {"Authorization": "Bearer t0ken-t0ken"}}
        )
        async with web.running(), one(settings, tmp_path) as upstream:
            assert await upstream.call_tool("echo", {"text": "hello"}) == "hello"
            assert await upstream.call_tool("echo", {"text": "a t0ken-t0ken b"}) == "a *** b"
        assert all(headers[b"authorization"] == b"Bearer t0ken-t0ken" for headers in web.headers)

    async def test_large_arguments_arrive_as_they_are(self, tmp_path: Path) -> None:
        web = WebServer()
        text = '\n"\\\u20ac' * 150_000
        async with (
            web.running(),
            one(UpstreamSettings.from_mapping({"url": web.url}), tmp_path) as up,
        ):
            assert decode_value(await up.call_tool("echo", await encode_arguments(text))) == text
            assert await up.call_tool("echo", {"text": "small"}) == "small"

    async def test_refused_credentials_are_reported_as_such(self, tmp_path: Path) -> None:
        web = WebServer()
        web.status = 401
        settings = UpstreamSettings.from_mapping(
            {"url": web.url, "headers": {"Authorization": "Bearer t0ken-t0ken"}}
        )
        async with web.running(), one(settings, tmp_path) as upstream:
            with pytest.raises(CallFailed, match=r"refused the credentials \(HTTP 401\)") as caught:
                await upstream.list_tools()
        assert "t0ken" not in str(caught.value)
        assert "k3y" not in str(caught.value)

    async def test_an_unreachable_server_is_reported_without_its_url(self, tmp_path: Path) -> None:
        async with one(
            UpstreamSettings.from_mapping({"url": WebServer().url}), tmp_path
        ) as upstream:
            with pytest.raises(
                CallFailed, match="the connection failed with ConnectError"
            ) as caught:
                await upstream.list_tools()
        assert "k3y" not in str(caught.value)

    async def test_a_server_that_comes_back_is_found_again(self, tmp_path: Path) -> None:
        web = WebServer()
        async with one(UpstreamSettings.from_mapping({"url": web.url}), tmp_path) as upstream:
            async with web.running():
                assert await upstream.call_tool("echo", {"text": "x"}) == "x"
            with pytest.raises(CallFailed) as caught:
                await upstream.call_tool("echo", {"text": "x"})
            assert caught.value.kind == "unavailable"
            async with web.running():
                answer = None
                while answer is None:
                    with suppress(CallFailed):
                        answer = await upstream.call_tool("echo", {"text": "y"})
            assert answer == "y"

    async def test_a_session_that_an_older_server_has_forgotten_is_made_anew_unnoticed(
        self, tmp_path: Path
    ) -> None:
        web = WebServer()
        web.legacy = True
        async with one(UpstreamSettings.from_mapping({"url": web.url}), tmp_path) as upstream:
            async with web.running():
                assert await upstream.call_tool("echo", {"text": "x"}) == "x"
                session = web.headers[-1][b"mcp-session-id"]
            async with web.running():
                assert await upstream.call_tool("echo", {"text": "y"}) == "y"
                assert web.headers[-1][b"mcp-session-id"] != session
