"""Pictures, sounds and tables: what code shows is content of its result."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp.types import AudioContent, CallToolResult, ImageContent, TextContent

from mcpruntime_server.protocol.media import (
    MAX_ALL_MEDIA_BYTES,
    MAX_IMAGE_SIDE,
    MAX_MEDIA_BYTES,
    MAX_MEDIA_ITEMS,
    identify_media,
)
from mcpruntime_server.runtime.run_report import validate_media
from tests.upstreams import own_server_entry
from tests.upstreams.painter import RED_PIXEL, make_silence

from ..helpers.server_connection import ServerConnection, connect_server, write_settings

PLOT = "import matplotlib.pyplot as plt\n"


def png(width: int = 1, height: int = 1) -> bytes:
    """Return a black picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(width)) * height)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def entry(data: bytes, mime_type: str = "image/png") -> dict[str, str]:
    return {"mime_type": mime_type, "data": base64.b64encode(data).decode()}


# what a sandbox claims ----------------------------------------------------------------------------


def test_a_picture_is_what_its_own_header_says() -> None:
    found = identify_media(png(40, 30))
    assert found is not None
    assert (found.mime_type, found.width, found.height) == ("image/png", 40, 30)
    shown, problem = validate_media([entry(png(40, 30), "text/html"), entry(make_silence())])
    assert [item["mime_type"] for item in shown] == ["image/png", "audio/wav"]
    assert problem == ""


@pytest.mark.parametrize(
    "claimed",
    [
        entry(b"<svg/>"),
        entry(b""),
        entry(b"\x89PNG\r\n\x1a\n"),
        entry(png(1, 1)[:20]),
        entry(b"\xff\xd8\xff" + b"\xff" * 50),
        entry(png(100_000, 1)),
        entry(png() + bytes(MAX_MEDIA_BYTES)),
        {"mime_type": "image/png", "data": "x" * 60_000_000},
        {"mime_type": "image/png", "data": "no base64!"},
        {"mime_type": "image/png", "data": 7},
        {},
        None,
        "text",
    ],
    ids=range(13),
)
def test_a_forged_picture_is_refused_with_a_reason(claimed: Any) -> None:
    shown, problem = validate_media([claimed, entry(png())])
    assert [item["data"] for item in shown] == [entry(png())["data"]]
    assert problem.startswith("1 image or sound is not shown: ")


def test_the_pictures_of_a_run_are_bounded_in_number_and_size() -> None:
    shown, problem = validate_media([entry(png(1 + n)) for n in range(100)])
    assert len(shown) == MAX_MEDIA_ITEMS
    assert "90" in problem
    large = png() + bytes(1_400_000)
    shown, _ = validate_media([entry(large) for _ in range(10)])
    assert sum(len(base64.b64decode(item["data"])) for item in shown) <= MAX_ALL_MEDIA_BYTES


# with a real server and the libraries of the default image ----------------------------------------


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    """A server whose upstream returns pictures and sounds."""
    settings = write_settings(
        tmp_path_factory.mktemp("pictures"),
        sandbox={"memory_mb": 512, "timeout_s": 300},
        mcpServers={"painter": own_server_entry("painter")},
    )
    async with connect_server(settings) as connection:
        yield connection


async def run(server: ServerConnection, code: str) -> CallToolResult:
    """Run code and return the whole result."""
    arguments = {"code": code, "session": "pictures", "wait_s": 240}
    result = await server.client.call_tool("run_code", arguments)
    data = result.structured_content
    assert data is None or data["status"] == "ok", data
    return result


def text_of(result: CallToolResult) -> str:
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


def pictures_in(result: CallToolResult) -> list[tuple[int, int]]:
    """Return the sizes of the pictures of a result, which are all PNG."""
    sizes = []
    for content in result.content[1:]:
        assert isinstance(content, ImageContent)
        found = identify_media(base64.b64decode(content.data))
        assert found is not None
        assert found.mime_type == content.mime_type == "image/png"
        sizes.append((found.width, found.height))
    return sizes


