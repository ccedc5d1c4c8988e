"""Programs that make web requests: the same ones on this machine and, as text, in a sandbox.

They verify servers by the authority that the usual variable names.
"""

from __future__ import annotations

import os
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

REQUESTS = 50  # one after another, for one sample
AT_ONCE = 64
CHUNK_BYTES = 1 << 18


def make_context() -> ssl.SSLContext:
    """Return what verifies the server."""
    return ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])


def time_kept(url: str) -> float:
    """Return the milliseconds of a small request by a client that keeps its connection."""
    with httpx.Client(verify=make_context()) as client:
        client.get(url)
        started = time.perf_counter()
        for _ in range(REQUESTS):
            client.get(url)
        return 1e3 * (time.perf_counter() - started) / REQUESTS


def time_new(url: str) -> float:
    """Return the milliseconds of a small request with a client of its own."""
    context = make_context()
    started = time.perf_counter()
    for _ in range(REQUESTS):
        with httpx.Client(verify=context) as client:
            client.get(url)
    return 1e3 * (time.perf_counter() - started) / REQUESTS


def time_at_once(url: str) -> float:
    """Return the milliseconds of many small requests at once by one client."""
    with httpx.Client(verify=make_context()) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        started = time.perf_counter()
        list(pool.map(client.get, [url] * AT_ONCE))
        return 1e3 * (time.perf_counter() - started)


def time_download(url: str, folder: str) -> float:
    """Return the milliseconds of a download into a file, which is removed again."""
    path = Path(folder, "large.bin")
    started = time.perf_counter()
    with (
        httpx.Client(verify=make_context()) as client,
        client.stream("GET", url) as answer,
        path.open("wb") as file,
    ):
        for chunk in answer.iter_bytes(CHUNK_BYTES):
            file.write(chunk)
    took = 1e3 * (time.perf_counter() - started)
    assert path.stat().st_size == int(answer.headers["Content-Length"])
    path.unlink()
    return took
