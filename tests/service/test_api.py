"""The HTTP API: what each route does, for whom, and what it makes of bad requests."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from mcpruntime_server.service.api import API_ROUTES
from mcpruntime_server.service.openapi import ApiRoute

from ..helpers.event_streams import ApiClient, connect_api
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import TEST_TIMEOUT_S, write_local_settings
from ..server.conftest import upstream_entry
from ..server.test_approvals import ASK

ADD = "from tools.counted import add\nadd(item='x').result >= 0"
PROBLEM = "application/problem+json"
ROUTE_IDS = [f"{route.method} {route.path}" for route in API_ROUTES]


@dataclass
class Owned:
    """What a principal has; `name` is that of the session."""

    name: str
    session: str
    run: str
    event: str
    path: str


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    folder = tmp_path_factory.mktemp("api")
    settings = write_local_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(folder / "done"))},
        policy=ASK,
    )
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
async def ann(service: HttpService) -> str:
    return service.create_token("ann")


@pytest.fixture(scope="module")
async def runner(service: HttpService) -> str:
    """A token of ann's that may run code and read, and approve nothing."""
    return service.create_token("ann", "--scope", "run", "--scope", "read")


@pytest.fixture(scope="module")
async def bobs(service: HttpService) -> Owned:
    async with connect_api(service, service.create_token("bob")) as client:
        events = await client.execute("open('secret.txt', 'w').write('b')", session="bobs")
        data = events[-1].data
        return Owned("bobs", data["session"], data["run"], events[-1].id, "secret.txt")


@pytest.fixture
async def api(service: HttpService, ann: str) -> AsyncIterator[ApiClient]:
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_api(service, ann) as client:
            yield client


async def execute(api: ApiClient, code: str, status: int = 200, **fields: Any) -> Any:
    response = await api.post("/execute", {"code": code, **fields})
    assert response.status_code == status, response.text
    assert response.headers["Location"] == f"/runs/{response.json()['run']}"
    return response.json()


