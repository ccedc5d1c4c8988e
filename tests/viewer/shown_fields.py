"""What templates show: every expression in them, and which of them have shown foreign text.

As a script, this is `mcpruntime-server` with templates that note what they show:
`shown_fields.py --config SETTINGS serve` writes a line into `SHOWN_FILE` beside the settings for
each kind of text that an expression shows for the first time.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from jinja2 import Environment, PackageLoader, nodes
from jinja2.defaults import DEFAULT_NAMESPACE
from markupsafe import Markup

TemplateSource = tuple[str, str, Callable[[], bool] | None]

SHOWN_FILE = "shown.jsonl"
ROOMS = ("viewer", "exports", "service")  # with templates of pages
EXPRESSION = re.compile(r"\{\{(.+?)\}\}", re.DOTALL)
HOSTILE = re.compile(r"alert\(|onerror=|attacker\.test")
MARKUP = re.compile(r'[<>"&\x00-\x08\x0b-\x1f]')
FIGURES = {"count_of", "duration", "format", "int", "isotime", "length", "max", "min", "money"}
FIGURES |= {"showtime", "size", "urlencode"}  # filters whose results have no markup in them


def list_templates() -> Mapping[str, str]:
    """Return the source of each template of a page, as "viewer/panel.html"."""
    return {
        f"{room}/{each.name}": each.read_text()
        for room in ROOMS
        for each in (files("mcpruntime_server") / room / "templates").iterdir()
        if ".html" in each.name
    }


def list_fields() -> Iterator[str]:
    """Yield the expressions that templates show, but those of figures and of own words."""
    environment = Environment()
    environment.filters |= dict.fromkeys(FIGURES)
    for name, source in list_templates().items():
        for found in EXPRESSION.finditer(source):
            [output] = environment.parse(found[0]).body
            assert isinstance(output, nodes.Output)
            if not all(shows_own_text(each) for each in output.nodes):
                yield f"{name}: {found[1].strip()}"


def shows_own_text(node: nodes.Expr) -> bool:
    """Return whether an expression shows constants and figures only."""
    match node:
        case nodes.Const() | nodes.TemplateData() | nodes.Add() | nodes.Sub():
            return True
        case nodes.CondExpr():
            return all(each is None or shows_own_text(each) for each in (node.expr1, node.expr2))
        case nodes.Getitem(node=nodes.Dict(items=items)):
            return all(shows_own_text(each.value) for each in items)
        case nodes.Filter():
            return node.name in FIGURES
    return False


class FieldRecorder:
    """Notes what expressions show, in a file; `note` is called where a template shows a value."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._known: set[tuple[str, str]] = set()

    def note(self, field: str, value: Any) -> Any:
        """Return the value that a field shows."""
        text = str(value)
        kinds = {
            "number": isinstance(value, int | float),
            "hostile": bool(HOSTILE.search(text)),
            "markup": not isinstance(value, Markup) and bool(MARKUP.search(text)),
        }
        for kind in [kind for kind, is_it in kinds.items() if is_it] or ["plain"]:
            if text and (field, kind) not in self._known:
                self._known.add((field, kind))
                self._file.write(json.dumps([field, kind]) + "\n")
                self._file.flush()
        return value


def note_in(source: str, name: str) -> str:
    """Return a template that notes what it shows."""

    def wrap(found: re.Match[str]) -> str:
        field = json.dumps(f"{name}: {found[1].strip()}")
        return f"{{{{ note_field({field}, {found[1]}) }}}}"

    return EXPRESSION.sub(wrap, source)


def note_templates(recorder: FieldRecorder) -> None:
    """Let all templates of pages in this process note what they show."""
    DEFAULT_NAMESPACE["note_field"] = recorder.note
    get_source = PackageLoader.get_source

    def get_noting_source(
        self: PackageLoader, environment: Environment, template: str
    ) -> TemplateSource:
        source, path, is_current = get_source(self, environment, template)
        room = self.package_name.rpartition(".")[2]
        if room in ROOMS:
            source = note_in(source, f"{room}/{template}")
        return source, path, is_current

    PackageLoader.get_source = get_noting_source  # type: ignore[method-assign]


def read_shown(file: Path) -> Mapping[str, set[str]]:
    """Return the kinds of texts that each field has shown."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for line in file.read_text().splitlines():
        field, kind = json.loads(line)
        kinds[field].add(kind)
    return kinds


def main() -> int:
    """Run the command line with templates that note what they show."""
    from mcpruntime_server.cli import main as run_command
    from mcpruntime_server.service.credential_pages import load_page_template
    from mcpruntime_server.viewer.page_rendering import load_templates

    settings = Path(sys.argv[sys.argv.index("--config") + 1])
    with settings.with_name(SHOWN_FILE).open("w") as file:
        note_templates(FieldRecorder(file))
        load_page_template.cache_clear()  # the fork server has compiled them
        load_templates.cache_clear()
        return run_command(sys.argv[1:])


if __name__ == "__main__":
    main()
