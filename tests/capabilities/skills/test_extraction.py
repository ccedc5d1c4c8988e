"""Skills extracted from recorded code: their content, and that they do what the code did."""

from __future__ import annotations

import ast
import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.capabilities.skills.extraction import (
    extract_skill,
    find_left_out,
    read_written_skill,
)
from mcpruntime_server.capabilities.skills.lint import check_source
from mcpruntime_server.capabilities.skills.model import RecordedCase, RecordedStep, Skill
from mcpruntime_server.capabilities.skills.source import annotation_of, source_shape
from mcpruntime_server.errors import SkillRefused
from mcpruntime_server.journal.events import RunValue, canonical_json
from mcpruntime_server.journal.recording import RecordedCall

ROWS = [
    {"author": "Ann", "n": 5, "sha": "a1"},
    {"author": "Bo", "n": 2, "sha": "b2"},
    {"author": "Ann", "n": 9, "sha": "c3"},
]


class Recorder:
    """Stands for the host: answers what the code below asks, and writes down what it was asked."""

    def __init__(self) -> None:
        self.calls: list[RecordedCall] = []

    def log(
        self, repo_path: str, max_count: int = 10, author: str | None = None
    ) -> list[dict[str, Any]]:
        given = {"repo_path": repo_path, "max_count": max_count, "author": author}
        self.note(
            "tools.git.log",
            {key: value for key, value in given.items() if value is not None},
            "read",
        )
        return [row for row in ROWS if author in (None, row["author"])][:max_count]

    def mark(self, key: str) -> None:
        self.note("tools.git.mark", {"key": key}, "idempotent")

    def put(self, key: str, value: object) -> None:
        self.note("tools.git.put", {"key": key, "value": value}, "write")

    def note(self, target: str, args: Mapping[str, Any], effect: str) -> None:
        frame = sys._getframe(2)
        while frame.f_back is not None and not frame.f_code.co_filename.startswith("<step"):
            frame = frame.f_back
        number = 2 * len(self.calls)
        self.calls.append(
            RecordedCall(
                1,
                target,
                canonical_json(dict(args)),
                0,
                effect,
                number,
                number + 1,
                line_number=frame.f_lineno,
            )
        )


@pytest.fixture
def host() -> Iterator[Recorder]:
    recorder = Recorder()
    package, git = ModuleType("tools"), ModuleType("tools.git")
    git.__dict__.update(log=recorder.log, mark=recorder.mark, put=recorder.put)
    package.__dict__.update(git=git, __path__=[])
    sys.modules.update({"tools": package, "tools.git": git})
    yield recorder
    for name in ("tools", "tools.git"):
        del sys.modules[name]


def record(host: Recorder, *codes: str) -> list[RecordedStep]:
    """Run pieces of code in order, as a session does; return the last expression's value."""
    names: dict[str, Any] = {"__name__": "__main__"}
    steps = []
    for number, code in enumerate(codes):
        host.calls.clear()
        lines = code.rstrip("\n").split("\n")
        value = None
        try:
            exec(compile(code, f"<step {number}>", "exec"), names)
            ok = True
        except Exception:  # noqa: BLE001 - code of a session may fail as it likes
            ok = False
        calls = tuple(host.calls)
        last = ast.parse(code).body[-1]
        if ok and isinstance(last, ast.Expr) and not lines[-1].startswith("print("):
            value = eval(ast.unparse(last), names)
        elif ok and isinstance(last, ast.Assign):
            value = eval(ast.unparse(last.targets[0]), names)
        shown: RunValue = {
            "kind": "json",
            "text": json.dumps(value),
            "type": type(value).__name__,
            "cut": False,
        }
        steps.append(RecordedStep(f"r{number}", code, RecordedCase({}, calls, shown), ok))
    host.calls.clear()
    return steps


def make_result(text: str) -> RunValue:
    """Return a text, as JSON, as the value of a run."""
    return {"kind": "json", "type": "str", "text": text, "cut": False}


