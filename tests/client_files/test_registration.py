"""Registering this server in the files of clients: what stays, and what comes back."""

from __future__ import annotations

import difflib
import os
import stat
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mcpruntime_server.client_files import text_files
from mcpruntime_server.client_files.client_documents import parse_text, read_table, server_key
from mcpruntime_server.client_files.client_kinds import CLIENTS
from mcpruntime_server.client_files.registration import FileChange, Registration, find_own_entries
from mcpruntime_server.errors import ConfigError, Conflict, NotFound, Unavailable

from .client_homes import CONFIGURATIONS, SAMPLES, ClientHome, make_home, make_places

COMMAND = ["/opt/bin/mcpruntime-server", "--stdio"]
KEYS = {name: kind.key for name, kind in CLIENTS.items()}


def register(client: ClientHome, **env: str) -> FileChange:
    return registration_of(client).install(COMMAND, env)


def registration_of(client: ClientHome, name: str = "runtime") -> Registration:
    return Registration(client.kind, client.file, client.places.home / "state", name)


def content_of(client: ClientHome) -> dict[str, Any]:
    return parse_text(client.kind, client.file.read_bytes().decode(), client.file)


def servers_of(client: ClientHome) -> dict[str, Any]:
    content = content_of(client)
    return dict(read_table(content, server_key(client.kind, content)))


@pytest.fixture(params=SAMPLES)
def client(request: pytest.FixtureRequest, tmp_path: Path) -> ClientHome:
    """Each client in turn, with its sample."""
    return make_home(request.param, tmp_path)


def test_only_lines_are_added_and_all_others_stay(client: ClientHome) -> None:
    before, servers = client.file.read_text(), servers_of(client)
    register(client, TOKEN="t")
    after = client.file.read_text()
    assert {name: entry for name, entry in servers_of(client).items() if name != "runtime"} == (
        servers
    )
    compared = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    removed = [line[2:] for line in compared if line.startswith("- ")]
    assert len(removed) <= 1  # the line before gets a comma, where there was none
    assert all(f"{line}," in after for line in removed)
    (entry,) = find_own_entries(client.kind, client.file).values()
    variables = entry.get("env") or entry.get("environment")
    assert variables == {"TOKEN": "t"}


def test_a_second_time_changes_nothing(client: ClientHome) -> None:
    register(client, TOKEN="t")
    first = client.file.read_bytes()
    assert not register(client).is_change
    assert client.file.read_bytes() == first
    assert servers_of(client)["runtime"] is not None


def test_uninstalling_restores_the_file_byte_for_byte(client: ClientHome) -> None:
    before = client.file.read_bytes()
    register(client, TOKEN="t")
    assert client.file.read_bytes() != before
    registration_of(client).uninstall()
    assert client.file.read_bytes() == before
    with pytest.raises(NotFound, match="does not have this server"):
        registration_of(client).uninstall()


@pytest.mark.parametrize("change", ["crlf", "mark", "no newline", "blank lines"])
def test_line_ends_marks_and_blank_lines_stay(client: ClientHome, change: str) -> None:
    data = client.file.read_bytes()
    is_marked = change == "mark" and client.kind.syntax == "json"
    variants = {
        "crlf": data.replace(b"\n", b"\r\n"),
        "mark": b"\xef\xbb\xbf" + data if is_marked else data,
        "no newline": data.rstrip(b"\n"),
        "blank lines": data.replace(b"\n", b"\n\n") + b"\n\n",
    }
    client.write(variants[change])
    register(client)
    text = client.file.read_bytes()
    assert "runtime" in servers_of(client)
    assert text.count(b"\n") == text.count(b"\r\n") or change != "crlf"
    registration_of(client).uninstall()
    assert client.file.read_bytes() == variants[change]


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("text", ["", "  \n\n", None])
def test_an_empty_or_absent_file_comes_back_too(
    name: str, text: str | None, tmp_path: Path
) -> None:
    client = ClientHome(CLIENTS[name], make_places(tmp_path))
    if text is not None:
        client.write(text.encode())
    register(client)
    assert list(servers_of(client)) == ["runtime"]
    registration_of(client).uninstall()
    if text is None:
        assert [path for path in tmp_path.iterdir() if path.name != "state"] == []
    else:
        assert client.file.read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"mcpServers":{}}',
        '{"mcpServers": {\n  }\n}\n',
        '{\n\t"mcpServers": {\n\t\t// none yet\n\t}\n}',
        '{"a": 1, "mcpServers": {"x": {"command": "y"}}, "b": [1, 2,], }',
        '{ "b": {} // the end\n}',
        '{"mcpServers": {"x": {"command": "y"},}}',
        '{"mcpServers": {"x": {"command": "y"} /* one */ }, "z": "}"}\n',
        '{"mcpServers": {\n"x": {"command": "y"} }}',
    ],
)
def test_unusual_spacing_comes_back(text: str, tmp_path: Path) -> None:
    client = ClientHome(CLIENTS["cursor"], make_places(tmp_path))
    client.write(text.encode())
    before = content_of(client)
    register(client)
    after = content_of(client)
    assert after["mcpServers"].pop("runtime")["command"] == COMMAND[0]
    assert {**after, "mcpServers": after["mcpServers"]} == {"mcpServers": {}, **before}
    registration_of(client).uninstall()
    assert client.file.read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        'mcp_servers = { x = { command = "y" } }\nmodel = "m"\n',
        '[mcp_servers]\n[mcp_servers.x]\ncommand = "y"\n\n[tui]\na = 1',
        'mcp_servers.x.command = "y"\n',
        '[[list]]\na = 1\n[mcp_servers.x]\ncommand = """\ny"""\n# end',
    ],
)
def test_unusual_tables_come_back(text: str, tmp_path: Path) -> None:
    client = ClientHome(CLIENTS["codex"], make_places(tmp_path))
    client.write(text.encode())
    register(client)
    assert list(servers_of(client)) == ["x", "runtime"]
    registration_of(client).uninstall()
    assert client.file.read_text() == text


