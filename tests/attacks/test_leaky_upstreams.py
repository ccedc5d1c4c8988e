"""What an upstream repeats of its credentials reaches neither answers, nor files, nor terminals."""

from __future__ import annotations

import base64
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mcp import StdioServerParameters
from mcp.client.client import Client

from mcpruntime_server.journal.events import event_to_json
from mcpruntime_server.journal.store import open_journal
from tests.helpers.commands import run_command
from tests.helpers.server_connection import (
    COMMAND,
    ServerConnection,
    server_parameters,
    write_settings,
)
from tests.upstreams import own_server_entry

TOKEN, KEY = "Tok3n-of-the-variable", "K3y-among-the-arguments"
MARKS = (
    "Tok3n-of",
    "K3y-among",
    *(base64.b64encode(each.encode()).decode()[:12] for each in (TOKEN, KEY)),
)
WAYS = (
    "text", "structured", "error", "error at the end", "error after much", "JSON", "image",
    "resource", "blob", "pieces", "error in pieces", "stderr", "wrong content", "log", "no JSON",
    "unknown answer", "anything else", "death",
)  # fmt: skip
QUIET_WAYS = {"stderr", "log", "no JSON", "unknown answer"}  # whose answer is only "ok"
CODE = """\
from tools.leaky import tell
try:
    found = tell(how=HOW)
except Exception as error:
    found = [str(error), repr(getattr(error, 'data', ''))]
found
"""


def find_marks(text: str) -> list[str]:
    return [mark for mark in MARKS if mark in text]


async def use_server(settings: Path, codes: dict[str, str]) -> dict[str, str]:
    """Run codes in a server of its own; return its answers, and its stderr as "stderr"."""
    errors = settings.parent / "stderr"
    parameters = server_parameters(settings, is_forked=False)
    command = f"exec {COMMAND} --config {settings} --stdio 2>{errors}"
    started = StdioServerParameters(command="sh", args=["-c", command], env=parameters.env)
    answers = {}
    async with Client(started) as client:
        server = ServerConnection(client, settings.parent / "data")
        for number, (name, code) in enumerate(codes.items()):
            answer = await server.run(code, f"s{number}")
            answers[name] = f"{answer.text} {answer.data}"
    return {**answers, "the server's stderr": errors.read_text()}


def read_everything(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the files that the server has written, blobs as they are and unpacked."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name == "server.toml":
            continue
        data = path.read_bytes()
        yield str(path), data.decode("latin-1")
        if "blobs" in path.parts:
            try:
                yield f"{path}, unpacked", zlib.decompress(data).decode("latin-1")
            except zlib.error:
                continue


def write_leaky_settings(folder: Path) -> Path:
    entry = own_server_entry("leaky", "--key", KEY, env={"TOKEN": TOKEN})
    sandbox = {"backend": "local", "pool_size": 0}
    server = {"log_level": "debug"}
    return write_settings(folder, sandbox=sandbox, server=server, mcpServers={"leaky": entry})


@pytest.fixture(scope="module")
async def leaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The answers of a server, and all that it has written, by name."""
    folder = tmp_path_factory.mktemp("leaky")
    settings = write_leaky_settings(folder)
    codes = {how: CODE.replace("HOW", repr(how)) for how in WAYS}
    codes["help"] = "import tools\nhelp(tools.leaky)\nhelp(tools.leaky.tell)\ntools.search('tell')"
    found = await use_server(settings, codes)
    found.update(read_everything(folder))
    async with open_journal(folder / "data") as journal:
        for row in await journal.list_sessions():
            events = await journal.load_events(row.id)
            found[f"the journal of {row.name}"] = str(
                [event_to_json(each.event) for each in events]
            )
    for words in (["doctor"], ["tools"], ["tools", "leaky"], ["config", "show"], ["runs"]):
        done = run_command("--config", settings, *words)
        found[" ".join(words)] = done.stdout + done.stderr
    return found


@pytest.mark.parametrize("how", WAYS)
async def test_no_answer_has_a_credential(leaks: dict[str, str], how: str) -> None:
    assert not find_marks(leaks[how])


async def test_nothing_else_has_a_credential(leaks: dict[str, str]) -> None:
    assert not {name: find_marks(text) for name, text in leaks.items() if find_marks(text)}


async def test_the_upstream_did_repeat_them(leaks: dict[str, str]) -> None:
    assert {how for how in WAYS if "***" not in leaks[how]} == QUIET_WAYS


# over HTTP ----------------------------------------------------------------------------------------


class Echo(BaseHTTPRequestHandler):
    """Answers with an error that repeats the request."""

    status = 500

    def do_POST(self) -> None:
        body = f"{self.path} {self.headers}".encode()
        self.send_response(self.status, f"no: {self.path}")
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_DELETE = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve_echo(status: int) -> Iterator[int]:
    handler = type("Handler", (Echo,), {"status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [401, 404, 500, 0], ids=str)
async def test_no_error_of_http_has_a_credential(tmp_path: Path, status: int) -> None:
    with serve_echo(status or 200) as port:
        address = f"127.0.0.1:{port if status else 1}"  # nobody listens at port 1
        url = f"http://me:{TOKEN}@{address}/{KEY.replace('-', '')}/mcp?key={KEY}"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        entry = {"url": url, "headers": headers}
        settings = write_settings(
            tmp_path,
            sandbox={"backend": "local", "pool_size": 0},
            server={"log_level": "debug"},
            mcpServers={"leaky": entry},
        )
        found = await use_server(settings, {"call": CODE.replace("HOW", "'text'")})
        for words in (["doctor"], ["tools"], ["config", "show"]):
            done = run_command("--config", settings, *words)
            found[" ".join(words)] = done.stdout + done.stderr
        found.update(read_everything(tmp_path))
    assert "leaky" in found["call"]
    assert not {name: find_marks(text) for name, text in found.items() if find_marks(text)}
