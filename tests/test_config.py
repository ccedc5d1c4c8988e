"""Settings are read from their sources in order, and every mistake is explained."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.config import Config, SecretText, SettingSources, load_config
from mcpruntime_server.config.diagnostics import find_key_lines
from mcpruntime_server.config.display import render_config
from mcpruntime_server.config.models import (
    SETTINGS_TABLES,
    BudgetLimits,
    KnowledgeSettings,
    UpstreamSettings,
)
from mcpruntime_server.config.validation import SettingsTable, setting_types
from mcpruntime_server.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without settings of its own."""
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings" / "mine.toml"


def loaded(file: Path, text: str, environ: Mapping[str, str] | None = None, **flags: Any) -> Config:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return load_config(
        file, {name.replace("__", "."): value for name, value in flags.items()}, environ or {}
    )


def refusal(file: Path, text: str, environ: Mapping[str, str] | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(file, text, environ, **flags)
    return str(caught.value)


# defaults -----------------------------------------------------------------------------------------


def test_server_toml_lists_every_setting_with_its_default() -> None:
    listed = tomllib.loads((ROOT / "server.toml").read_text())
    for section, model in SETTINGS_TABLES.items():
        assert list(listed.pop(section)) == list(setting_types(model))
    assert listed == {}
    shown = load_config(ROOT / "server.toml", environ={})
    assert (shown.sandbox, shown.policy) == (Config().sandbox, Config().policy)
    assert (
        replace(shown.server, data_dir=Path(), shims_dir=Path(), export_dir=Path())
        == Config().server
    )


def test_server_toml_names_every_key_of_an_upstream_with_its_default() -> None:
    text = (ROOT / "server.toml").read_text()
    for field in fields(UpstreamSettings):
        name = field.name
        assert f"# {name} = " in text
        if isinstance(field.default, bool | int | float):
            assert f"# {name} = {json.dumps(field.default)} " in text


def leaves(settings: Any) -> list[Any]:
    """Return the settings of a table that are not None, those of nested tables included."""
    values = [getattr(settings, name) for name in setting_types(type(settings))]
    inner = [value for value in values if isinstance(value, SettingsTable)]
    return [value for value in values if value is not None and value not in inner] + [
        leaf for each in inner for leaf in leaves(each)
    ]


def test_every_setting_has_a_reason_beside_it() -> None:
    lines = (ROOT / "server.toml").read_text().splitlines()
    settings = [line for line in lines if line[:1].isalpha()]
    assert len(settings) == sum(len(leaves(model())) for model in SETTINGS_TABLES.values())
    assert [line for line in settings if " # " not in line] == []


def test_without_a_file_data_lives_in_the_platforms_folder(home: Path) -> None:
    config = load_config(environ={})
    assert config.sources.file is None
    assert config.server.data_dir == platformdirs.user_data_path(
        "mcpruntime-server", appauthor=False
    )
    assert config.server.data_dir.is_relative_to(home)
    assert config.server.shims_dir == config.server.data_dir / "tool_shims"


# where settings come from -------------------------------------------------------------------------


def test_a_flag_overrides_a_variable_and_a_variable_the_file_and_the_default(file: Path) -> None:
    text = "[sandbox]\nmemory_mb = 1\npids = 1\ncpus = 1"
    environ = {
        "MCPRUNTIME_SANDBOX__MEMORY_MB": "2",
        "MCPRUNTIME_SANDBOX__PIDS": "2",
        "HOME": "/nowhere",
    }
    sandbox = loaded(file, text, environ, sandbox__memory_mb=3, sandbox__backend=None).sandbox
    assert (sandbox.memory_mb, sandbox.pids, sandbox.cpus, sandbox.tmp_mb, sandbox.backend) == (
        3,
        2,
        1.0,
        64,
        "auto",
    )


def test_the_file_is_named_by_flag_or_variable_or_is_in_the_platforms_folder(
    home: Path, file: Path
) -> None:
    usual = platformdirs.user_config_path("mcpruntime-server", appauthor=False) / "server.toml"
    usual.parent.mkdir(parents=True)
    usual.write_text("[sandbox]\npids = 1")
    assert loaded(file, "[sandbox]\npids = 2").sandbox.pids == 2
    assert load_config(environ={"MCPRUNTIME_CONFIG": str(file)}).sandbox.pids == 2
    assert load_config(environ={}).sandbox.pids == 1
    assert load_config(environ={}).sources.file == usual


def test_a_file_in_the_working_directory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "server.toml").write_text("[sandbox]\npids = 1")
    monkeypatch.chdir(tmp_path)
    assert load_config(environ={}).sandbox.pids == 128


