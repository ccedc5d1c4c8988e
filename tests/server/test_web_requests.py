"""Web requests of sandboxed code, by the libraries that people use, to a real HTTPS server."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from mcpruntime_server.config import SandboxSettings
from mcpruntime_server.sandbox import image

from ..helpers.commands import CompletedCommand, run_command
from ..helpers.curl_image import build_curl_image
from ..helpers.server_connection import (
    TEST_TIMEOUT_S,
    ServerConnection,
    connect_server,
    write_settings,
)
from ..helpers.server_killing import KillableServer, ServerKilled, start_ready_server
from ..helpers.web_servers import CSV, LARGE_BYTES, WebServer, run_web_server

pytestmark = pytest.mark.anyio

PACKAGES = ("numpy", "pandas", "matplotlib", "requests", "httpx", "aiohttp")
SECRET = "Kj3-secret-0f9a8b7c6d"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """A server that code may ask."""
    with run_web_server(tmp_path_factory.mktemp("web")) as server:
        yield server


@pytest.fixture(scope="module")
async def connection(
    web: WebServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ServerConnection]:
    """A server whose sandboxes have all libraries and may ask `web`."""
    await image.build_image(SandboxSettings(packages=PACKAGES), print)
    settings = write_web_settings(tmp_path_factory.mktemp("server"), web)
    async with connect_server(settings) as server:
        yield server


def write_web_settings(
    folder: Path, web: WebServer, journal: Mapping[str, int] | None = None, **network: Any
) -> Path:
    """Write settings with which code may ask `web`."""
    rules = {"allow": [web.url], "ca_file": str(web.ca_file), **network}
    sandbox = {"packages": list(PACKAGES)}
    return write_settings(folder, sandbox=sandbox, network=rules, journal=dict(journal or {}))


def program(web: WebServer, code: str) -> str:
    """Return code that knows the address of `web` as U."""
    return f"U = {web.url!r}\n{code}"


IDENTICAL_PROGRAMS = {
    "threads": """
import requests
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda _: requests.get(U + '/count').text, range(24)))
found""",
    "httpx, async": """
import asyncio, httpx
async with httpx.AsyncClient() as client:
    answers = await asyncio.gather(*(client.get(U + '/count') for _ in range(24)))
[each.text for each in answers]""",
    "aiohttp": """
import asyncio, aiohttp
async def load(session):
    async with session.get(U + '/count') as response:
        return await response.text()
async with aiohttp.ClientSession() as session:
    found = await asyncio.gather(*(load(session) for _ in range(24)))
found""",
    "a session that threads share": """
import requests
from concurrent.futures import ThreadPoolExecutor
session = requests.Session()
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda _: session.get(U + '/count').text, range(24)))
found""",
    "a client that threads share": """
import httpx
from concurrent.futures import ThreadPoolExecutor
with httpx.Client() as client, ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda _: client.get(U + '/count').text, range(24)))
found""",
    "large bodies": """
import requests
from concurrent.futures import ThreadPoolExecutor
def send(n):
    return requests.post(U + '/echo', data=bytes([65 + n]) * 600_000).json()['body'][::100_000]
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(send, range(8)))
found""",
}


@pytest.mark.parametrize("name", IDENTICAL_PROGRAMS)
async def test_identical_requests_at_once_get_their_own_answers_in_a_replay(
    connection: ServerConnection, web: WebServer, name: str
) -> None:
    session = f"identical-{list(IDENTICAL_PROGRAMS).index(name)}"
    run = await connection.run(program(web, IDENTICAL_PROGRAMS[name]), session)
    assert run.status == "ok", run.text
    sent = len(web.requests)
    for _ in range(3):
        again = await connection.replay("rerun", session, run=run.run)
        assert (again.status, again.value) == ("ok", run.value), again.text
    assert len(web.requests) == sent


async def test_a_large_answer_and_a_large_body_arrive_whole(
    connection: ServerConnection, web: WebServer
) -> None:
    code = """
import hashlib, requests
data = requests.get(U + '/large').content
sent = requests.post(U + '/echo', data=data[:1_000_000]).json()['size']
len(data), hashlib.sha256(data).hexdigest(), sent"""
    size, digest, sent = await connection.evaluate(program(web, code), "large")
    assert size == LARGE_BYTES
    assert digest == hashlib.sha256(b"0123456789" * (LARGE_BYTES // 10)).hexdigest()
    assert sent == 1_000_000


FORGED_BODY = """
from mcpruntime_sandbox.sandboxed.library import tools
def send(digest):
    arguments = {'url': U + '/stolen', 'headers': [], 'body': {'pieces': [digest]}}
    try:
        return tools.host.call('web.POST ' + U.partition('//')[2], arguments)
    except tools.HostError as exc:
        return str(exc)
