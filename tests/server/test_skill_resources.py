"""Skills for standard clients: resources, the skills extension, a prompt, and mounted guides."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import mcp.types as types
import pytest
from mcp import MCPError
from mcp.types import TextResourceContents

from mcpruntime_server.server.mcp_server import MAX_PROMPT_CHARS

from ..helpers.server_connection import ServerConnection, connect_server, write_settings

CODE = '''
def run(numbers: list) -> int:
    """Add numbers up."""
    total = 0
    for each in numbers:
        total += each
    return total
'''
GUIDE = "---\nname: pdf-forms\ndescription: Fills in PDF forms.\n---\nRun scripts/fill.py\n"


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    folder = tmp_path_factory.mktemp("skills")
    guide = folder / "guides" / "pdf-forms"
    (guide / "scripts").mkdir(parents=True)
    (guide / "SKILL.md").write_text(GUIDE)
    (guide / "scripts" / "fill.py").write_text("print('filled')\n")
    (guide / "logo.png").write_bytes(b"\x89PNG\0\xff")
    settings = write_settings(
        folder,
        sandbox={"backend": "local", "pool_size": 0},
        skills={"folders": [str(folder / "guides")]},
    )
    async with connect_server(settings) as server:
        await server.client.call_tool("save_skill", {"code": CODE, "name": "add_up"})
        run = await server.run("from skills.add_up.v1 import run\nrun(numbers=[1, 2])")
        saved = await server.client.call_tool("save_skill", {"run": run.run})
        assert (saved.structured_content or {})["state"] == "active", saved
        yield server


class Answer(types.Result):
    skills: tuple[dict[str, Any], ...] = ()
    skill: dict[str, Any] | None = None


async def ask(server: ServerConnection, method: str, **params: Any) -> Answer:
    class Request(types.Request[dict[str, Any], str]):
        method: str
        params: dict[str, Any]

    return await server.client.session.send_request(Request(method=method, params=params), Answer)


async def read(server: ServerConnection, uri: str) -> str:
    [contents] = (await server.client.read_resource(uri)).contents
    assert isinstance(contents, TextResourceContents)
    return contents.text


async def test_skills_are_resources(server: ServerConnection) -> None:
    listed = (await server.client.list_resources()).resources
    assert [(str(each.uri), each.name) for each in listed] == [
        ("skill://add-up/SKILL.md", "add-up"),
        ("skill://pdf-forms/SKILL.md", "pdf-forms"),
    ]
    assert "from skills.add_up import run" in await read(server, "skill://add-up/SKILL.md")
    assert "def run(numbers" in await read(server, "skill://add-up/skill.py")
    assert await read(server, "skill://pdf-forms/scripts/fill.py") == "print('filled')\n"
    templates = (await server.client.list_resource_templates()).resource_templates
    [template] = [each for each in templates if each.name == "skill"]
    assert template.uri_template == "skill://{name}/{+path}"


@pytest.mark.parametrize(
    "uri",
    [
        "skill://add-up/../../server.toml",
        "skill://add-up/",
        "skill://none/SKILL.md",
        "skill://pdf-forms/%2e%2e/x",
        "file:///etc/passwd",
        "skill://Ä/SKILL.md",
    ],
)
async def test_other_addresses_are_not_resources(server: ServerConnection, uri: str) -> None:
    with pytest.raises(MCPError) as caught:
        await server.client.read_resource(uri)
    assert caught.value.error.code == types.INVALID_PARAMS


async def test_the_extension_lists_every_file_with_its_digest(server: ServerConnection) -> None:
    found = {each["uri"]: each for each in (await ask(server, "skills/list")).skills}
    assert list(found) == ["skill://add-up/SKILL.md", "skill://pdf-forms/SKILL.md"]
    for skill in found.values():
        assert (await ask(server, "skills/get", uri=skill["uri"])).skill == skill
        for file in skill["resources"]:
            [contents] = (await server.client.read_resource(file["uri"])).contents
            if isinstance(contents, TextResourceContents):
                data = contents.text.encode()
                assert file["digest"] == "sha256:" + hashlib.sha256(data).hexdigest()
                assert file["size"] == len(data)
    assert (
        found["skill://pdf-forms/SKILL.md"]["frontmatter"]["description"] == "Fills in PDF forms."
    )
    for uri in ("skill://none/SKILL.md", "skill://add-up/skill.py", "x"):
        with pytest.raises(MCPError):
            await ask(server, "skills/get", uri=uri)


async def test_a_prompt_names_the_skills_for_a_task(server: ServerConnection) -> None:
    [prompt] = (await server.client.list_prompts()).prompts
    result = await server.client.get_prompt(prompt.name, {"task": "sum up the numbers of a form"})
    text = getattr(result.messages[0].content, "text", "")
    assert text.startswith("sum up the numbers of a form\n")
    assert "- add_up(numbers: list) -> int" in text
    assert "- pdf_forms  # guide: Fills in PDF forms." in text


async def test_a_prompt_refuses_a_long_task(server: ServerConnection) -> None:
    task = "sum up " + "x" * MAX_PROMPT_CHARS
    with pytest.raises(MCPError, match="at most 100,000 characters"):
        await server.client.get_prompt("with_skills", {"task": task})
    result = await server.client.get_prompt("with_skills", {"task": task[:MAX_PROMPT_CHARS]})
    assert "add_up" in str(result.messages[0].content)


async def test_code_reads_a_guide_and_runs_its_scripts(server: ServerConnection) -> None:
    answer = await server.client.call_tool("list_skills", {"name": "pdf-forms"})
    assert "Run scripts/fill.py" in str(answer.content)
    found = await server.client.call_tool("list_skills", {"query": "fill in a form"})
    assert "pdf_forms  # guide" in str(found.content)
    code = (
        "import subprocess, sys\nfrom skills.pdf_forms import folder\n"
        "script = [sys.executable, folder / 'scripts/fill.py']\n"
        "subprocess.run(script, check=True, capture_output=True, text=True).stdout"
    )
    assert await server.evaluate(code) == "filled\n"
    assert await server.evaluate("skills.pdf_forms.__doc__") == GUIDE
    assert await server.evaluate(
        "sorted(path.name for path in skills.pdf_forms.folder.iterdir())"
    ) == [
        "SKILL.md",
        "logo.png",
        "scripts",
    ]
    failed = await server.run("skills.pdf_forms(1)")
    assert "is a guide and has no 'run'" in failed.text