def test_paths_are_relative_to_the_file_and_to_the_working_directory_elsewhere(file: Path) -> None:
    text = """
        [server]
        data_dir = "data"
        [sandbox]
        mounts = ["docs:/docs", "/abs:/abs:rw"]
        [mcpServers.x]
        command = "./tool"
        cwd = ".."
        [mcpServers.y]
        command = "tool"
    """
    config = loaded(file, text)
    here = file.parent
    assert config.server.data_dir == here / "data"
    assert config.server.shims_dir == here / "tool_shims"
    assert config.sandbox.mounts == (f"{here}/docs:/docs", "/abs:/abs:rw")
    assert (config.mcpServers["x"].command, config.mcpServers["x"].cwd) == (
        f"{here}/tool",
        here.parent,
    )
    assert (config.mcpServers["y"].command, config.mcpServers["y"].cwd) == ("tool", None)
    assert loaded(file, text, server__data_dir="data").server.data_dir == Path.cwd() / "data"


@pytest.mark.parametrize("text", ["a, b", '["a", "b"]', " a,b, "])
def test_a_list_in_a_variable_is_separated_by_commas_or_json(text: str) -> None:
    assert load_config(environ={"MCPRUNTIME_SANDBOX__PACKAGES": text}).sandbox.packages == (
        "a",
        "b",
    )


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().sandbox.pids = 3  # type: ignore[misc]


# upstream servers ---------------------------------------------------------------------------------


def test_variables_are_replaced_in_fields_for_credentials(file: Path) -> None:
    text = """
        [mcpServers."a b".env]
        TOKEN = "${TOKEN}"
        [mcpServers."a b"]
        command = "${TOOL:-tool}"
        args = ["--x=${env:TOKEN}-${NOT_SET:-}", "$${TOKEN}"]
        [mcpServers.web]
        url = "https://${HOST}/mcp"
        headers = { Authorization = "Bearer ${TOKEN}" }
    """
    servers = loaded(file, text, {"TOKEN": "t0p", "HOST": "example.com"}).mcpServers
    assert servers["a b"].env["TOKEN"].get_secret_value() == "t0p"
    assert (servers["a b"].command, servers["a b"].args) == ("tool", ("--x=t0p-", "${TOKEN}"))
    assert servers["web"].url == "https://example.com/mcp"
    assert servers["web"].headers["Authorization"].get_secret_value() == "Bearer t0p"
    assert "t0p" not in repr(servers)


def test_a_missing_variable_is_reported_with_its_place(file: Path) -> None:
    said = refusal(file, '[mcpServers.web]\nurl = "https://x"\nheaders = { A = "${TOKEN}" }')
    assert f"{file}, line 3: mcpServers.web.headers.A needs the environment variable TOKEN" in said
    assert "${TOKEN:-default}" in said


def test_a_disabled_server_needs_no_variables(file: Path) -> None:
    assert (
        loaded(file, '[mcpServers.web]\nurl = "https://${HOST}"\ndisabled = true')
        .mcpServers["web"]
        .disabled
    )


@pytest.mark.parametrize("odd", ["${}", "${1}", "${input:token}", "${a b}", "${OPEN"])
def test_a_malformed_variable_is_rejected(file: Path, odd: str) -> None:
    assert f"mcpServers.x.args.0 has '{odd}'" in refusal(
        file, f'[mcpServers.x]\ncommand = "x"\nargs = ["{odd}"]'
    )


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("", "give either `command`"),
        ('command = "x"\nurl = "https://x"', "give either `command`"),
        ('command = ""', "not empty"),
        ('url = "ftp://x"', "begins with http"),
        ('url = "https://x"\ntype = "sse"', "SSE transport was removed"),
        ('command = "x"\nenv = { PORT = 8080 }', "must be text in quotes"),
        ('command = "x"\ntimeout_s = 0', "is 0; it must be a number greater than 0"),
    ],
)
def test_an_unusable_upstream_is_rejected(file: Path, entry: str, reason: str) -> None:
    assert reason in refusal(file, f"[mcpServers.x]\n{entry}")


