"""Skills from a client's view: saved, found, imported, refused.

The tests share a server. Each begins with an empty store and has sessions of its own.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import skills_ref
from mcp.types import CallToolResult

from mcpruntime_server.capabilities.skills.gate import TRIAL_TIMEOUT_S

from ..helpers.server_connection import ServerConnection, connect_server, write_settings
from ..helpers.server_killing import KillableServer, ServerKilled, start_ready_server
from ..helpers.shared_skills import OwnSessions, remove_skills
from .conftest import upstream_entry
from .test_resume import until

IMPORT = "from tools.counted import add\n"


class World:
    """A server with an upstream that records its calls, and its store of skills."""

    def __init__(self, server: ServerConnection, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.store = folder / "skills_store"

    @property
    def added(self) -> list[str]:
        path = self.folder / "added"
        return path.read_text().splitlines() if path.exists() else []

    async def save(self, **arguments: Any) -> CallToolResult:
        return await self.server.client.call_tool("save_skill", arguments)

    async def saved(self, code: str, **arguments: Any) -> dict[str, Any]:
        """Run code in its own session, save it, and return the answer."""
        run = await self.server.run(code, session=f"s{len(arguments)}{abs(hash(code))}")
        assert run.data["status"] == "ok", run.text
        result = await self.save(run=run.run, **arguments)
        assert not result.is_error, text_of_result(result)
        return dict(result.structured_content or {})

    async def listed(self, **arguments: Any) -> CallToolResult:
        return await self.server.client.call_tool("list_skills", arguments)


def text_of_result(result: CallToolResult) -> str:
    return getattr(result.content[0], "text", "")


@pytest.fixture(scope="module")
async def shared_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("skills")
    upstreams = {"counted": upstream_entry("counted", str(folder / "added"))}
    settings = write_settings(
        folder, sandbox={"backend": "local", "pool_size": 0}, mcpServers=upstreams
    )
    async with connect_server(settings) as server:
        yield World(server, folder)


@pytest.fixture
def world(shared_world: World, request: pytest.FixtureRequest) -> World:
    folder = shared_world.folder
    (folder / "added").unlink(missing_ok=True)
    remove_skills(shared_world.store)
    return World(OwnSessions(shared_world.server, request.node.name), folder)


# saving and using ------------------------------------------------------------------------------


async def test_a_run_becomes_a_skill_that_other_code_calls_with_other_values(
    world: World,
) -> None:
    answer = await world.saved(
        f"{IMPORT}item = 'pears'\nanswer = add(item=item)\n[item, answer.result >= 0]",
        name="add-one",
    )
    assert (answer["name"], answer["version"], answer["state"], answer["reasons"]) == (
        "add_one",
        1,
        "active",
        [],
    )
    assert answer["signature"].startswith("(item: str = 'pears')")
    assert world.added == ["add pears"]  # the gate has called nothing
    server = world.server
    assert await server.evaluate("from skills.add_one import run\nrun(item='figs')") == [
        "figs",
        True,
    ]
    assert await server.evaluate("skills.add_one(item='nuts')[0]") == "nuts"
    assert await server.evaluate("skills.add_one.v1.run(item='kale')[0]") == "kale"
    assert await server.evaluate("skills.load('add-one@1')('peas')[0]") == "peas"
    assert world.added == [f"add {item}" for item in ("pears", "figs", "nuts", "kale", "peas")]
    shown = await server.run("help(skills.add_one.run)\nskills.search('add item')")
    assert "Recorded with item='pears'" in shown.stdout
    assert "add_one(item: str = 'pears')" in str(shown.value)


async def test_a_skill_that_uses_another_names_it(world: World) -> None:
    await world.saved(f"{IMPORT}item = 'a'\nadd(item=item)\nitem.upper()", name="shout")
    answer = await world.saved(
        "from skills.shout import run as shout\nword = 'b'\nshout(item=word) + '!'", name="cry"
    )
    assert answer["state"] == "active", answer
    assert await world.server.evaluate("skills.cry('c')") == "C!"
    data = (await world.listed(name="cry")).structured_content or {}
    assert "skills.shout" in data["uses"]


async def test_written_code_is_a_draft_until_a_run_that_uses_it_is_saved(world: World) -> None:
    code = (
        f"{IMPORT}def put(item: str) -> str:\n    '''Add an item.'''\n    add(item=item)\n"
        "    return item * 2\n"
    )
    draft = (await world.save(code=code)).structured_content or {}
    assert (draft["name"], draft["state"]) == ("put", "draft")
    assert "no recorded case" in draft["reasons"][0]
    refused = await world.server.run("from skills.put import run")
    assert "is not in use: it is a draft" in refused.text
    answer = await world.saved("from skills.put.v1 import run\nrun(item='x')")
    assert (answer["name"], answer["version"], answer["state"]) == ("put", 2, "active")
    assert await world.server.evaluate("skills.put('y')") == "yy"


async def test_code_that_does_the_same_becomes_one_skill_with_one_more_case(world: World) -> None:
    first = await world.saved(f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '?'")
    again = await world.saved(f"{IMPORT}item = 'bb'\nadd(item=item)\nitem + '?'")
    assert (again["name"], again["version"], again["state"]) == (first["name"], 2, "active")
    cases = sorted(
        path.name for path in (world.store / first["name"].replace("_", "-") / "cases").iterdir()
    )
    assert cases == ["0001.json", "0002.json"]
    run = await world.server.run(
        f"{IMPORT}item = 'bb'\nadd(item=item)\nitem + '?'", session="third"
    )
    result = await world.save(run=run.run)
    assert "already" in text_of_result(result)


async def test_a_session_keeps_the_version_that_it_imported_first(world: World) -> None:
    await world.saved(f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '1'", name="tag")
    assert await world.server.evaluate("import skills\nskills.tag('x')", session="old") == "x1"
    answer = await world.saved(f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '2'", name="tag")
    assert answer["version"] == 2
    assert (
        await world.server.evaluate("from skills.tag import run\nrun('x')", session="old") == "x1"
    )
    assert (
        await world.server.evaluate("from skills.tag import run\nrun('x')", session="new") == "x2"
    )
    assert (
        await world.server.evaluate("from skills.tag.v1 import run\nrun('x')", session="new")
        == "x1"
    )


async def test_concurrent_saves_of_one_name_become_separate_versions(world: World) -> None:
    runs = [
        await world.server.run(
            f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '{n}!'", session=f"s{n}"
        )
        for n in range(4)
    ]
    versions: list[int] = []

    async def save(run: str) -> None:
        answer = (await world.save(run=run, name="same")).structured_content or {}
        versions.append(answer["version"])

    async with anyio.create_task_group() as tasks:
        for run in runs:
            tasks.start_soon(save, run.run)
    assert sorted(versions) == [1, 2, 3, 4]


async def test_the_folder_is_a_valid_agent_skill(world: World) -> None:
    await world.saved(
        f"{IMPORT}item = 'a: \"b\" # c'\nadd(item=item)\nitem.title()", name="title_of"
    )
    await world.save(
        code='def run(a: int) -> int:\n    """Say: "yes" -- {a} # \\\'no\\\'."""\n    return a\n',
        name="say_yes",
    )
    for name in ("title-of", "say-yes"):
        assert skills_ref.validate(world.store / name) == []


