"""Streams of events: as they happen, resumable at every place, and without harm to anybody."""

from __future__ import annotations

import resource
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import MCPError

from mcpruntime_server.errors import RateLimited
from mcpruntime_server.service import event_stream
from mcpruntime_server.service.access_tokens import TokenStore
from mcpruntime_server.service.http_connections import CANCEL_KEY
from mcpruntime_server.service.run_events import EncodedEvent

from ..helpers.event_streams import ApiClient, ReceivedEvent, connect_api, parse_events
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import TEST_TIMEOUT_S, write_local_settings
from ..server.conftest import upstream_entry
from ..server.test_approvals import ASK

LARGE_BYTES = 32 << 20  # more than fits into the buffers of a connection
FLOOD = "for n in range(4_000): print(f'{n:06d}' + 'x' * 2_500)"
TOKEN_LIFETIME_S = 5.0  # long enough to open a stream on a busy machine
EVERYTHING = """\
from tools.counted import count, put
print('hello', flush=True)
print(count(item='one').result >= 0, flush=True)
try:
    put(item='two')
except Exception as exc:
    print(type(exc).__name__, flush=True)
for name in 'ab':
    open(f'{name}.txt', 'w').write(name)
print('x' * 70_000)
{'answer': 42}
"""


def write_stream_settings(folder: Path) -> Path:
    return write_local_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(folder / "done"))},
        sandbox={"output_mb": 16},
        policy=ASK,
    )


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    settings = write_stream_settings(tmp_path_factory.mktemp("streams"))
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
async def ann(service: HttpService) -> str:
    return service.create_token("ann")


@pytest.fixture
async def api(service: HttpService, ann: str) -> AsyncIterator[ApiClient]:
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_api(service, ann) as client:
            yield client


def types(events: list[ReceivedEvent]) -> list[str]:
    return [event.type for event in events]


def gated_code(folder: Path) -> str:
    """Return code that calls a tool, and goes on when there is a file `go`."""
    return f"""
import os, time
from tools.counted import count
count(item='before')
print('started', flush=True)
while not os.path.exists({str(folder / "go")!r}):
    time.sleep(0.01)
count(item='after')
open('made', 'w').write('x')
print('went on')
"""


async def read_until(api: ApiClient, code: str, kind: str, **fields: Any) -> list[ReceivedEvent]:
    """Execute code, and leave after the first event of a kind."""
    seen: list[ReceivedEvent] = []
    async with api.stream("POST", "/execute/stream", json={"code": code, **fields}) as events:
        async for event in events:
            seen.append(event)
            if event.type == kind:
                break
    return seen


def join_output(events: list[ReceivedEvent], stream: str = "stdout") -> str:
    output = (event.data for event in events if event.type == "output")
    return "".join(data["text"] for data in output if data["stream"] == stream)


async def test_everything_that_happens_is_an_event(api: ApiClient) -> None:
    events = await api.execute(EVERYTHING, session="everything")
    kinds = types(events)
    assert kinds[:2] == ["run_queued", "run_started"]
    assert kinds[-3:] == ["file", "file", "run_finished"]
    by_type = {event.type: event.data for event in events}
    assert join_output(events) == f"hello\nTrue\nToolDeniedError\n{'x' * 70_000}\n"
    calls = [event.data for event in events if event.type == "call_started"]
    assert [(each["target"], each["arguments"]) for each in calls] == [
        ("tools.counted.count", {"item": "one"}),
        ("tools.counted.put", {"item": "two"}),
    ]
    results = [event.data for event in events if event.type == "call_finished"]
    assert [(each["call"], each["status"]) for each in results] == [
        (calls[0]["call"], "ok"),
        (calls[1]["call"], "error"),
    ]
    assert results[1]["error"]["kind"] == "denied"
    files = [event.data for event in events if event.type == "file"]
    assert [(each["path"], each["change"], each["size"]) for each in files] == [
        ("a.txt", "changed", 1),
        ("b.txt", "changed", 1),
    ]
    end = by_type["run_finished"]
    assert (end["status"], end["value"], end["error"]) == ("ok", {"answer": 42}, None)
    assert not end["undone"]
    assert not end["files_lost"]