def read_problem(response: httpx2.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == PROBLEM
    problem = response.json()
    assert problem["status"] == status
    assert problem["type"] == f"urn:mcpruntime-server:{problem['code']}"
    return problem


# who may ------------------------------------------------------------------------------------------


def fill_path(route: ApiRoute, owned: Owned, *, by_name: bool = False) -> str:
    return (
        route.path.replace("{run_id}", owned.run)
        .replace("{session}", owned.name if by_name else owned.session)
        .replace("{path:path}", owned.path)
    )


@pytest.mark.parametrize("route", API_ROUTES, ids=ROUTE_IDS)
async def test_every_route_needs_a_token(
    service: HttpService, route: ApiRoute, bobs: Owned
) -> None:
    for token in ("", "mcprt_00000000_wrong"):
        async with connect_api(service, token) as client:
            url = client.base + fill_path(route, bobs)
            response = await client.http.request(route.method, url, json={"code": "1"})
        problem = read_problem(response, 401)
        assert problem["code"] == "invalid_token"
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")


@pytest.mark.parametrize("route", API_ROUTES, ids=ROUTE_IDS)
async def test_every_route_needs_its_scopes(
    service: HttpService, route: ApiRoute, bobs: Owned
) -> None:
    token = service.create_token("bob", "--scope", "admin")
    async with connect_api(service, token) as client:
        url = client.base + fill_path(route, bobs)
        response = await client.http.request(route.method, url, json=valid_body(route, bobs))
    if route.path.endswith("/answers"):  # what it needs depends on the question
        read_problem(response, 409)
        return
    assert read_problem(response, 403)["code"] == "insufficient_scope"
    assert f'scope="{route.scopes[0]}"' in response.headers["WWW-Authenticate"]


def valid_body(route: ApiRoute, owned: Owned) -> Any:
    """Return a body that the route would take, whoever owns what it names."""
    bodies = {
        "ExecuteRequest": {"code": "1", "session": owned.session},
        "StreamRequest": {"code": "1", "session": owned.session},
        "AnswersRequest": {"answers": {"*": "allow"}},
        "RewindRequest": {"step": 0},
        "ForkRequest": {},
        "RerunRequest": {},
        "ProbeBody": {"line": 1, "expression": "1"},
        "QuestionBody": {"code": "1"},
        "PinBody": {"pinned": True},
    }
    return None if route.body is None else bodies[route.body.__name__]


@pytest.mark.parametrize("route", API_ROUTES, ids=ROUTE_IDS)
async def test_what_others_own_is_answered_as_what_does_not_exist(
    api: ApiClient, route: ApiRoute, bobs: Owned
) -> None:
    if route.path == "/sessions":
        response = await api.get("/sessions", params={"limit": 200})
        assert bobs.session not in response.text
        return
    missing = Owned("nobody", "s_AAAAAAAAAAAAAAAAAAAAAA", "r_AAAAAAAAAAAA", "r_A:1", "secret.txt")
    pairs = [(bobs, missing, False)]
    if "{session}" in route.path:
        pairs.append((bobs, missing, True))
    for theirs, none, by_name in pairs:
        answers = []
        for owned in (theirs, none):
            url = api.base + fill_path(route, owned, by_name=by_name)
            body = valid_body(route, owned)
            response = await api.http.request(route.method, url, json=body)
            problem = read_problem(response, 404)
            text = json.dumps(problem)
            for known in (owned.session, owned.run, owned.name):
                text = text.replace(known, "THIS")
            answers.append(text)
        assert answers[0] == answers[1]


async def test_ids_of_others_in_a_request_are_not_found(api: ApiClient, bobs: Owned) -> None:
    own = await execute(api, "1", session="own")
    session = f"/sessions/{own['session']}"
    last_id = {"Last-Event-ID": bobs.event}
    responses = [
        await api.post("/execute/stream", {"code": "1"}, headers=last_id),
        await api.post(f"{session}/rewind", {"run": bobs.run}),
        await api.post(f"{session}/fork", {"run": bobs.run}),
        await api.post(f"{session}/rerun", {"run": bobs.run}),
        await api.get(f"{session}/files", params={"run": bobs.run}),
        await api.get(f"{session}/files/secret.txt", params={"run": bobs.run}),
    ]
    for response in responses:
        read_problem(response, 404)
    for event in (bobs.event, "r_AAAAAAAAAAAA:1"):
        response = await api.get(f"/runs/{own['run']}/events", headers={"Last-Event-ID": event})
        assert "belongs to another run" in read_problem(response, 404)["detail"]


# running ------------------------------------------------------------------------------------------


async def test_a_run_has_its_document(api: ApiClient) -> None:
    code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\nopen('f', 'w').write('x')\n[1]"
    done = await execute(api, code, session="documents")
    assert (done["status"], done["value"]) == ("ok", [1])
    assert (done["stdout"], done["stderr"], done["code"]) == ("out\n", "err\n", code)
    assert done["changed_files"] == ["f"]
    assert done["notes"] == ["The session 'documents' is new."]
    again = (await api.get(f"/runs/{done['run']}")).json()
    assert {**again, "notes": done["notes"], "usage": done["usage"]} == done


async def test_code_that_fails_is_data(api: ApiClient) -> None:
    failed = await execute(api, "1 / 0")
    assert (failed["status"], failed["error"]["type"]) == ("error", "ZeroDivisionError")


async def test_a_request_that_does_not_wait_gets_a_run_that_goes_on(api: ApiClient) -> None:
    code = "import time\nprint('on', flush=True)\ntime.sleep(0.2)\n5"
    started = await execute(api, code, 202, wait_s=0)
    assert started["status"] in ("queued", "running")
    events = await api.read_events(started["run"])
    assert events[-1].data["value"] == 5
    assert (await api.get(f"/runs/{started['run']}")).json()["value"] == 5


async def test_a_cancelled_run_ends_and_may_be_cancelled_again(api: ApiClient) -> None:
    started = await execute(api, "import time\ntime.sleep(100)", 202, wait_s=0)
    for _ in range(2):
        response = await api.post(f"/runs/{started['run']}/cancel")
        assert response.status_code == 200, response.text
        assert response.json()["status"] == "cancelled"
    assert (await api.read_events(started["run"]))[-1].data["status"] == "cancelled"


async def test_text_that_is_not_unicode_is_escaped(api: ApiClient) -> None:
    code = r"""
from tools.counted import count, add
bad = '\ud800'
try:
    count(item=bad)
finally:
    print(bad)
    {bad: [bad, float('nan')]}
    add(item=bad)
"""
    asked = await execute(api, code, 202)
    assert asked["waiting_for"][0]["calls"][0]["arguments"] == {"item": "\\ud800"}
    response = await api.post(f"/runs/{asked['run']}/answers", {"answers": {"*": "deny"}})
    assert response.status_code in (200, 202), response.text
    events = await api.read_events(asked["run"])
    kinds = [each.type for each in events]
    assert kinds.count("call_started") == kinds.count("call_finished") == 2
    started = next(each.data for each in events if each.type == "call_started")
    assert started["arguments"] == {"item": "\\ud800"}
    assert (await api.get(f"/runs/{asked['run']}")).status_code == 200
    failed = await execute(api, r"raise ValueError('\ud800')")
    assert failed["error"]["message"] == "\\ud800"
    shown = await execute(api, r"import sys; sys.stderr.write('\udc80'); ['\ud800']")
    assert shown["value"] == ["\\ud800"]


# answers ------------------------------------------------------------------------------------------


async def test_an_approval_needs_its_scope(
    service: HttpService, api: ApiClient, runner: str
) -> None:
    asked = await execute(api, ADD, 202)
    [question] = asked["waiting_for"]
    assert (question["kind"], question["calls"]) == (
        "approval",
        [{"target": "tools.counted.add", "arguments": {"item": "x"}}],
    )
    path, answers = f"/runs/{asked['run']}/answers", {"answers": {question["id"]: "allow"}}
    async with connect_api(service, runner) as other:
        response = await other.post(path, answers)
        assert read_problem(response, 403)["code"] == "insufficient_scope"
        assert 'scope="approve"' in response.headers["WWW-Authenticate"]
    assert (await api.post(path, answers)).status_code in (200, 202)
    events = await api.read_events(asked["run"])
    assert [each.type for each in events if each.type in ("waiting", "answered")] == [
        "waiting",
        "answered",
    ]
    answered = next(each.data for each in events if each.type == "answered")
    assert answered["answered_by"] == "ann, over HTTP"
    assert events[-1].data["value"] is True
    response = await api.post(path, answers)
    assert "waits for no answer" in read_problem(response, 409)["detail"]


async def test_a_denied_call_raises_in_the_code(api: ApiClient) -> None:
    asked = await execute(api, ADD, 202)
    path = f"/runs/{asked['run']}/answers"
    for wrong in ({"q1": "perhaps"}, {"q1": {"result": 1}}):
        read_problem(await api.post(path, {"answers": wrong}), 400)
    read_problem(await api.post(path, {"answers": {"q9": "allow"}}), 409)
    assert (await api.post(path, {"answers": {"*": "deny"}})).status_code in (200, 202)
    error = (await api.read_events(asked["run"]))[-1].data["error"]
    assert error["type"] == "tools.ToolDeniedError"


async def test_a_plan_is_committed_once(api: ApiClient) -> None:
    planned = await execute(api, ADD, session="plan", dry_run=True)
    assert planned["status"] == "waiting"
    [question] = planned["waiting_for"]
    assert question["kind"] == "plan"
    path, answers = f"/runs/{planned['run']}/answers", {"answers": {question["id"]: "allow"}}
    response = await api.post(path, answers)
    assert response.status_code in (200, 202), response.text
    committed = response.json()["run"]
    assert committed != planned["run"]
    events = await api.read_events(committed)
    assert [each.type for each in events].count("call_finished") == 1
    assert events[-1].data["value"] is True
    read_problem(await api.post(path, answers), 409)


# sessions and files -------------------------------------------------------------------------------


async def test_sessions_come_in_pages(service: HttpService) -> None:
    async with connect_api(service, service.create_token("cleo")) as api:
        made = [(await execute(api, "1", session=f"page {n}"))["session"] for n in range(5)]
        found, cursor, pages = [], None, 0
        while pages == 0 or cursor:
            response = await api.get(
                "/sessions", params={"limit": 2, **({"cursor": cursor} if cursor else {})}
            )
            page = response.json()
            found += [each["session"] for each in page["sessions"]]
            cursor, pages = page["next_cursor"], pages + 1
        assert (found, pages) == (made[::-1], 3)
        read_problem(await api.get("/sessions", params={"cursor": "x"}), 400)
        read_problem(await api.get("/sessions", params={"limit": 0}), 400)


async def test_a_session_has_its_runs(api: ApiClient) -> None:
    runs = [(await execute(api, code, session="two"))["run"] for code in ("x = 1", "x + 1")]
    for handle in ("two", (await api.get(f"/runs/{runs[0]}")).json()["session"]):
        session = (await api.get(f"/sessions/{handle}")).json()
        assert (session["name"], session["tip"], session["step"]) == ("two", runs[1], 2)
        assert [each["run"] for each in session["runs"]] == runs


async def test_files_are_served_but_never_to_be_executed(api: ApiClient) -> None:
    code = """
from pathlib import Path
Path('pages').mkdir()
Path('pages/a b".html').write_text('<script>alert(1)</script>')
Path('b.bin').write_bytes(bytes(range(256)) * 1000)
Path('empty').touch()
"""
    done = await execute(api, code, session="files")
    listing = (await api.get("/sessions/files/files")).json()
    assert [each["path"] for each in listing["files"]] == ["b.bin", "empty", 'pages/a b".html']
    page = await api.get("/sessions/files/files", params={"limit": 1, "after": "b.bin"})
    assert [each["path"] for each in page.json()["files"]] == ["empty"]
    response = await api.get("/sessions/files/files/pages/a%20b%22.html")
    assert response.text == "<script>alert(1)</script>"
    assert response.headers["Content-Disposition"] == "attachment; filename*=UTF-8''a%20b%22.html"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Security-Policy"].startswith("sandbox")
    assert (await api.get("/sessions/files/files/empty")).content == b""
    whole = bytes(range(256)) * 1000
    response = await api.get("/sessions/files/files/b.bin")
    assert response.content == whole
    tag = response.headers["ETag"]
    assert tag == f'"{listing["files"][0]["digest"]}"'
    response = await api.get("/sessions/files/files/b.bin", headers={"If-None-Match": tag})
    assert (response.status_code, response.content) == (304, b"")
    await execute(api, "Path('b.bin').unlink()", session="files")
    read_problem(await api.get("/sessions/files/files/b.bin"), 404)
    response = await api.get("/sessions/files/files/b.bin", params={"run": done["run"]})
    assert response.content == whole


@pytest.mark.parametrize(
    ("header", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=250-", 206, slice(250, None)),
        ("bytes=-6", 206, slice(250, None)),
        ("bytes=-9999", 206, slice(None)),
        ("bytes=200-9999", 206, slice(200, None)),
        ("bytes=256-", 416, None),
        ("bytes=9-3", 200, slice(None)),
        ("bytes=0-1,5-6", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
        ("bytes=-", 200, slice(None)),
        ("bytes=-0", 416, None),
    ],
)
async def test_a_part_of_a_file(
    api: ApiClient, header: str, status: int, part: slice | None
) -> None:
    await execute(api, "open('r', 'wb').write(bytes(range(256)))", session="ranges")
    response = await api.get("/sessions/ranges/files/r", headers={"Range": header})
    assert response.status_code == status
    if part is None:
        assert response.headers["Content-Range"] == "bytes */256"
        return
    assert response.content == bytes(range(256))[part]
    response = await api.get(
        "/sessions/ranges/files/r", headers={"Range": header, "If-Range": '"other"'}
    )
    assert (response.status_code, len(response.content)) == (200, 256)


@pytest.mark.parametrize(
    "path",
    [
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/journal.db",
        "/etc/passwd",
        "%00",
        "a%00.txt",
        "%ff%fe",
        "",
    ],
)
async def test_no_path_leads_out_of_the_workspace(api: ApiClient, path: str) -> None:
    await execute(api, "1", session="paths")
    url = f"{api.base}/sessions/paths/files/{path}"
    request = api.http.build_request("GET", url)
    raw = f"/sessions/paths/files/{path}".encode()
    request.url = request.url.copy_with(raw_path=raw)
    response = await api.http.send(request)
    assert response.status_code == 404
    assert "root:" not in response.text


async def test_a_session_is_rewound_forked_and_executed_again(api: ApiClient) -> None:
    for code in ("x = 1", "x += 1", "x += 1\nx"):
        done = await execute(api, code, session="tree")
    assert done["value"] == 3
    response = await api.post("/sessions/tree/rewind", {"step": 1})
    assert (response.status_code, response.json()["step"]) == (200, 1)
    assert (await execute(api, "x", session="tree"))["value"] == 1
    response = await api.post("/sessions/tree/fork", {"run": done["run"], "name": "branch"})
    assert (response.status_code, response.json()["step"]) == (201, 3)
    session = (await api.get(response.headers["Location"])).json()
    assert (session["name"], session["forked_from"]) == ("branch", done["run"])
    assert (await execute(api, "x", session="branch"))["value"] == 3
    response = await api.post("/sessions/tree/rerun", {})
    assert response.status_code == 200, response.text
    rerun = response.json()
    assert [each["value"] for each in rerun["runs"]] == [1, 1]
    assert all(not each["differences"] for each in rerun["comparisons"])
    response = await api.post("/sessions/tree/rerun", {"step": 2, "code": "x + 41"})
    assert [each["value"] for each in response.json()["runs"]] == [42]
    response = await api.post("/sessions/tree/rewind", {"step": 0})
    assert response.json()["run"] is None


# bad requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"code": 1}', 400),
        (b'{"code": "1", "cod": 2}', 400),
        (b'{"code": "1", "session": ""}', 400),
        (b'{"code": "1", "session": "s_unknown"}', 404),
        (b'{"code": "1", "session": "a/b"}', 400),
        (b'{"code": "1", "timeout_s": 0}', 400),
        (b'{"code": "1", "timeout_s": NaN}', 400),
        (b'{"code": "1", "timeout_s": 86400}', 400),
        (b'{"code": "1", "wait_s": -1}', 400),
        (b'{"code": "\\ud800"}', 400),
        (b"\xff\xfe", 400),
        (b'{"code": "1", "context": [' + b"[" * 15_000, 400),
        (b'{"code": "1", "context": [' + b"1," * 25_000 + b"1]}", 413),
        (b'{"code": "' + b"x" * (5 << 20) + b'"}', 413),
    ],
)
async def test_bad_bodies_are_problems(api: ApiClient, body: bytes, status: int) -> None:
    for path in ("/execute", "/execute/stream"):
        headers = {"Content-Type": "application/json"}
        if b"wait_s" in body and path == "/execute/stream":
            status = 400
        response = await api.http.post(api.base + path, content=body, headers=headers)
        problem = read_problem(response, status)
        assert len(response.content) < 10_000
        assert problem["detail"]


