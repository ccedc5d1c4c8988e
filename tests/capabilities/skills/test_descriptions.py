"""Descriptions by a model: what it sees of the code, and what its answer can change."""

from __future__ import annotations

import ast
import json

import pytest

from mcpruntime_server.capabilities.skills.descriptions import (
    format_data,
    needs_description,
    read_answer,
    set_docstrings,
)
from mcpruntime_server.capabilities.skills.extraction import extract_skill, read_written_skill
from mcpruntime_server.capabilities.skills.model import RecordedCase, RecordedStep, Skill
from mcpruntime_server.capabilities.skills.source import (
    entry_of,
    parameter_descriptions,
    parse_source,
    source_shape,
    to_docstring_line,
    to_front_matter_line,
)
from mcpruntime_server.errors import SkillRefused
from mcpruntime_server.journal.recording import RecordedCall

ANSWER = {"name": "shout_out", "summary": "Say it loudly", "parameters": {"word": "what is said"}}
LONG, LOOK_ALIKE = "a" * 65, "w\u0435ather"
NAMES = [
    "../../etc/passwd",
    "class",
    "list",
    LOOK_ALIKE,
    "v2",
    LONG,
    "claude_skill",
    "",
    "\u202eevil",
    "a\nb",
    "print",
]
TEXTS = [
    'Say """ and\nimport os',
    "ends with a backslash \\",
    'ends with a quote "',
    "--- \n---\nname: other\n---",
    "{{ 7 * 7 }} {% raw %}",
    "\x00\x1b[31m\u202e\u200b red \ud800",
    "```\nfrom skills.evil import run\n```",
    "x" * 5000,
    "\U0001f600 'single' \\N{BELL} \\u0041 %s {0}",
]


def extract(code: str, *calls: RecordedCall) -> Skill:
    return extract_skill(
        [
            RecordedStep(
                "r",
                code,
                RecordedCase(
                    {}, calls, {"kind": "json", "type": "str", "text": '"PEARS!"', "cut": False}
                ),
            )
        ]
    )


@pytest.mark.parametrize("name", NAMES)
def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(SkillRefused, match="cannot name a skill"):
        read_answer({**ANSWER, "name": name})


@pytest.mark.parametrize("name", ["Shout Out", "shout-out", " shout_out "])
def test_names_are_accepted_as_people_write_them(name: str) -> None:
    assert read_answer({**ANSWER, "name": name}) == (
        "shout_out",
        "Say it loudly.",
        {"word": "what is said"},
    )


@pytest.mark.parametrize("text", ["", " \n\t", "\u202e\u200b", "token ghp_" + "a1B2" * 9])
def test_empty_summaries_and_credentials_are_refused(text: str) -> None:
    with pytest.raises(SkillRefused):
        read_answer({**ANSWER, "summary": text})


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("documented_before", [True, False])
def test_a_description_changes_docstrings_only(text: str, documented_before: bool) -> None:
    code = "word = 'pears'\nword.upper() + '!'"
    if not documented_before:
        code = "def cry(word: str) -> str:\n    return word.upper() + '!'\ncry('pears')"
    source = extract(code).source
    _, summary, about = read_answer(
        {**ANSWER, "summary": f"Say {text}", "parameters": {"word": text}}
    )
    worded = set_docstrings(source, summary, about)
    tree = ast.parse(worded)
    assert [type(node).__name__ for node in tree.body] == [
        type(node).__name__ for node in ast.parse(source).body
    ]
    assert source_shape(worded) == source_shape(source)
    assert (ast.get_docstring(tree) or "") == summary
    assert parameter_descriptions(entry_of(parse_source(worded))) == {"word": about["word"]}
    assert all(line.isprintable() and len(line) <= 120 for line in worded.splitlines())
    assert "---" not in to_front_matter_line(summary, 1000)


def test_the_model_sees_no_recorded_values() -> None:
    call = RecordedCall(
        1,
        "tools.shop.order",
        '{"item": "SECRET PEARS"}',
        0,
        "read",
        1,
        2,
        value=["SECRET"],
        line_number=3,
    )
    code = (
        "from tools.shop import order\nitem = 'SECRET PEARS'\n"
        "found = order(item=item)  # for SECRET Ann\n"
        "label = {'of': item, 'SECRET PEARS': len(found) > 4711}\nstr(label)"
    )
    made = extract(code, call)
    text = format_data(made)
    assert "SECRET" not in text
    assert "4711" not in text
    assert "PEARS!" not in text
    data = json.loads(text)
    assert data["parameters"]["item"] == "str"
    assert (data["returns"], data["answers"]) == ("str", {"tools.shop.order": "list[str]"})
    assert "order(item=item)" in data["code"]


def test_code_that_is_too_long_is_not_shown() -> None:
    made = extract(
        "word = 'pears'\n" + "".join(f"a{n} = word.upper()\n" for n in range(2000)) + "word + '!'"
    )
    texts = f"'{'x' * 100}', " * 400
    long = extract(f"word = 'pears'\nrows = [word.upper(), {texts}]\nrows")
    assert format_data(made)
    with pytest.raises(SkillRefused, match="at most"):
        format_data(long)


def test_documented_functions_need_no_description() -> None:
    assert not needs_description(
        read_written_skill("def cry(word):\n    'Cry it.'\n    return word.upper()\n")
    )
    assert needs_description(read_written_skill("def cry(word):\n    return word.upper()\n"))
    assert needs_description(extract("word = 'pears'\nword.upper() + '!'"))


def test_parameter_descriptions_are_found_in_many_formats() -> None:
    source = (
        "def run(a, b, c, d):\n    '''Do it.\n\n    Args:\n        a: one\n"
        "        b (int): two: three\n"
        "    - `c`: four\n    other: five\n    d:\n    '''\n    return a\n"
    )
    entry = entry_of(parse_source(source))
    assert parameter_descriptions(entry) == {
        "a": "one",
        "b": "two: three",
        "c": "four",
    }


def test_long_lines_are_truncated() -> None:
    assert to_docstring_line("x" * 500, 100) == "x" * 97 + "..."
    assert to_docstring_line("\n" * 10_000 + "late", 100) == ""