async def test_lists_are_short(world: World) -> None:
    from mcpruntime_server.cli.demo.token_count import count_tokens

    assert "no skills yet" in text_of_result(await world.listed())
    await world.save(code="def run(number: int = 1) -> int:\n    return number\n", name="number")
    assert (await world.listed(query="number")).structured_content == {"skills": [], "count": 0}
    for n in range(4):
        await world.saved(
            f"{IMPORT}item = 'w{n}'\nadd(item=item)\nitem + '{n}' * {n + 2}", name=f"repeat_{n}"
        )
    found = await world.listed(query="repeat an item")
    data = found.structured_content or {}
    assert (len(data["skills"]), data["count"]) == (3, 4)
    lines = text_of_result(found).splitlines()
    assert len(lines) == 4
    assert all((count_tokens(line) or 0) < 60 for line in lines)
    assert "No skill matches" in text_of_result(await world.listed(query="zzz qqq"))
    source = (await world.listed(name="repeat_1")).structured_content or {}
    assert "def run(item: str = 'w1')" in source["source"]


# what is not saved -----------------------------------------------------------------------------

KEY = "AKIA" + "ABCDEFGHIJKLMNOP"
DRAFTS = {
    "3 * 2 + len('abc')": "It is a constant",
    (
        "import random\nitem = 'a'\nadd(item=item)\nitem + str(random.random())"
    ): "depends on randomness",
    ("import time\nitem = 'a'\nadd(item=item)\nround(time.time(), 3)"): (
        "depends on randomness or on the time"
    ),
    "from pathlib import Path\nPath('mine.txt').write_text('x')": "It is a constant",
}