def call_skill(extracted: Skill, **inputs: Any) -> Any:
    """Return what the extracted function returns for the recorded inputs, but for these."""
    names: dict[str, Any] = {"__name__": "skill"}
    exec(compile(extracted.source, "<step skill>", "exec"), names)
    value = names["run"](**{**extracted.cases[0].inputs, **inputs})
    return asyncio.run(value) if asyncio.iscoroutine(value) else value


SESSIONS: Mapping[str, tuple[tuple[str, ...], dict[str, Any], dict[str, Any], Any]] = {
    # codes, recorded inputs, other inputs, what comes out then
    "a name given to a literal": (
        (
            (
                "from tools.git import log\nauthor = 'Ann'\nrows = log(repo_path='/srv/repo')\n"
                "[r['sha'] for r in rows if r['author'] == author]"
            ),
        ),
        {"repo_path": "/srv/repo", "author": "Ann"},
        {"author": "Bo"},
        ["b2"],
    ),
    "a dict of which a tool is told a part": (
        (
            (
                "from tools.git import put\norder = {'item': 'tea', 'n': 2}\n"
                "put(order['item'], 1)\norder['item'] * order['n']"
            ),
        ),
        {"order": {"item": "tea", "n": 2}, "value": 1},
        {"order": {"item": "x", "n": 3}},
        "xxx",
    ),
    "a file that is written and read": (
        (
            (
                "from pathlib import Path\ntext = 'tea'\nPath('n.txt').write_text(text)\n"
                "Path('n.txt').read_text().upper()"
            ),
        ),
        {"text": "tea"},
        {"text": "figs"},
        "FIGS",
    ),
    "a list that is called like a package": (
        ("tools = ['b', 'a']\nothers = tools\nothers.append('c')\ntools.sort()\ntools",),
        {"tools": ["b", "a"]},
        {"tools": ["z"]},
        ["c", "z"],
    ),
    "a list that is changed": (
        ("rows = [3, 1]\nrows.append(2)\nsorted(rows)",),
        {"rows": [3, 1]},
        {"rows": [7]},
        [2, 7],
    ),
    "literals in a call": (
        ("from tools.git import log\nlen(log('/srv/repo', max_count=2))",),
        {"repo_path": "/srv/repo", "max_count": 2},
        {"max_count": 1},
        1,
    ),
    "a name with a type given to a literal": (
        (
            (
                "from tools.git import log\nmost: int = 2\nby: str | None = 'Ann'\n"
                "len(log('/srv/repo', max_count=most, author=by))"
            ),
        ),
        {"most": 2, "by": "Ann", "repo_path": "/srv/repo"},
        {"by": "Bo"},
        1,
    ),
    "capitals of what code uses in small letters": (
        (
            "import json\nfrom tools.git import log\nJSON = '/srv/repo'\nMAX = 4\nN, n = 2, 9\n"
            "rows = log(repo_path=JSON)\nfor n in range(N):\n    last = n\n"
            "json.dumps([max(row['n'] for row in rows), [row['n'] for row in rows if row['n'] > "
            "MAX], last < N])",
        ),
        {"json_": "/srv/repo", "max_": 4, "n_": 2},
        {"max_": 6},
        "[9, [9], true]",
    ),
    "constants that differ in their case": (
        (
            (
                "from tools.git import log\nBy = 'Ann'\nBY = 'Bo'\n"
                "[len(log('/srv/repo', author=By)), len(log('/srv/repo', author=BY))]"
            ),
        ),
        {"by": "Ann", "by_": "Bo", "repo_path": "/srv/repo"},
        {"by_": "Ann"},
        [2, 2],
    ),
    "capitals that a function calls in small letters": (
        (
            "from tools.git import log\nAUTHOR = 'Ann'\ndef is_other(author):\n"
            "    return author != AUTHOR\n"
            "len([row for row in log(repo_path='/srv/repo') if is_other(row['author'])])",
        ),
        {"author": "Ann", "repo_path": "/srv/repo"},
        {"author": "Bo"},
        2,
    ),
    "what an object of code's own class is made of": (
        (
            "from tools.git import log\nclass Board:\n    def __init__(self, repo, by=None):\n"
            "        self.rows = log(repo_path=repo, author=by)\n    def size(self):\n"
            "        return len(self.rows)\n"
            "board = Board('/srv/repo', by='Ann')\nboard.size()",
        ),
        {"repo": "/srv/repo", "by": "Ann"},
        {"by": "Bo"},
        1,
    ),
    "exploration and prints are left out": (
        (
            (
                "import tools.git as git\nprint(dir(git))\n"
                "first = git.log(repo_path='/srv/repo', max_count=1)\nprint(first)"
            ),
            "x = undefined_name",
            "rows = git.log(repo_path='/srv/repo')\nprint(len(rows))",
            "total = sum(r['n'] for r in rows if r['n'] > 3)\ntotal",
        ),
        {"repo_path": "/srv/repo", "min_n": 3},
        {"min_n": 6},
        9,
    ),
    "what is changed on the way is kept": (
        (
            "from tools.git import log\nfound = {}\nfor row in log(repo_path='/srv/repo'):\n"
            "    found.setdefault(row['author'], []).append(row['n'])\nunused = 3",
            (
                "for values in found.values():\n    values.sort(reverse=True)\nalias = found\n"
                "alias['x'] = [7]"
            ),
            "found.pop('Bo')\nsorted(found.items())[:2]",
        ),
        {"repo_path": "/srv/repo", "limit": 2},
        {"limit": 1},
        [("Ann", [9, 5])],
    ),
    "a text is the same parameter wherever it stands": (
        (
            "from tools.git import log\nrows = log(repo_path='/srv/repo', author='Ann')\n"
            "{'who': 'Ann', 'Ann': len(rows), 'text': f'{len(rows)} by ' + 'Ann'}",
        ),
        {"repo_path": "/srv/repo", "author": "Ann"},
        {"author": "Bo"},
        {"who": "Bo", "Bo": 1, "text": "1 by Bo"},
    ),
    "a pattern stays what it is": (
        (
            "from tools.git import log\nrows = log(repo_path='/srv/repo', author='Ann')\n"
            "match rows[0]['author']:\n    case 'Ann':\n        found = 'her'\n    case _:\n"
            "        found = 'somebody'\nfound",
        ),
        {"repo_path": "/srv/repo", "author": "Ann"},
        {"author": "Bo"},
        "somebody",
    ),
    "what is gone through": (
        (
            (
                "from tools.git import log\n"
                "[len(log('/srv/repo', author=author)) for author in ['Ann', 'Bo', 'Ann']]"
            ),
        ),
        {"repo_path": "/srv/repo", "authors": ["Ann", "Bo", "Ann"]},
        {"authors": ["Bo"]},
        [1],
    ),
    "a long text is what code works on that calls nothing": (
        (
            "import re\npattern = re.compile(r'on (\\w+)')\nlog = '1 full on a\\n2 hot on b\\n'",
            "sorted(set(pattern.findall(log)))",
        ),
        {"log": "1 full on a\n2 hot on b\n"},
        {"log": "on c"},
        ["c"],
    ),
    "the literal in what has a name": (
        ("words = 'the cat the'.split()\nlongest = max(words, key=words.count)\nlongest",),
        {"words": "the cat the"},
        {"words": "a b b"},
        "b",
    ),
    "another run is called otherwise": (
        (
            (
                "from math import sqrt as run\nfrom tools.git import log\n"
                "number = log(repo_path='/srv/repo')[0]['n']\n[run(number * 5), 'Ann']"
            ),
        ),
        {"repo_path": "/srv/repo"},
        {},
        [5.0, "Ann"],
    ),
    "a name that was imported from two places": (
        (
            (
                "from tools.git import log\nfrom math import floor as turn\n"
                "low = turn(log(repo_path='/srv/repo', author='Bo')[0]['n'] / 3)"
            ),
            "from math import ceil as turn\n[low, turn(7 / 3)]",
        ),
        {"repo_path": "/srv/repo", "author": "Bo"},
        {"author": "Ann"},
        [1, 3],
    ),
    "helpers stay as they are": (
        (
            "from tools.git import log\nfrom collections import Counter\nSTEP = 2\ndef half(n):\n"
            "    return n // STEP\n"
            "STEP = 3\nrows = log(repo_path='/srv/repo')\n"
            "Counter(half(r['n']) for r in rows if r['author'] == 'Ann').most_common(1)",
        ),
        {"repo_path": "/srv/repo", "author": "Ann"},
        {"author": "Bo"},
        [(0, 1)],
    ),
    "calls that change the world are part of it": (
        (
            (
                "from tools.git import log, put\nput(key='seen', value=[1])\n"
                "len(log(repo_path='/srv/repo'))"
            ),
        ),
        {"repo_path": "/srv/repo", "key": "seen", "value": [1]},
        {"key": "other"},
        3,
    ),
    "try and with and walrus": (
        (
            "import io\nfrom tools.git import log\ntry:\n"
            "    rows = log(repo_path='/srv/repo', author='Ann')\n"
            "except ValueError as error:\n    rows = []\nwith io.StringIO() as out:\n"
            "    out.write(str(len(rows)))\n"
            "    text = out.getvalue()\nif (n := len(text)) > 5:\n    text = text[:5]\n[text, n]",
        ),
        {"repo_path": "/srv/repo", "author": "Ann", "limit": 5},
        {"author": "Bo"},
        ["1", 1],
    ),
    "an explicit function": (
        (
            (
                "from tools.git import log\ndef run(repo: str, most: int = 2) -> int:\n"
                "    'Count.'\n    return len(log(repo)[:most])\nrun('/srv/repo')"
            ),
        ),
        {"repo": "/srv/repo", "most": 2},
        {"most": 1},
        1,
    ),
    "a function that is called beside a call that writes": (
        (
            "from tools.git import log, put\ndef count(repo):\n    return len(log(repo))\n"
            "done = put(key='seen', value=[1])\ncount('/srv/repo')",
        ),
        {"repo": "/srv/repo", "key": "seen", "value": [1]},
        {"key": "other"},
        3,
    ),
    "the one function that is called": (
        (
            (
                "import json\nfrom tools.git import log\ndef count(repo, who):\n"
                "    return len(log(repo, author=who))"
            ),
            "who = 'Ann'\nresult = count('/srv/repo', who=who)",
        ),
        {"repo": "/srv/repo", "who": "Ann"},
        {"who": "Bo"},
        1,
    ),
    "an assignment as the result": (
        (
            (
                "from tools.git import log\n"
                "names = sorted({r['author'] for r in log(repo_path='/srv/repo')})"
            ),
        ),
        {"repo_path": "/srv/repo"},
        {},
        ["Ann", "Bo"],
    ),
}


