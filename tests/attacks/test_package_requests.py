"""Requests for packages, and hostile wheels, cost others nothing and write nothing elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from tests.helpers.server_connection import ServerConnection, connect_server, write_settings
from tests.helpers.wheels import build_wheel

from .bystander import observe

TIMEOUT_S = 20
INSTALL = """
from concurrent.futures import ThreadPoolExecutor
def install(*names):
    try: return packages.install(*names)
    except Exception as exc: return str(exc)[:200]
"""
NESTED = "[" * 100_000
ATTACKS = {
    "a thousand requests": "for n in range(1_000): install(f'no-{n}!')",
    "requests at once": "with ThreadPoolExecutor(32) as pool: "
    "list(pool.map(install, [f'missing-{n}' for n in range(100)]))",
    "many names": "install(*[f'missing-{n}' for n in range(100_000)])",
    "a long name": "install('x' * 3_000_000)",
    "a long marker": "install('missing; ' + '(' * 90 + 'os_name==\"\"' + ')' * 90)",
    "names that are options": "[install(each) for each in "
    "('--index-url=http://127.0.0.1/', '-r/etc/passwd', '-e .', '.', '/etc', 'a @ file:///etc')]",
    "a block of nested lists": "# /// script\n# dependencies = " + NESTED + "\n# ///\n1",
    "a block of many names": "# /// script\n# dependencies = ["
    + "'missing'," * 50_000
    + "]\n# ///\n1",
    "a wheel that expands": "install('bomb')",
    "a wheel of many files": "install('crowd')",
    "a wheel that leaves its folder": "install('escape')",
    "a wheel that replaces a module": "install('shadow')",
    "wheels that need each other": "install('ring-a')",
    "a wheel that needs much": "install('greedy')",
    "a wheel that is none": "install('broken')",
}


def build_index(folder: Path) -> None:
    """Write the wheels of a hostile index."""
    build_wheel(folder, "bomb", "1", {"bomb.py": "#" * 300_000_000})
    build_wheel(folder, "crowd", "1", {f"crowd/f{n}.py": "" for n in range(101_000)})
    build_wheel(folder, "escape", "1", {f"{'../' * 12}tmp/escaped.py": "", "/tmp/escaped.py": ""})
    build_wheel(folder, "shadow", "1", {"json.py": "raise SystemExit", "site.py": ""})
    build_wheel(folder, "ring_a", "1", {"ring_a.py": ""}, ["ring-b"])
    build_wheel(folder, "ring_b", "1", {"ring_b.py": ""}, ["ring-a"])
    build_wheel(folder, "greedy", "1", {"greedy.py": ""}, [f"missing-{n}" for n in range(20_000)])
    (folder / "broken-1-py3-none-any.whl").write_bytes(b"PK\x03\x04" + b"\0" * 1_000_000)


@pytest.fixture(scope="module")
async def asking(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    """A server whose code may ask for any package of a hostile index."""
    index = tmp_path_factory.mktemp("index")
    build_index(index)
    settings = write_settings(
        tmp_path_factory.mktemp("server"),
        sandbox={"packages_on_demand": "allow", "allowed_packages": ["*"]},
    )
    environment = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}
    async with connect_server(settings, {**environment, "PIP_FIND_LINKS": str(index)}) as server:
        yield server


@pytest.mark.parametrize("attack", ATTACKS)
async def test_packages_cost_their_own_session_at_most(
    asking: ServerConnection, attack: str
) -> None:
    await asking.run("open('file', 'w').write('kept')", attack)
    code = ATTACKS[attack] if ATTACKS[attack].startswith("#") else INSTALL + ATTACKS[attack]
    async with observe(asking):
        answer = await asking.run(code, attack, timeout_s=TIMEOUT_S)
        if not answer.is_error:  # a block that is no block is refused before it is a run
            assert answer.status in ("ok", "error", "timeout", "crashed"), answer.text
        assert len(answer.text) < 60_000
        assert await asking.evaluate("import json\nopen('file').read()", attack) == "kept"
    assert not await anyio.Path("/tmp/escaped.py").exists()
