"""Text, numbers and nesting that readers choke on end nothing, whichever way they come in.

They come from the client, in names and content of files, from upstreams, in settings and in
variables; in both eras of the protocol. The link and archives are in `test_unwritable_answers`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.commands import run_command
from tests.helpers.server_connection import COMMAND, TEST_TIMEOUT_S, write_settings
from tests.upstreams import own_server_entry

from .bystander import observe
from .raw_client import ERAS, RawClient, connect_raw_client

DEPTH = 960
UPSTREAM_TIMEOUT_S = 1.0  # an answer that is no JSON has no id, so its call waits
PAYLOADS = {
    "half a character": r'"a\uD800"',
    "the other half": r'"\udfff"',
    "half a character as a key": r'{"\uDBFF":1}',
    "a long number": "9" * 4_200,
    "a number that is too long": "-" + "9" * 9_000,
    "a number that is too large": "1e999",
    "no number": "NaN",
    "infinity": "[-Infinity]",
    "deep lists": "[" * DEPTH + "]" * DEPTH,
    "deep objects": '{"a":' * DEPTH + "1" + "}" * DEPTH,
    "lists without an end": "[" * 100_000,
    "zeros in text": r'"\u0000\u0000"',
}
PLACES = {
    "code": '{"name":"run_code","arguments":{"code":%s}}',
    "session": '{"name":"run_code","arguments":{"code":"1","session":%s}}',
    "limit": '{"name":"run_code","arguments":{"code":"1","timeout_s":%s}}',
    "answers": '{"name":"run_code","arguments":{"run":"r_1","answers":%s}}',
    "search": '{"name":"list_skills","arguments":{"query":%s}}',
    "arguments": '{"name":"replay","arguments":%s}',
    "tool": '{"name":%s,"arguments":{}}',
}
LINES = {
    "an id that is true": b'{"jsonrpc":"2.0","id":true,"method":"ping"}',
    "an id that is a list": b'{"jsonrpc":"2.0","id":[[]],"method":"ping"}',
    "an id without an end": b'{"jsonrpc":"2.0","id":"' + b"x" * 1_000_000 + b'","method":1}',
    "an id that is too large": b'{"jsonrpc":"2.0","id":1e400,"method":"ping"}',
    "a method with half a character": rb'{"jsonrpc":"2.0","id":77,"method":"\ud800"}',
    "a deep notification": b'{"jsonrpc":"2.0","method":"x","params":{"a":%s}}'
    % PAYLOADS["deep lists"].encode(),
    "bytes that are no text": bytes(range(128, 256)),
    "half a character in bytes": b'{"jsonrpc":"2.0","id":78,"method":"\xed\xa0\x80"}',
    "UTF-16": '{"jsonrpc":"2.0","id":79,"method":"ping"}'.encode("utf-16"),
    "a list of requests": b'[{"jsonrpc":"2.0","id":80,"method":"ping"}]',
    "empty lines": b"\n \n\r\n\t\n",
    "an answer that nobody wants": rb'{"jsonrpc":"2.0","id":5,"result":{"a":"\ud800"}}',
    "a cancellation of everything": rb'{"jsonrpc":"2.0","method":"notifications/cancelled",'
    rb'"params":{"requestId":"\udfff","reason":"timed out"}}',
}
UPSTREAM_ANSWERS = {
    "text": '{"content":[{"type":"text","text":%s}]}',
    "structured": '{"content":[],"structuredContent":{"a":%s}}',
    "annotation": '{"content":[{"type":"text","text":"a","_meta":{"a":%s}}]}',
    "error": '{"isError":true,"content":[{"type":"text","text":%s}]}',
    "content": '{"content":%s}',
}
SAY = """
from tools.unwritable import say
try: said = str(say(text=TEXT))[:1000]
except Exception as exc: said = f"{type(exc).__name__}: {exc}"[:1000]
said
"""
FILE_NAMES = {
    "half a character": b"a\xed\xa0\x80",
    "no text": b"\xff\xfe",
    "control characters": b"\x1b[2J\r\n\x7f",
    "a separator": "\u2028note: x".encode(),
    "a long name": ("\U0001f389" * 63).encode(),
}


@pytest.fixture(scope="module", params=ERAS)
async def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RawClient]:
    """A client of a server with an upstream that says anything."""
    upstreams = {"unwritable": own_server_entry("unwritable", timeout_s=UPSTREAM_TIMEOUT_S)}
    settings = write_settings(tmp_path_factory.mktemp("server"), mcpServers=upstreams)
    async with connect_raw_client(settings, request.param) as connected:
        yield connected


@pytest.mark.parametrize("payload", PAYLOADS)
async def test_a_request_with_it_is_answered(client: RawClient, payload: str) -> None:
    async with observe(client):
        for place in PLACES.values():
            await client.exchange("tools/call", (place % PAYLOADS[payload]).encode())
    assert await client.evaluate("1+1", "after") == 2


@pytest.mark.parametrize("line", LINES)
async def test_a_line_that_is_no_request_ends_nothing(client: RawClient, line: str) -> None:
    async with observe(client):
        await client.send(LINES[line] + b"\n")
        assert await client.evaluate("1+1", "after") == 2


@pytest.mark.parametrize("payload", PAYLOADS)
async def test_an_upstream_that_says_it_gets_an_error_or_is_quoted(
    client: RawClient, payload: str
) -> None:
    async with observe(client):
        for kind, answer in UPSTREAM_ANSWERS.items():
            code = SAY.replace("TEXT", repr(answer % PAYLOADS[payload]))
            assert isinstance(await client.evaluate(code, f"upstream {kind}"), str)
        shown = {"name": "replay", "arguments": {"action": "show", "session": "upstream text"}}
        assert "result" in await client.request("tools/call", shown)


@pytest.mark.parametrize("name", FILE_NAMES)
async def test_a_file_with_such_a_name_is_kept_or_skipped(client: RawClient, name: str) -> None:
    session = f"file {list(FILE_NAMES).index(name)}"
    async with observe(client):
        await client.evaluate(f"open({FILE_NAMES[name]!r}, 'w').write('a')", session)
        await client.evaluate("import os\nlen(os.listdir(b'.'))", session)
        for action in ("show", "list"):
            arguments = {"action": action, "session": session}
            shown = await client.request("tools/call", {"name": "replay", "arguments": arguments})
            assert "result" in shown


@pytest.mark.parametrize("name", FILE_NAMES)
async def test_an_input_with_such_a_name_is_passed_or_refused(
    client: RawClient, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / os.fsdecode(FILE_NAMES[name])).touch()
    arguments = {"code": "len(CONTEXT)", "session": "input", "context": [str(folder)]}
    async with observe(client):
        reply = await client.request("tools/call", {"name": "run_code", "arguments": arguments})
        assert "result" in reply


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nkeep_days = 1e999",
        "[server]\nkeep_days = nan",
        f"[server]\nkeep_days = {'9' * 9_000}",
        f"[server]\nkeep_days = {'9' * 400}",
        f"[policy]\nreads = {'[' * DEPTH}{']' * DEPTH}",
        f"[policy]\nreads = {'[' * 100_000}",
        "a" + ".a" * 5_000 + " = 1",
        f"[{'.'.join('a' * 3_000)}]",
        '[mcpServers."\\u0000\\u001B[2J"]\ncommand = "x"\nargs = 1',
        '[mcpServers.a]\ncommand = "\\uD800"',
        "\ufeff\x00[server]",
        "[sandbox]\npackages = ['\\u2028', '--index-url=http://x']",
    ],
    ids=lambda text: text[:32],
)
def test_settings_with_it_are_explained(tmp_path: Path, text: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    done = run_command("--config", file, "config", "show")
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr
    assert (done.returncode == 0) == (not done.stderr)
    assert len(done.stderr) < 5_000
    assert all(line.isprintable() for line in done.stderr.splitlines())


def test_a_settings_file_that_is_no_text_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_bytes(b"[server]\ndata_dir = '\xed\xa0\x80\xff'")
    done = run_command("--config", file, "config", "show")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


@pytest.mark.parametrize(
    "variable",
    [
        b"MCPRUNTIME_SERVER__DATA_DIR=/tmp/\xff\xed\xa0\x80",
        b"MCPRUNTIME_SERVER__KEEP_DAYS=1e999",
        b"MCPRUNTIME_SERVER__KEEP_DAYS=" + b"9" * 9_000,
        b"MCPRUNTIME_POLICY__READS=" + b"[" * 50_000,
        b"MCPRUNTIME_\xff__\x1b[2J=1",
        b"MCPRUNTIME_SANDBOX__PACKAGES=\xff",
    ],
    ids=lambda variable: repr(variable[:40]),
)
def test_variables_with_it_are_explained(tmp_path: Path, variable: bytes) -> None:
    name, _, value = variable.partition(b"=")
    done = subprocess.run(
        [COMMAND, "--config", write_settings(tmp_path), "config", "show"],
        env={b"PATH": b"/usr/bin:/bin", b"HOME": os.fsencode(tmp_path), name: value},
        capture_output=True,
        timeout=TEST_TIMEOUT_S,
        check=False,
    )
    assert done.returncode in (0, 2)
    printed = (done.stdout + done.stderr).decode()
    assert "Traceback" not in printed
    assert all(line.isprintable() for line in printed.splitlines())