@pytest.mark.parametrize("name", SESSIONS)
def test_a_skill_reproduces_the_session_and_follows_its_parameters(
    host: Recorder, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    codes, inputs, others, expected = SESSIONS[name]
    steps = record(host, *codes)
    extracted = extract_skill(steps)
    assert dict(extracted.cases[0].inputs) == inputs
    assert steps[-1].case.result is not None
    assert json.loads(json.dumps(call_skill(extracted))) == json.loads(
        steps[-1].case.result["text"]
    )
    assert call_skill(extracted, **others) == expected
    check_source(extracted.source, ["numpy"])
    assert "/srv/repo" not in extracted.source.split('"""')[-1]
    assert "print(" not in extracted.source
    assert "unused" not in extracted.source


def test_calls_of_kept_statements_are_numbered_as_those_of_one_run(host: Recorder) -> None:
    steps = record(
        host,
        "from tools.git import log\nlog(repo_path='x')\na = log(repo_path='r')\nlog(repo_path='y')",
        "b = log(repo_path='r')\nlen(a) + len(b)",
    )
    case = extract_skill(steps).cases[0]
    assert case is not None
    assert [(call.call_id, call.args, call.nth) for call in case.calls] == [
        (1, '{"max_count":10,"repo_path":"r"}', 0),
        (2, '{"max_count":10,"repo_path":"r"}', 1),
    ]
    assert case.calls[0].finished_sequence is not None
    assert case.calls[0].finished_sequence < case.calls[1].started_sequence


def test_calls_that_write_are_kept_even_if_the_result_does_not_need_them(host: Recorder) -> None:
    steps = record(
        host, "from tools.git import mark, log\nmark('v1')\nrows = log(repo_path='r')\nlen(rows)"
    )
    extracted = extract_skill(steps)
    assert [call.target for call in extracted.cases[0].calls] == ["tools.git.mark", "tools.git.log"]
    assert "mark(key)" in extracted.source


def test_a_printed_value_is_the_result(host: Recorder) -> None:
    steps = record(host, "from tools.git import log\nprint(f\"{len(log(repo_path='r'))} commits\")")
    extracted = extract_skill(steps)
    assert extracted.cases[0].compares_stdout
    assert call_skill(extracted) == "3 commits"


def test_code_that_awaits_becomes_an_async_function() -> None:
    extracted = extract_skill(
        [
            RecordedStep(
                "r",
                "import asyncio\ncity = 'Oslo'\nawait asyncio.sleep(0, result=city)",
                RecordedCase({}),
            )
        ]
    )
    assert extracted.is_async
    assert call_skill(extracted) == "Oslo"
    assert call_skill(extracted, city="Rome") == "Rome"


REFUSED = {
    "x = 1\nfor y in [x]:\n    print(y)": "has no result",
    "import json": "has no result",
    "missing + 1": "needs 'missing', which no step",
    "def run(a):\n    return a\nrun(open('f'))": "is called with computed values",
    "1 +": "cannot be parsed",
    "x = '\ud800'\nx": "cannot be",
}


@pytest.mark.parametrize("code", REFUSED)
def test_code_without_a_result_or_with_missing_names_is_refused(code: str) -> None:
    with pytest.raises(SkillRefused) as refused:
        extract_skill([RecordedStep("r", code, RecordedCase({}))])
    assert REFUSED[code] in str(refused.value)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("author = 'Ann'\nf'{author}: {len(log(\"/srv/repo\", author=author))}'", "log"),
        ("rows = log('/srv/repo', max_count=2)\n'many' if len(rows) > 5 else 'few'", "log"),
        ("commits = log('/srv/repo', max_count=2)\n[row['sha'] for row in commits]", "commits"),
    ],
)
def test_a_skill_is_named_after_its_result_and_not_its_parameters(
    host: Recorder, code: str, name: str
) -> None:
    assert extract_skill(record(host, f"from tools.git import log\n{code}")).name == name


