"""Taking over the servers of clients: their meaning, their credentials, and what stays behind."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from mcpruntime_server.app.tool_costs import name_tool_rule
from mcpruntime_server.client_files.client_documents import find_tables, guess_kind
from mcpruntime_server.client_files.client_kinds import CLIENTS
from mcpruntime_server.client_files.masking import mask_credentials
from mcpruntime_server.client_files.server_import import (
    ImportPlan,
    add_servers,
    list_rules,
    plan_import,
    remove_from_client,
    without_servers,
)
from mcpruntime_server.client_files.text_files import read_text_file
from mcpruntime_server.config import load_config
from mcpruntime_server.errors import ConfigError

from .client_homes import CONFIGURATIONS, SAMPLES, ClientHome, make_home, make_places

SECRETS = {  # by client: what must not be in the settings
    "claude-desktop": ["ghp_A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8", "s3cret-Pa55"],
    "claude-code": ["BSAxx7Yp0q3rT9uVwXyZ"],
    "cursor": ["lin_api_K3yW1thManyChars00"],
    "vscode": [],
    "codex": ["dk-9f8e7d6c5b4a39281706"],
    "gemini": ["AIzaSyA1234567890abcdefghijklmnopqrstuv"],
    "opencode": ["correct-horse-battery-9"],
    "windsurf": ["xoxb-123456789012-abcdefABCDEF"],
    "zed": ["tok-0a1b2c3d4e5f"],
}
SETTINGS = Path("/nowhere/server.toml")


def plan_for(name: str, home: Path, settings: str = "", **environ: str) -> ImportPlan:
    client = make_home(name, home, **environ)
    file = read_text_file(client.file)
    return plan_import(client.kind, file, settings, SETTINGS, client.places)


def plan_text(name: str, text: str, home: Path, **environ: str) -> ImportPlan:
    client = ClientHome(CLIENTS[name], make_places(home, **environ))
    client.write(text.encode())
    return plan_import(client.kind, read_text_file(client.file), "", SETTINGS, client.places)


def entries_of(plan: ImportPlan) -> dict[str, Any]:
    return {server.name: dict(server.entry) for server in plan.servers}


def test_the_servers_of_claude_desktop(tmp_path: Path) -> None:
    plan = plan_for("claude-desktop", tmp_path)
    assert entries_of(plan) == {
        "filesystem": {
            "command": "npx",
            "args": ["-y", "@modelcontextprotocol/server-filesystem", "/home/ann/Documents"],
        },
        "github": {
            "command": "npx",
            "args": ["-y", "@modelcontextprotocol/server-github"],
            "env": {
                "GITHUB_PERSONAL_ACCESS_TOKEN": "${GITHUB_PERSONAL_ACCESS_TOKEN}",
                "LOG_LEVEL": "info",
            },
        },
        "postgres": {
            "command": "npx",
            "args": ["-y", "@modelcontextprotocol/server-postgres", "${POSTGRES_KEY}"],
        },
    }
    assert plan.secrets["POSTGRES_KEY"] == "postgresql://ann:s3cret-Pa55@db.example.com/shop"


def test_the_servers_of_claude_code_and_of_its_project(tmp_path: Path) -> None:
    plan = plan_for("claude-code", tmp_path)
    assert entries_of(plan) == {
        "sentry": {
            "url": "https://mcp.sentry.example/mcp",
            "headers": {"Authorization": "Bearer ${SENTRY_TOKEN}"},
        },
        "brave": {
            "command": "npx",
            "args": ["-y", "brave-search-mcp", "--api-key", "${BRAVE_API_KEY}"],
            "env": {"REGION": "${REGION:-eu}"},
        },
        "orders": {"command": "uvx", "args": ["orders-mcp"]},
    }
    assert "SSE" in plan.skipped["events"]
    assert plan.list_unset({}) == {"BRAVE_API_KEY": "brave", "SENTRY_TOKEN": "sentry"}
    assert plan.client_variables()["SENTRY_TOKEN"] == "${SENTRY_TOKEN}"


def test_the_servers_of_cursor(tmp_path: Path) -> None:
    plan = plan_for("cursor", tmp_path)
    assert entries_of(plan) == {
        "linear": {
            "url": "https://mcp.linear.example/mcp",
            "headers": {"X-Api-Key": "${LINEAR_X_API_KEY}"},
        },
        "sqlite": {
            "command": "uvx",
            "args": ["mcp-server-sqlite", "--db-path", f"{tmp_path}/shop.db"],
            "env": {"SQLITE_TOKEN": "${SQLITE_TOKEN}"},
        },
    }
    assert "${workspaceFolder}" in plan.skipped["here"]
    assert plan.client_variables()["SQLITE_TOKEN"] == "${env:SQLITE_TOKEN}"


def test_a_question_of_vs_code_becomes_a_variable_that_it_still_asks_for(tmp_path: Path) -> None:
    plan = plan_for("vscode", tmp_path)
    perplexity, playwright = plan.servers
    assert perplexity.entry["env"] == {"PERPLEXITY_API_KEY": "${PERPLEXITY_KEY}"}
    assert plan.client_variables() == {"PERPLEXITY_KEY": "${input:perplexity-key}"}
    assert playwright.source.ignored_keys == ("dev",)


def test_the_servers_of_codex(tmp_path: Path) -> None:
    plan = plan_for("codex", tmp_path)
    assert entries_of(plan) == {
        "docs": {
            "command": "npx",
            "args": ["-y", "docs-mcp"],
            "env": {"DOCS_API_KEY": "${DOCS_API_KEY}", "DOCS_LANG": "en"},
            "timeout_s": 90.0,
        },
        "figma": {
            "url": "https://mcp.figma.example/mcp",
            "headers": {
                "X-Figma-Region": "us-east-1",
                "Authorization": "Bearer ${FIGMA_OAUTH_TOKEN}",
            },
            "disabled": True,
        },
    }
    assert list_rules(plan, name_tool_rule) == {"docs.delete_page": "deny"}


def test_the_servers_of_gemini(tmp_path: Path) -> None:
    plan = plan_for("gemini", tmp_path)
    found = entries_of(plan)
    assert found["python"] == {
        "command": "python",
        "args": ["-m", "tools_server", "--port=9000"],
        "env": {"DB_PASSWORD": "${DB_PASSWORD}", "API_TOKEN": "${API_TOKEN}"},
        "cwd": "/home/ann/tools",
        "timeout_s": 15.0,
    }
    assert found["remote"]["url"] == "https://api.example.com/mcp?key=${REMOTE_URL_KEY}"
    assert list_rules(plan, name_tool_rule) == {
        "python.*": "deny",
        "python.search": "ask",
        "python.read": "ask",
    }


def test_the_servers_of_opencode(tmp_path: Path) -> None:
    plan = plan_for("opencode", tmp_path)
    assert entries_of(plan) == {
        "memory": {
            "command": "npx",
            "args": ["-y", "@modelcontextprotocol/server-memory"],
            "env": {"MEMORY_KEY": "${MEMORY_KEY}", "STORE_SECRET": "${STORE_SECRET}"},
        },
        "wiki": {"url": "https://wiki.example.com/mcp", "disabled": True},
    }
    assert "{file:~/.jira-token}" in plan.skipped["jira"]


def test_the_servers_of_windsurf_and_zed(tmp_path: Path) -> None:
    windsurf = plan_for("windsurf", tmp_path / "w")
    assert entries_of(windsurf)["figma"]["headers"] == {"API_KEY": "Bearer ${FIGMA_KEY}"}
    assert entries_of(windsurf)["slack"]["disabled"] is True
    assert list_rules(windsurf, name_tool_rule) == {"slack.slack_post_message": "deny"}
    zed = plan_for("zed", tmp_path / "z")
    assert entries_of(zed) == {
        "old-style": {
            "command": "/opt/old/server",
            "args": ["run"],
            "env": {"OLD_TOKEN": "${OLD_TOKEN}"},
        },
        "deploys": {"command": "/opt/deploys/mcp", "args": ["--template", "$${name}"]},
    }
    assert "an extension of Zed" in zed.skipped["postgres-context-server"]


@pytest.mark.parametrize("name", SAMPLES)
def test_the_settings_load_without_a_credential_in_them(name: str, tmp_path: Path) -> None:
    plan = plan_for(name, tmp_path)
    text = add_servers(plan, "", SETTINGS, name_tool_rule)
    assert [secret for secret in SECRETS[name] if secret in text] == []
    assert all(any(secret in value for value in plan.secrets.values()) for secret in SECRETS[name])
    file = tmp_path / "server.toml"
    file.write_text(text)
    unset = dict.fromkeys(plan.list_unset({}), "given-value")
    config = load_config(file, environ={**unset, **plan.secrets})
    assert {*config.mcpServers} == {server.name for server in plan.servers}
    for server in plan.servers:
        if server.settings and not server.settings.disabled:
            found = config.mcpServers[server.name]
            assert (found.args, found.url, found.env) == (
                server.settings.args,
                server.settings.url,
                server.settings.env,
            )
    again = plan_import(plan.kind, plan.file, text, SETTINGS, make_places(tmp_path))
    assert again.new_servers == []
    assert add_servers(again, text, SETTINGS, name_tool_rule) == text


@pytest.mark.parametrize("name", SAMPLES)
def test_only_the_servers_that_moved_leave_the_client(name: str, tmp_path: Path) -> None:
    plan = plan_for(name, tmp_path)
    before = plan.file.text
    backup = remove_from_client(plan)
    assert backup.read_text() == before
    assert backup.stat().st_mode & 0o077 == 0
    after = read_text_file(plan.file.path)
    tables = find_tables(plan.kind, after.text, after.path, make_places(tmp_path))
    left = {name for table in tables for name in table.entries}
    assert left == set(plan.skipped)
    comments = [line.strip() for line in before.splitlines() if line.strip()[:2] in ("//", "# ")]
    assert [line for line in comments if line not in after.text] == []


def test_an_entry_that_has_changed_since_stays(tmp_path: Path) -> None:
    plan = plan_for("claude-desktop", tmp_path)
    path = plan.file.path
    path.write_text(path.read_text().replace("/home/ann/Documents", "/home/ann/Desktop"))
    remove_from_client(plan)
    assert "/home/ann/Desktop" in path.read_text()
    assert "server-github" not in path.read_text()


def test_a_server_that_the_settings_have_with_other_values_stays(tmp_path: Path) -> None:
    plan = plan_for("claude-desktop", tmp_path, settings='[mcpServers.github]\ncommand = "other"\n')
    assert "github" not in entries_of(plan)
    assert "another server of this name" in plan.skipped["github"]
    assert "server-github" in without_servers(plan, plan.file)


def test_this_server_is_never_taken_over(tmp_path: Path) -> None:
    text = '{"mcpServers": {"a": {"command": "/x/mcpruntime-server"}, "b": {"command": "uvx", \
"args": ["mcpruntime-server", "--stdio"]}}}'
    plan = plan_text("cursor", text, tmp_path)
    assert (plan.servers, plan.skipped) == ([], {})


def test_one_name_never_stands_for_two_values(tmp_path: Path) -> None:
    entries = ", ".join(
        f'"{name}": {{"command": "x", "env": {{"API_TOKEN": "{value}"}}}}'
        for name, value in [("a", "secret-1a"), ("b", "secret-2b"), ("c", "secret-1a")]
    )
    plan = plan_text(
        "claude-desktop", f'{{"mcpServers": {{{entries}}}}}', tmp_path, API_TOKEN="mine-9"
    )
    named = [server.entry["env"]["API_TOKEN"] for server in plan.servers]
    assert named == ["${A_API_TOKEN}", "${B_API_TOKEN}", "${C_API_TOKEN}"]
    assert plan.secrets["A_API_TOKEN"] == plan.secrets["C_API_TOKEN"] == "secret-1a"


def test_a_value_that_is_set_already_needs_no_export(tmp_path: Path) -> None:
    text = '{"mcpServers": {"a": {"command": "x", "env": {"API_TOKEN": "secret-1a"}}}}'
    plan = plan_text("claude-desktop", text, tmp_path, API_TOKEN="secret-1a")
    assert plan.servers[0].entry["env"] == {"API_TOKEN": "${API_TOKEN}"}
    assert plan.list_unset({"API_TOKEN": "secret-1a"}) == {}


@pytest.mark.parametrize(
    "entry",
    [
        "1",
        "[]",
        "{}",
        '{"command": 5.5, "args": "no list"}',
        '{"command": ["x"], "args": {"a": 1}}',
        '{"command": "x", "env": ["a"]}',
        '{"command": "x", "env": {"A": {"b": 1}}}',
        '{"url": "ftp://x"}',
        '{"url": 3}',
        '{"command": "a\\u0000b"}',
        '{"url": "https://x", "headers": "no"}',
        '{"command": []}',
    ],
)
def test_an_entry_that_makes_no_sense_stays_with_a_reason(entry: str, tmp_path: Path) -> None:
    plan = plan_text("claude-desktop", f'{{"mcpServers": {{"odd": {entry}}}}}', tmp_path)
    assert plan.skipped.get("odd") or plan.servers
    assert entry == '{"command": 5.5, "args": "no list"}' or plan.skipped["odd"]


def test_texts_that_only_look_like_references_stay_texts(tmp_path: Path) -> None:
    text = '{"mcpServers": {"a": {"command": "x", "args": ["${HOME}", "$${b}", "$c"]}}}'
    (server,) = plan_text("claude-desktop", text, tmp_path, HOME="/h").servers
    assert server.settings is not None
    assert server.settings.args == ("${HOME}", "$${b}", "$c")


@pytest.mark.parametrize("name", [*SAMPLES.values(), "opencode_2.jsonc"])
def test_a_file_anywhere_is_read_by_its_form(name: str, tmp_path: Path) -> None:
    path = CONFIGURATIONS / name
    file = read_text_file(path)
    kind = guess_kind(path, file.text)
    plan = plan_import(kind, file, "", SETTINGS, make_places(tmp_path))
    assert plan.servers


@pytest.mark.parametrize("text", ["{}", '{"mcpServers": {}}', '{"servers": []}'])
def test_a_file_without_servers_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no MCP servers"):
        guess_kind(tmp_path / "x.json", text)


@pytest.mark.parametrize("name", SAMPLES)
def test_no_credential_is_shown(name: str) -> None:
    shown = mask_credentials((CONFIGURATIONS / SAMPLES[name]).read_text())
    assert [secret for secret in SECRETS[name] if secret in shown] == []
    if SAMPLES[name].endswith(".toml"):
        tomllib.loads(shown)


def test_rules_that_a_person_has_written_stay(tmp_path: Path) -> None:
    settings = '[policy.tools]\n"docs.delete_page" = "ask"  # I look at each\n'
    plan = plan_for("codex", tmp_path, settings=settings)
    text = add_servers(plan, settings, SETTINGS, name_tool_rule)
    assert text.startswith(settings)
