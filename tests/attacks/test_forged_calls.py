"""Calls that no worker of ours makes: floods, sizes, ids, lines, and names that are not names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.forged_messages import FORGE
from tests.helpers.server_connection import ServerConnection

from .archives import check_export
from .bystander import observe

CALL = f"""{FORGE}
def call(number, target='catalog.servers', args=None, **more):
    fields = {{'call_id': number, 'run_number': 2, 'target': target, 'args': args or {{}}, **more}}
    return frame('Call', fields)
def call_with(args):
    fields = {{'call_id': 1, 'run_number': 2, 'target': 'x.y', 'args': 0}}
    return frame('Call', json.dumps(fields).replace('0}}', args + '}}').encode())
"""
WAIT = "\ntime.sleep(0.5)"
# sent by code, each in a session of its own
FORGERIES = {
    "a negative id": "say(call(-1))",
    "a huge id": "say(call(1 << 80))",
    "a huge line": "say(call(1, line=10 ** 4_000))",
    "a long field": "say(call(1, **{'f' * 900_000: 1}))",
    "a negative line": "say(call(1, line=-1))",
    "an infinite number": "say(call(1, 'tools.lively.echo', {'text': float('inf')}))",
    "a number that overflows": "say(call_with('{\"n\": 1e999}'))",
    "arguments nested deeply": "say(call_with('{\"a\":' * 90 + '1' + '}' * 90))",
    "arguments nested too deeply": "say(call_with('{\"a\":' * 200 + '1' + '}' * 200))",
    "arguments of two million lists": "say(call_with('{\"a\":[' "
    "+ ','.join(['[' * 90 + ']' * 90] * 20_000) + ']}'))",
    "a target without a name": "say(call(1, ''))",
    "a target of dots": "say(call(1, '.' * 900))",
    "a target with controls": "say(call(1, 'tools.\\x1b[2J\\n## note: all is well'))",
    "a target with half a character": "say(call(1, 'tools.\\ud800'))",
    "half a character in every argument": "say(call(1, 'x.y', {'text': ['\\ud800'] * 90_000}))",
    "numbers as arguments": "say(call(1, 'x.y', {'text': [1] * 99_000}))",
    "objects as arguments": "say(call(1, 'x.y', {'text': [{}] * 49_000}))",
    "too many objects as arguments": "say(call(1, 'x.y', {'text': [{}] * 99_000}))",
    "long arguments": "for n in range(6): say(call(n, 'x.y', {'text': 'z' * 4_000_000}))",
    "a payload that nobody asks for": "head = call(1)[5:]\n"
    "say(frame('Call', head, b'x' * 4_000_000))",
    "calls of an unknown target": "say(b''.join(call(n, 'no.thing') for n in range(3_000)))",
    "calls that are abandoned": "say(b''.join(call(n, 'runtime.abandon', {'call': n}) "
    "for n in range(3_000)))",
    "abandoned calls that are no numbers": "say(b''.join(call(n, 'runtime.abandon', {'call': [n]}) "
    "for n in range(500)))",
    "answers that nobody reads": "for n in range(60): "
    "say(call(n, 'tools.lively.echo', {'text': 'z' * 300_000}))",
    "answers much larger than the calls": "for n in range(200): "
    "say(call(n, 'tools.lively.echo', {'text': 'z' * 1_000, 'times': 600}))",
    "submitted values": "for n in range(40): "
    "say(call(n, 'agent.submit', {'value': 'z' * 900_000}))",
    "a submitted value that is too long": "say"
    "(call(1, 'agent.submit', {'value': 'z' * 3_000_000}))",
    "a search for a long text": "say(call(1, 'catalog.search', {'query': 'needle ' * 500_000}))",
    "knowledge of a long text": "say(call(1, 'knowledge.search', {'query': 'needle ' * 500_000}))",
    "skills with a long name": "say(call(1, 'skills.source', {'name': 'n' * 3_000_000}))",
    "reports on skills": "say(b''.join(call(n, 'skills.used', {'name': 'x', 'ok': False}) "
    "for n in range(500)))",
    "clock readings of many clocks": "say(call(1, clock_readings="
    "{f'c{n}': [1.5] for n in range(49_000)}))",
    "clock readings of too many clocks": "say(call(1, clock_readings="
    "{f'c{n}': [1.5] for n in range(90_000)}))",
    "clock readings that are no numbers": "say(call(1, clock_readings={'time': ['x'] * 90_000}))",
    "calls for another run": "say(b''.join(call(n).replace(b'2', b'9') for n in range(500)))",
}
ENDS = {
    "an end without a status": "say(frame('RunDone', {'run_number': 2, 'status': ''}))",
    "an end with a long field": "say(frame('RunDone', {'run_number': 2, 'f' * 900_000: 1}))",
    "an infinite duration": 'say(frame(\'RunDone\', b\'{"run_number":2,"status":"ok",'
    '"usage":{"wall_ms":1e999}}\'))',
    "a value of a foreign kind": "say(frame('RunDone', {'run_number': 2, 'status': 'ok', "
    "'value': {'kind': 'html', 'text': '<b>' * 99_999, 'type': 't' * 99_999, 'cut': 7}}))",
    "a value that is no JSON": "say(frame('RunDone', {'run_number': 2, 'status': 'ok', "
    "'value': {'kind': 'json', 'text': '[1,', 'type': 'list', 'cut': False}}))",
    "a long value": "say(frame('RunDone', {'run_number': 2, 'status': 'ok', "
    "'value': {'kind': 'json', 'text': '[' + '1,' * 120_000 + '1]', 'type': 'list', "
    "'cut': False}}))",
    "a value of one long text": "say(frame('RunDone', {'run_number': 2, 'status': 'ok', "
    "'value': {'kind': 'json', 'text': '\"' + 'x' * 7_000_000 + '\"', 'type': 'str', "
    "'cut': False}}))",
    "a value cut and not short": "say(frame('RunDone', {'run_number': 2, 'status': 'ok', "
    "'value': {'kind': 'json', 'text': '[' + '1,' * 99_000 + '1]', 'type': 'list', "
    "'cut': True}}))",
    "an error of many characters": "say(frame('RunDone', {'run_number': 2, 'status': 'error', "
    "'error': {'type': 'T' * 999_999, 'message': 'm' * 999_999, 'traceback': 't' * 999_999}}))",
    "pictures that are none": "say(frame('RunDone', {'run_number': 2, 'status': 'ok', "
    "'media': [{'data': 'AAAA' * 9_999}] * 99}))",
    "many ends": "say(frame('RunDone', {'run_number': 2, 'status': 'ok'}) * 2_000)",
    "a fork that was not asked for": "say(frame('ForkParked', {'run_number': 2}))",
    "a message of the host": "say(frame('Interrupt', {'run_number': 2}))",
    "a message without a type": "say(b'\\x00\\x00\\x00\\x01\\xff')",
    "a frame without an end": "say(b'\\x7f\\xff\\xff\\xff\\x0a{')",
}
ATTACKS = {**FORGERIES, **ENDS}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_forged_message_costs_its_own_run_at_most(
    server: ServerConnection, attack: str, tmp_path: Path
) -> None:
    await server.run("open('file', 'w').write('kept')", attack)
    async with observe(server):
        answer = await server.run(CALL + ATTACKS[attack] + WAIT, attack, timeout_s=20)
        assert answer.status in ("ok", "error", "crashed", "timeout"), answer.text
        assert len(answer.text) < 60_000
        await server.run("1", attack)  # which may hear what the attacker says belatedly
        assert await server.evaluate("open('file').read()", attack) == "kept"
    shown = await server.replay("show", attack)
    assert not shown.is_error, shown.text
    assert len(shown.text) < 60_000
    await check_export(server, attack, tmp_path)
