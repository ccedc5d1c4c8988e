"""The documentation site is built without warnings and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docsite.hooks import DOCUMENTS as ROOT_DOCUMENTS

from .markdown import DOCUMENTS, ROOT

EXTERNAL = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]+"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an advertisement of the theme
    built = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_every_document_is_a_page(site: Path) -> None:
    pages = [path.relative_to("docs") for path in DOCUMENTS if path.parts[0] == "docs"]
    pages += [Path(name) for name in ROOT_DOCUMENTS.values()]
    assert [page for page in pages if not (site / page.with_suffix(".html")).exists()] == []


def test_generated_parts_are_in_the_pages(site: Path) -> None:
    for page, text in (
        ("settings", "MCPRUNTIME_SANDBOX__BACKEND"),
        ("command-line", "replay rewind"),
        ("errors", "replay_diverged"),
        ("metrics", "mcpruntime_runs_total"),
    ):
        html = (site / "reference" / f"{page}.html").read_text("utf-8")
        assert text in html
        assert "generated:" not in html


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert EXTERNAL.findall(page.read_text("utf-8")) == [], page.name