def test_keys_of_other_clients_are_ignored(file: Path) -> None:
    text = '[mcpServers.x]\ncommand = "x"\ntype = "stdio"\nautoApprove = ["y"]'
    assert loaded(file, text).mcpServers["x"].command == "x"


# policy -------------------------------------------------------------------------------------------


RULES = """
    [policy]
    write = "ask"
    [policy.tools]
    github = "ask"
    "github.get_*" = "allow"
    "*.delete_[a-z]?*" = "deny"
    "größe.नमस्ते" = "deny"
"""


def test_rules_are_a_table_and_shown_as_they_were_written(file: Path) -> None:
    config = loaded(
        file,
        RULES,
        {"MCPRUNTIME_POLICY__DESTRUCTIVE": "allow", "MCPRUNTIME_POLICY__EXPIRES_S": "5"},
    )
    policy = config.policy
    assert (policy.read, policy.write, policy.destructive) == ("allow", "ask", "allow")
    assert (policy.approver, policy.expires_s) == ("person", 5.0)
    assert list(policy.tools.items()) == [
        ("github", "ask"),
        ("github.get_*", "allow"),
        ("*.delete_[a-z]?*", "deny"),
        ("größe.नमस्ते", "deny"),
    ]
    shown = render_config(config)
    assert 'destructive = "allow"  # environment, MCPRUNTIME_POLICY__DESTRUCTIVE' in shown
    assert '"github.get_*" = "allow", "*.delete_[a-z]?*" = "deny"' in shown
    assert loaded(file, shown).policy == policy


def test_rules_can_be_written_in_one_line(file: Path) -> None:
    assert loaded(file, '[policy]\ntools = { "a.b" = "deny", c = "ask" }').policy.tools == {
        "a.b": "deny",
        "c": "ask",
    }


NO_TOOL = [
    "",
    ".",
    "a.",
    ".a",
    "a.b.c",
    "tools.a.b",
    "my-server",
    "a.do-it",
    "a b",
    "a.b\n",
    "[",
    "a.[",
    "]",
    "[]",
    "[!]",
    "a.[b",
    "a.b]",
    "[a.b]",
    "a[[]",
    "a.[*",
    "a/b",
    "a\x00",
    "\uff47it",
    "ﬁle.x",
    "e\u0301",
    "*" * 3 + " ",
]


def test_tools_that_only_read_are_named_like_rules(file: Path) -> None:
    policy = loaded(file, '[policy]\nreads = ["shop.get_*", "notes"]').policy
    assert policy.reads == ("shop.get_*", "notes")
    variable = {"MCPRUNTIME_POLICY__READS": "a.b,c"}
    assert loaded(file, "", variable).policy.reads == ("a.b", "c")
    said = refusal(file, '[policy]\nreads = ["shop.get-order"]')
    assert "policy.reads.0 is not usable: no tool has this name" in said


