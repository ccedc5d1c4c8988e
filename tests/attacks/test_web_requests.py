"""Web requests of code, and what hostile web servers answer, cost others nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.forged_messages import FORGE
from tests.helpers.server_connection import ServerConnection, connect_server, write_settings

from .bystander import observe
from .hostile_web import run_hostile_web

TIMEOUT_S = 8
LOAD = """
import itertools, os, socket, urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit
def load(path, data=None, size=None):
    try:
        with urllib.request.urlopen(U + path, data) as answer: return len(answer.read(size))
    except Exception as exc: return type(exc).__name__
def load_at_once(paths, threads=32):
    with ThreadPoolExecutor(threads) as pool: return list(pool.map(load, paths))
"""
FORGE_CALL = f"""{FORGE}
def ask(number, args):
    head = {{'call_id': number, 'run_number': 2, 'target': 'web.GET ' + urlsplit(U).netloc}}
    say(frame('Call', {{**head, 'args': {{'url': U + '/ok', 'headers': [], **args}}}}))
"""
PROXY = """
proxy = urlsplit(os.environ['http_proxy'])
def speak(data):
    with socket.create_connection((proxy.hostname, proxy.port), 2) as stream:
        stream.settimeout(2)
        try:
            stream.sendall(data)
            return len(stream.recv(1000))
        except OSError: return 0
"""
ATTACKS = {
    "an answer without end": "load('/endless')",
    "chunks without end": "load('/chunks')",
    "headers without end": "load('/headers')",
    "a line without end": "load('/line')",
    "hints without end": "load('/hints')",
    "an answer byte by byte": "load_at_once(['/drip'] * 32)",
    "a head byte by byte": "load_at_once(['/drip-head'] * 32)",
    "answers that never come": "load_at_once(['/held'] * 32)",
    "a redirect to itself": "load('/loop')",
    "an answer that expands": "load_at_once(['/bomb'] * 8)",
    "a thousand requests": "load_at_once([f'/ok?{n}' for n in range(1_000)])",
    "answers that are not read": "kept = [urllib.request.urlopen(U + '/endless') "
    "for _ in range(40)]\nimport time; time.sleep(2)",
    "large bodies": "body = b'x' * 20_000_000\n[load('/ok', body) for _ in range(4)]",
    "long addresses": "[load('/ok?' + 'x' * 1_000_000) for _ in range(5)]",
    "addresses that no rule allows": "for n in range(500):\n"
    "    try: urllib.request.urlopen(f'http://10.{n % 250}.0.1:{n + 1}/')\n"
    "    except Exception: pass",
    "forged headers": FORGE_CALL
    + "for n in range(20): ask(n, {'headers': [['X', 'y']] * 15_000})\nload('/ok')",
    "forged values": FORGE_CALL
    + "for n in range(200): ask(n, {'url': [{}] * 500, 'headers': {}, 'body': n})\nload('/ok')",
    "no HTTP to the proxy": PROXY + "[speak(os.urandom(100_000)) for _ in range(50)]",
    "long heads to the proxy": PROXY
    + "[speak(b'GET ' + U.encode() + b'/ok HTTP/1.1\\r\\n' + b'X: y\\r\\n' * 200_000) "
    "for _ in range(10)]",
}


@pytest.fixture(scope="module")
async def asking(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[str, ServerConnection]]:
    """The address of a hostile web server, and a server whose code may ask it."""
    async with run_hostile_web() as address:
        settings = write_settings(
            tmp_path_factory.mktemp("server"),
            network={"allow": [address], "timeout_s": 3, "requests_per_minute": 5_000},
        )
        async with connect_server(settings) as connection:
            yield address, connection


@pytest.mark.parametrize("attack", ATTACKS)
async def test_web_requests_cost_their_own_session_at_most(
    asking: tuple[str, ServerConnection], attack: str
) -> None:
    address, server = asking
    await server.run("open('file', 'w').write('kept')", attack)
    code = f"U = {address!r}\n{LOAD}\n{ATTACKS[attack]}"
    async with observe(server):
        answer = await server.run(code, attack, timeout_s=TIMEOUT_S)
        assert answer.status in ("ok", "error", "timeout", "crashed"), answer.text
        assert len(answer.text) < 60_000
        assert await server.evaluate("open('file').read()", attack) == "kept"


DOWNLOADS = {
    "by answers that are read": "while True: load('/noise', size=2_000_000)",
    "by answers that are left": """
def leave(_):
    with urllib.request.urlopen(U + '/noise') as answer: answer.read(600_000)
with ThreadPoolExecutor(8) as pool:
    while True: list(pool.map(leave, range(64)))""",
    "by calls that are abandoned": FORGE_CALL
    + """
import itertools, json, time
head = {'run_number': 2, 'target': 'web.GET ' + urlsplit(U).netloc}
for n in itertools.count(1, 3):
    ask(n, {'url': U + '/noise'})
    time.sleep(0.01)
    say(frame('Call', {'call_id': n + 1, 'run_number': 2, 'target': 'runtime.abandon',
                       'args': {'call': n}}))""",
}


@pytest.mark.parametrize("attack", DOWNLOADS)
async def test_a_session_stores_no_more_downloads_than_its_limit(
    tmp_path: Path, attack: str
) -> None:
    async with run_hostile_web() as address:
        settings = write_settings(
            tmp_path,
            network={"allow": [address], "requests_per_minute": 100_000, "download_mb": 8},
            journal={"session_mb": 20},
        )
        async with connect_server(settings) as server:
            await server.run("open('file', 'w').write('kept')", "full")
            for _ in range(4):
                code = f"U = {address!r}\n{LOAD}\n{DOWNLOADS[attack]}"
                answer = await server.run(code, "full", timeout_s=20)
                assert answer.status in ("error", "timeout", "crashed"), answer.text
        stored = sum(
            path.stat().st_size
            for path in (tmp_path / "data" / "blobs").rglob("*")
            if path.is_file()
        )
    assert stored < 40_000_000, stored
