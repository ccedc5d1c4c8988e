"""Health, readiness and metrics of a real server, as orchestrators and scrapers see them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import anyio
import docker
import docker.errors
import httpx2
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from bench import fake_llm
from mcpruntime_server.config import load_config
from mcpruntime_server.runtime.call_ledger import LedgerEntry
from mcpruntime_server.runtime.observer import ObservedCall
from mcpruntime_server.sandbox.docker_backend import (
    CONTAINER_PREFIX,
    DATA_FOLDER_LABEL,
    OWNER_LABEL,
    data_folder_digest,
)
from mcpruntime_server.sandbox.image import choose_tag
from mcpruntime_server.service.metrics import MAX_TOOL_LABELS, OTHER_TOOL, RuntimeMetrics

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import TEST_TIMEOUT_S, write_local_settings, write_settings
from ..server.conftest import upstream_entry

SCRAPE_TOKEN = "scrape-only"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    folder = tmp_path_factory.mktemp("operations")
    settings = write_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(folder / "done"))},
        sandbox={"backend": "local", "pool_size": 1},
        http={"metrics_token": SCRAPE_TOKEN},
    )
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
async def ann(service: HttpService) -> str:
    return service.create_token("ann")


def address(service: HttpService, path: str) -> str:
    return service.url.removesuffix("/mcp") + path


async def get(service: HttpService, path: str, token: str = "") -> httpx2.Response:
    async with service.http(token) as http:
        return await http.get(address(service, path))


async def scrape(service: HttpService) -> Samples:
    """Return all samples by name and labels."""
    response = await get(service, "/metrics", SCRAPE_TOKEN)
    assert response.status_code == 200, response.text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"mcpruntime_{name}", frozenset(labels.items())), 0.0)


# health -------------------------------------------------------------------------------------------


async def test_a_live_server_says_ok_and_nothing_else(service: HttpService) -> None:
    response = await get(service, "/healthz")
    assert (response.status_code, response.text) == (200, "ok\n")


async def test_strangers_learn_only_that_a_server_is_ready(service: HttpService) -> None:
    response = await get(service, "/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


async def test_administrators_get_the_reasons(service: HttpService, ann: str) -> None:
    admin = service.create_token("op", "--scope", "admin")
    checks = (await get(service, "/readyz", admin)).json()["checks"]
    assert [(each["name"], each["ok"]) for each in checks] == [("sandbox", True), ("journal", True)]
    assert (await get(service, "/readyz", ann)).json() == {"status": "ready"}


async def test_a_server_without_authentication_gives_its_reasons(tmp_path: Path) -> None:
    settings = write_local_settings(tmp_path)
    async with open_http_service(settings, "--no-auth") as service:
        found = (await get(service, "/readyz")).json()
        metrics = await get(service, "/metrics")
    assert {each["name"]: each["ok"] for each in found["checks"]} == {
        "sandbox": True,
        "journal": True,
    }
    assert metrics.status_code == 200


async def test_without_an_engine_a_server_is_not_ready_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    settings = write_settings(tmp_path, sandbox={"backend": "docker", "pool_size": 0})
    async with open_http_service(settings, "--no-auth") as service:
        response = await get(service, "/readyz")
    engine = response.json()["checks"][0]
    assert response.status_code == 503
    assert (engine["name"], engine["ok"]) == ("engine", False)
    assert "none.sock" in engine["detail"]
    assert engine["remedy"]


async def test_an_engine_that_hangs_is_asked_once_and_delays_no_answer_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = 0
    path = tmp_path / "hanging.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    listener = await anyio.create_unix_listener(path)

    async def hang(stream: anyio.abc.SocketStream) -> None:
        nonlocal accepted
        async with stream:
            with suppress(anyio.EndOfStream):  # a connection that only looks is no question
                await stream.receive()
                accepted += 1
                await anyio.sleep_forever()

    settings = write_settings(tmp_path, sandbox={"backend": "docker", "pool_size": 0})
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, hang)
        async with open_http_service(settings, "--no-auth") as service:
            answers: list[httpx2.Response] = []

            async def ask() -> None:
                answers.append(await get(service, "/readyz"))

            before = accepted
            with anyio.fail_after(TEST_TIMEOUT_S):
                async with anyio.create_task_group() as askers:
                    for _ in range(20):
                        askers.start_soon(ask)
            asked = accepted - before
            tasks.cancel_scope.cancel()  # the server could not stop before the engine's time is up
    assert [each.status_code for each in answers] == [503] * 20
    assert "no answer within" in answers[0].text
    assert asked <= 3  # by this, and by what sweeps up leftovers


async def test_the_engine_the_image_and_what_servers_have_left_are_seen(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, sandbox={"pool_size": 0})
    labels = {
        OWNER_LABEL: "0" * 16,  # a server that is not alive
        DATA_FOLDER_LABEL: data_folder_digest(tmp_path / "data"),
    }
    client = docker.APIClient(version="auto")
    name = f"{CONTAINER_PREFIX}{'0' * 16}-{secrets.token_hex(6)}"
    async with open_http_service(settings, "--no-auth") as service:
        async with service.connect() as connection:
            assert await connection.evaluate("1 + 1", "used") == 2
        found = (await get(service, "/readyz")).json()
        image = load_config(settings, environ={}).sandbox
        try:
            with anyio.fail_after(TEST_TIMEOUT_S):
                while True:
                    with suppress(docker.errors.APIError):  # it is there, unless it was swept up
                        client.create_container(choose_tag(image), name=name, labels=labels)
                    samples = await scrape(service)
                    if value(samples, "sandboxes", state="left") == 1:
                        break
                    await anyio.sleep(0.3)
        finally:
            with suppress(docker.errors.NotFound):
                client.remove_container(name, force=True)
            client.close()
    assert found["status"] == "ready"
    assert {"engine", "image", "sandboxes", "journal"} <= {each["name"] for each in found["checks"]}
    assert value(samples, "sandboxes", state="in_use") == 1


# metrics ------------------------------------------------------------------------------------------


async def test_metrics_need_the_scope_admin(service: HttpService, ann: str) -> None:
    assert (await get(service, "/metrics", ann)).status_code == 403
    admin = service.create_token("op", "--scope", "admin")
    assert "mcpruntime_runs" in (await get(service, "/metrics", admin)).text


async def test_metrics_need_a_token(service: HttpService) -> None:
    for token in ("", "wrong", SCRAPE_TOKEN[:-1], f"{SCRAPE_TOKEN}x"):
        assert (await get(service, "/metrics", token)).status_code == 401


async def test_the_scrape_token_opens_nothing_else(service: HttpService) -> None:
    async with service.http(SCRAPE_TOKEN) as http:
        assert (await http.post(service.url, json={})).status_code == 401
    assert (await get(service, "/readyz", SCRAPE_TOKEN)).json() == {"status": "ready"}


async def test_runs_calls_and_sandboxes_are_counted(service: HttpService, ann: str) -> None:
    before = await scrape(service)
    code = "from tools import counted\ncounted.count('x')"
    async with service.connect(ann) as client:
        assert (await client.run(code, "counting")).status == "ok"
        assert (await client.run("1/0", "counting")).status == "error"
        with anyio.fail_after(TEST_TIMEOUT_S):
            await anyio.sleep(1.1)  # the same text is served for a second
            after = await scrape(service)
    labels = {"route": "tools", "upstream": "counted", "tool": "count", "outcome": "ok"}

    def growth(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert growth("runs_total", mode="live", status="ok") == 1
    assert growth("runs_total", mode="live", status="error") == 1
    assert growth("calls_total", **labels) == 1
    assert growth("run_duration_seconds_count", mode="live") == 2
    assert growth("run_setup_seconds_count", mode="live") == 2
    assert growth("call_duration_seconds_count", route="tools", upstream="counted") == 1
    acquired = growth("sandboxes_acquired_total", pool="hit") + growth(
        "sandboxes_acquired_total", pool="miss"
    )
    assert acquired == 1  # for both runs
    assert value(after, "sandboxes", state="in_use") >= 1
    assert value(after, "upstreams", state="ready") == 1
    assert ("mcpruntime_connections", frozenset({("kind", "streams")})) in after
    assert value(after, "journal_bytes", part="database") > 0
    assert value(after, "ready", check="journal") == 1
    assert value(after, "event_loop_lag_seconds_count") > 0
    assert after["process_resident_memory_bytes", frozenset()] > 0


async def test_runs_are_counted_by_what_they_do(service: HttpService, ann: str) -> None:
    async with service.connect(ann) as client:
        first = await client.run("import time\nwhile True: time.sleep(0.05)", "busy", wait_s=1)
        others = [await client.run(f"{n}", "busy", wait_s=0) for n in range(2)]
        assert (first.status, {each.status for each in others}) == ("running", {"queued"})
        await anyio.sleep(1.1)  # the same text is served for a second
        samples = await scrape(service)
        for each in (*reversed(others), first):
            assert (await client.run_request(each.run, cancel=True)).status == "cancelled"
    assert value(samples, "active_runs", state="running") == 1
    assert value(samples, "active_runs", state="queued") == 2
    assert value(samples, "sessions", state="busy") >= 1


async def test_model_requests_are_counted_with_their_tokens(tmp_path: Path) -> None:
    with fake_llm.start_model_server() as model:
        llm = {"model": "echo", "api_base": model.url, "api_key": fake_llm.API_KEY}
        settings = write_local_settings(tmp_path, llm=llm)
        async with open_http_service(settings, "--no-auth") as service:
            async with service.connect() as client:
                assert (await client.run("ask_llm('Say something')")).status == "ok"
            samples = await scrape(service)
    assert value(samples, "model_requests_total") == 1
    assert value(samples, "model_tokens_total", direction="in") > 0
    assert value(samples, "model_tokens_total", direction="out") > 0
    assert value(samples, "model_request_duration_seconds_count") == 1
    assert ("mcpruntime_model_cost_usd_total", frozenset()) in samples


async def test_strangers_cannot_make_labels(service: HttpService, ann: str) -> None:
    code = """