@pytest.mark.parametrize("name", NO_TOOL)
def test_a_rule_that_no_tool_can_match_is_rejected(file: Path, name: str) -> None:
    text = f'[policy.tools]\nfine = "deny"\n{json.dumps(name)} = "deny"'
    said = refusal(file, text)
    assert f"{file}, line 3: policy.tools." in said
    assert ": no tool has this name; " in said
    assert "[key]" not in said


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            'my-server = "deny"',
            "policy.tools.my-server is not usable: no tool has this name; write "
            '"server" or "server.tool"',
        ),
        ('"ﬁle.x" = "deny"', "in code it is 'file.x'."),
        (
            'git.push = "ask"',
            "policy.tools.git is not usable: the whole name of a rule must be in quotes: "
            '"server.tool" = "ask".',
        ),
        (
            'git = "never"',
            "policy.tools.git is 'never'; it must be one of 'allow', 'ask' or 'deny'.",
        ),
        ("git = true", "policy.tools.git is True; it must be one of 'allow', 'ask' or 'deny'."),
        (
            'git = ["ask"]',
            "policy.tools.git is ['ask']; it must be one of 'allow', 'ask' or 'deny'.",
        ),
    ],
)
def test_the_problem_of_a_rule_is_reported_with_its_line(
    file: Path, line: str, reason: str
) -> None:
    assert f"{file}, line 2: " in (said := refusal(file, f"[policy.tools]\n{line}"))
    assert reason in said


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('write = "maybe"', "is 'maybe'; it must be one of 'allow', 'ask' or 'deny'."),
        ('approver = "nobody"', "is 'nobody'; it must be one of 'person' or 'model'."),
        ("expires_s = 0", "is 0; it must be a number greater than 0."),
        ("expires_s = nan", "it must be"),
        ("tools = 5", "is 5; it must be a table."),
        ("tool = {}", "is not a setting. Did you mean tools?"),
    ],
)
def test_an_invalid_policy_is_rejected(file: Path, line: str, reason: str) -> None:
    said = refusal(file, f"[policy]\n{line}")
    assert f"{file}, line 2: policy.{line.split(maxsplit=1)[0]} " in said
    assert reason in said


def test_rules_cannot_come_from_a_variable(file: Path) -> None:
    said = refusal(file, "", {"MCPRUNTIME_POLICY__TOOLS": "a.b=deny"})
    assert (
        "MCPRUNTIME_POLICY__TOOLS is not usable: policy.tools is a table, which belongs in a file."
        in said
    )


def test_a_variable_sets_one_setting_of_a_nested_table(file: Path) -> None:
    run = loaded(file, "[llm.run]\ncalls = 7\nusd = 1", {"MCPRUNTIME_LLM__RUN__USD": "0.5"}).llm.run
    assert (run.calls, run.usd, run.depth) == (7, 0.5, 3)
    assert "MCPRUNTIME_LLM__RUN is not a setting" in refusal(file, "", {"MCPRUNTIME_LLM__RUN": "7"})


def test_waiting_times_and_numbers_of_runs_can_be_set(file: Path) -> None:
    server = loaded(
        file, "[server]\nwait_s = 0.5\nmax_runs = 1", {"MCPRUNTIME_SERVER__WAIT_PROGRESS_S": "9"}
    ).server
    assert (
        server.wait_s,
        server.wait_progress_s,
        server.max_runs,
        server.max_runs_per_principal,
    ) == (0.5, 9, 1, 16)
    assert "must be a number greater than 0" in refusal(
        file, "[server]\nmax_runs_per_principal = 0"
    )


# knowledge providers ------------------------------------------------------------------------------


def test_paths_of_providers_are_relative_to_the_file_and_only_set_keys_are_shown(
    file: Path,
) -> None:
    text = """
        [mcpServers.tracker]
        command = "tool"
        [knowledge.handbook]
        path = "docs/"
        include = ["*.md"]
        [knowledge.shop]
        sqlite = "../shop.db"
        samples = 3
        [knowledge.tracker]
        server = "tracker"
        [knowledge.wiki]
        python = "providers/wiki.py"
        title = "Ours"
    """
    config = loaded(file, text)
    knowledge, here = config.knowledge, file.parent
    assert (knowledge["handbook"].path, knowledge["handbook"].include) == (here / "docs", ("*.md",))
    assert (knowledge["shop"].sqlite, knowledge["shop"].samples) == (here.parent / "shop.db", 3)
    assert (knowledge["wiki"].python, knowledge["wiki"].title) == (
        here / "providers" / "wiki.py",
        "Ours",
    )
    shown = tomllib.loads(render_config(config))["knowledge"]
    assert shown["shop"] == {"sqlite": str(here.parent / "shop.db"), "samples": 3}
    assert shown["tracker"] == {"server": "tracker"}


def test_server_toml_names_every_key_of_a_provider_with_its_default() -> None:
    text = (ROOT / "server.toml").read_text()
    for field in fields(KnowledgeSettings):
        name = field.name
        assert f"# {name} = " in text
        if field.default is not None:
            shown = [*field.default] if isinstance(field.default, tuple) else field.default
            assert f"# {name} = {json.dumps(shown)} " in text


