"""Code that floods the link, or sends what is too large, is refused or slowed down alone."""

from __future__ import annotations

import anyio
import pytest

from tests.helpers.forged_messages import FORGE
from tests.helpers.server_connection import ServerConnection

from .bystander import observe

CALL = f"""{FORGE}
def call(number, target='catalog.servers', args=None):
    fields = {{'call_id': number, 'run_number': 2, 'target': target, 'args': args or {{}}}}
    return frame('Call', fields)
"""
WAIT = "\ntime.sleep(0.5)"
ATTACKS = {
    "output that is no text": "import os\ndata = bytes(range(128, 256)) * 8192\n"
    "for _ in range(30): os.write(1, data); os.write(2, data)",
    "much output": "for _ in range(100): print('y\\n' * 500_000)",
    "a value of many objects": "[{}] * 3_000_000",
    "arguments of many objects": "from tools.lively import echo\n"
    "try: echo(text=[{}] * 2_000_000)\nexcept Exception as exc: said = str(exc)\nsaid",
    "arguments of megabytes": "from tools.lively import echo\n"
    "numbers = [n + 0.123456789 for n in range(90_000)]\n"
    "for text in ('z' * 4_000_000, '\\n' * 1_900_000, numbers) * 2:\n"
    "    try: echo(text=text)\n    except Exception: pass",
    "megabytes for nobody": CALL + "data = [n + 0.123456789 for n in range(90_000)]\n"
    "for n in range(8): say(call(n, 'nothing.x', {'a': data}))" + WAIT,
    "many parameters": "from tools.lively import echo\n"
    "try: echo(**{f'p{n}': 1 for n in range(150_000)})\nexcept Exception: pass",
    "large calls of nothing": CALL
    + "for n in range(12): say(call(n, 'nothing.x', {'a': 'z' * 20_000_000}))"
    + WAIT,
    "a long name": CALL + "say(call(1, 'tools.lively.' + 'n' * 4_000_000))" + WAIT,
    "calls with one id": CALL + "say(call(7) * 5_000)" + WAIT,
    "calls that wait for nothing": CALL + "for n in range(1_500): say(call(n))" + WAIT,
    "many clock readings": FORGE
    + "fields = {'call_id': 1, 'run_number': 2, 'target': 'catalog.servers', 'args': {}}\n"
    "say(frame('Call', {**fields, 'clock_readings': {'time': [1.5] * 1_000_000}}))" + WAIT,
    "failing calls with nested arguments": CALL
    + "data = {'a': 'x' * 300}\nfor _ in range(60): data = {'k': data}\n"
    "for n in range(300): say(call(n, 'nothing.x', data))" + WAIT,
    "a nested value": "data = [[1] * 5] * 5_000\nfor _ in range(60): data = [data]\ndata",
    "large values": FORGE
    + "value = {'kind': 'json', 'text': '[' + '{},' * 9_000_000 + '{}]', 'type': 'list', "
    "'cut': False}\nsay(frame('RunDone', {'run_number': 2, 'status': 'ok', 'value': value}))"
    + WAIT,
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_others_are_served_and_the_server_stays_small(
    server: ServerConnection, attack: str
) -> None:
    await server.run("open('file', 'w').write('kept')", attack)
    async with observe(server):
        answer = await server.run(ATTACKS[attack], attack, timeout_s=20)
        assert answer.status in ("ok", "error", "crashed", "timeout"), answer.text
        assert len(answer.text) < 60_000
        await server.run("1", attack)  # which may hear what the attacker says belatedly
        assert await server.evaluate("open('file').read()", attack) == "kept"


async def test_arguments_that_are_too_large_get_a_clear_error(server: ServerConnection) -> None:
    code = (
        "from tools.lively import echo\n"
        "try: echo(text='x' * 9_000_000)\nexcept Exception as exc: said = str(exc)\nsaid"
    )
    assert "the limit is 4,194,304" in await server.evaluate(code, "large")


async def test_many_large_calls_in_threads_get_their_own_answers(server: ServerConnection) -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\nfrom tools.lively import echo\n"
        "def call(n): return str(n % 10) * 300_000 in str(echo(text=str(n % 10) * 300_000))\n"
        "with ThreadPoolExecutor(60) as pool: answers = list(pool.map(call, range(120)))\n"
        "(len(answers), all(answers))"
    )
    answer = await server.run(code, "many", timeout_s=60)
    assert answer.data.get("value") == [120, True], answer.text


async def test_many_large_calls_in_tasks_get_their_own_answers(server: ServerConnection) -> None:
    code = (
        "import asyncio\nfrom tools.lively import echo\n"
        "async def call(n):\n"
        "    text = str(n % 10) * 300_000\n"
        "    return text in str(await echo.aio(text=text))\n"
        "answers = await asyncio.gather(*map(call, range(120)))\n"
        "(len(answers), all(answers))"
    )
    answer = await server.run(code, "many", timeout_s=60)
    assert answer.data.get("value") == [120, True], answer.text


async def test_large_answers_are_repeated_from_the_recording(server: ServerConnection) -> None:
    code = (
        "from tools.lively import echo\n"
        "sum(len(str(echo(text='abc' * 1_000, times=1_000))) for _ in range(4))"
    )
    recorded = await server.run(code, "repeated", timeout_s=60)
    async with observe(server):
        for _ in range(2):
            again = await server.replay("rerun", "repeated", step=1)
            assert again.data.get("value") == recorded.value, again.text
            assert not again.data.get("differences"), again.text


async def test_three_sessions_that_print_much_at_once_all_get_their_results(
    server: ServerConnection,
) -> None:
    code = "import os\ndata = bytes(range(128, 256)) * 8192\n"
    code += "for _ in range(60): os.write(1, data); os.write(2, data)\n'done'"
    statuses = []

    async def run(session: str) -> None:
        statuses.append((await server.run(code, session, timeout_s=60)).status)

    async with observe(server), anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(run, f"printer {number}")
    assert statuses == ["ok"] * 3