@pytest.mark.parametrize("code", DRAFTS)
async def test_drafts_say_why_they_are_not_active(world: World, code: str) -> None:
    answer = await world.saved(IMPORT + code)
    assert answer["state"] == "draft"
    assert DRAFTS[code] in answer["reasons"][0]


async def test_code_that_needs_the_file_of_another_run_is_a_draft(world: World) -> None:
    server = world.server
    await server.run("with open('numbers.txt', 'w') as out:\n    out.write('42')", session="f")
    run = await server.run("text = open('numbers.txt').read()\nint(text) + 1", session="f")
    answer = (await world.save(run=run.run)).structured_content or {}
    assert answer["state"] == "draft"
    assert "FileNotFoundError" in answer["reasons"][0]


async def test_a_literal_that_only_works_with_its_value_is_not_a_parameter(world: World) -> None:
    code = (
        "import csv, io\ntext = 'name,qty\\napple,3\\npear,4\\n'\n"
        "def total(rows, key): return sum(int(row[key]) for row in rows)\n"
        "rows = list(csv.DictReader(io.StringIO(text)))\ntotal(rows, 'qty')"
    )
    answer = await world.saved(code)
    assert answer["state"] == "active", answer
    assert await world.server.evaluate("skills.total('name,qty\\nfig,9\\n')") == 9


async def test_parameters_that_do_nothing_are_reported(world: World) -> None:
    code = (
        f"{IMPORT}def run(item: str, city: str) -> str:\n    add(item=item)\n    return item\n"
        "run('a', 'Oslo')"
    )
    answer = await world.saved(code)
    assert answer["state"] == "draft"
    assert answer["reasons"] == ["Parameter `city` never reaches a call or the result."]


async def test_a_run_that_printed_its_result_in_parts_gets_a_remedy(world: World) -> None:
    answer = await world.saved(
        f"{IMPORT}item = 'figs'\nadded = add(item=item)\nprint('Added', added.result)\n"
        "print(item * 2)"
    )
    assert answer["state"] == "draft"
    assert answer["reasons"][0].startswith("The run printed more than its last statement")


async def test_a_skill_that_kills_its_interpreter_with_other_values_is_a_draft(
    world: World,
) -> None:
    code = (
        "def twice(item: str) -> str:\n    import os\n"
        "    return item * 2 if item == 'a' else os._exit(3)\ntwice('a')"
    )
    answer = await world.saved(code)
    assert answer["reasons"][0].startswith(
        "It works only for the recorded value of parameter `item`: "
    )


async def test_parameters_that_a_case_leaves_out_have_to_matter_as_well(world: World) -> None:
    await world.save(
        code="def run(size: int = 1, kind: str = 'x') -> int:\n    return 42\n", name="fixed"
    )
    answer = await world.saved("from skills.fixed.v1 import run\nrun()")
    assert answer["reasons"] == [
        f"Parameter `{each}` never reaches a call or the result." for each in ("size", "kind")
    ]


async def test_a_parameter_that_selects_a_branch_matters_although_most_values_do_nothing(
    world: World,
) -> None:
    code = (
        "def told(item: str, style: str = 'short') -> str:\n"
        "    return item * 2 if style == 'long' else item\ntold('figs')"
    )
    answer = await world.saved(code)
    assert (answer["state"], answer["reasons"]) == ("active", [])


async def test_a_parameter_that_matters_in_one_case_is_accepted(world: World) -> None:
    code = (
        "def part(text: str, most: int = 9) -> str:\n"
        "    return text[:most] if 'long' in text else text\n"
    )
    draft = await world.saved(f"{code}part('abc')")
    assert draft["reasons"] == ["Parameter `most` never reaches a call or the result."]
    answer = await world.saved(
        f"from skills.{draft['name']}.v1 import run\nrun(text='a long long text')"
    )
    assert (answer["version"], answer["state"], answer["reasons"]) == (2, "active", [])


IMPORT_EFFECTS = {
    "NOISE = print('imported')": "Importing it calls, prints or writes something",
    "LOG = open('log.txt', 'w')": "Importing it calls, prints or writes something",
    ("from tools.counted import add\nADDED = add(item='a')"): (
        "It cannot be imported: tools.ToolError"
    ),
    "DATA = open('missing.txt')": "It cannot be imported: FileNotFoundError",
}