import sys
call_host = next(m.call_host for n, m in sys.modules.items() if n.endswith("library.tools"))
for number in range(50):
    for target in (f"tools.counted.made_{number}", f"tools.made_{number}.x", f"made_{number}.x"):
        try:
            call_host(target, {}, "")
        except Exception:
            pass
"""
    async with service.connect(ann) as client:
        answer = await client.run(code, f"secret-{ann[-8:]}")
    assert answer.status == "ok", answer.text
    await anyio.sleep(1.1)  # the same text is served for a second
    text = (await get(service, "/metrics", SCRAPE_TOKEN)).text
    samples = await scrape(service)
    assert "made_" not in text
    assert "ann" not in text.replace("channel", "")
    assert "secret-" not in text
    unknown = {"tool": "unknown", "outcome": "error"}
    assert value(samples, "calls_total", route="tools", upstream="counted", **unknown) == 50
    assert value(samples, "calls_total", route="tools", upstream="unknown", **unknown) == 50
    labels = {"route": "unknown", "upstream": "", "tool": "", "outcome": "error"}
    assert value(samples, "calls_total", **labels) == 50


def test_an_upstream_cannot_make_labels_without_end() -> None:
    registry = CollectorRegistry()
    metrics = RuntimeMetrics(registry, lambda target: ("shop", target.rpartition(".")[2]))
    for number in range(MAX_TOOL_LABELS + 100):
        entry = LedgerEntry(f"tools.shop.tool_{number}", {}, status="ok")
        metrics.on_call_ended(ObservedCall("r_1", "tools", entry), "ok")
    calls = next(each for each in registry.collect() if each.name == "mcpruntime_calls")
    tools = {
        sample.labels["tool"]: sample.value for sample in calls.samples if "_total" in sample.name
    }
    assert len(tools) == MAX_TOOL_LABELS + 1
    assert tools[OTHER_TOOL] == 100