async def test_other_types_methods_and_paths_are_problems(api: ApiClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        response = await api.http.post(
            f"{api.base}/execute", content=b'{"code": "1"}', headers={"Content-Type": kind}
        )
        assert "Content-Type" in read_problem(response, 415)["remedy"]
    read_problem(await api.get("/execute"), 405)
    read_problem(await api.get("/nothing"), 404)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/sessions/x", {"GET", "HEAD", "DELETE"}),
        ("/ui/api/sessions/x", {"GET", "HEAD", "DELETE"}),
        ("/execute", {"POST"}),
        ("/login", {"GET", "HEAD", "POST"}),
    ],
)
async def test_a_path_names_all_of_its_methods(
    api: ApiClient, path: str, methods: set[str]
) -> None:
    response = await api.http.put(api.base + path)
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == methods


async def test_an_unusable_event_id_is_a_problem(api: ApiClient) -> None:
    run = (await execute(api, "1"))["run"]
    for last_id in ("x", "1.2.3", "-1", "r_A:", "9" * 50, "1 2"):
        response = await api.get(f"/runs/{run}/events", headers={"Last-Event-ID": last_id})
        assert "not the id of an event" in read_problem(response, 400)["detail"]
    for last_id in (f"{run}:999999999999999", "999999"):
        response = await api.get(f"/runs/{run}/events", headers={"Last-Event-ID": last_id})
        assert response.status_code == 204