@pytest.mark.parametrize("line", IMPORT_EFFECTS)
async def test_code_that_does_something_at_import_is_a_draft(world: World, line: str) -> None:
    code = f"{line}\ndef run(item: str) -> str:\n    return item * 2\n"
    result = await world.save(code=code, name="noisy")
    assert not result.is_error, text_of_result(result)
    await world.server.run("open('missing.txt', 'w').close()", session="use")
    run = await world.server.run("from skills.noisy.v1 import run\nrun(item='x')", session="use")
    answer = (await world.save(run=run.run)).structured_content or {}
    assert answer["state"] == "draft"
    assert answer["reasons"][0].startswith(IMPORT_EFFECTS[line])


REFUSED = {
    f"key = '{KEY}'\nlen(key)": "what looks like an AWS access key",
    "def where() -> str:\n    return '/home/ann/data.csv'\nwhere()": "absolute path",
    "import os\nlen(os.environ)": "reads the environment",
    "for n in range(3):\n    print(n)": "has no result",
    "import json": "has no result",
}


@pytest.mark.parametrize("code", REFUSED)
async def test_runs_that_cannot_be_saved_are_refused_with_the_reason(
    world: World, code: str
) -> None:
    run = await world.server.run(code)
    result = await world.save(run=run.run)
    assert result.is_error
    assert text_of_result(result).startswith("[skill_refused] ")
    assert REFUSED[code] in text_of_result(result)
    assert KEY not in text_of_result(result)
    assert not any(world.store.rglob("skill.py"))


async def test_credentials_in_answers_are_not_saved(world: World) -> None:
    run = await world.server.run(
        f"{IMPORT}item = 'AKIA'\nadd(item=item + 'ABCDEFGHIJKLMNOP').result\nitem"
    )
    result = await world.save(run=run.run)
    assert "holds what looks like an AWS access key" in text_of_result(result)
    assert not any(world.store.rglob("*.json"))


async def test_inputs_that_are_named_like_credentials_are_not_saved(world: World) -> None:
    await world.save(
        code="def run(password: str) -> int:\n    return len(password) * 2\n", name="strength"
    )
    run = await world.server.run("from skills.strength.v1 import run\nrun(password='hunter22')")
    result = await world.save(run=run.run)
    assert "holds what looks like the value of 'password'" in text_of_result(result)
    assert not any(world.store.rglob("*.json"))


async def test_invalid_requests_are_refused(world: World) -> None:
    failed = await world.server.run("1 / 0")
    for arguments, reason in (
        ({}, "Give `run` or `code`"),
        ({"run": failed.run, "code": "x"}, "Give `run` or `code`"),
        ({"run": failed.run}, "only a run that succeeded"),
        ({"run": "r_nothing"}, "no run"),
        ({"code": "def run(:\n"}, "line 1"),
        ({"code": "def run(a):\n    return a\n", "name": "../../etc"}, "cannot name a skill"),
        ({"code": "def run(a):\n    return a\n", "name": "class"}, "cannot name a skill"),
        (
            {
                "code": "from skills.me import run as me\ndef run(a):\n    return me(a)\n",
                "name": "me",
            },
            "would use itself",
        ),
        ({"nope": 1}, "has no parameter 'nope'"),
    ):
        result = await world.save(**arguments)
        assert result.is_error, arguments
        assert reason in text_of_result(result), arguments
    for name in ("nope", "nope@3", "@", "../x"):
        assert (await world.listed(name=name)).is_error