@pytest.mark.parametrize(
    ("table", "line", "reason"),
    [
        ("[knowledge.x]", 1, "knowledge.x is not usable: give one of `path`"),
        (
            '[knowledge.x]\npath = "a"\nsqlite = "b"',
            1,
            "knowledge.x is not usable: give one of `path`",
        ),
        ('[knowledge.x]\npath = "a"\nsamples = 3', 1, "it needs `sqlite`"),
        ('[knowledge.x]\nsqlite = "a"\ninclude = ["*"]', 1, "they need `path`"),
        (
            '[knowledge.x]\nsqlite = "a"\nsamples = 101',
            3,
            "knowledge.x.samples is 101; it must be a number of at most 100",
        ),
        ("[knowledge.x]\npath = 5", 2, "knowledge.x.path is 5; it must be a path in quotes"),
        (
            '[knowledge.x]\npath = "a"\ninclude = "*.md"',
            3,
            "knowledge.x.include is '*.md'; it must be a list",
        ),
        (
            '[knowledge.x]\npath = "a"\nexclude = ["../b"]',
            3,
            "a pattern is a path within the folder",
        ),
        ('[knowledge.x]\npath = "a"\nexclude = ["/b"]', 3, "a pattern is a path within the folder"),
        ('[knowledge.x]\npth = "a"', 2, "knowledge.x.pth is not a setting. Did you mean path?"),
        (
            '[knowledge.x]\nserver = "none"',
            2,
            "knowledge.x.server is 'none', which is not an enabled entry of mcpServers.",
        ),
        (
            '[knowledge.Handbook]\npath = "a"',
            1,
            "knowledge.Handbook is not usable: a provider's name begins with",
        ),
        ('[knowledge."a/b"]\npath = "a"', 1, "a provider's name begins with"),
        ('[knowledge."\\u001b[2J"]\npath = "a"', 1, "a provider's name begins with"),
        ("knowledge = 5", 1, "knowledge is 5; it must be a table"),
        ("knowledge.x = 5", 1, "knowledge.x is 5; it must be a table"),
    ],
)
def test_an_unusable_provider_is_rejected(file: Path, table: str, line: int, reason: str) -> None:
    said = refusal(file, table)
    assert f"{file}, line {line}: " in said
    assert reason in said
    assert "\x1b" not in said


def test_a_disabled_server_cannot_be_a_provider(file: Path) -> None:
    servers = '[mcpServers.a]\ncommand = "x"\ndisabled = true\n[mcpServers.tracker]\ncommand = "x"'
    text = f"{servers}\n[knowledge.a]\nserver = "
    assert "line 7: knowledge.a.server is 'a', which is not an enabled entry" in refusal(
        file, text + '"a"'
    )
    assert "Did you mean tracker?" in refusal(file, text + '"trackr"')


# mistakes -----------------------------------------------------------------------------------------


def test_a_syntax_error_is_reported_with_line_and_column(file: Path) -> None:
    assert f"{file} is not TOML: line 2, column 14: Expected newline" in refusal(
        file, "[sandbox]\nmemory_mb = 5x\nmemory_mb = "
    )
    assert "line 2, column" in refusal(file, '[sandbox]\nimage = "abc\n[server]')