async def test_a_stream_continues_after_every_event(api: ApiClient) -> None:
    events = await api.execute(EVERYTHING, session="everything")
    run = events[0].data["run"]
    assert await api.read_events(run) == events
    for count, last in enumerate(events, 1):
        assert await api.read_events(run, last.id) == events[count:], last.id
        number = last.id.partition(":")[2]
        response = await api.get(f"/runs/{run}/events", params={"after": number})
        assert response.text.count("data: ") == len(events) - count


async def test_a_request_that_is_sent_again_with_the_last_id_starts_nothing(
    api: ApiClient,
) -> None:
    events = await api.execute("print(1)\n2", session="again")
    headers = {"Last-Event-ID": events[1].id}
    assert await api.execute("print(1)\n2", headers, session="again") == events[2:]
    assert await api.execute("len(dir())", session="again")


async def test_a_request_that_is_sent_again_with_its_key_starts_nothing(api: ApiClient) -> None:
    key, code = {"Idempotency-Key": "k1"}, "import random\nrandom.random()"
    for fields in ({"session": "keys"}, {}):
        first = await api.execute(code, key, **fields)
        assert await api.execute(code, key, **fields) == first


async def test_a_client_that_leaves_does_not_end_the_run(api: ApiClient, tmp_path: Path) -> None:
    seen = await read_until(api, gated_code(tmp_path), "output")
    (tmp_path / "go").touch()
    rest = await api.read_events(seen[0].data["run"], seen[-1].id)
    assert join_output(rest) == "went on\n"
    assert rest[-1].data["status"] == "ok"
    assert await api.read_events(seen[0].data["run"]) == seen + rest


# other servers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_next_server_continues_a_stream(tmp_path: Path, number: int) -> None:
    settings = write_stream_settings(tmp_path)
    async with open_http_service(settings) as first:
        token = first.create_token("ann")
        async with connect_api(first, token) as api:
            seen: list[ReceivedEvent] = []
            with suppress(httpx2.RemoteProtocolError, httpx2.ReadError):  # the killed server
                body = {"code": gated_code(tmp_path), "session": "moves"}
                async with api.stream("POST", "/execute/stream", json=body) as events:
                    async for event in events:
                        seen.append(event)
                        if event.type == "output":
                            first.signal(number)
            await first.process.wait()
    run = seen[0].data["run"]
    assert "run_finished" not in types(seen)
    async with open_http_service(settings) as second, connect_api(second, token) as api:
        (tmp_path / "go").touch()
        rest = await api.read_events(run, seen[-1].id)
        everything = await api.read_events(run)
        assert everything == seen + rest
        assert "run_resumed" in types(rest)
        assert ("run_suspended" in types(everything)) == (number == signal.SIGTERM)
        assert join_output(everything) == "started\nwent on\n"
        calls = [each.data for each in everything if each.type == "call_started"]
        assert [each["arguments"]["item"] for each in calls] == ["before", "after"]
        finished = [each.data["call"] for each in everything if each.type == "call_finished"]
        assert finished == [each["call"] for each in calls]
        assert types(everything)[-2:] == ["file", "run_finished"]
        for count, last in enumerate(everything, 1):
            assert await api.read_events(run, last.id) == everything[count:], last.id


async def test_a_run_of_another_server_is_joined_and_answered(tmp_path: Path) -> None:
    settings = write_stream_settings(tmp_path)
    code = f"{gated_code(tmp_path)}\nfrom tools.counted import add\nadd(item='x')\n'end'"
    async with (
        open_http_service(settings) as first,
        open_http_service(settings) as second,
        connect_api(first, first.create_token("ann")) as here,
        connect_api(second, first.create_token("ann")) as there,
    ):
        with anyio.fail_after(TEST_TIMEOUT_S):
            seen = await read_until(here, code, "output")
            run = seen[0].data["run"]
            async with there.stream("GET", f"/runs/{run}/events") as events:
                assert [await anext(events) for _ in seen] == seen
                (tmp_path / "go").touch()
                async for event in events:
                    if event.type == "waiting":
                        break
            path, answers = f"/runs/{run}/answers", {"answers": {"q1": "perhaps"}}
            assert (await there.post(path, answers)).status_code == 400
            answers = {"answers": {"q1": "allow"}}
            assert (await there.post(path, answers)).status_code == 202
            rest = await there.read_events(run)
            assert rest[-1].data["value"] == "end"
            assert rest == await here.read_events(run)