"""


async def test_a_body_has_only_pieces_that_its_own_run_has_sent(
    connection: ServerConnection, web: WebServer
) -> None:
    sent = "import requests\nrequests.post(U + '/echo', data=b'private ' * 40_000).ok"
    assert await connection.evaluate(program(web, sent), "owner") is True
    digest = hashlib.sha256(b"private " * (256 * 1024 // 8)).hexdigest()
    for session in ("owner", "thief"):
        said = await connection.evaluate(program(web, f"{FORGED_BODY}send({digest!r})"), session)
        assert "This run has not sent the piece" in said, said
    assert web.count("/stolen") == 0


@pytest.mark.parametrize("names_it", [False, True], ids=["in the answer", "as skipped, too"])
async def test_an_imported_answer_hands_out_only_data_of_its_archive(
    connection: ServerConnection, web: WebServer, tmp_path: Path, *, names_it: bool
) -> None:
    """An archive of a stranger may name any blob whose digest he knows, or guesses."""
    name = f"archived-{names_it}"
    code = (
        "import requests\nanswer = requests.post(U + '/echo', data='x' * 20_000).text\nlen(answer)"
    )
    size = await connection.evaluate(program(web, f"{code}\nlen(answer)"), name)
    secret = ("private " * size)[:size]
    write = f"_ = open('secret.txt', 'w').write(('private ' * {size})[:{size}])"
    assert (await connection.run(write, f"owner-{names_it}")).status == "ok"
    forged = await to_thread.run_sync(forge_archive, connection, name, tmp_path, secret, names_it)
    done = await to_thread.run_sync(run_import, connection, forged)
    assert done.returncode == 0, done.stderr
    for changed in (None, program(web, f"{code}\nanswer")):
        again = await connection.replay("rerun", f"{name} 2", step=1, code=changed)
        assert "private" not in again.text
        assert "is not part of its recording" in again.text
    assert "private" not in (await connection.run("answer", f"{name} 2")).text


def forge_archive(
    connection: ServerConnection, name: str, folder: Path, secret: str, names_it: bool
) -> Path:
    """Export a session, and return its archive with the digest of a secret in place of a body's."""
    settings, archive = connection.data_dir.parent / "server.toml", folder / "honest.zip"
    done = run_command("--config", settings, "replay", "export", name, archive)
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(secret.encode()).hexdigest()
    forged = folder / "forged.zip"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(forged, "w") as target:
        members = {each: source.read(each).decode() for each in source.namelist()}
        manifest = json.loads(members["manifest.json"])
        lines = [json.loads(line) for line in members["events.jsonl"].splitlines()]
        for line in lines:
            body = line["body"]
            if line["kind"] == "call_finished" and body.get("blobs"):
                body["value"]["body"]["blob"] = digest
                body["blobs"] = [digest] if names_it else body["blobs"]
        manifest["skipped_blobs"] = [digest] if names_it else []
        members["manifest.json"] = json.dumps(manifest)
        members["events.jsonl"] = "".join(json.dumps(line) + "\n" for line in lines)
        for each, text in members.items():
            target.writestr(each, text)
    return forged


def run_import(connection: ServerConnection, archive: Path) -> CompletedCommand:
    """Import an archive into the journal of a server that runs."""
    settings = connection.data_dir.parent / "server.toml"
    return run_command("--config", settings, "replay", "import", archive)


async def test_a_download_counts_for_its_own_limit_and_not_for_that_of_the_run(
    tmp_path: Path, web: WebServer
) -> None:
    settings = write_web_settings(tmp_path, web, {"run_mb": 1}, download_mb=5)
    code = """
import urllib.request
def load(): return len(urllib.request.urlopen(U + '/large').read())
load()"""
    async with connect_server(settings) as server:
        assert await server.evaluate(program(web, code), "large") == LARGE_BYTES
        more = await server.run("[load(), load()]", "large")
        assert more.status == "error"
        assert "The run has downloaded 5 MB" in more.text
        assert "[network] download_mb" in more.text
        again = await server.replay("rerun", "large", step=1)
        assert (again.status, again.value) == ("ok", LARGE_BYTES), again.text


async def test_the_ledger_counts_reads_by_host_and_lists_what_may_write(
    connection: ServerConnection, web: WebServer
) -> None:
    code = "import requests\n[requests.get(U + '/count') for _ in range(4)]\n"
    run = await connection.run(program(web, code + "requests.post(U + '/x', data='hello')\n1"))
    host = web.url.removeprefix("https://")
    assert f"web.GET {host}(...) -> ok, 4 times" in run.text
    assert f"web.POST {host}(url='{web.url}/x', body='hello') = 200 OK, 2 bytes" in run.text


async def test_a_person_sees_a_request_with_its_body_and_decides(
    tmp_path: Path, web: WebServer
) -> None:
    rules = {"allow": [web.url], "ask": [f"POST {web.url}"], "ca_file": str(web.ca_file)}
    settings = write_settings(
        tmp_path,
        sandbox={"packages": list(PACKAGES)},
        network=rules,
        policy={"approver": "model"},  # who is asked is shown in test_approvals.py
    )
    code = """
import requests
def send(path):
    answer = requests.post(U + path, json={'pay': 5})
    return answer.status_code, answer.text
send(PATH)"""
    async with connect_server(settings) as server:
        for path, decision, status in (("/paid", "allow", 200), ("/unpaid", "deny", 403)):
            run = await server.run(program(web, f"PATH = {path!r}{code}"), "asks", wait_s=20)
            assert run.status == "waiting", run.text
            assert f"{web.url}{path}" in run.text
            assert '"pay": 5' in run.text.replace("\\", "")
            assert web.count(path) == 0
            done = await server.run_request(run.run, answers={"*": decision})
            assert done.value[0] == status, done.text
        assert (web.count("/paid"), web.count("/unpaid")) == (1, 0)