@pytest.mark.parametrize("what", ["missing", "folder", "bytes"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    if what == "bytes":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=str(path)):
        load_config(path, environ={})


def test_an_unknown_key_is_reported_with_its_place_and_a_suggestion(file: Path) -> None:
    said = refusal(file, "\n[sandbox]\n\nmemroy_mb = 5\n")
    assert f"{file}, line 4: sandbox.memroy_mb is not a setting. Did you mean memory_mb?" in said
    assert "Did you mean mcpServers?" in refusal(file, '[mcpservers.x]\ncommand = "x"')
    assert (
        "Allowed are: server, journal, sandbox, network, http, credentials, telemetry, policy, "
        "skills, llm, mcpServers, knowledge." in refusal(file, "xyz = 1")
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("memory_mb = -1", "is -1; it must be a number greater than 0."),
        ('memory_mb = "lots"', "is 'lots'; it must be a whole number."),
        ("memory_mb = 1.5", "is 1.5; it must be a whole number."),
        ("pool_size = -1", "is -1; it must be a number of at least 0."),
        ("timeout_s = inf", "is inf; it must be a finite number."),
        ("backend = 'dokcer'", "is 'dokcer'; it must be one of 'auto', 'docker' or 'local'."),
        ("image = 5", "is 5; it must be text in quotes."),
        ("packages = 'numpy'", "is 'numpy'; it must be a list: [...]."),
    ],
)
def test_a_wrong_value_is_reported_with_what_is_allowed(file: Path, line: str, reason: str) -> None:
    said = refusal(file, f"[sandbox]\n{line}")
    assert f"{file}, line 2: sandbox.{line.split(maxsplit=1)[0]} {reason}" in said


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('command = "x"\ndisabled = 1', "disabled is 1; it must be true or false."),
        ('command = "x"\nmax_concurrency = true', "is True; it must be a whole number."),
        ('command = "x"\ntimeout_s = true', "is True; it must be a number."),
        ('command = "x"\ntimeout_s = "soon"', "is 'soon'; it must be a number."),
        ('command = "x"\nargs = "one"', "args is not usable; it must be a list: [...]."),
        ('command = "x"\nenv = "one"', "env is not usable; it must be a table."),
    ],
)
def test_a_value_of_the_wrong_type_is_rejected(file: Path, line: str, reason: str) -> None:
    assert reason in refusal(file, f"[mcpServers.x]\n{line}")


def test_a_table_made_from_values_lists_every_problem() -> None:
    with pytest.raises(
        ValueError, match=r"^cals is not a setting\. Did you .* calls is -1; it must"
    ):
        BudgetLimits.from_mapping({"calls": -1, "cals": 1})
    with pytest.raises(ValueError, match=r"^is \[\]; it must be a table\.$"):
        BudgetLimits.from_mapping([])
    assert BudgetLimits.from_mapping({"calls": 2}).non_default_values() == {"calls": 2}


def test_a_public_key_has_64_hexadecimal_digits(file: Path) -> None:
    key = "0123456789abcdef" * 4
    assert loaded(file, f'[skills]\ntrusted_keys = ["{key}"]').skills.trusted_keys == (key,)
    said = refusal(file, '[skills]\ntrusted_keys = ["ABC"]')
    assert "skills.trusted_keys.0 is not usable: a public key has 64 hexadecimal digits" in said


@pytest.mark.parametrize(
    ("line", "broker"),
    [("", "caller"), ('model = "m"', "litellm"), ('model = "m"\nbroker = "caller"', "caller")],
)
def test_the_automatic_broker_depends_on_the_model(file: Path, line: str, broker: str) -> None:
    assert loaded(file, f"[llm]\n{line}").llm.effective_broker == broker


def test_a_secret_is_masked_wherever_it_is_printed() -> None:
    assert repr(SecretText("hush")) == str(SecretText("hush")) == "SecretText('********')"
    assert repr(SecretText("")) == "SecretText('')"


def test_a_value_instead_of_a_table_is_rejected(file: Path) -> None:
    assert f"{file}, line 1: sandbox is 5; it must be a table." in refusal(file, "sandbox = 5")


def test_a_mistake_in_a_variable_or_a_flag_is_reported_with_its_origin(file: Path) -> None:
    environ = {
        "MCPRUNTIME_SANDBOX__PIDS": "many",
        "MCPRUNTIME_SANDBOX__MEMRY_MB": "5",
        "MCPRUNTIME_DATA_DIR": "x",
    }
    said = refusal(file, "", environ, sandbox__backend="podman", sandbx__pids=1)
    assert (
        "environment, MCPRUNTIME_SANDBOX__PIDS: sandbox.pids is 'many'; it must be a whole number."
        in said
    )
    assert (
        "MCPRUNTIME_SANDBOX__MEMRY_MB is not a setting. Did you mean MCPRUNTIME_SANDBOX__MEMORY_MB?"
        in said
    )
    assert "MCPRUNTIME_DATA_DIR is not a setting. Did you mean MCPRUNTIME_SERVER__DATA_DIR?" in said
    assert "command line: sandbox.backend is 'podman'" in said
    assert "command line: sandbx is not a setting. Did you mean sandbox?" in said


