"""`replay probe`, `replay ask` and `replay variables`."""

from __future__ import annotations

import json

from .conftest import RunCommand


def test_a_step_is_probed_asked_and_listed(run: RunCommand) -> None:
    done = run("replay", "probe", "report:1", "1", "1 + 1")
    assert done.returncode == 0, done.stderr
    assert "1  2" in done.stdout
    done = run("replay", "ask", "report:1", "print('seen')\n6 * 7")
    assert done.returncode == 0, done.stderr
    assert "seen" in done.stdout
    assert "42" in done.stdout
    done = run("replay", "variables", "report:1", "--json")
    assert done.returncode == 0, done.stderr
    assert "variables" in json.loads(done.stdout)


def test_what_is_not_there_is_reported(run: RunCommand) -> None:
    done = run("replay", "probe", "report:1", "9999", "1")
    assert done.returncode == 2
    assert "no statement on line 9999" in done.stderr
    assert run("replay", "ask", "nothing:1", "1").returncode == 2
    assert run("replay", "ask", "report:1", "1 / 0").returncode == 1