def test_names_of_an_import_that_the_result_does_not_need_are_left_out(host: Recorder) -> None:
    steps = record(
        host,
        "import json, math\nfrom tools.git import log, mark as label, put",
        "from tools.git import log, put as store\nstore(key='seen', value=[1])\nlen(log(repo_path='r'))",
    )
    extracted = extract_skill(steps)
    assert "\nfrom tools.git import log, put as store\n" in extracted.source
    assert extracted.used_tools == ["git.log", "git.put"]
    assert "math" not in extracted.source
    assert find_left_out(steps) == [
        (0, 1, "import json"),
        (0, 1, "import math"),
        (0, 2, "from tools.git import log, mark as label, put"),
    ]


def test_functions_that_assign_to_globals_are_refused(host: Recorder) -> None:
    with pytest.raises(
        SkillRefused, match="Line 3: a skill cannot have global variables such as total"
    ):
        extract_skill(
            record(host, "total = 0\ndef add(n):\n    global total\n    total += n\nadd(2)\ntotal")
        )


def test_a_parameter_may_share_a_name_with_a_local_variable_of_an_unrelated_function(
    host: Recorder,
) -> None:
    code = (
        "from tools.git import log\ndef size(author):\n"
        "    return len(log('/srv/repo', author=author))\n"
        "def longest(most):\n    return max(len(log('/srv/repo', max_count=2)), most)\n"
        "size('Ann') + longest(9)"
    )
    extracted = extract_skill(record(host, code))
    assert extracted.cases[0].inputs == {
        "repo_path": "/srv/repo",
        "max_count": 2,
        "author": "Ann",
        "most": 9,
    }
    assert call_skill(extracted, author="Bo") == 10