@pytest.mark.parametrize(
    "code",
    [
        f"{PLOT}fig, ax = plt.subplots()\nax.plot([1, 4, 9])\nfig",
        f"{PLOT}plt.plot([1, 4, 9])",
        f"{PLOT}fig, ax = plt.subplots()\nax.hist([1, 2, 2])\nax",
        "from PIL import Image\nImage.new('RGB', (40, 30), 'red')",
        "from PIL import Image\nImage.new('CMYK', (4000, 3000))",
    ],
    ids=["figure", "what plot returns", "axes", "image", "large image"],
)
async def test_a_picture_as_the_value_is_content_and_a_line(
    server: ServerConnection, code: str
) -> None:
    result = await run(server, code)
    [(width, height)] = pictures_in(result)
    assert f"value: [image 1: PNG {width}x{height}]" in text_of(result)
    assert 0 < max(width, height) <= MAX_IMAGE_SIDE


async def test_shown_pictures_are_in_order_and_stand_in_the_output(
    server: ServerConnection,
) -> None:
    code = (
        f"{PLOT}from PIL import Image\nfor n in range(2):\n    print('plot', n)\n"
        "    plt.plot([n, 1])\n    plt.show()\nprint('image')\nshow(Image.new('L', (7, 5)))\n"
        "Image.new('L', (9, 5)).show()\nplt.subplots()[0].show()\nImage.new('L', (3, 2))"
    )
    result = await run(server, code)
    sizes = pictures_in(result)
    assert (len(sizes), sizes[2], sizes[3], sizes[5]) == (6, (7, 5), (9, 5), (3, 2))
    text = text_of(result)
    names = re.findall(r"plot \d|\bimage(?: \d)?", text.partition("stdout:")[2])
    assert names == [
        *("plot 0", "image 1", "plot 1", "image 2"),
        *("image", "image 3", "image 4", "image 5"),
    ]
    assert "value: [image 6: PNG 3x2]" in text


async def test_a_figure_is_shown_again_if_it_has_changed(server: ServerConnection) -> None:
    blank = await run(server, f"{PLOT}plt.close('all')\nfig, ax = plt.subplots()")
    assert (pictures_in(blank), "<Figure size 640x480" in text_of(blank)) == ([], True)
    assert len(pictures_in(await run(server, "ax.plot([1, 2])\nfig"))) == 1
    assert len(pictures_in(await run(server, "plt.show()"))) == 0
    again = await run(server, "fig, ax = plt.subplots()\nax.plot([1])\nplt.show()\nplt.show()")
    assert len(pictures_in(again)) == 1


async def test_pictures_are_shown_again_from_the_journal(server: ServerConnection) -> None:
    result = await run(server, "from PIL import Image\nshow(Image.new('L', (70, 50)))")
    assert result.structured_content is not None
    again = await server.client.call_tool("run_code", {"run": result.structured_content["run"]})
    assert pictures_in(again) == [(70, 50)]
    shown = await server.client.call_tool(
        "replay",
        {"action": "show", "session": "pictures", "run": result.structured_content["run"]},
    )
    assert pictures_in(shown) == [(70, 50)]


async def test_a_picture_with_too_many_bytes_is_made_smaller(server: ServerConnection) -> None:
    noise = "import os\nImage.frombytes('RGB', (1400, 1400), os.urandom(1400 * 1400 * 3))"
    result = await run(server, f"from PIL import Image\n{noise}")
    [(width, _)] = pictures_in(result)
    assert width < 1_400


async def test_more_pictures_than_allowed_are_named_in_the_output(server: ServerConnection) -> None:
    code = "from PIL import Image\nfor n in range(13): show(Image.new('L', (5, 5 + n)))"
    result = await run(server, code)
    assert len(pictures_in(result)) == MAX_MEDIA_ITEMS
    assert text_of(result).count("[image not shown: a run shows at most 10") == 3