async def test_the_settings_say_how_often_code_may_ask_and_which_methods_read(
    tmp_path: Path, web: WebServer
) -> None:
    settings = write_web_settings(
        tmp_path, web, requests_per_minute=3, reads=["GET", "HEAD", "OPTIONS", "POST"]
    )
    code = "import requests\n[requests.post(U + '/read').status_code for _ in range(4)]"
    async with connect_server(settings) as server:
        run = await server.run(program(web, code), "reads", dry_run=True)
        assert (run.status, run.value) == ("ok", [200, 200, 200, 429]), run.text
        refused = await server.run("requests.get(U + '/count').text", "reads")
        assert "more than 3 web requests in a minute. Wait" in refused.value, refused.text
    assert web.count("/read") == 3


async def test_what_no_rule_names_is_refused_with_the_line_that_would_allow_it(
    connection: ServerConnection, web: WebServer
) -> None:
    code = """
import requests
answer = requests.get('https://elsewhere.example/path')
answer.status_code, answer.text, answer.reason"""
    status, text, reason = await connection.evaluate(program(web, code))
    assert status == 403
    assert "no rule of [network] names elsewhere.example" in text
    assert '[network] allow = ["GET https://elsewhere.example"]' in text
    assert "no rule of [network]" in reason


async def test_a_redirect_to_a_host_without_a_rule_is_refused(
    connection: ServerConnection, web: WebServer
) -> None:
    code = "import requests\nanswer = requests.get(U + '/away')\nanswer.status_code, answer.url"
    assert await connection.evaluate(program(web, code)) == [403, "https://elsewhere.example/"]


async def test_a_broken_answer_is_an_error_that_names_the_host(
    connection: ServerConnection, web: WebServer
) -> None:
    code = "import requests\nanswer = requests.get(U + '/breaks')\nanswer.status_code, answer.text"
    status, text = await connection.evaluate(program(web, code))
    assert status == 502
    assert text.startswith("127.0.0.1 ended the connection")


async def test_an_answer_of_unknown_length_that_is_cut_short_is_an_error(
    connection: ServerConnection, web: WebServer
) -> None:
    code = """
import http.client, requests, urllib.request
found = []
for read in (lambda: requests.get(U + '/cut').content, urllib.request.urlopen(U + '/cut').read):
    try:
        found.append(len(read()))
    except (requests.RequestException, http.client.IncompleteRead) as exc:
        found.append(type(exc).__name__)
found"""
    found = await connection.evaluate(program(web, code), "cut")
    assert found == ["ChunkedEncodingError", "IncompleteRead"]


async def test_other_protocols_are_refused_with_a_sentence(connection: ServerConnection) -> None:
    code = """
import os, socket
def ask(text):
    host, port = os.environ['https_proxy'].rpartition('/')[2].split(':')
    with socket.create_connection((host, int(port)), 5) as sock:
        sock.sendall(text)
        data = b''
        while chunk := sock.recv(65536):
            data += chunk
    return data.split(b'\\r\\n', 1)[0].decode()
[ask(text) for text in TEXTS]"""
    get, post = b"GET http://a.example/ HTTP/1.1\r\n", b"POST http://a.example/ HTTP/1.1\r\n"
    chunked = post + b"Transfer-Encoding: chunked\r\n"
    texts = {
        b"GET / HTTP/1.1\r\n\r\n": "400",
        get + b"Host: b.example\r\n\r\n": "400",
        get + b"Host: a.example\r\nHost: b.example\r\n\r\n": "400",
        get + b"Upgrade: websocket\r\n\r\n": "501",
        get + b" X: folded\r\n\r\n": "400",
        get + b"X : y\r\n\r\n": "400",
        get + b"X: y\0\r\n\r\n": "400",
        get + b"X: y\nZ: z\r\n\r\n": "400",
        get + b"X: y\r\n" * 300 + b"\r\n": "431",
        get + b"X: y\r\n" * 100_000 + b"\r\n": "431",
        b"GET http://a.example/" + b"x" * 70_000: "431",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": "505",
        b"CONNECT a.example HTTP/1.1\r\n\r\n": "400",
        b"CONNECT a.example:443 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n": "400",
        b"CONNECT 127.1:443 HTTP/1.1\r\n\r\n": "400",
        post + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab": "400",
        post + b"Content-Length: +1\r\n\r\na": "400",
        chunked + b"Content-Length: 4\r\n\r\n0\r\n\r\n": "400",
        post + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n": "400",
        chunked + b"\r\n-1\r\n\r\n": "400",
        chunked + b"\r\n1\r\nab\r\n0\r\n\r\n": "400",
        b"GET http://user@a.example/ HTTP/1.1\r\n\r\n": "400",
        b"GET ftp://a.example/ HTTP/1.1\r\n\r\n": "400",
    }
    found = await connection.evaluate(f"TEXTS = {list(texts)!r}\n{code}", "raw")
    assert [line[9:12] for line in found] == list(texts.values()), found


