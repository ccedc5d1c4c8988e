"""The OpenAPI document is true and complete: requests and clients are made from it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
import tomli_w

from ..helpers.event_streams import connect_api
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import TEST_TIMEOUT_S, write_settings
from ..helpers.sizes import choose_size
from ..server.conftest import upstream_entry

BIN = Path(__file__).resolve().parents[2] / ".venvs" / "openapi" / "bin"
EXAMPLES = choose_size("OPENAPI_EXAMPLES", short=1, long=200)  # of each route, and kind of data
CHECK_TIMEOUT_S = 180 * EXAMPLES
ASK = "from tools.counted import add\nadd(item='x')"
# What a program does with a client that is generated from the document.
PROGRAM = """
import sys
from generated import AuthenticatedClient, models
from generated.api.default import execute, list_sessions, read_file, show_run

client = AuthenticatedClient(*sys.argv[1:], raise_on_unexpected_status=True)
code = "open('n', 'w').write('text')\\n6 * 7"
run = execute.sync(client=client, body=models.ExecuteRequest(code=code, session="generated"))
print(run.value, run.changed_files, show_run.sync(run.run, client=client).status)
print(read_file.sync("generated", "n", client=client).payload.read())
print([each.name for each in list_sessions.sync(client=client, limit=1).sessions])
print(show_run.sync("r_none", client=client).code)
"""
# Whether an input of code exists is not in a schema.
NEEDS_INPUTS = {"checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", 400, "4xx"]}}}

pytestmark = pytest.mark.skipif(
    not (BIN / "schemathesis").exists(), reason="scripts/test-openapi installs it"
)


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    folder = tmp_path_factory.mktemp("openapi")
    settings = write_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(folder / "done"))},
        sandbox={"backend": "local", "pool_size": 1},
        policy={"tools": {"counted.add": "ask"}},
    )
    async with open_http_service(settings) as opened:
        yield opened


async def test_requests_made_from_the_document_are_answered_as_it_says(
    service: HttpService, tmp_path: Path
) -> None:
    token = service.create_token("ann")
    async with connect_api(service, token) as api:
        made = await api.post("/execute", {"code": "open('a', 'w').write('a')", "session": "made"})
        asked = await api.post("/execute", {"code": ASK, "session": "asked"})
        assert (made.status_code, asked.status_code) == (200, 202)
        url = f"{api.base}/openapi.json"
    known = [
        {"include-name": "POST /execute", **NEEDS_INPUTS},
        {"include-name": "POST /execute/stream", **NEEDS_INPUTS},
        {
            "include-name": "GET /sessions/{session}/files/{path}",
            "parameters": {"path.session": "made", "path.path": "a"},
        },
        {
            "include-name": "POST /runs/{run_id}/answers",
            "parameters": {"path.run_id": asked.json()["run"]},
        },
    ]
    config = tmp_path / "schemathesis.toml"
    config.write_text(tomli_w.dumps({"operations": known}))
    command = [
        str(BIN / "schemathesis"),
        *("--config-file", str(config)),
        *("run", url),
        *("--header", f"Authorization: Bearer {token}"),
        *("--checks", "all"),
        *("--max-examples", str(EXAMPLES)),
        *("--request-timeout", str(TEST_TIMEOUT_S)),
        *("--seed", "1"),
        "--continue-on-failure",
        "--no-color",
    ]
    with anyio.fail_after(CHECK_TIMEOUT_S):
        done = await anyio.run_process(command, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout.decode()


async def test_a_client_is_generated_from_the_document(
    service: HttpService, tmp_path: Path
) -> None:
    token = service.create_token("generated")
    async with connect_api(service, token) as api:
        document = await api.get("/openapi.json")
        base = api.base
    (tmp_path / "openapi.json").write_bytes(document.content)
    environ = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}  # it calls ruff
    options = ("--path", "openapi.json", "--output-path", "generated", "--meta", "none")
    for command in (
        ("openapi-python-client", "generate", "--fail-on-warning", *options),
        ("python", "-c", PROGRAM, base, token),
    ):
        words = [str(BIN / command[0]), *command[1:]]
        done = await anyio.run_process(words, check=False, cwd=tmp_path, env=environ)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.decode().splitlines() == [
        "42 ['n'] ok",
        "b'text'",
        "['generated']",
        "not_found",
    ]