def test_names_that_only_failed_code_defined_are_reported(host: Recorder) -> None:
    with pytest.raises(SkillRefused, match="only code that failed defines"):
        extract_skill(
            [
                RecordedStep("a", "x = 1\n1 / 0", RecordedCase({}), False),
                RecordedStep("b", "x + 1", RecordedCase({})),
            ]
        )


LITERALS: Mapping[str, dict[str, Any]] = {
    "answer = ask_llm('Which city?', data='A letter')\nanswer.upper()": {"data": "A letter"},
    "answer = ask_llm('Which city?')\nanswer.upper()": {"prompt": "Which city?"},
    "answers = ask_llm_batch(['One?', 'Two?'])\nlen(answers)": {"prompt": ["One?", "Two?"]},
    "import tools\nslots = tools.map(tools.git.log, ['ab', 'cd'])\nlen(slots)": {
        "items": ["ab", "cd"]
    },
    "import tools\nby = input()\nlen(tools.git.log(names=['Ann', by]))": {"name": "Ann"},
    "import tools\nrows = tools.git.log()\n[r for r in rows if r.sha.startswith('ab')]": {
        "prefix": "ab"
    },
    "import tools\nrows = tools.git.log()\n[r for r in rows if 3 < r.get('n') <= len(rows)]": {
        "min_n": 3
    },
    "import tools\nrows = tools.git.log()\n[r for r in rows if len(r.files) > 7]": {"min_count": 7},
    (
        "import tools\nrows = tools.git.log()\n"
        "[r for r in rows for kind in ['fix'] if r.kind == kind]"
    ): {"kinds": ["fix"]},
    "import tools\nstate = 'open'\nrows = tools.git.log(states=['open', 'new'])\n"
    "[row for row in rows if row.state == state]": {"state": "open"},
    "from dataclasses import dataclass\nimport tools\n@dataclass\nclass Query:\n    author: str\n"
    "len(tools.git.log(query=Query('Ann')))": {"author": "Ann"},
}