async def test_cycles_of_skills_are_refused(world: World) -> None:
    await world.saved(f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '1'", name="one")
    await world.saved(
        "from skills.one import run as one\nword = 'b'\none(item=word) + '2'", name="two"
    )
    code = (
        "from skills.two import run as two\ndef run(item: str = 'x') -> str:\n"
        "    return two(item)\n"
    )
    result = await world.save(code=code, name="one")
    assert result.is_error
    assert "one would use itself, through" in text_of_result(result)


@pytest.mark.parametrize(
    ("code", "other", "expected"),
    [
        (
            "import datetime\nday = '2026-02-10'\ndatetime.date.fromisoformat(day).weekday()",
            "'2027-02-10'",
            2,
        ),
        ("import json\nraw = '{\"a\": [1, 2]}'\nsum(json.loads(raw)['a'])", "'{\"a\": [5]}'", 5),
        ("at = '09:30'\nint(at[:2]) * 60 + int(at.split(':')[1])", "'10:01'", 601),
    ],
)
async def test_texts_in_a_format_are_parameters_too(
    world: World, code: str, other: str, expected: int
) -> None:
    answer = await world.saved(code, name="formed")
    assert answer["state"] == "active", answer["reasons"]
    assert await world.server.evaluate(f"skills.formed({other})") == expected


async def test_code_that_changes_its_defaults_is_a_draft(world: World) -> None:
    code = "def grow(rows: list = [1]) -> int:\n    rows.append(2)\n    return len(rows)\ngrow([1])"
    answer = await world.saved(code)
    assert (answer["state"], len(answer["reasons"])) == ("draft", 1)
    assert "changes the default of a parameter" in answer["reasons"][0]
    mended = code.replace("    rows.append", "    rows = [*rows]\n    rows.append")
    assert (await world.saved(mended))["state"] == "active"


async def test_code_that_hangs_with_other_values_is_reported_in_time_with_progress(
    world: World,
) -> None:
    heard: list[str] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    code = (
        "def run(flag: bool = True) -> int:\n    while not flag:\n        pass\n    return 2\n"
        "run(True)"
    )
    run = await world.server.run(code, session="loops")
    with anyio.fail_after(100):
        answer = await world.server.client.call_tool(
            "save_skill", {"run": run.run}, progress_callback=listen
        )
    assert (answer.structured_content or {})["state"] == "draft"
    reason = "only for the recorded value of parameter `flag`: it does not finish within ([0-9]+) s"
    found = re.search(reason, text_of_result(answer))
    assert found is not None
    assert int(found[1]) < TRIAL_TIMEOUT_S / 2  # that of an execution with recorded values
    assert heard[0].startswith("testing the skill, 1 s")


# changes over time -----------------------------------------------------------------------------


async def test_an_edit_by_hand_is_a_separate_draft(world: World) -> None:
    await world.saved(f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '1'", name="tag")
    path = world.store / "tag" / "skill.py"
    path.write_text(path.read_text().replace("'1'", "'9'"))
    assert await world.server.evaluate("skills.tag('x')", session="a") == "x1"
    assert await world.server.evaluate("skills.tag.v2('x')", session="a") == "x9"
    shown = text_of_result(await world.listed(name="tag@2"))
    assert (
        "edited by hand, and has not been checked since: `mcpruntime-server skills promote" in shown
    )


async def test_an_edit_that_changes_the_result_is_activated_by_a_run_of_it(
    world: World,
) -> None:
    await world.saved(f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '1'", name="tag")
    path = world.store / "tag" / "skill.py"
    path.write_text(path.read_text().replace("'1'", "'9'"))
    answer = await world.server.run("skills.tag.v2(item='b')", session="edited")
    saved = await world.save(run=answer.run)
    assert not saved.is_error, text_of_result(saved)
    assert await world.server.evaluate("skills.tag('x')", session="later") == "x9"


async def test_a_broken_skill_affects_no_other(world: World) -> None:
    await world.saved(f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '1'", name="tag")
    (world.store / "junk").mkdir()
    (world.store / "junk" / "skill.py").write_text("def run(:\n")
    (world.store / "linked").symlink_to("/etc")
    (world.store / "tag" / "versions" / "7").mkdir()
    assert await world.server.evaluate("skills.tag('x')") == "x1"
    assert "tag" in text_of_result(await world.listed())


async def test_a_changed_tool_quarantines_its_skills(world: World) -> None:
    await world.saved(f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '1'", name="tag")
    manifest = world.store / "tag" / "versions" / "1" / "skill.toml"
    text = manifest.read_text()
    digest = next(line for line in text.splitlines() if line.startswith('"counted.add"')).split(
        '"'
    )[3]
    manifest.write_text(text.replace(digest, "sha256:" + "0" * 64))
    await world.server.run("import tools\ntools.list()")
    refused = await world.server.run("from skills.tag import run")
    assert "it is quarantined. counted.add has changed" in refused.text
    assert await world.server.evaluate("skills.tag.v1('x')") == "x1"


async def test_replays_of_code_that_uses_skills_have_the_same_result(world: World) -> None:
    await world.saved(f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '1'", name="tag")
    await world.server.run("from skills.tag import run\nrun('x')", session="r")
    before = world.added
    answer = await world.server.replay("rerun", "r")
    assert answer.data["status"] == "ok", answer.text
    assert world.added == before
    assert json.dumps(answer.data).count("x1")


async def test_uses_are_counted_without_those_at_the_gate(world: World) -> None:
    code = (
        f"{IMPORT}def run(item: str) -> str:\n    add(item=item)\n    return item[0] + '1'\n"
        "run('a')"
    )
    await world.saved(code, name="counted")
    for item in ("x", "y", ""):
        await world.server.run(
            f"from skills.counted import run\nfor n in range(3):\n    run({item!r})"
        )
    listed = await world.listed(name="counted")
    assert (listed.structured_content or {})["used"] == 3
    assert "runs that used it: 3, failed: 1." in text_of_result(listed)


async def test_the_instructions_name_the_best_skills(world: World) -> None:
    assert "There are none yet" in (world.server.client.instructions or "")
    await world.saved(f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '1'", name="tag")
    async with connect_server(world.folder / "server.toml") as later:
        assert "There is one: tag." in (later.client.instructions or "")


@pytest.mark.parametrize("auto", ["draft", "active-on-second-success"])
async def test_successful_runs_become_skills_automatically(tmp_path: Path, auto: str) -> None:
    upstreams = {"counted": upstream_entry("counted", str(tmp_path / "added"))}
    sandbox = {"backend": "local", "pool_size": 0}
    settings = write_settings(
        tmp_path, sandbox=sandbox, skills={"auto": auto}, mcpServers=upstreams
    )
    code = f"{IMPORT}item = 'ITEM'\nadd(item=item)\nshouted = item.upper()\nshouted"
    async with connect_server(settings) as server:
        for trivial in ("1 + 1", f"{IMPORT}add(item='a')", "x = [1]\ny = x * 3\ny"):
            assert (
                "note" not in (await server.run(trivial, session="s")).data
                or not (tmp_path / "skills_store").exists()
            )
        first = await server.run(code.replace("ITEM", "figs"), session="s")
        assert "Saved as the draft skill shouted@1" in first.data["note"]
        again = await server.run(code.replace("ITEM", "figs"), session="t")
        assert "skill" not in again.data.get("note", "")
        second = await server.run(code.replace("ITEM", "kale"), session="s")
        if auto == "draft":
            assert "skill" not in second.data.get("note", "")
            return
        assert "Saved as a skill: from skills.shouted import run." in second.data["note"]
        third = await server.run(code.replace("ITEM", "peas"), session="s")
        assert "The skill shouted does this" in third.data["note"]
        assert await server.evaluate("from skills.shouted import run\nrun(item='x')") == "X"
    lines = (tmp_path / "added").read_text().splitlines()
    assert lines == [f"add {item}" for item in ("a", "figs", "figs", "kale", "peas", "x")]


async def test_a_run_at_the_gate_is_never_resumed_with_live_tools(
    tmp_path: Path,
) -> None:
    upstreams = {"counted": upstream_entry("counted", str(tmp_path / "added"))}
    settings = write_settings(
        tmp_path, sandbox={"backend": "local", "pool_size": 0}, mcpServers=upstreams
    )
    hold, began = tmp_path / "hold", tmp_path / "began"
    code = (
        f"import os\n{IMPORT}hold, began, item = {str(hold)!r}, {str(began)!r}, 'a'\n"
        "while os.path.exists(hold):\n"
        "    open(began, 'w').close()\n    item = str(item)\nadd(item=item)\nitem + '1'"
    )
    async with start_ready_server(settings) as server:
        run = (await server.call_run_code({"code": code, "session": "s"}, {}))["run"]
        hold.touch()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(save_until_killed, server, run)
            await until(began.exists)
            server.kill()
    hold.unlink()
    async with start_ready_server(settings) as server:
        await server.call_run_code({"code": "1", "session": "t"}, {})
        await until(lambda: not unfinished(tmp_path / "data" / "journal.db"))
    assert (tmp_path / "added").read_text().splitlines() == ["add a"]


async def save_until_killed(server: KillableServer, run: str) -> None:
    with suppress(ServerKilled, AssertionError):
        await server.request(
            "tools/call", {"name": "save_skill", "arguments": {"run": run, "name": "held"}}
        )


def unfinished(database: Path) -> int:
    with closing(sqlite3.connect(database)) as rows:
        return int(rows.execute("SELECT count(*) FROM runs WHERE status = 'running'").fetchone()[0])