async def test_nothing_but_the_proxy_can_be_reached(connection: ServerConnection) -> None:
    code = """
import errno, socket
found = []
for family, kind, address in [
    (socket.AF_INET, socket.SOCK_STREAM, ('1.1.1.1', 80)),
    (socket.AF_INET, socket.SOCK_STREAM, ('172.17.0.1', 80)),
    (socket.AF_INET6, socket.SOCK_STREAM, ('2606:4700::1111', 80)),
    (socket.AF_INET, socket.SOCK_DGRAM, ('1.1.1.1', 53)),
    (socket.AF_INET, socket.SOCK_RAW, ('1.1.1.1', 0)),
    (socket.AF_PACKET, socket.SOCK_RAW, ('lo', 0)),
    (socket.AF_NETLINK, socket.SOCK_RAW, (0, 0)),
]:
    try:
        socket.socket(family, kind).connect(address)
        found.append('connected')
    except OSError as exc:
        found.append(errno.errorcode[exc.errno])
found"""
    found = await connection.evaluate(code, "sockets")
    assert found == ["ENETUNREACH"] * 2 + ["EADDRNOTAVAIL"] + ["EPERM"] * 4


async def test_code_cannot_end_the_proxy(connection: ServerConnection, web: WebServer) -> None:
    code = """
import os, signal, urllib.request
urllib.request.urlopen(U + '/count').read()
refused = []
for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):
    if pid not in (os.getpid(), 1):
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            refused.append(pid)
len(refused) > 0, urllib.request.urlopen(U + '/count').status"""
    assert await connection.evaluate(program(web, code), "killer") == [True, 200]


async def test_a_thousand_requests_at_once_are_all_answered(
    connection: ServerConnection, web: WebServer
) -> None:
    code = """
import asyncio, collections, httpx
async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None)) as client:
    answers = await asyncio.gather(
        *(client.get(f'{U}/count?{n}') for n in range(1000)), return_exceptions=True)
found = collections.Counter(str(getattr(each, 'status_code', repr(each))) for each in answers)
with open('/proc/net/netstat') as file:
    names, values = [line.split() for line in file if line.startswith('TcpExt')]
dict(zip(names, values))['ListenOverflows'], found"""
    run = await connection.run(program(web, code), "thousand", timeout_s=400)
    while run.status == "running":
        run = await connection.run_request(run.run)
    assert run.status == "ok", run.text
    refused_connections, found = run.value
    assert refused_connections == "0"
    assert sum(found.values()) == 1000
    assert set(found) <= {"200", "429"}, found
    assert (
        await connection.evaluate(
            program(web, "import requests\nrequests.get(U + '/count').ok"), "beside"
        )
        is True
    )


async def test_an_authority_that_code_replaces_harms_its_own_requests_only(
    connection: ServerConnection, web: WebServer
) -> None:
    code = """
import os, requests
path = os.environ['REQUESTS_CA_BUNDLE']
kept = open(path).read()
try:
    os.chmod(path, 0o600)
    open(path, 'w').write('')
    found = requests.get(U + '/count').status_code
except (OSError, requests.RequestException) as exc:
    found = type(exc).__name__
found"""
    found = await connection.evaluate(program(web, code), "authority")
    assert found in ("PermissionError", "OSError", "SSLError"), found
    read = "import requests\nrequests.get(U + '/count').status_code"
    assert await connection.evaluate(program(web, read), "beside") == 200


async def test_requests_work_in_a_fork_and_after_a_rewind(
    connection: ServerConnection, web: WebServer
) -> None:
    code = "import requests\nsession = requests.Session()\nfirst = session.get(U + '/count').text"
    await connection.run(program(web, code), "branches")
    await connection.run("second = session.get(U + '/count').text", "branches")
    fork = await connection.replay("fork", "branches", step=1)
    assert await connection.evaluate("session.get(U + '/echo').status_code", fork.session) == 200
    await connection.replay("rewind", "branches", step=1)
    assert await connection.evaluate("session.get(U + '/echo').status_code", "branches") == 200


async def test_a_dry_run_plans_what_may_write_and_a_commit_sends_each_once(
    connection: ServerConnection, web: WebServer
) -> None:
    code = """
import requests
[requests.post(U + '/planned', json={'n': n}).status_code for n in range(3)]"""
    plan = await connection.run(program(web, code), "planned", dry_run=True)
    assert (plan.status, plan.value) == ("waiting", [202, 202, 202]), plan.text
    assert web.count("/planned") == 0
    done = await connection.run_request(plan.run, answers={"*": "allow"})
    assert (done.status, done.value) == ("ok", [200, 200, 200]), done.text
    assert web.count("/planned") == 3


