"""A provider in a Python file of the user: whatever it does, only its own texts are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcpruntime_server.capabilities.knowledge.provider import DocumentSkipped
from mcpruntime_server.capabilities.knowledge.python_provider import PythonProvider
from mcpruntime_server.errors import Unavailable

from .conftest import OpenProviders, refresh_providers, search_texts

WIKI = """
from dataclasses import dataclass

@dataclass
class Page:
    text: str

class Provider:
    pages = {
        "Home": Page("# Home\\n\\nThe office is in Bergen."),
        "rates.csv": Page("country,rate\\nNorway,25\\n"),
    }

    def names(self):
        print("listing")
        return {name: "1" for name in self.pages}

    def read(self, name):
        return self.pages[name].text
"""


def write(tmp_path: Path, source: str) -> Path:
    file = tmp_path / "wiki.py"
    file.write_text(source)
    return file


async def test_texts_of_a_python_provider_are_found(opened: OpenProviders, tmp_path: Path) -> None:
    async with opened(wiki={"python": str(write(tmp_path, WIKI))}) as providers:
        await refresh_providers(providers)
        [office] = (await providers.search("office"))["passages"]
        assert (office["name"], office["title"], office["span"]["lines"]) == (
            "Home",
            "Home",
            [1, 3],
        )
        [row] = (await providers.search("Norway"))["passages"]
        assert row["title"] == "rows 1-2 of country,rate"


async def test_a_provider_function_works_and_texts_without_a_version_are_kept(
    opened: OpenProviders, tmp_path: Path
) -> None:
    source = (
        "class Wiki:\n    reads = 0\n    def names(self): return {'a': ''}\n"
        "    def read(self, name):\n        self.reads += 1\n"
        "        return f'read {self.reads} times'\ndef Provider(): return Wiki()\n"
    )
    async with opened(wiki={"python": str(write(tmp_path, source))}) as providers:
        assert await search_texts(providers, "read") == ["read 1 times"]
        assert await search_texts(providers, "read") == ["read 1 times"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def Provider(:", "SyntaxError"),
        ("x = 1", "it has no class Provider"),
        ("Provider = 5", "it has no class Provider"),
        ("import nowhere_to_be_found", "No module named"),
        ("raise SystemExit(3)", "SystemExit"),
        ("class Provider:\n    def __init__(self, x): ...", "TypeError"),
        ("class Provider: ...", "has no attribute 'names'"),
        ("class Provider:\n    def names(self): return 5", "TypeError"),
        (
            "class Provider:\n    def names(self): raise ValueError('no \\x1b[2J good ' * 999)",
            "ValueError: no ?",
        ),
        ("class Provider:\n    def names(self): raise KeyboardInterrupt", "KeyboardInterrupt"),
        (
            "class E(Exception):\n    def __str__(self): raise self\n"
            "class Provider:\n    def names(self): raise E()",
            "E",
        ),
    ],
)
def test_errors_of_a_provider_are_reported(tmp_path: Path, source: str, words: str) -> None:
    file = write(tmp_path, source)
    with pytest.raises(Unavailable) as caught:
        PythonProvider(file, 20).names()
    assert words in caught.value.message
    assert str(file) in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 800


def test_a_missing_provider_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="FileNotFoundError"):
        PythonProvider(tmp_path / "none.py", 20).names()


async def test_a_text_that_fails_is_skipped(opened: OpenProviders, tmp_path: Path) -> None:
    source = """
class Provider:
    def names(self):
        good = dict.fromkeys(("good", "bad", "number", "huge"), "1")
        return {**good, 5: "1", "x\\x1b": "1", "versionless": None, "": "1"}
    def read(self, name):
        return {"good": "fine words \\ud800", "number": 7, "huge": "x" * 5_000_000}[name]
"""
    async with opened(wiki={"python": str(write(tmp_path, source))}) as providers:
        assert await search_texts(providers, "fine words") == ["fine words ?"]
        [summary] = await providers.describe_all()
        assert {reason: each["count"] for reason, each in summary["skipped"].items()} == {
            "not a name and a version": 4,
            "its provider failed": 1,
            "not text": 1,
            "too large": 1,
        }


def test_a_provider_that_hangs_is_reported_and_not_called_again_meanwhile(tmp_path: Path) -> None:
    source = (
        "import threading\ngate = threading.Event()\n"
        "class Provider:\n    def names(self): return {'a': '1', 'b': '1'}\n"
        "    def read(self, name):\n        gate.wait()\n        return name\n"
    )
    own = PythonProvider(write(tmp_path, source), 0.2)
    assert own.names() == {"a": "1", "b": "1"}
    with pytest.raises(Unavailable, match=r"did not return from read within 0\.2 s"):
        own.read("a")
    with pytest.raises(Unavailable, match="has not returned from a call"):
        own.names()
    own._provider.read.__globals__["gate"].set()
    assert own._hanging_thread is not None
    own._hanging_thread.join(20)
    assert own.read("b") == "b"
    with pytest.raises(DocumentSkipped):
        PythonProvider(
            write(tmp_path, "class Provider:\n    def read(self, name): return b'x'\n"), 20
        ).read("a")
