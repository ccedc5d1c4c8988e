"""The documents are true: commands are understood, settings load, links lead somewhere.

Whatever a user can name (tools, parameters, settings, verbs, error codes, metrics) is documented.
"""

from __future__ import annotations

import json
import re
import shlex
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

from docsite.reference_pages import (
    GENERATORS,
    MARK,
    fill_marks,
    list_error_classes,
    list_metrics,
    list_settings,
    walk_commands,
)
from mcpruntime_server import APP_NAME, errors
from mcpruntime_server.cli.command_line import COMMAND_MODULES, command_line
from mcpruntime_server.config import Config, load_config
from mcpruntime_server.config.models import SETTINGS_TABLES, KnowledgeSettings, UpstreamSettings
from mcpruntime_server.config.validation import setting_types
from mcpruntime_server.service import metrics

from .markdown import (
    DOCUMENTS,
    ROOT,
    list_anchors,
    list_blocks,
    list_links,
    read_document,
)

README = read_document("README.md")
ARCHITECTURE = read_document("ARCHITECTURE.md")
COMMAND = re.compile(r"^(mcpruntime-server [^#\n]+)", re.MULTILINE)
INLINE_COMMAND = re.compile(r"`(mcpruntime-server [^`\n]+)`")
ENVIRONMENT = {"TRACKER_TOKEN": "secret", "GITHUB_TOKEN": "secret"}
MAX_README_LINES = 150


def commands_of(document: Path) -> list[str]:
    found = INLINE_COMMAND.findall(read_document(document))
    for block in list_blocks(document, "sh"):
        found += COMMAND.findall(block.text)
    return sorted({line.strip() for line in found})


def parse_command(line: str) -> dict[str, Any]:
    """Return the parameters that a command line gets; raises `click.UsageError`."""
    command: click.Command | None = command_line
    words = shlex.split(line)[1:]
    context = command_line.make_context(APP_NAME, words)
    parameters = dict(context.params)
    while isinstance(command, click.Group) and (words := [*context._protected_args, *context.args]):
        name, command, words = command.resolve_command(context, words)
        assert command is not None
        context = command.make_context(name, words, parent=context)
        parameters |= context.params
    return parameters


COMMANDS = [
    (document, command)
    for document in DOCUMENTS
    for command in commands_of(document)
    if "COMMAND" not in command and document.name != "CHANGELOG.md"
]


@pytest.mark.parametrize(
    ("document", "command"), COMMANDS, ids=[f"{file.name}: {line}" for file, line in COMMANDS]
)
def test_every_command_in_the_documents_is_understood(document: Path, command: str) -> None:
    with suppress(click.exceptions.Exit):  # `--version` ends at once
        parse_command(command)


def test_readme_is_short_and_has_a_picture() -> None:
    assert len(README.splitlines()) <= MAX_README_LINES
    assert re.search(r'<img src="docs/images/[\w-]+\.png" alt=".+">', README)


# links --------------------------------------------------------------------------------------------