async def test_a_run_of_another_server_is_cancelled_there(tmp_path: Path) -> None:
    settings = write_stream_settings(tmp_path)
    async with (
        open_http_service(settings) as first,
        open_http_service(settings) as second,
        connect_api(first, token := first.create_token("ann")) as here,
        connect_api(second, token) as there,
        second.connect(token) as client,
    ):
        with anyio.fail_after(TEST_TIMEOUT_S):
            sleeping = f"{gated_code(tmp_path)}\n"
            runs = [
                (await read_until(here, f"{sleeping}# {n}", "output"))[0].data["run"]
                for n in range(2)
            ]
            cancelled = await there.post(f"/runs/{runs[0]}/cancel")
            assert cancelled.status_code == 200, cancelled.text
            assert cancelled.json()["status"] == "cancelled"
            assert (await client.run_request(runs[1], cancel=True)).status == "cancelled"
            assert (await client.run("1 + 1")).value == 2


async def test_a_stream_ends_with_its_token(service: HttpService, tmp_path: Path) -> None:
    """A revoked token ends what its owner reads, and not the runs: another token finds them."""
    tokens = TokenStore(service.data_dir)
    token, other = service.create_token("tom"), service.create_token("tom")
    code = f"import os, time\nprint('started')\nwhile not os.path.exists({str(tmp_path / 'go')!r}):"
    code += "\n    time.sleep(0.01)"
    output = anyio.Event()

    async def note_output(progress: float, total: float | None, message: str | None) -> None:
        output.set()

    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_api(service, token) as api:
            run = (await read_until(api, code, "output"))[0].data["run"]
            async with (
                api.stream("GET", f"/runs/{run}/events") as events,
                anyio.create_task_group() as tasks,
            ):
                await anext(events)
                tasks.start_soon(lose_request, service, token, code + "\n#", note_output)
                await output.wait()
                tokens.revoke_token(token.split("_")[1])
                last = [event async for event in events][-1]
                assert (last.type, last.data["code"]) == ("error", "invalid_token")
        async with connect_api(service, other) as api:
            (tmp_path / "go").touch()
            listed = (await api.get("/sessions")).json()["sessions"]
            for each in listed:
                runs = (await api.get(f"/sessions/{each['session']}")).json()["runs"]
                ended = [(await api.read_events(row["run"]))[-1] for row in runs]
                assert [event.data["status"] for event in ended] == ["ok"]
            assert len(listed) == 2


async def test_a_stream_ends_when_its_token_expires(service: HttpService, tmp_path: Path) -> None:
    tokens = TokenStore(service.data_dir)
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_api(service, service.create_token("eve")) as api:
            run = (await read_until(api, gated_code(tmp_path), "output"))[0].data["run"]
            short = tokens.create_token("eve", TOKEN_LIFETIME_S)
            async with (
                connect_api(service, short) as expiring,
                expiring.stream("GET", f"/runs/{run}/events") as events,
            ):
                last = [event async for event in events][-1]
            assert (last.type, last.data["code"]) == ("error", "invalid_token")
            (tmp_path / "go").touch()
            assert (await api.read_events(run))[-1].data["status"] == "ok"


@pytest.mark.parametrize("kind", ["file", "events"])
async def test_a_client_that_reads_nothing_loses_its_connection_with_its_token(
    service: HttpService, kind: str
) -> None:
    """A download, or a stream that is behind, ends in the middle; another token gets all of it."""
    tokens = TokenStore(service.data_dir)
    token, other = service.create_token("dan"), service.create_token("dan")
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_api(service, token) as api, connect_api(service, other) as whole:
            code = f"import os; open('large', 'wb').write(bytes({LARGE_BYTES}))\n{FLOOD}"
            run = (await api.execute(code, session=f"large {kind}"))[0].data
            paths = {
                "file": f"/sessions/{run['session']}/files/large",
                "events": f"/runs/{run['run']}/events",
            }
            address = api.base + paths[kind]
            async with api.http.stream("GET", address) as response:
                chunks = response.aiter_bytes()
                received = len(await anext(chunks))
                content = (await whole.http.get(address)).content  # the first one is stuck by then
                open_files = service.count_open_files()
                tokens.revoke_token(token.split("_")[1])
                while service.count_open_files() >= open_files:  # noqa: ASYNC110
                    await anyio.sleep(0.05)
                with suppress(httpx2.RemoteProtocolError, httpx2.ReadError):
                    async for chunk in chunks:
                        received += len(chunk)
            assert 0 < received < len(content)
            assert b"ERROR" not in service.log


