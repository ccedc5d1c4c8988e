"""Runs that only call a skill, and runs that do more."""

from __future__ import annotations

import pytest

from mcpruntime_server.capabilities.skills.extraction import find_skill_call
from mcpruntime_server.capabilities.skills.model import RecordedCase, RecordedStep
from mcpruntime_server.journal.recording import RecordedCall

CALLS = {
    "from skills.tag import run\nrun(item='x')": "tag",
    "from skills.tag.v2 import run as tag\nresult = tag(item='x')": "tag@2",
    "from skills.tag import run\nawait run(item='x')": "tag",
    "import skills\nskills.tag.v3.run(item='x')": "tag@3",
    "import skills\nskills.tag.run(item='x')": "tag",
}


@pytest.mark.parametrize("code", CALLS)
def test_a_run_that_only_calls_a_skill_is_a_case_of_it(code: str) -> None:
    source = RecordedCall(1, "skills.source", "{}", 0, "read", 1, 2, in_ledger=False)
    tool = RecordedCall(7, "tools.git.log", "{}", 0, "read", 3, 4)
    found = find_skill_call(RecordedStep("r", code, RecordedCase({}, (source, tool), stdout="out")))
    assert found is not None
    reference, case = found
    assert reference == CALLS[code]
    assert case.inputs == {"item": "x"}
    assert [(call.call_id, call.target) for call in case.calls] == [(1, "tools.git.log")]
    assert case.stdout == "out"


@pytest.mark.parametrize(
    "code",
    [
        "",
        "1 +",
        "x = 1",
        "from skills.tag import run\nrun('x')",
        "from skills.tag import run\nrun(item=open('f'))",
        "from skills.tag import run\nprint(1)\nrun(item='x')",
        "from math import sqrt\nsqrt(x=1)",
        "run(item='x')",
        "from skills.tag import run\nrun(**{'item': 'x'})",
        "from skills.tag import run\nprint(run(item='x'))",
    ],
)
def test_other_runs_are_not_cases(code: str) -> None:
    assert find_skill_call(RecordedStep("r", code, RecordedCase({}))) is None
