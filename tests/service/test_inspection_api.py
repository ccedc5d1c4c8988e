"""The routes that look into recorded steps: what they show, for whom, and what stays as it was."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import nbformat
import pytest

from ..helpers.event_streams import ApiClient, connect_api
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.random_programs import write_program
from ..helpers.server_connection import TEST_TIMEOUT_S, write_local_settings
from ..helpers.sizes import choose_size
from ..server.conftest import upstream_entry

PROGRAM_COUNT = choose_size("PROBED_PROGRAMS", short=2, long=100)
GREEDY = (
    "made.clear(), made.append(0), random.random(), uuid.uuid4(), time.time(), "
    "globals().update(last=None), print('seen'), do(put, 'probe', 1)"
)
READ_NOTEBOOK: Any = nbformat.reads  # without types
STEPS = (
    "rows = [3, 1, 2]",
    "from tools.counted import add\nbest = 0\nfor row in rows:\n    best = max(best, row)\n"
    "added = add(item=str(best)).result\nbest",
)


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    folder = tmp_path_factory.mktemp("inspection")
    settings = write_local_settings(
        folder,
        mcpServers={
            "counted": upstream_entry("counted", str(folder / "done")),
            "witness": upstream_entry("witness", str(folder / "witnessed"), "3"),
        },
    )
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
async def token(service: HttpService) -> str:
    return service.create_token("ann")


@pytest.fixture(scope="module")
async def runs(service: HttpService, token: str) -> list[str]:
    """Two steps of the session `study`; the second has made a call."""
    async with connect_api(service, token) as client:
        done = [await client.execute(code, session="study") for code in STEPS]
    return [events[-1].data["run"] for events in done]


@pytest.fixture
async def api(service: HttpService, token: str) -> AsyncIterator[ApiClient]:
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_api(service, token) as client:
            yield client


async def post(api: ApiClient, path: str, body: Any = None, status: int = 200) -> Any:
    response = await api.post(path, body)
    assert response.status_code == status, response.text
    return response.json()


def calls_made(service: HttpService) -> list[str]:
    done: Path = service.settings.parent / "done"
    return done.read_text().splitlines()


async def test_a_probe_repeats_no_call_and_shows_each_execution(
    service: HttpService, api: ApiClient, runs: list[str]
) -> None:
    made, before = calls_made(service), (await api.get("/sessions/study")).json()
    found = await post(api, f"/runs/{runs[1]}/probe", {"line": 4, "expression": "best, row"})
    assert [hit["value"]["text"] for hit in found["hits"]] == ["[0, 3]", "[3, 1]", "[3, 2]"]
    assert (found["faithful"], found["hit_count"], found["status"]) == (True, 3, "ok")
    assert calls_made(service) == made
    assert (await api.get("/sessions/study")).json() == before


async def test_a_part_of_many_executions_is_shown(api: ApiClient, runs: list[str]) -> None:
    body = {"line": 4, "expression": "row", "first_hit": 2, "max_hits": 1}
    found = await post(api, f"/runs/{runs[1]}/probe", body)
    assert [hit["number"] for hit in found["hits"]] == [2]
    assert found["hit_count"] == 3


async def test_a_question_is_answered_in_the_state_of_its_step(
    service: HttpService, api: ApiClient, runs: list[str]
) -> None:
    made, before = calls_made(service), (await api.get("/sessions/study")).json()
    answer = await post(api, f"/runs/{runs[0]}/ask", {"code": "rows.sort(); print(9); rows"})
    assert (answer["value"], answer["stdout"], answer["status"]) == ([1, 2, 3], "9\n", "ok")
    answer = await post(api, f"/runs/{runs[0]}/ask", {"code": "rows, 'best' in globals()"})
    assert answer["value"] == [[3, 1, 2], False]
    code = "from tools.counted import add\nadd(item='no')"
    answer = await post(api, f"/runs/{runs[1]}/ask", {"code": code})
    assert answer["status"] == "error"
    assert calls_made(service) == made
    assert (await api.get("/sessions/study")).json() == before
    assert "study" in (await api.get("/sessions")).text
    assert len((await api.get("/sessions")).json()["sessions"]) == 1


async def test_variables_are_listed_with_what_their_step_changed(
    api: ApiClient, runs: list[str]
) -> None:
    found = await post(api, f"/runs/{runs[1]}/variables")
    changes = {each["name"]: each["change"] for each in found["variables"]}
    assert changes["rows"] == "unchanged"
    assert changes["best"] == "added"


async def test_another_answer_is_tried_and_carried_through_the_next_steps(
    service: HttpService, api: ApiClient
) -> None:
    ask = "from tools.counted import add\ncount = add(item='n').result"
    done = [
        await api.execute(code, session="chain") for code in (ask, "many = count > 1000", "many")
    ]
    runs = [events[-1].data["run"] for events in done]
    made = calls_made(service)
    recorded = (await api.get(f"/runs/{runs[0]}/calls")).json()["calls"][0]
    assert recorded["target"] == "tools.counted.add"
    assert list(recorded["value"]) == ["result"]
    value = {"result": 5000}
    body = {"step": 1, "answers": [{"call": 1, "value": value}], "following": True}
    rerun = await post(api, "/sessions/chain/rerun", body)
    assert [run["value"] for run in rerun["runs"]] == [5000, True, True]
    difference = (
        await api.get(f"/runs/{runs[2]}/diff", params={"other": rerun["runs"][2]["run"]})
    ).json()
    assert (difference["equal"], difference["value"]["b"]["text"]) == (False, "true")
    assert calls_made(service) == made
    body = {"step": 1, "answers": [{"call": 1, "error": "it is down"}]}
    rerun = await post(api, "/sessions/chain/rerun", body)
    assert "it is down" in rerun["runs"][0]["error"]["message"]
    await post(api, "/sessions/chain/rerun", {"step": 1, "answers": [{"call": 2}]}, 409)


async def test_runs_and_sessions_are_downloaded(api: ApiClient, runs: list[str]) -> None:
    page = await api.get(f"/runs/{runs[1]}/page.html")
    assert page.headers["Content-Disposition"] == 'attachment; filename="study-step-2.html"'
    assert "best = max(best, row)" in page.text
    table = await api.get(f"/runs/{runs[0]}/value.csv")
    assert table.text == "3\r\n1\r\n2\r\n"
    assert (await api.get(f"/runs/{runs[1]}/value.csv")).status_code == 409
    notebook = READ_NOTEBOOK((await api.get("/sessions/study/notebook.ipynb")).text, 4)
    assert [cell.source for cell in notebook.cells] == list(STEPS)


async def test_what_cannot_be_looked_into_is_a_problem(api: ApiClient, runs: list[str]) -> None:
    probe = f"/runs/{runs[0]}/probe"
    for body, code in [
        ({"line": 9, "expression": "rows"}, "invalid_request"),
        ({"line": 1, "expression": "rows["}, "invalid_request"),
    ]:
        assert (await post(api, probe, body, 409))["code"] == code
    for invalid in ({"line": 0, "expression": "x"}, {"line": 1, "expression": ""}, {"line": 1}):
        await post(api, probe, invalid, 400)


async def test_no_probe_changes_the_outcome_of_a_random_program(
    service: HttpService, token: str
) -> None:
    draw = random.Random("probed programs")
    witnessed = service.settings.parent / "witnessed"
    for number in range(PROGRAM_COUNT):
        code = write_program(f"p{number}", f"probe {number}", is_sequential=False)
        lines = code.count("\n")
        async with connect_api(service, token) as api:
            events = await api.execute(code, session=f"program {number}")
            run, made = events[-1].data["run"], witnessed.read_text()
            for line in draw.sample(range(22, lines), 2):
                body = {"line": line, "expression": GREEDY, "max_hits": 5}
                found = await post(api, f"/runs/{run}/probe", body)
                assert found["faithful"], (number, line, found)
            assert witnessed.read_text() == made


async def test_a_session_is_deleted_with_its_attempts_but_not_while_it_is_needed(
    service: HttpService, api: ApiClient
) -> None:
    async def delete() -> Any:
        return await api.delete("/sessions/doomed")

    [*_, first] = await api.execute("kept = 1", session="doomed")
    await post(api, "/sessions/doomed/rerun", {"step": 1})
    forked = await post(api, "/sessions/doomed/fork", {"name": "heir"}, 201)
    refused = await delete()
    assert refused.status_code == 409
    assert "'heir' was forked from this one" in refused.json()["detail"]
    assert (await api.delete(f"/sessions/{forked['session']}")).status_code == 204
    await post(api, f"/runs/{first.data['run']}/pin", {"pinned": True})
    assert "pinned" in (await delete()).json()["detail"]
    await post(api, f"/runs/{first.data['run']}/pin", {"pinned": False})
    body = {"code": "while True: pass", "session": "doomed", "wait_s": 0}
    running = (await api.post("/execute", body)).json()["run"]
    assert "unfinished" in (await delete()).json()["detail"]
    await api.post(f"/runs/{running}/cancel")
    await api.read_events(running)
    async with connect_api(service, service.create_token("bob")) as stranger:
        assert (await stranger.delete("/sessions/doomed")).status_code == 404
    assert (await delete()).status_code == 204
    for path in ("/sessions/doomed", f"/runs/{first.data['run']}"):
        assert (await api.get(path)).status_code == 404
    [*_, new] = await api.execute("'kept' in globals()", session="doomed")
    assert new.data["value"] is False
