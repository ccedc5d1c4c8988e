"""Streams of events: as they happen, resumable at every place, and without harm to anybody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from ..helpers.event_streams import ApiClient, ReceivedEvent, connect_api
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import TEST_TIMEOUT_S, write_settings
from ..server.conftest import upstream_entry
from ..server.test_approvals import ASK

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


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    folder = tmp_path_factory.mktemp("streams")
    settings = write_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(folder / "done"))},
        sandbox={"backend": "local", "pool_size": 0},
        policy=ASK,
    )
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
    key = {"Idempotency-Key": "k1"}
    first = await api.execute("import random\nrandom.random()", key, session="keys")
    assert await api.execute("import random\nrandom.random()", key, session="keys") == first


async def test_a_client_that_leaves_does_not_end_the_run(api: ApiClient, tmp_path: Path) -> None:
    code = f"""
import os, time
print('started', flush=True)
while not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.01)
print('went on')
"""
    seen: list[ReceivedEvent] = []
    async with api.stream("POST", "/execute/stream", json={"code": code}) as events:
        async for event in events:
            seen.append(event)
            if event.type == "output":
                break
    (tmp_path / "go").touch()
    rest = await api.read_events(seen[0].data["run"], seen[-1].id)
    assert join_output(rest) == "went on\n"
    assert rest[-1].data["status"] == "ok"
    assert await api.read_events(seen[0].data["run"]) == seen + rest