# the document -------------------------------------------------------------------------------------


async def test_the_document_describes_every_route(api: ApiClient) -> None:
    document = (await api.get("/openapi.json")).json()
    described = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    assert described == {(each.method, each.path.replace(":path", "")) for each in API_ROUTES}
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in schemas
    events = {each.type for each in await api.execute(ADD.replace("add", "count"))}
    known = schemas["RunEvent"]["discriminator"]["mapping"]
    assert events <= known.keys()
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["security"]
            assert "401" in operation["responses"]


async def test_runs_that_are_worth_it_become_skills(tmp_path: Path) -> None:
    settings = write_local_settings(
        tmp_path,
        mcpServers={"counted": upstream_entry("counted", str(tmp_path / "done"))},
        skills={"auto": "active-on-second-success"},
    )
    code = "from tools.counted import add\nitem = 'ITEM'\nadd(item=item)\nloud = item.upper()\nloud"
    async with open_http_service(settings) as service:
        token = service.create_token("ann")
        with anyio.fail_after(TEST_TIMEOUT_S):
            async with connect_api(service, token) as api, service.connect(token) as client:
                listed = ""
                # A run does not wait long for the test of its skill; a later run starts it again.
                for number in itertools.count():
                    done = await api.post("/execute", {"code": code.replace("ITEM", f"i{number}")})
                    assert done.json()["status"] == "ok", done.text
                    listed = (await client.client.call_tool("list_skills", {})).model_dump_json()
                    if "loud" in listed:
                        break
                    await anyio.sleep(0.5)