DATA_PROGRAMS = {
    "urllib": "import urllib.request\nvalue = urllib.request.urlopen(U + '/count').read()",
    "urllib3": "import urllib3\nvalue = urllib3.PoolManager().request('GET', U + '/count').data",
    "requests": """
import requests
session = requests.Session()
value = [session.get(U + '/count').text for _ in range(3)]""",
    "httpx": """
import httpx
with httpx.Client() as client:
    value = [client.get(U + '/count').text for _ in range(3)]""",
    "httpx, async": """
import asyncio, httpx
async with httpx.AsyncClient() as client:
    answers = await asyncio.gather(*(client.get(f'{U}/count?{n}') for n in range(8)))
value = [each.text for each in answers]""",
    "aiohttp": """
import asyncio, aiohttp
async def load(session, n):
    async with session.get(f'{U}/count?{n}') as response:
        return await response.text()
async with aiohttp.ClientSession() as session:
    value = await asyncio.gather(*(load(session, n) for n in range(8)))""",
    "pandas": "import pandas as pd\nvalue = int(pd.read_csv(U + '/table.csv').people.sum())",
    "threads": """
import requests
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    value = list(pool.map(lambda n: requests.get(f'{U}/count?{n}').text, range(16)))""",
    "a redirect": """
import requests
answer = requests.get(U + '/redirect')
value = answer.status_code, answer.text""",
    "compression": "import requests\nvalue = requests.get(U + '/gzip').text",
    "chunks": """
import urllib.request
value = [line.decode() for line in urllib.request.urlopen(U + '/chunked')]""",
    "bytes": "import requests\nvalue = list(requests.get(U + '/bytes').content[250:262])",
    "a status": "import requests\nr = requests.get(U + '/missing')\nvalue = r.status_code, r.text",
    "a head": "import requests\nr = requests.head(U + '/large')\nvalue = r.text, r.ok",
    "JSON": "import requests\nvalue = requests.post(U + '/echo', json={'a': 1}).json()['body']",
    "a form with a file": """
import requests
data = bytes(range(256)) * 4000
value = requests.post(U + '/echo', files={'f': ('a.bin', data)}).json()['size'] > len(data)""",
    "chunks of its own": """
import requests
value = requests.put(U + '/echo', data=(b'x' * 1000 for _ in range(400))).json()['size']""",
    "a large answer": """
import requests, os
with requests.get(U + '/large', stream=True) as answer, open('loaded.bin', 'wb') as file:
    for chunk in answer.iter_content(65536):
        file.write(chunk)
value = os.path.getsize('loaded.bin')""",
    "a timeout": """
import requests
try:
    requests.get(U + "/slow", timeout=1.5)
except requests.ReadTimeout as exc:
    value = type(exc).__name__""",
    "a chart": """
import matplotlib.pyplot as plt, pandas as pd
table = pd.read_csv(U + '/table.csv', index_col='city')
table.plot.bar()
plt.savefig('people.png')
value = table.people.idxmax()""",
    "retries": """
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry
session = requests.Session()
retry = Retry(total=3, status_forcelist=[503], backoff_factor=0)
session.mount('https://', HTTPAdapter(max_retries=retry))
value = session.get(U + '/flaky', timeout=10).text""",
    "pages": """
import requests
url, value = U + '/page?n=1', []
while url:
    answer = requests.get(url)
    answer.raise_for_status()
    value += answer.json()
    url = answer.links.get('next', {}).get('url')
    url = url and U + url""",
    "a file that is sent": """
import pandas as pd, requests
pd.DataFrame({'n': range(2_000)}).to_csv('sent.csv', index=False)
with open('sent.csv', 'rb') as file:
    value = requests.post(U + '/echo', files={'table': file}, data={'kind': 'csv'}).ok""",
    "a streamed file": """
import httpx
with httpx.stream('GET', U + '/large') as answer, open('large.bin', 'wb') as file:
    for chunk in answer.iter_bytes():
        file.write(chunk)
value = answer.num_bytes_downloaded""",
    "an archive": """
import io, requests, zipfile, pandas as pd
with zipfile.ZipFile(io.BytesIO(requests.get(U + '/table.zip').content)) as archive:
    archive.extractall('.')
value = pd.read_csv('table.csv').people.tolist()""",
    "cookies": """
import requests
with requests.Session() as session:
    session.get(U + '/login')
    value = session.get(U + '/echo').json()['headers']['Cookie'], session.cookies.get_dict()""",
    "basic authentication": """
import requests
value = [requests.get(U + '/private', auth=('ana', word)).status_code for word in ('pass', 'no')]
""",
    "what is missing": """
import requests, urllib.error, urllib.request
value = []
try:
    requests.get(U + '/missing').raise_for_status()
except requests.HTTPError as exc:
    value.append(exc.response.status_code)
try:
    urllib.request.urlopen(U + '/missing')
except urllib.error.HTTPError as exc:
    value.append(exc.read().decode())""",
    "lines of JSON": """
import pandas as pd
value = pd.read_json(U + '/lines.json', lines=True).n.tolist()""",
    "a file by its address": """
import urllib.request
path, headers = urllib.request.urlretrieve(U + '/table.csv', 'kept.csv')
value = path, headers['Content-Type']""",
}
SHOW_STATE = """
import hashlib, pathlib
files = [path for path in sorted(pathlib.Path().rglob('*')) if path.is_file()]
value, {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}"""


EXPECTED_VALUES = {
    "pandas": 1000000,
    "a redirect": [200, CSV],
    "compression": "compressed text",
    "chunks": ["one\n", "two\n", "three\n"],
    "bytes": [250, 251, 252, 253, 254, 255, 0, 1, 2, 3, 4, 5],
    "a status": [404, "there is none"],
    "a head": ["", True],
    "JSON": '{"a": 1}',
    "a form with a file": True,
    "chunks of its own": 400_000,
    "a large answer": LARGE_BYTES,
    "a timeout": "ReadTimeout",
    "a chart": "Oslo",
    "retries": "at last",
    "pages": [10, 11, 20, 21, 30, 31],
    "a file that is sent": True,
    "a streamed file": LARGE_BYTES,
    "an archive": [709000, 291000],
    "cookies": ["visit=7", {"visit": "7"}],
    "basic authentication": [200, 401],
    "what is missing": [404, "there is none"],
    "lines of JSON": [1, 2],
    "a file by its address": ["kept.csv", "text/csv"],
}


