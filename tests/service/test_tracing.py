"""Traces of a real server process, as a collector receives them and as upstreams see them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvicorn
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from bench import fake_llm

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import TEST_TIMEOUT_S, connect_server, parse_answer, write_settings
from ..server.conftest import upstream_entry
from ..upstreams import traced

TRACE = "0af7651916cd43dd8448eb211c80319c"
OTHER_TRACE = "1af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
SECRET = "secret-value-in-code"
CODE = (
    f"from tools import local, remote\n[m.read_context(secret={SECRET!r}) for m in (local, remote)]"
)
FAILING_CODE = f"from tools import local\nlocal.nonsense({SECRET!r})"
LOCAL = {"backend": "local", "pool_size": 0}
FAST = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


class Collector:
    """Receives traces over HTTP, as OTLP has them."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.service_names: set[str] = set()
        self.spans: list[Span] = []
        self.url = ""

    async def receive(self, request: Request) -> Response:
        body = await request.body()
        self.bodies.append(body)
        message = ExportTraceServiceRequest()
        message.ParseFromString(body)
        for resource in message.resource_spans:
            names = [
                a.value.string_value
                for a in resource.resource.attributes
                if a.key == "service.name"
            ]
            self.service_names.update(names)
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return Response(b"", media_type="application/x-protobuf")

    async def wait_for_run(self, run_id: str) -> list[Span]:
        """Return the spans of a run and of its calls, the run's first, once they are there."""
        with anyio.fail_after(TEST_TIMEOUT_S):
            while True:
                found = [
                    each
                    for each in self.spans
                    if attributes(each).get("mcpruntime.run.id") == run_id
                ]
                runs = [each for each in found if each.name == "run_code"]
                if runs:
                    return [*runs, *(each for each in found if each not in runs)]
                await anyio.sleep(0.05)


def attributes(span: Span) -> dict[str, Any]:
    return {
        each.key: each.value.string_value or each.value.int_value or each.value.double_value
        for each in span.attributes
    }