@pytest.mark.parametrize("code", LITERALS)
def test_literals_from_the_task_become_parameters_with_telling_names(code: str) -> None:
    tool = RecordedCall(1, "tools.git.log", "{}", 0, "read", 0, 1, line_number=2)
    model = RecordedCall(1, "llm.ask", "{}", 0, "read", 0, 1, line_number=1)
    call = model if "ask_llm" in code else tool
    extracted = extract_skill([RecordedStep("r", code, RecordedCase({}, (call,)))])
    assert extracted.cases[0].inputs == LITERALS[code]


UNTYPED = """\
def primes(n):
    return [k for k in range(2, n) if all(k % d for d in range(2, k))]
primes(12)"""


def test_an_untyped_function_gets_the_types_of_recorded_values(host: Recorder) -> None:
    extracted = extract_skill(record(host, UNTYPED), name="primes_below")
    assert str(extracted.signature) == "(n: int) -> list[int]"
    assert extracted.summary == "Return primes below n."
    assert call_skill(extracted, n=8) == [2, 3, 5, 7]


@pytest.mark.parametrize(
    ("header", "summary"),
    [
        ("def fetch_rates(currency)", "Fetch rates for currency."),
        ("def total()", "Total."),
        ("def average_speed(trip, unit)", "Return average speed for trip, unit."),
    ],
)
def test_a_function_without_a_docstring_is_summarized_by_its_name(
    header: str, summary: str
) -> None:
    assert read_written_skill(f"{header}:\n    return 1\n").summary == summary