def test_there_are_thirty_programs() -> None:
    assert len(DATA_PROGRAMS) == 30
    assert EXPECTED_VALUES.keys() < DATA_PROGRAMS.keys()


@pytest.mark.parametrize("first", range(0, 30, 10))
async def test_programs_are_rebuilt_replayed_forked_and_rewound_when_the_web_is_gone(
    tmp_path: Path, first: int
) -> None:
    programs = dict(list(DATA_PROGRAMS.items())[first : first + 10])
    folder = tmp_path / "web"
    folder.mkdir()
    runs = {}
    await image.build_image(SandboxSettings(packages=PACKAGES), print)
    with run_web_server(folder) as web:
        settings = write_web_settings(tmp_path, web)
        async with connect_server(settings) as server:
            for number, (name, code) in enumerate(programs.items()):
                session = f"program-{number}"
                run = await server.run(program(web, f"{code}\n{SHOW_STATE}"), session)
                assert run.status == "ok", run.text
                assert run.value[0] == EXPECTED_VALUES.get(name, run.value[0])
                runs[session] = run
    async with connect_server(settings) as server:
        for session, run in runs.items():
            assert await server.evaluate(SHOW_STATE, session) == run.value
            again = await server.replay("rerun", session, run=run.run)
            assert (again.status, again.value) == ("ok", run.value), again.text
            fork = await server.replay("fork", session, step=1)
            await server.run("value = 0\nopen('new', 'w').close()", session)
            assert await server.evaluate(SHOW_STATE, fork.session) == run.value
            await server.replay("rewind", session, step=1)
            assert await server.evaluate(SHOW_STATE, session) == run.value


async def test_curl_is_used_where_the_image_has_it(tmp_path: Path, web: WebServer) -> None:
    built = await image.build_image(SandboxSettings(packages=PACKAGES), print)
    code = """
import subprocess
def curl(*arguments):
    command = ['curl', '--silent', '--show-error', '--fail', *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout
curl(U + '/table.csv', '--output', 'loaded.csv')
curl('--data', 'a=1', U + '/echo').count('a=1'), open('loaded.csv').read()"""
    with build_curl_image(built.tag) as tag:
        settings = write_settings(
            tmp_path,
            sandbox={"image": tag},
            network={"allow": [web.url], "ca_file": str(web.ca_file)},
        )
        async with connect_server(settings) as server:
            run = await server.run(program(web, code), "curl")
            assert run.value == [1, CSV], run.text
            sent = len(web.requests)
            again = await server.replay("rerun", "curl", run=run.run)
            assert (again.status, again.value) == ("ok", run.value), again.text
            assert len(web.requests) == sent


async def test_a_credential_is_sent_and_never_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    with run_web_server(folder) as web:
        host = web.url.removeprefix("https://")
        credentials = {host: {"value": "Bearer ${TEST_TOKEN}"}}
        settings = write_web_settings(tmp_path, web, credentials=credentials)
        async with connect_server(settings, {"TEST_TOKEN": SECRET}) as connection:
            code = """
import requests
answer = requests.get(U + '/echo', headers={'Authorization': 'Bearer of-the-code'})
answer.json()['headers']['Authorization'], answer.json()['headers']['Accept-Encoding']"""
            shown = await connection.evaluate(program(web, code), "echo")
            assert shown == ["***", "identity"]
            forms = "requests.get(U + '/forms').text.splitlines()"
            assert await connection.evaluate(program(web, forms), "echo") == ["***"] * 4
            refused = await connection.evaluate(
                program(web, "answer = requests.get(U + '/gzip')\nanswer.status_code, answer.text"),
                "echo",
            )
            assert refused[0] == 502
            assert "compressed" in refused[1]
        assert web.requests[0].headers["Authorization"] == f"Bearer {SECRET}"
        kept = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
        assert not [path for path in kept if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("method", "path", "is_in_doubt"),
    [("GET", "/held", False), ("PUT", "/held/put", False), ("POST", "/held/post", True)],
)
async def test_a_killed_server_sends_nothing_twice_that_may_write(
    tmp_path: Path, method: str, path: str, is_in_doubt: bool
) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    with run_web_server(folder) as web:
        settings = write_web_settings(tmp_path, web)
        code = f"""
import urllib.request
def ask(method, path):
    data = b'x' if method == 'POST' else None
    request = urllib.request.Request(U + path, method=method, data=data)
    return urllib.request.urlopen(request).read().decode()
[ask('POST', '/first'), ask({method!r}, {path!r}), ask('POST', '/last')]"""
        async with start_ready_server(settings) as server, anyio.create_task_group() as tasks:
            tasks.start_soon(expect_death, server, program(web, code))
            await wait_until(lambda: web.count(path) == 1)
            server.kill()
        web.released.set()
        async with start_ready_server(settings) as server:
            answer = await server.run(program(web, code), "s", "k")
            if is_in_doubt:
                assert answer["status"] == "waiting", answer
                question = answer["waiting_for"][0]["id"]
                answer = await server.wait_run(answer["run"], answers={question: "again"})
            assert (answer["status"], answer["value"]) == ("ok", ["ok", "released", "ok"]), answer
        assert [web.count(each) for each in ("/first", path, "/last")] == [1, 2, 1]