def test_all_mistakes_are_reported_at_once_without_secrets(file: Path) -> None:
    text = """
        [server]
        log_level = "loud"
        [mcpServers.a]
        command = "x"
        env = { A = "hush", B = ["hush"] }
        args = ["hush", 5]
        [sandbox]
        packages = [
            "pids = 0",
        ]
        pids = 0
    """
    said = refusal(file, text)
    for line, key in [
        (3, "server.log_level"),
        (6, "mcpServers.a.env.B"),
        (7, "mcpServers.a.args.1"),
        (12, "sandbox.pids"),
    ]:
        assert f"line {line}: {key} " in said
    assert "hush" not in said


def test_statements_over_many_lines_do_not_confuse_the_line_numbers() -> None:
    text = (
        'x = """\n[y]\nz = 1\n"""\n# [no]\na.b = { c = 1 }\n'
        '["q.r".s]\nt = [\n  1,\n]\n[[u]]\nv = 1\n'
    )
    assert find_key_lines(text) == {
        ("x",): 1,
        ("a",): 6,
        ("a", "b"): 6,
        ("a", "b", "c"): 6,
        ("q.r",): 7,
        ("q.r", "s"): 7,
        ("q.r", "s", "t"): 8,
        ("u",): 11,
        ("u", "v"): 12,
    }


# describe -----------------------------------------------------------------------------------------


def test_the_settings_in_force_are_shown_with_their_origin_and_without_secrets(file: Path) -> None:
    text = """
        [sandbox]
        pids = 7
        [mcpServers."a b"]
        command = "tool"
        args = ["--token", "hush", "--api-key=hush", "-v", "https://u:hush@x/hush4hush4hush4hush?k=hush&l=${SHOWN}"]
        env = { KEY = "hush", OTHER = "${SHOWN:-hush}" }
        secret_of_a_client = "hush"
        [mcpServers.web]
        url = "https://u:hush@example.com/${PART}/mcp?key=hush"
        headers = { Authorization = "Bearer ${SHOWN}" }
    """
    environ = {"SHOWN": "hush", "PART": "hush", "MCPRUNTIME_SANDBOX__TMP_MB": "8"}
    shown = render_config(loaded(file, text, environ, sandbox__backend="local"))
    assert "hush" not in shown
    assert "pids = 7  # file" in shown
    assert "tmp_mb = 8  # environment, MCPRUNTIME_SANDBOX__TMP_MB" in shown
    assert 'backend = "local"  # command line' in shown
    assert "memory_mb = 512  # default" in shown
    assert 'headers = { Authorization = "${SHOWN}" }' in shown
    assert 'url = "https://********@example.com/${PART}/mcp?key=********"' in shown
    tree = tomllib.loads(shown)
    assert tree["mcpServers"]["a b"]["args"][0::3] == ["--token", "-v"]
    assert tree["sandbox"]["packages"] == ["numpy", "pandas", "matplotlib"]


def test_the_rendered_defaults_can_be_read_back(file: Path) -> None:
    config = load_config(environ={})
    again = loaded(file, render_config(config))
    assert (again.server, again.sandbox, again.policy) == (
        config.server,
        config.sandbox,
        config.policy,
    )


names = st.text(st.characters(codec="utf-8"), min_size=1)


@given(names, names)
def test_any_server_name_and_text_can_be_rendered(name: str, text: str) -> None:
    given = {name: {"command": text, "args": [text], "disabled": True}}
    config = Config(sources=SettingSources(servers_as_written=given))
    assert tomllib.loads(render_config(config))["mcpServers"][name]["command"] == text


def test_credentials_of_models_are_never_shown(file: Path) -> None:
    given = 'model = "m"\napi_key = "hush-hush-0123456"\napi_base = "https://me:hush@host/v1?key=${KEY}"\n'
    shown = render_config(loaded(file, f"[llm]\n{given}", {"KEY": "hush-hush-7890123"}))
    assert "hush" not in shown
    assert "@host/v1?key=" in shown
    for name in ("api_key", "api_base"):
        with pytest.raises(ConfigError) as caught:
            loaded(file, f'[llm]\n{name} = ["hush-hush-0123456"]\n')
        assert "hush" not in str(caught.value)