async def lose_request(service: HttpService, token: str, code: str, progress: Any) -> None:
    """Run code over MCP until the token is no longer valid."""
    async with service.connect(token) as client:
        with pytest.raises(MCPError, match="ended without a response"):
            await client.client.call_tool("run_code", {"code": code}, progress_callback=progress)


# readers ------------------------------------------------------------------------------------------


async def test_a_client_that_stops_reading_stalls_nobody(
    service: HttpService, api: ApiClient
) -> None:
    started = await api.execute("1", session="flood")
    assert started
    before = measure_memory(service.server_pid)
    async with AsyncExitStack() as stalled:
        body = {"code": FLOOD, "session": "flood"}
        first = api.http.stream("POST", f"{api.base}/execute/stream", json=body)
        response = await stalled.enter_async_context(first)
        run = response.headers["Location"].rpartition("/")[2]
        for _ in range(20):
            other = api.http.stream("GET", f"{api.base}/runs/{run}/events")
            await stalled.enter_async_context(other)
        events = await api.read_events(run)
        growth = measure_memory(service.server_pid) - before
        text = join_output(events)
        assert text == "".join(f"{n:06d}{'x' * 2_500}\n" for n in range(4_000))
        assert events[-1].data["status"] == "ok"
        assert growth < 100 << 20
        lines = [line async for line in response.aiter_lines()]  # it reads on, and misses nothing
        received = [event async for event in parse_events(iterate(lines))]
        assert received == events


async def iterate(lines: list[str]) -> AsyncIterator[str]:
    for line in lines:
        yield line


def measure_memory(pid: int) -> int:
    """Return the bytes of memory that a process has resident."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def test_a_hundred_readers_get_the_same(
    service: HttpService, api: ApiClient, ann: str, tmp_path: Path
) -> None:
    seen = await read_until(api, gated_code(tmp_path), "output")
    run = seen[0].data["run"]
    received: list[list[ReceivedEvent]] = []
    joined = 0

    async def follow() -> None:
        nonlocal joined
        events: list[ReceivedEvent] = []
        received.append(events)
        async with (
            connect_api(service, ann) as own,
            own.stream("GET", f"/runs/{run}/events") as stream,
        ):
            async for event in stream:
                events.append(event)
                if len(events) == len(seen):
                    joined += 1
                    if joined == 100:
                        (tmp_path / "go").touch()

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(follow)
    assert received == [await api.read_events(run)] * 100


async def test_a_silent_run_shows_signs_of_life(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_S", 0.01)
    chunks: list[bytes] = []
    is_stopping = anyio.Event()

    class SilentRun:
        async def next_events(self) -> Sequence[EncodedEvent]:
            await anyio.sleep_forever()
            return ()

    async def receive() -> Any:
        await anyio.sleep_forever()

    async def send(message: Any) -> None:
        chunks.append(message.get("body", b""))
        if chunks.count(event_stream.HEARTBEAT) == 3:
            is_stopping.set()

    streams = event_stream.OpenResponses("streams", event_stream.MAX_STREAMS).admit("ann")
    response = event_stream.EventStreamResponse("r_1", SilentRun(), is_stopping, {}, streams)
    with anyio.fail_after(TEST_TIMEOUT_S):
        scope = {"type": "http", "method": "GET", "state": {CANCEL_KEY: set()}}
        await response(scope, receive, send)
    assert chunks.count(event_stream.HEARTBEAT) >= 3
    assert chunks[-1] == b""


def test_a_principal_may_open_so_many_streams() -> None:
    streams = event_stream.OpenResponses("streams", event_stream.MAX_STREAMS)
    with ExitStack() as opened:
        for _ in range(event_stream.MAX_STREAMS):
            opened.enter_context(streams.admit("ann"))
        with pytest.raises(RateLimited):
            streams.admit("ann")
        streams.admit("bob")
    streams.admit("ann")


async def test_the_head_of_a_stream_has_no_events(api: ApiClient, tmp_path: Path) -> None:
    seen = await read_until(api, gated_code(tmp_path), "output")
    path = f"/runs/{seen[0].data['run']}"
    response = await api.http.head(f"{api.base}{path}/events")
    assert (response.status_code, response.content) == (200, b"")
    assert (await api.post(f"{path}/cancel")).json()["status"] == "cancelled"