@pytest.mark.parametrize(
    ("received", "is_held"),
    [(0, False), (1, True), (1, False), (2, True), (2, False), (3, True), (3, False)],
)
async def test_a_kill_at_each_boundary_of_an_approved_plan_sends_nothing_twice(
    tmp_path: Path, received: int, is_held: bool
) -> None:
    """The server dies when so many of three requests arrived, the last one answered or not."""
    folder = tmp_path / "web"
    folder.mkdir()
    paths = ["/first", "/second", "/third"]
    if is_held:
        paths[received - 1] = "/held"
    with run_web_server(folder) as web:
        settings = write_web_settings(tmp_path, web)
        code = f"""
import urllib.request
def send(path):
    return urllib.request.urlopen(U + path, b'x').read().decode()
[send(path) for path in {paths}]"""
        arguments = {"code": program(web, code), "session": "s", "dry_run": True}
        async with start_ready_server(settings) as server, anyio.create_task_group() as tasks:
            plan = await server.call_run_code(arguments, {})
            assert (plan["status"], len(web.requests)) == ("waiting", 0), plan
            tasks.start_soon(approve_until_death, server, plan["run"])
            await wait_until(lambda: len(web.requests) >= received)
            server.kill()
        web.released.set()
        async with start_ready_server(settings) as server:
            answer = await approve_again(server, plan["run"])
            while answer["status"] in ("running", "waiting"):
                answers = {each["id"]: find_out(web, each) for each in answer["waiting_for"]}
                more = {"answers": answers} if answers else {}
                answer = await server.wait_run(answer["run"], **more)
        assert answer["status"] == "ok", answer
        assert [web.count(path) for path in paths] == [1, 1, 1], answer


async def approve_until_death(server: KillableServer, run: str) -> None:
    """Approve a plan; the server may die before it has carried it out."""
    with suppress(ServerKilled):
        await server.wait_run(run, answers={"*": "allow"})


async def approve_again(server: KillableServer, run: str) -> dict[str, Any]:
    """Approve a plan, or attach to the run that carries it out already."""
    arguments = {"run": run, "answers": {"*": "allow"}}
    result = await server.request("tools/call", {"name": "run_code", "arguments": arguments})
    if not result.get("isError"):
        return dict(result["structuredContent"])
    [*_, committing] = re.findall(r"r_[\w-]+", str(result["content"]))
    return await server.wait_run(committing)


def find_out(web: WebServer, question: Mapping[str, Any]) -> Any:
    """Return the answer to the question whether a request was sent: `web` knows it."""
    assert question["kind"] == "in_doubt", question
    path = question["call"].partition(web.url)[2].partition("'")[0]
    ok = {"status": 200, "reason": "OK", "headers": [], "body": {"text": "ok"}}
    return {"result": ok} if web.count(path) else "again"