def test_what_others_write_meanwhile_stays(client: ClientHome) -> None:
    servers = servers_of(client)
    register(client, TOKEN="t")
    note = b"\n# later\n" if client.kind.syntax == "toml" else b"\n// later\n"
    client.write(client.file.read_bytes() + note)
    registration_of(client).uninstall()
    assert client.file.read_bytes().endswith(note)
    assert servers_of(client) == servers


def test_tables_that_were_made_go_though_others_have_written(tmp_path: Path) -> None:
    client = ClientHome(CLIENTS["cursor"], make_places(tmp_path))
    client.write(b'{\n  "a": 1\n}\n')
    register(client)
    client.write(client.file.read_bytes().replace(b'"a": 1', b'"a": 2'))
    registration_of(client).uninstall()
    assert client.file.read_bytes() == b'{\n  "a": 2\n}\n'


def test_an_entry_keeps_what_a_person_has_added(client: ClientHome) -> None:
    register(client, TOKEN="t")
    Registration(client.kind, client.file, client.places.home / "state").install(
        ["/new/mcpruntime-server", "--stdio", "--config", "/etc/x.toml"], {"OTHER": "o"}
    )
    (entry,) = find_own_entries(client.kind, client.file).values()
    assert (entry.get("env") or entry.get("environment")) == {"TOKEN": "t", "OTHER": "o"}
    assert "/etc/x.toml" in [*entry.get("args", []), *entry["command"]]
    registration_of(client).uninstall()
    assert "runtime" not in servers_of(client)


def test_another_server_of_the_same_name_stays(client: ClientHome) -> None:
    taken = next(iter(servers_of(client)))
    before = client.file.read_bytes()
    with pytest.raises(Conflict, match="--name"):
        registration_of(client, taken).install(COMMAND, {})
    with pytest.raises(NotFound):
        registration_of(client, taken).uninstall()
    assert client.file.read_bytes() == before


def test_a_trial_writes_nothing(client: ClientHome) -> None:
    before = client.file.read_bytes()
    change = registration_of(client).install(COMMAND, {}, is_trial=True)
    assert change.is_change
    assert client.file.read_bytes() == before
    register(client)
    registered = client.file.read_bytes()
    assert registration_of(client).uninstall(is_trial=True).after == before.decode()
    assert client.file.read_bytes() == registered