def test_code_written_as_a_skill_stays_as_it_is() -> None:
    code = (
        "import re\n\ndef find(text: str) -> list[str]:\n    '''Find words.'''\n    # kept\n"
        "    return re.findall('a', text)\n"
    )
    extracted = read_written_skill(code)
    assert (extracted.name, extracted.summary, extracted.cases) == ("find", "Find words.", ())
    assert extracted.source == f"{code}\n\nrun = find\n"
    assert read_written_skill("def run(a):\n    return a\n").source == "def run(a):\n    return a\n"


@pytest.mark.parametrize("text", ['"""', 'a\'""" import os', "\\\\", "\x00", "\ud800", "it's"])
def test_no_default_escapes_the_docstring(text: str) -> None:
    code = f"item = {text!r}\nitem + '!'"
    extracted = extract_skill([RecordedStep("r", code, RecordedCase({}, (), make_result('"x"')))])
    assert [type(node).__name__ for node in ast.parse(extracted.source).body] == [
        "Expr",
        "ImportFrom",
        "FunctionDef",
    ]
    assert extracted.cases[0].inputs == {"item": text}


@pytest.mark.parametrize("depth", [300, 600, 990, 3000, 30_000])
def test_deeply_nested_code_is_extracted_or_refused(depth: int) -> None:
    for code in ("+".join(["a"] * depth), "a" + ".b" * depth, "-" * depth + "a"):
        with suppress(SkillRefused):
            assert source_shape(read_written_skill(f"def run(a):\n    return {code}\n").source)


def test_values_have_annotations() -> None:
    values = {
        "str": "x", "bool": True, "int": 1, "float": 1.5, "None": None, "list[int]": [1, 2], "list[float]": [1, 2.5],
        "list[int | None]": [1, None], "list[Any]": [], "dict[str, int]": {"a": 1}, "dict[str, Any]": {"a": 1, "b": "x"},
        "list[dict[str, list[Any]]]": [{"a": [[1]]}],
    }  # fmt: skip
    assert {annotation_of(value) for value in values.values()} == set(values)


NAMES = st.sampled_from(["a", "b", "c", "d"])
LINES = st.one_of(
    st.builds("{} = {}".format, NAMES, st.integers(2, 99)),
    st.builds("{} = [{}, 5]".format, NAMES, st.integers(2, 99)),
    st.builds("{} = [str({}), {}]".format, NAMES, NAMES, NAMES),
    st.builds("{} = str({}) + 'x'".format, NAMES, NAMES),
    st.builds(
        "{}.append({}) if isinstance({}, list) else None".format, NAMES, st.integers(2, 9), NAMES
    ),
    st.builds("if isinstance({0}, list): {0}[0] = {1}".format, NAMES, st.integers(2, 99)),
    st.builds("for {} in range(2):\n    {} = ({}, 1)".format, NAMES, NAMES, NAMES),
    st.builds("del {0}\n{0} = {1}".format, NAMES, st.integers(2, 99)),
    st.builds("def f({}):\n    return repr({})\n{} = f({})".format, NAMES, NAMES, NAMES, NAMES),
)


@given(st.lists(LINES, max_size=8), NAMES)
def test_extracted_programs_return_the_same_value_each_time(lines: list[str], result: str) -> None:
    code = "\n".join(["a = 2", "b = [3]", "c = a", "d = b", *lines, f"repr({result})"])
    names: dict[str, Any] = {}
    try:
        exec(code, names)
    except Exception:  # noqa: BLE001 - only what works is saved
        return
    extracted = extract_skill([RecordedStep("r", code, RecordedCase({}, (), make_result('""')))])
    assert call_skill(extracted) == repr(names[result])
    skill: dict[str, Any] = {}
    exec(extracted.source, skill)
    assert [skill["run"](), skill["run"]()] == [
        repr(names[result])
    ] * 2  # what changes a default would show