async def test_a_download_whose_server_is_killed_is_an_error_and_can_be_repeated(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    with run_web_server(folder) as web:
        settings = write_web_settings(tmp_path, web)
        code = """
import hashlib, http.client, urllib.request
found = []
for _ in range(2):
    try:
        data = urllib.request.urlopen(U + '/stalls').read()
        found.append(hashlib.sha256(data).hexdigest())
    except http.client.IncompleteRead as exc:
        found.append(type(exc).__name__)
found"""
        async with start_ready_server(settings) as server, anyio.create_task_group() as tasks:
            tasks.start_soon(expect_death, server, program(web, code))
            await wait_until(web.half_sent.is_set)
            server.kill()
        web.released.set()
        async with start_ready_server(settings) as server:
            answer = await server.run(program(web, code), "s", "k")
        whole = hashlib.sha256(b"0123456789" * (LARGE_BYTES // 10)).hexdigest()
        assert (answer["status"], answer["value"][-1]) == ("ok", whole), answer
        assert answer["value"][:-1] in (["IncompleteRead"], [whole]), answer
        assert web.count("/stalls") in (2, 3)


async def test_code_that_leaves_a_download_is_replayed(
    connection: ServerConnection, web: WebServer
) -> None:
    code = """
import requests
def begin():
    with requests.get(U + '/huge', stream=True) as answer:
        return len(next(answer.iter_content(1000)))
[begin() for _ in range(3)]"""
    run = await connection.run(program(web, code), "leaves")
    assert run.value == [1000] * 3, run.text
    sent = len(web.requests)
    for _ in range(2):
        again = await connection.replay("rerun", "leaves", run=run.run)
        assert (again.status, again.value) == ("ok", run.value), again.text
        assert "The same as recorded" in again.note, again.text
    assert len(web.requests) == sent


async def expect_death(server: KillableServer, code: str) -> None:
    with pytest.raises(ServerKilled):
        await server.run(code, "s", "k")


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    with anyio.fail_after(TEST_TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - no event signals it
            await anyio.sleep(0.01)


KEPT_PROGRAMS = {
    "requests": """
import requests
session = requests.Session()
found = [session.get(U + '/count').text for _ in range(4)]""",
    "httpx": """
import httpx
session = httpx.Client()
found = [session.get(U + '/count').headers['connection'] for _ in range(4)]""",
    "http.client": """
import http.client, os, ssl
host, _, port = U.removeprefix('https://').partition(':')
proxy = os.environ['https_proxy'].removeprefix('http://').split(':')
session = http.client.HTTPSConnection(*proxy, context=ssl.create_default_context())
session.set_tunnel(host, int(port))
def get():
    session.request('GET', '/count')
    answer = session.getresponse()
    return answer.headers['connection'], len(answer.read()) > 0
found = [get() for _ in range(4)]""",
}


async def test_connections_serve_further_requests_and_threads_share_them(
    connection: ServerConnection, web: WebServer
) -> None:
    code = program(web, KEPT_PROGRAMS["httpx"])
    assert await connection.evaluate(code + "\nfound", "kept") == ["keep-alive"] * 4
    code = """
from concurrent.futures import ThreadPoolExecutor
def ask(_):
    answer = session.get(U + '/count')
    return answer.headers['connection'], answer.extensions['network_stream'].get_extra_info(
        'client_addr')[1]
before = ask(0)
with ThreadPoolExecutor(4) as pool:
    found = [*pool.map(ask, range(32)), ask(0)]
sorted({kind for kind, _ in [before, *found]}), len({port for _, port in found}) <= 5"""
    shared = await connection.run(program(web, code), "kept")
    assert shared.value == [["keep-alive"], True], shared.text
    again = await connection.replay("rerun", "kept", run=shared.run)
    assert (again.status, again.value) == ("ok", shared.value), again.text


async def test_a_number_that_code_writes_is_not_sent_and_harms_nobody(
    connection: ServerConnection, web: WebServer
) -> None:
    code = """
import json, os, socket
host, port = os.environ['http_proxy'].rpartition('/')[2].split(':')
def ask(number):
    with socket.create_connection((host, int(port)), 5) as sock:
        sock.sendall(f'GET {U}/echo HTTP/1.1\\r\\nX-Sandbox-Request: {number}\\r\\n\\r\\n'.encode())
        data = b''
        while b'\\r\\n\\r\\n' not in data:
            data += sock.recv(65536)
    return data.split(b' ')[1].decode()
[ask(number) for number in ('7', '-1', '0', '\\u0664', '9' * 400, '16777216', 'x')]"""
    sent = len(web.requests)
    assert await connection.evaluate(program(web, code), "numbers") == ["200"] * 7
    assert all("X-Sandbox-Request" not in each.headers for each in web.requests[sent:])


@pytest.mark.parametrize("name", KEPT_PROGRAMS)
async def test_no_kept_connection_outlives_its_run(
    connection: ServerConnection, web: WebServer, name: str
) -> None:
    session = f"outlives-{list(KEPT_PROGRAMS).index(name)}"
    await connection.evaluate(program(web, KEPT_PROGRAMS[name]), session)
    read = "get()[1]" if name == "http.client" else "session.get(U + '/count').status_code == 200"
    code = """
import os
def list_sockets():
    found = (f'/proc/self/fd/{each}' for each in os.listdir('/proc/self/fd') if int(each) < 100)
    return [path for path in found if os.path.exists(path) and 'socket' in os.readlink(path)]
list_sockets()"""
    assert await connection.evaluate(code, session) == []
    assert await connection.evaluate(read, session) is True
    fork = await connection.replay("fork", session, step=1)
    assert await connection.evaluate(read, fork.session) is True
    assert await connection.evaluate(read, session) is True


async def test_a_fork_of_code_does_not_share_a_kept_connection(
    connection: ServerConnection, web: WebServer
) -> None:
    code = """
import httpx, os
session = httpx.Client()
first = session.get(U + '/count').status_code
for _ in range(3):
    pid = os.fork()
    if not pid:
        try:
            os._exit(session.get(U + '/count').status_code != 200)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    first = session.get(U + '/count').status_code
first"""
    assert await connection.evaluate(program(web, code), "forks") == 200


async def test_an_answer_that_is_still_read_survives_the_end_of_its_run(
    connection: ServerConnection, web: WebServer
) -> None:
    code = """
import requests
session = requests.Session()
session.get(U + '/count').text
answer = session.get(U + '/table.csv', stream=True)
answer.status_code"""
    assert await connection.evaluate(program(web, code), "streams") == 200
    assert await connection.evaluate("answer.text.splitlines()[1]", "streams") == "Oslo,709000"
    assert await connection.evaluate("session.get(U + '/count').ok", "streams") is True


async def test_a_release_by_code_harms_its_own_connections_only(
    connection: ServerConnection, web: WebServer
) -> None:
    code = """
import httpx, os, socket
session = httpx.Client()
session.get(U + '/count')
host, port = os.environ['https_proxy'].rpartition('/')[2].split(':')
with socket.create_connection((host, int(port)), 5) as sock:
    sock.sendall(b'RELEASE * HTTP/1.1\\r\\n\\r\\n')
    named = sock.recv(1000).count(b'\\n')
named, session.get(U + '/count').status_code"""
    assert await connection.evaluate(program(web, code), "release") == [1, 200]