# files that cannot be changed ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("claude-desktop", '{\n  "mcpServers": {\n    "a": {"command": "b"\n  }\n}', "line 5"),
        ("cursor", '{"mcpServers": {}\n"x": 1}', "line 2"),
        ("vscode", '{\n"servers": {"a": "unfinished}\n}', "line 2"),
        ("zed", "{\n/* never ends\n}", "line 2"),
        ("gemini", '{"a": nul}', "line 1"),
        ("windsurf", '{"mcpServers": {}} {}', "line 1"),
        ("opencode", '{"mcp": []}', "line 1"),
        ("cursor", '{"mcpServers": {"a": {}, "a": {}}, "mcpServers":\n{}}', "lines 1, 1"),
        ("claude-code", "[" * 5000, "line 1"),
        ("claude-code", "[1]", "top level"),
        ("codex", 'model = "x"\n[mcp_servers.a\n', "line 2"),
        ("codex", 'mcp_servers = "none"\n', "no table"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(
    name: str, text: str, line: str, tmp_path: Path
) -> None:
    client = ClientHome(CLIENTS[name], make_places(tmp_path))
    client.write(text.encode())
    with pytest.raises(ConfigError, match=line) as caught:
        register(client)
    assert str(client.file) in str(caught.value)
    assert "Nothing was changed" in str(caught.value)
    assert client.file.read_text() == text


def test_a_file_that_is_not_text_is_refused(client: ClientHome) -> None:
    client.write(b"{\xff}")
    with pytest.raises(ConfigError, match="UTF-8"):
        register(client)
    assert client.file.read_bytes() == b"{\xff}"


def test_a_read_only_file_stays(client: ClientHome) -> None:
    before = client.file.read_bytes()
    client.file.chmod(0o444)
    with pytest.raises(ConfigError, match=r"read-only.*chmod u\+w"):
        register(client)
    assert (client.file.read_bytes(), client.file.stat().st_mode & 0o777) == (before, 0o444)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    client = ClientHome(CLIENTS["cursor"], make_places(tmp_path))
    client.file.mkdir(parents=True)
    with pytest.raises(ConfigError, match="is not a file"):
        register(client)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_mode_of_the_file_stays(client: ClientHome, mode: int) -> None:
    client.file.chmod(mode)
    register(client)
    assert stat.S_IMODE(client.file.stat().st_mode) == mode


def test_a_link_stays_and_its_target_is_written(client: ClientHome, tmp_path: Path) -> None:
    target = tmp_path / "dotfiles" / "config"
    target.parent.mkdir()
    client.file.rename(target)
    client.file.symlink_to(os.path.relpath(target, client.file.parent))
    before = target.read_bytes()
    register(client)
    assert client.file.is_symlink()
    assert b"mcpruntime-server" in target.read_bytes()
    assert sorted(path.name for path in target.parent.iterdir()) == ["config"]
    registration_of(client).uninstall()
    assert target.read_bytes() == before
    assert client.file.is_symlink()


def test_a_link_to_nothing_makes_its_target(tmp_path: Path) -> None:
    client = ClientHome(CLIENTS["cursor"], make_places(tmp_path))
    client.file.parent.mkdir()
    client.file.symlink_to(tmp_path / "later.json")
    register(client)
    assert client.file.is_symlink()
    assert "runtime" in (tmp_path / "later.json").read_text()


def test_a_change_in_between_is_kept(tmp_path: Path) -> None:
    """A client writes its file while the new text is computed: its change must not be lost."""
    path = tmp_path / "mcp.json"
    path.write_text("first")
    seen = []

    def change(file: text_files.TextFile) -> str:
        seen.append(file.text)
        if len(seen) == 1:
            path.write_text("second")
        return f"{file.text} and more"

    text_files.edit_text_file(path, change)
    assert (seen, path.read_text()) == (["first", "second"], "second and more")


def test_a_file_that_is_written_all_the_time_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text("")

    def change(file: text_files.TextFile) -> str:
        path.write_text(f"{file.text}x")
        return "ours"

    with pytest.raises(Unavailable, match="again and again"):
        text_files.edit_text_file(path, change)
    assert path.read_text() == "x" * text_files.EDIT_TRIES
    assert list(tmp_path.iterdir()) == [path]


def install_named(name: str, home: Path) -> None:
    """Register this server under a name; runs in a process of its own."""
    client = ClientHome(CLIENTS["cursor"], make_places(home))
    registration_of(client, name).install(COMMAND, {})


def test_processes_that_change_a_file_at_once_lose_nothing(tmp_path: Path) -> None:
    client = make_home("cursor", tmp_path)
    names = [f"runtime{number}" for number in range(8)]
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(install_named, names, [tmp_path] * len(names)))
    assert set(names) < set(servers_of(client))


def test_opencode_2_has_its_servers_in_a_table_of_their_own(tmp_path: Path) -> None:
    client = ClientHome(CLIENTS["opencode"], make_places(tmp_path))
    before = (CONFIGURATIONS / "opencode_2.jsonc").read_bytes()
    client.write(before)
    register(client)
    entry = content_of(client)["mcp"]["servers"]["runtime"]
    assert entry == {"type": "local", "command": COMMAND}
    registration_of(client).uninstall()
    assert client.file.read_bytes() == before