@cache
def find_anchors(file: Path) -> set[str]:
    return list_anchors(fill_marks(file.read_text("utf-8")))


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    broken = []
    for target in list_links(document):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+://|mailto:", target) or anchor in ("only-light", "only-dark"):
            continue
        file = (ROOT / document).parent / path if path else ROOT / document
        if not file.exists() or (anchor and anchor not in find_anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_the_navigation_and_is_linked() -> None:
    pages = {path.relative_to("docs").as_posix() for path in DOCUMENTS if path.parts[0] == "docs"}
    navigation = re.findall(r": ([\w/-]+\.md)$", read_document("mkdocs.yml"), re.MULTILINE)
    assert pages - set(navigation) == set()
    linked = {
        ((ROOT / document).parent / target.partition("#")[0]).resolve()
        for document in DOCUMENTS
        for target in list_links(document)
    }
    assert [page for page in pages - {"index.md"} if ROOT / "docs" / page not in linked] == []


def test_every_picture_of_the_documents_has_a_text() -> None:
    assert re.findall(r"!\[\]\(", "".join(map(read_document, DOCUMENTS))) == []


# what a user can name -----------------------------------------------------------------------------


def test_every_command_is_documented() -> None:
    pages = "\n".join(read_document(document) for document in DOCUMENTS)
    assert [name for name in COMMAND_MODULES if f"{APP_NAME} {name}" not in pages] == []
    generated = GENERATORS["command-line"]()
    names = [context.command_path for context, _ in walk_commands()]
    assert len(names) > len(COMMAND_MODULES)
    assert [name for name in names if f"```text\n{name} " not in generated] == []


def test_every_option_of_a_command_says_what_it_does() -> None:
    silent = [
        f"{context.command_path} {option.opts[-1]}"
        for context, command in walk_commands()
        for option in command.params
        if isinstance(option, click.Option) and not option.help and not option.hidden
    ]
    assert silent == []


def test_every_setting_is_documented() -> None:
    listed = {table: [each.name for each in rows] for table, (_, rows) in list_settings().items()}
    for table, model in SETTINGS_TABLES.items():
        names = list(setting_types(model))
        inner = [name for name in names if f"{table}.{name}" in listed]
        assert [*listed[table], *inner] == [name for name in names if name not in inner] + inner
    assert set(listed["mcpServers.NAME"]) == set(setting_types(UpstreamSettings))
    assert set(listed["knowledge.NAME"]) == set(setting_types(KnowledgeSettings))
    silent = [
        f"[{table}] {each.name}"
        for table, (_, rows) in list_settings().items()
        for each in rows
        if not each.reason
    ]
    assert silent == []


def test_every_error_code_is_documented() -> None:
    table = GENERATORS["error-codes"]()
    codes = {cls.code for cls in list_error_classes()}
    assert {code for code in codes if f"`{code}`" not in table} == set()
    assert [cls for cls in list_error_classes() if not cls.__doc__] == []
    assert errors.Conflict in list_error_classes(), "classes of classes count, too"


def test_every_metric_is_documented() -> None:
    source = Path(metrics.__file__).read_text("utf-8")
    named = re.findall(r'\{PREFIX\}_(\w+)"|build_gauge\(\s*"(\w+)"', source)
    expected = {f"{metrics.PREFIX}_{first or second}" for first, second in named}
    listed = {each.name.removesuffix("_total") for each in list_metrics()}
    assert expected == listed
    assert [each.name for each in list_metrics() if not each.meaning] == []


def test_every_mark_for_generated_parts_is_known_and_used() -> None:
    used = [name for document in DOCUMENTS for name in MARK.findall(read_document(document))]
    assert sorted(used) == sorted(GENERATORS)


# examples -----------------------------------------------------------------------------------------


def test_the_settings_in_the_documents_load(tmp_path: Path) -> None:
    servers, providers = set(), set()
    blocks = [block for document in DOCUMENTS for block in list_blocks(document, "toml")]
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.toml"
        file.write_text(block.text, "utf-8")
        config = load_config(file, environ=ENVIRONMENT)
        servers |= set(config.mcpServers)
        providers |= set(config.knowledge)
    assert servers == {"git", "time", "tracker"}
    assert providers == {"handbook", "shop", "modules"}


@pytest.mark.parametrize("document", ["README.md", "docs/install.md"])
def test_the_client_configuration_in_the_documents_starts_this_program(document: str) -> None:
    [block] = list_blocks(document, "json")
    entry = json.loads(block.text)["mcpServers"]["runtime"]
    assert entry["command"] == "mcpruntime-server"
    assert parse_command(shlex.join([entry["command"], *entry["args"]]))["stdio"]


def test_json_in_the_documents_is_valid() -> None:
    for document in DOCUMENTS:
        for block in list_blocks(document, "json"):
            json.loads(block.text)


def test_make_targets_in_the_documents_exist() -> None:
    makefile = read_document("Makefile")
    pages = "\n".join(read_document(document) for document in DOCUMENTS)
    targets = set(re.findall(r"(?:^|`)make ([\w-]+)", pages, re.MULTILINE))
    assert targets
    assert {
        target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)
    } == set()


def test_the_limits_in_security_md_are_the_defaults() -> None:
    security = read_document("SECURITY.md")
    rows = re.findall(r"^\|[^|]*\|([^|]*`\[(\w+)\] [^|]*)\|([^|]*)\|$", security, re.MULTILINE)
    assert rows
    for names, section, defaults in rows:
        for name in re.findall(r"(\w+)`", names):
            value = getattr(getattr(Config(), section), name, None)
            shown = f"{value:,g}" if isinstance(value, int | float) else str(value or "")
            assert shown in defaults, (section, name)


def test_every_room_in_architecture_md_exists() -> None:
    drawn = re.search(r"## Rooms\n```\n(.*?)```", ARCHITECTURE, re.DOTALL)
    assert drawn is not None
    named = [line.split()[0] for line in drawn[1].splitlines()]
    source = ROOT / "src" / "mcpruntime_server"
    assert [name for name in named if not (source / name).exists()] == []
    there = {path.name for path in source.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert there - {name.rstrip("/") for name in named} - {"__init__.py", "__pycache__"} == set()
