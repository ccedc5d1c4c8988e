"""Compares values with JSON schemas of strangers without holding up anybody else.

A comparison cannot be interrupted, and some schemas make it take for ever. So what it costs is
estimated first. A cheap comparison, which takes microseconds, is made at once; every other one in
a process of its own, which is ended when its time is over. That process starts when it is needed,
serves one checker, and ends with it.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import Process
from anyio.lowlevel import checkpoint

from ..protocol.payloads import JsonObject
from .json_schemas import compile_linear, find_violation
from .schema_cost import SchemaCost, estimate_cost, measure_size

if TYPE_CHECKING:
    from jsonschema_rs import Validator

WORKER_MODULE = "mcpruntime_server.capabilities.schema_worker"
CHECK_TIMEOUT_S = 5.0  # for one comparison in the process; a thousand times what honest ones take
START_TIMEOUT_S = 30.0  # for the process to start, on a machine that may be busy
EXIT_TIMEOUT_S = 2.0  # for the process to exit when it is killed
MAX_CHEAP_WORK = 20_000  # comparisons that are made at once: together well below a millisecond
MAX_CHEAP_PARTS = 1_000  # of a schema that is compiled in the event loop
MAX_CHEAP_DEPTH = 100  # of a value
PATTERN_WORK = 10  # comparisons that cost as much as a pattern in one character of a text
MAX_REPLY_BYTES = 64 * 1024
SLICE_S = 0.002  # of encoding a large value, before others have their turn
VARIABLES = ("PATH", "PYTHONPATH", "SYSTEMROOT", "LD_LIBRARY_PATH")  # that the process needs

_numbers = itertools.count(1)


class SchemaCheckFailed(Exception):
    """A comparison has no result; the message is a clause that says why."""


class PreparedSchema:
    """A schema and what comparing with it costs."""

    def __init__(self, schema: Mapping[str, Any], cost: SchemaCost) -> None:
        self.schema = schema
        self.cost = cost
        self.number = next(_numbers)

    @cached_property
    def cheap_validator(self) -> Validator | None:
        """The compiled schema, if cheap comparisons with it exist and it is valid."""
        if self.cost.width is None or self.cost.parts > MAX_CHEAP_PARTS:
            return None
        try:
            return compile_linear(self.schema)
        except ValueError:
            return None

    def is_cheap_for(self, value: Any) -> bool:
        """Return whether comparing a value takes less than a millisecond."""
        width = self.cost.width
        if width is None or width > MAX_CHEAP_WORK or self.cheap_validator is None:
            return False
        size = measure_size(value, MAX_CHEAP_WORK // width, MAX_CHEAP_DEPTH)
        work = size.parts * width
        if self.cost.has_patterns:
            work += size.chars * PATTERN_WORK
        return work <= MAX_CHEAP_WORK and size.depth <= MAX_CHEAP_DEPTH


def prepare_schema(schema: Mapping[str, Any]) -> PreparedSchema:
    """Return a schema, ready for comparisons.

    This takes less than a millisecond: the cost of a schema with many parts is not estimated.
    """
    parts = measure_size(schema, MAX_CHEAP_PARTS).parts
    if parts > MAX_CHEAP_PARTS:
        return PreparedSchema(schema, SchemaCost(parts, None, has_patterns=True))
    return PreparedSchema(schema, estimate_cost(schema, parts))


class SchemaChecker:
    """Compares values with schemas; see `open_schema_checker`."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._lock = anyio.Lock()
        self._known: set[int] = set()  # numbers of the schemas that the process has

    async def find_violation(self, value: Any, prepared: PreparedSchema) -> str:
        """Return where and how a value violates a schema, "" if it does not.

        Raises `SchemaCheckFailed`, also for a schema that is not valid.
        """
        if prepared.cheap_validator is not None and prepared.is_cheap_for(value):
            return find_violation(value, prepared.cheap_validator)
        async with self._lock:
            try:
                process = await self._ensure_started()
                with anyio.fail_after(CHECK_TIMEOUT_S):
                    reply = await self._compare(process, value, prepared)
            except TimeoutError:
                await self.stop()
                raise SchemaCheckFailed(
                    f"comparing takes more than {CHECK_TIMEOUT_S:g} s"
                ) from None
            except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
                await self.stop()
                raise SchemaCheckFailed("the process that compares has ended") from None
            except BaseException:
                await self.stop()
                raise
        if "error" in reply:
            self._known.discard(prepared.number)
            raise SchemaCheckFailed(f"the schema is not valid: {reply['error']}")
        return str(reply["violation"])

    async def _compare(
        self, process: Process, value: Any, prepared: PreparedSchema
    ) -> Mapping[str, Any]:
        assert process.stdin is not None
        request: JsonObject = {"number": prepared.number, "value": value}
        if prepared.number not in self._known:
            request["schema"] = prepared.schema
            self._known.add(prepared.number)
        await process.stdin.send(await encode_in_slices(request) + b"\n")
        reply: Mapping[str, Any] = json.loads(await _read_line(process))
        return reply

    async def _ensure_started(self) -> Process:
        if self._process is None:
            command = [sys.executable, "-P", "-m", WORKER_MODULE]  # -P: import nothing from the cwd
            environ = {name: os.environ[name] for name in VARIABLES if name in os.environ}
            self._process = await anyio.open_process(
                command, env=environ, stderr=subprocess.DEVNULL
            )
            with anyio.fail_after(START_TIMEOUT_S):
                await _read_line(self._process)
        return self._process

    async def stop(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        self._known.clear()
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        with anyio.move_on_after(EXIT_TIMEOUT_S, shield=True):
            await process.aclose()


async def _read_line(process: Process) -> bytes:
    """Return one line of the process, which writes only what it is asked for."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        line += await process.stdout.receive()
        if len(line) > MAX_REPLY_BYTES:
            raise OSError("the reply is too long")
    return line


async def encode_in_slices(value: Any) -> bytes:
    """Return a value as JSON; others have their turn while a large one is encoded."""
    pieces: list[str] = []
    slice_end = perf_counter() + SLICE_S
    for piece in json.JSONEncoder().iterencode(value):
        pieces.append(piece)
        if perf_counter() > slice_end:
            await checkpoint()
            slice_end = perf_counter() + SLICE_S
    return "".join(pieces).encode()


@asynccontextmanager
async def open_schema_checker() -> AsyncIterator[SchemaChecker]:
    """Yield a checker; its process ends with the context."""
    checker = SchemaChecker()
    try:
        yield checker
    finally:
        await checker.stop()


async def check_value(value: Any, schema: Mapping[str, Any]) -> str:
    """Return where and how a value violates a schema, "" if it does not.

    The schema is one that `check_schema` accepts. A comparison that has no result is a violation.
    """
    async with open_schema_checker() as checker:
        try:
            return await checker.find_violation(value, prepare_schema(schema))
        except SchemaCheckFailed as exc:
            return f"the value: it cannot be compared with the schema, because {exc}"
