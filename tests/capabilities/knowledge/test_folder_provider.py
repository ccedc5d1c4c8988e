"""A folder of documents: what is read, what is skipped, and that nothing else can be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mcpruntime_server.capabilities.knowledge.folder_provider import FolderProvider, compile_glob
from mcpruntime_server.capabilities.knowledge.provider import MAX_DOCUMENT_BYTES, DocumentSkipped
from mcpruntime_server.errors import CallFailed

from .conftest import OpenProviders, refresh_providers, search_texts


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "guide").mkdir(parents=True)
    (folder / "guide" / "setup.md").write_text(
        "# Setup\n\n## Install\n\nRun the installer twice.\n"
    )
    (folder / "rates.csv").write_text("country,rate\nNorway,25\nChad,18\n")
    return folder


async def summary(providers: Any) -> dict[str, Any]:
    [found] = await (await refresh_providers(providers)).describe_all()
    return dict(found)


async def test_passages_have_their_place_in_the_file(opened: OpenProviders, docs: Path) -> None:
    async with opened(handbook={"path": str(docs)}) as providers:
        await refresh_providers(providers)
        [best, *_] = (await providers.search("how often does the installer run"))["passages"]
        first, last = best["span"]["lines"]
        assert (docs / best["name"]).read_text().split("\n")[first - 1 : last] == best[
            "text"
        ].split("\n")
        assert best["uri"] == f"knowledge://handbook/guide/setup.md#L{first}-{last}"
        assert (best["source"], best["title"]) == ("handbook", "Setup > Install")
        assert (await providers.get(best["uri"]))["text"] == best["text"]
        [row, *_] = (await providers.search("rate in Norway"))["passages"]
        assert (row["name"], row["title"]) == ("rates.csv", "rows 1-3 of country,rate")


async def test_skipped_files_are_reported_with_the_reason(
    opened: OpenProviders, docs: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "secret.md"
    outside.write_text("the launch code")
    (docs / "link.md").symlink_to(outside)
    (docs / "loop").symlink_to(docs)
    (docs / ".env.md").write_text("hidden words")
    (docs / "image.md").write_bytes(b"\x89PNG\0\1")
    (docs / "latin.txt").write_bytes("größe".encode("latin-1"))
    (docs / "movie.mp4").write_bytes(b"x")
    (docs / "esc\x1b[2J.md").write_text("x")
    (docs / "huge.md").touch()
    os.truncate(docs / "huge.md", 1 << 30)
    os.mkfifo(docs / "pipe.md")
    (docs / b"\xff.md".decode("utf-8", "surrogateescape")).write_text("x")
    async with opened(handbook={"path": str(docs)}) as providers:
        found = await summary(providers)
        assert found["documents"] == 2
        assert {reason: each["count"] for reason, each in found["skipped"].items()} == {
            "a link": 2,
            "hidden": 1,
            "not text": 1,
            "not UTF-8": 1,
            "of an unknown format": 1,
            "not a printable name": 2,
            "too large": 1,
            "not a regular file": 1,
        }
        assert all(
            name.isprintable() for each in found["skipped"].values() for name in each["names"]
        )
        assert await search_texts(providers, "launch code hidden words") == []


@pytest.mark.parametrize(
    "uri",
    [
        "knowledge://handbook/../secret.md",
        "knowledge://handbook/guide/../../secret.md",
        "knowledge://handbook/%2e%2e/secret.md",
        "knowledge://handbook//etc/passwd",
        "knowledge://handbook/.hidden.md",
        "knowledge://handbook/left.md",
        "knowledge://handbook/guide",
        "knowledge://handbook/",
        "knowledge://handbook",
        "knowledge://wiki/guide/setup.md",
        "knowledge:///guide/setup.md",
        "file:///etc/passwd",
        "skill://x/SKILL.md",
        "guide/setup.md",
        "",
        "knowledge://handbook/guide/setup.md#lines",
        "knowledge://handbook/guide/setup.md\0",
    ],
)
async def test_nothing_outside_the_documents_can_be_read(
    opened: OpenProviders, docs: Path, tmp_path: Path, uri: str
) -> None:
    (tmp_path / "secret.md").write_text("the launch code")
    (docs / ".hidden.md").write_text("x")
    (docs / "left.md").write_text("x")
    async with opened(handbook={"path": str(docs), "exclude": ["left.md"]}) as providers:
        with pytest.raises(CallFailed) as caught:
            await providers.get(uri)
        assert caught.value.kind in ("not_found", "unknown_provider")


def test_a_path_that_is_replaced_by_a_link_is_not_followed(docs: Path, tmp_path: Path) -> None:
    folder = FolderProvider(docs)
    assert "guide/setup.md" in folder.names()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "setup.md").write_text("the launch code")
    (docs / "guide").rename(docs / "moved")
    (docs / "guide").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="Not a directory"):
        folder.read("guide/setup.md")
    for name in ("../secret.md", "/etc/passwd", "guide//setup.md", "./rates.csv"):
        with pytest.raises(DocumentSkipped):
            folder.read(name)


def test_a_file_that_grows_during_the_read_is_skipped(docs: Path) -> None:
    os.truncate(docs / "rates.csv", MAX_DOCUMENT_BYTES + 1)
    with pytest.raises(DocumentSkipped, match="too large"):
        FolderProvider(docs).read("rates.csv")


async def test_a_folder_that_vanishes_is_reported_and_indexed_texts_are_still_found(
    opened: OpenProviders, docs: Path
) -> None:
    async with opened(handbook={"path": str(docs)}) as providers:
        assert len(await search_texts(providers, "installer")) == 1
        os.rename(docs, docs.with_name("gone"))
        assert len(await search_texts(providers, "installer")) == 1
        assert (
            "cannot be read: No such file" in (await providers.search("installer"))["problems"][0]
        )
        with pytest.raises(CallFailed, match="cannot be read"):
            await providers.get("knowledge://handbook/guide/setup.md")
        os.rename(docs.with_name("gone"), docs)
        await refresh_providers(providers)
        assert (await providers.search("installer"))["problems"] == []


async def test_a_missing_folder_is_reported(opened: OpenProviders, docs: Path) -> None:
    for path in (docs / "none", docs / "rates.csv"):
        async with opened(handbook={"path": str(path)}) as providers:
            found = await summary(providers)
            assert (
                found["documents"],
                f"The folder {path} cannot be read" in found["problem"],
            ) == (0, True)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.md", ["a.md", "b/c/a.md"], ["a.mdx", "md", "a.md/b"]),
        ("docs/*.md", ["docs/a.md"], ["docs/b/a.md", "x/docs/a.md"]),
        ("**/*.md", ["a.md", "b/c/a.md"], ["a.txt"]),
        ("drafts/", ["drafts/", "drafts/a", "drafts/b/c"], ["drafts", "x/drafts/a"]),
        ("drafts/**", ["drafts/", "drafts/a", "drafts/b/c"], ["drafts", "drafts2/a"]),
        ("node_modules", ["node_modules/", "a/node_modules/"], ["node_modules2"]),
        ("a/**/b.md", ["a/b.md", "a/x/y/b.md"], ["ab.md", "a/xb.md"]),
        ("v?.[x]", ["v1.[x]"], ["v1.x", "v12.[x]"]),
    ],
)
def test_patterns_match_paths(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [path for path in (*yes, *no) if compile_glob(pattern).fullmatch(path)] == yes


async def test_an_included_file_is_read_whatever_its_suffix(
    opened: OpenProviders, docs: Path
) -> None:
    (docs / "tool.py").write_text("def frobnicate(): ...\n")
    async with opened(code={"path": str(docs), "include": ["*.py"]}) as providers:
        assert await search_texts(providers, "frobnicate installer") == ["def frobnicate(): ..."]
