"""A value that is a data frame is downloaded as CSV, which its own state writes."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ..helpers.commands import run_command
from ..helpers.event_streams import ApiClient, connect_api
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import write_settings

MAKE = """
import pandas
frame = pandas.DataFrame({
    "name": ["ann", "=1+1", "@cmd", "a, \\"b\\"", None], "n": [-1.5, 2, 3, 1e9, 5], "-x": range(5)})
"""
LARGE = "pandas.DataFrame({'n': range(200_000), 'text': ['=x' * 10] * 200_000})"


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    settings = write_settings(tmp_path_factory.mktemp("server"))
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
async def api(service: HttpService) -> AsyncIterator[ApiClient]:
    async with connect_api(service, service.create_token("ann")) as client:
        await execute(client, MAKE)
        yield client


async def execute(api: ApiClient, code: str) -> str:
    """Execute a step, and return its run."""
    done = (await api.post("/execute", {"code": code, "session": "frames"})).json()
    assert done["status"] == "ok", done
    return str(done["run"])


async def download(api: ApiClient, code: str, status: int = 200) -> str:
    """Execute a step, and return the CSV of its value, or the problem."""
    response = await api.get(f"/runs/{await execute(api, code)}/value.csv")
    assert response.status_code == status, response.text
    return response.text


def parse(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


async def test_a_frame_is_written_with_its_cells_guarded(api: ApiClient) -> None:
    assert parse(await download(api, "x = 1\nframe")) == [
        ["name", "n", "'-x"],
        ["ann", "-1.5", "0"],
        ["'=1+1", "2.0", "1"],
        ["'@cmd", "3.0", "2"],
        ['a, "b"', "1000000000.0", "3"],
        ["", "5.0", "4"],
    ]
    session = (await api.get("/sessions/frames")).json()
    assert session["run_count"] == 2  # the session is as it was


async def test_an_index_with_names_and_a_series_are_written(api: ApiClient) -> None:
    assert parse(await download(api, "frame.groupby('name').n.sum()"))[:2] == [
        ["name", "n"],
        ["'=1+1", "2.0"],
    ]


async def test_the_frame_that_was_assigned_last_is_written(api: ApiClient) -> None:
    rows = parse(await download(api, "part = frame[['n']].head(1)"))
    assert rows == [["n"], ["-1.5"]]


async def test_a_large_frame_is_whole(api: ApiClient) -> None:
    rows = parse(await download(api, LARGE))
    assert len(rows) == 200_001
    assert rows[-1] == ["199999", "'" + "=x" * 10]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("frame.insert(0, f'c{len(frame.columns)}', 1) or frame", "another value"),
        ("class DataFrame: pass\nDataFrame()", "has no method that writes CSV"),
        (
            "class DataFrame:\n"
            "    def __repr__(self): return 'frame'\n"
            "    def to_csv(self, file, index): open(file, 'wb').write(b'x' * 200_000)\n"
            "DataFrame()",
            "field larger than field limit",
        ),
    ],
)
async def test_what_cannot_be_written_says_why(api: ApiClient, code: str, reason: str) -> None:
    assert reason in await download(api, code, 409)


async def test_who_may_only_read_does_not_execute_code(
    service: HttpService, api: ApiClient
) -> None:
    run = await execute(api, "frame")
    reader = service.create_token("ann", "--scope", "read")
    async with connect_api(service, reader) as other:
        response = await other.get(f"/runs/{run}/value.csv")
    assert response.status_code == 403
    assert "run" in response.json()["detail"]


async def test_the_command_line_writes_the_same(
    service: HttpService, api: ApiClient, tmp_path: Path
) -> None:
    run = await execute(api, "frame")
    expected = (await api.get(f"/runs/{run}/value.csv")).text
    file = tmp_path / "table.csv"
    done = run_command(
        "--config", service.settings, "replay", "export", run, file, "--format", "csv",
        "--principal", "ann",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert file.read_bytes().decode() == expected
    run = await execute(api, "len(frame)")
    done = run_command(
        "--config", service.settings, "replay", "export", run, file, "--format", "csv",
        "--force", "--principal", "ann",
    )  # fmt: skip
    assert done.returncode != 0
    assert "no table" in done.stderr
    assert file.read_bytes().decode() == expected