@asynccontextmanager
async def serve_app(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an application in this process; yield its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True


@pytest.fixture(scope="module")
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    app = Starlette(routes=[Route("/v1/traces", found.receive, methods=["POST"])])
    async with serve_app(app) as address:
        found.url = f"{address}/v1/traces"
        yield found


@pytest.fixture(scope="module")
async def settings(
    collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Path]:
    async with serve_app(traced.server.streamable_http_app()) as address:
        yield write_settings(
            tmp_path_factory.mktemp("traces"),
            sandbox=LOCAL,
            telemetry={"traces_url": collector.url},
            mcpServers={"local": upstream_entry("traced"), "remote": {"url": f"{address}/mcp"}},
        )


@pytest.fixture(scope="module")
async def service(settings: Path) -> AsyncIterator[HttpService]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FAST.items():
            patch.setenv(name, value)
        async with open_http_service(settings) as opened:
            yield opened


@pytest.fixture(scope="module")
async def ann(service: HttpService) -> str:
    return service.create_token("ann")


def parent_header(trace: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{SPAN}-01", "baggage": "user=ann"}


async def test_a_run_is_a_span_and_its_calls_are_children(
    service: HttpService, ann: str, collector: Collector
) -> None:
    async with service.connect(ann) as client:
        answer = await client.run(CODE, "traced")
        again = await client.run(CODE, "traced")
    for each in (answer, again):
        run, *calls = await collector.wait_for_run(each.run)
        assert run.parent_span_id == b""
        tools = [call for call in calls if call.name == "tools/call read_context"]
        assert {call.parent_span_id for call in calls} == {run.span_id}
        assert [attributes(call)["mcpruntime.upstream"] for call in tools] == ["local", "remote"]
        assert attributes(run)["mcpruntime.run.status"] == "ok"
        # what the upstreams have seen: each request carries the context of its own call
        expected = [f"00-{call.trace_id.hex()}-{call.span_id.hex()}" for call in tools]
        assert [found["meta"][:-3] for found in each.value] == expected  # without the flags
        assert [found["header"][:-3] for found in each.value] == ["", expected[1]]
    assert collector.service_names == {"mcpruntime-server"}


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_run_belongs_to_the_trace_of_its_request(
    service: HttpService, ann: str, collector: Collector, era: str
) -> None:
    arguments = {"code": CODE, "session": f"parent-{era}"}
    meta: Any = parent_header(OTHER_TRACE)
    async with service.connect(ann, era) as client:
        result = await client.client.call_tool("run_code", arguments, meta=meta)
    answer = parse_answer(result)
    run, *calls = await collector.wait_for_run(answer.run)
    assert (run.trace_id.hex(), run.parent_span_id.hex()) == (OTHER_TRACE, SPAN)
    assert {call.trace_id.hex() for call in calls} == {OTHER_TRACE}
    assert [found["baggage"] for found in answer.value] == ["", ""]


async def test_a_bad_context_is_ignored(
    service: HttpService, ann: str, collector: Collector
) -> None:
    bad: list[Any] = ["x", 7, ["00"], {}, "0" * 10_000, f"00-{'0' * 32}-{SPAN}-01", None]
    async with service.connect(ann) as client:
        for context in bad:
            meta: Any = {"traceparent": context, "tracestate": context}
            arguments = {"code": "1", "session": "bad"}
            result = await client.client.call_tool("run_code", arguments, meta=meta)
            run, *_ = await collector.wait_for_run(parse_answer(result).run)
            assert run.parent_span_id == b""


async def test_the_header_of_a_request_names_its_trace(
    service: HttpService, ann: str, collector: Collector
) -> None:
    address = service.url.removesuffix("/mcp")
    async with service.http(ann, **parent_header(TRACE)) as http:
        for path in ("/execute", "/execute"):
            response = await http.post(address + path, json={"code": CODE, "session": "header"})
            run, *_ = await collector.wait_for_run(response.json()["run"])
            assert (run.trace_id.hex(), run.parent_span_id.hex()) == (TRACE, SPAN)
    async with service.http(ann) as http:
        response = await http.post(f"{address}/execute", json={"code": "1", "session": "header"})
    run, *_ = await collector.wait_for_run(response.json()["run"])
    assert run.trace_id.hex() != TRACE
    assert run.parent_span_id == b""


async def test_spans_have_neither_code_nor_values_nor_errors(
    service: HttpService, ann: str, collector: Collector
) -> None:
    async with service.connect(ann) as client:
        failed = await client.run(FAILING_CODE, "failing")
        raised = await client.run(f"raise ValueError({SECRET!r})", "failing")
    assert failed.status == "error"
    run, *_ = await collector.wait_for_run(raised.run)
    assert attributes(run)["error.type"] == "error"
    assert run.status.code == run.status.STATUS_CODE_ERROR
    everything = b"".join(collector.bodies)
    for text in (SECRET, "nonsense", "ValueError", "from tools", "user=ann", ann):
        assert text.encode() not in everything


async def test_a_model_request_is_a_child_of_its_call(collector: Collector, tmp_path: Path) -> None:
    with fake_llm.start_model_server() as model:
        settings = write_settings(
            tmp_path,
            sandbox=LOCAL,
            telemetry={"traces_url": collector.url},
            llm={"model": "echo", "api_base": model.url, "api_key": fake_llm.API_KEY},
        )
        async with connect_server(settings, FAST) as client:
            answer = await client.run(f"ask_llm({SECRET!r}); ask_llm('x', model={SECRET!r})")
    run, *calls = await collector.wait_for_run(answer.run)
    asked = {call.span_id for call in calls if call.name == "call llm"}
    chats = [each for each in collector.spans if each.name.startswith("chat ")]
    assert {each.parent_span_id for each in chats} <= asked
    assert {each.name for each in chats} == {"chat echo", "chat unknown"}
    assert attributes(chats[0])["gen_ai.usage.input_tokens"] > 0
    assert SECRET.encode() not in b"".join(collector.bodies)
    assert run.trace_id == chats[0].trace_id


async def test_over_stdio_the_standard_variables_name_the_collector(
    collector: Collector, tmp_path: Path
) -> None:
    settings = write_settings(
        tmp_path, sandbox=LOCAL, mcpServers={"local": upstream_entry("traced")}
    )
    variables = {
        **FAST,
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url,
        "OTEL_SERVICE_NAME": "named-by-variable",
    }
    async with connect_server(settings, variables) as client:
        code = "from tools import local\nlocal.read_context(secret='')"
        answer = await client.run(code)
    run, *calls = await collector.wait_for_run(answer.run)
    assert answer.value["meta"].split("-")[1] == run.trace_id.hex()
    assert calls
    assert "named-by-variable" in collector.service_names
    collector.service_names.discard("named-by-variable")


async def test_a_collector_that_is_gone_harms_nothing(tmp_path: Path) -> None:
    telemetry = {"traces_url": "http://127.0.0.1:9/v1/traces"}
    settings = write_settings(tmp_path, sandbox=LOCAL, telemetry=telemetry)
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_server(settings, FAST) as client:
            assert await client.evaluate("1 + 1") == 2
