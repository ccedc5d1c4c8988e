"""Hooks of mkdocs: pages from the root of the repository, generated parts, and links to both.

A link in `docs/` is written for readers of the repository. `DOCUMENTS` says which page of the site
has the same text.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

from docsite.reference_pages import ROOT, fill_marks

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

DOCUMENTS = {  # of the repository's root, with their names on the site
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
REPLACED = {"README.md": "index.md", "server.toml": "reference/settings.md"}
LINK = re.compile(r"(?P<head>\]\()(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents of the repository's root."""
    for name, page in DOCUMENTS.items():
        text = (ROOT / name).read_text("utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is generated, and let links lead to pages of the site."""
    uri = page.file.src_uri
    is_from_root = uri in DOCUMENTS.values()
    folder = "" if is_from_root else posixpath.join("docs", posixpath.dirname(uri))

    def replace_link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, found["target"]))
        target = DOCUMENTS.get(path) or REPLACED.get(path)
        if target is None:
            if not is_from_root or not path.startswith("docs/"):
                return found[0]
            target = path.removeprefix("docs/")
        relative = posixpath.relpath(target, posixpath.dirname(uri) or ".")
        return f"{found['head']}{relative}{found['anchor'] or ''})"

    return LINK.sub(replace_link, fill_marks(markdown))