async def test_what_an_upstream_paints_and_plays_reaches_the_client(
    server: ServerConnection,
) -> None:
    result = await run(server, "from tools.painter import paint, play\npaint()")
    [picture] = [each for each in result.content if isinstance(each, ImageContent)]
    assert base64.b64decode(picture.data) == RED_PIXEL
    assert 'value: ["a red pixel", "[image 1: PNG 1x1]"]' in text_of(result)
    result = await run(server, "show(play())\nplay()['mimeType']")
    [heard] = [each for each in result.content if isinstance(each, AudioContent)]
    assert base64.b64decode(heard.data) == make_silence()
    assert "audio/wav" in text_of(result)


async def test_blocks_of_upstreams_and_files_are_shown(server: ServerConnection) -> None:
    silence = entry(make_silence())["data"]
    code = (
        f"image = dict(type='image', mimeType='image/png', data={entry(png(8, 6))['data']!r})\n"
        f"sound = dict(type='audio', mimeType='audio/wav', data={silence!r})\n"
        f"open('p.png', 'wb').write({png(5, 4)!r})\nshow('p.png', sound, 'plain')\n"
        "['a caption', image]"
    )
    result = await run(server, code)
    first, second, third, *_ = result.content[1:]
    assert isinstance(first, ImageContent)
    assert isinstance(second, AudioContent)
    assert isinstance(third, ImageContent)
    assert (second.mime_type, second.data) == ("audio/wav", entry(make_silence())["data"])
    text = text_of(result)
    assert 'value: ["a caption", "[image 3: PNG 8x6]"]' in text
    assert "  [image 1: PNG 5x4]\n  [audio 2: WAV]\n  plain" in text


async def test_a_table_has_all_columns_and_its_shape(server: ServerConnection) -> None:
    code = (
        "import pandas as pd\nnames = {f'column_{n}': range(1_000) for n in range(25)}\n"
        "pd.DataFrame({**names, 'text': 'long ' * 50})"
    )
    text = text_of(await run(server, code))
    assert all(f"column_{n} " in text for n in range(25))
    assert "[1,000 rows x 26 columns]" in text
    assert len(text) < 20_000
    heading = next(line for line in text.splitlines() if "column_0" in line)
    row = next(line for line in text.splitlines() if line.startswith("  999"))
    assert len(heading) == len(row)
    wide = text_of(await run(server, "pd.DataFrame({f'c{n}': [1] for n in range(2_000)})"))
    assert "[1 row x 2,000 columns]" in wide
    assert "'c0', 'c1'" in wide
    small = text_of(await run(server, "show(pd.DataFrame({'a': [1, 2]}))"))
    assert "     a\n  0  1\n  1  2\n  [2 rows x 1 column]" in small


async def test_a_client_that_reads_data_gets_the_line(
    server: ServerConnection, tmp_path: Path
) -> None:
    result = await run(server, f"{PLOT}plt.plot([1, 2])")
    assert result.structured_content is not None
    assert re.fullmatch(r"\[image 1: PNG \d+x\d+\]", result.structured_content["value"])


async def test_modules_can_show_things_and_code_that_does_can_become_a_skill(
    server: ServerConnection,
) -> None:
    code = (
        "import pandas as pd\nrows = [{'n': 1, 'm': 4}, {'n': 2, 'm': 6}]\n"
        "table = pd.DataFrame(rows)\nshow(table)\nint(table['n'].sum())"
    )
    arguments = {"code": code, "session": "skill"}
    done = (await server.client.call_tool("run_code", arguments)).structured_content
    assert done is not None
    saved = await server.client.call_tool("save_skill", {"run": done["run"], "name": "sum_rows"})
    assert not saved.is_error, saved
    assert "value: 3" in text_of(await run(server, "from skills.sum_rows import run\nrun()"))
    code = "open('pages.py', 'w').write('def page(): show([1, 2])')\nimport pages\npages.page()"
    assert "stdout:\n  [1, 2]" in text_of(await run(server, code))
