"""What cannot be a skill: its code, its cases, and skills that use themselves."""

from __future__ import annotations

import pytest

from mcpruntime_server.capabilities.skills.lint import (
    check_case,
    check_dependency_cycle,
    check_source,
)
from mcpruntime_server.capabilities.skills.model import RecordedCase, Skill
from mcpruntime_server.capabilities.skills.source import (
    find_skill_names,
    find_tool_names,
    is_absolute_path,
    parse_source,
    source_shape,
)
from mcpruntime_server.config.credentials import find_credential, find_known_credential
from mcpruntime_server.errors import SkillRefused

PACKAGES = ("numpy", "pandas>=2", "scikit-learn")


RANDOM = "q7Zr2LkP9xWv4TnB" + "8sYd3HfJ6mGc"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("x" * 200_001, "200,001 characters"),
        ("x = [[1]]\n" * 5_000, "more than 15,000 words and signs"),
    ],
)
def test_code_that_takes_long_to_parse_is_refused(code: str, problem: str) -> None:
    with pytest.raises(SkillRefused, match=problem):
        parse_source(code)
    assert source_shape(code) != source_shape(f"{code} ")  # what is in the store prevents no save


@pytest.mark.parametrize(
    "text",
    [
        *(
            "AKIA" + "ABCDEFGHIJKLMNOP",
            "ghp_" + "a1B2" * 9,
            "glpat-" + "x" * 20,
            "sk-" + "proj-" + "Ab1" * 12,
        ),
        *("xoxb-" + "1234567890-abc", "AIza" + "x" * 35, "-----BEGIN " + "RSA PRIVATE KEY-----"),
        *("postgres://u:" + "hunter22@db/x", "Authorization: Bearer " + "abcdefghijklmnopqrstuv"),
        "Authorization: Basic " + "dXNlcjpodW50ZXIyMg==",
    ],
)
def test_known_formats_of_credentials_are_found(text: str) -> None:
    assert find_known_credential(f"x = {text} ")


def test_random_texts_are_credentials_but_hashes_words_and_paths_are_not() -> None:
    assert find_credential(RANDOM)
    assert find_credential("hunter22", "db_password")
    for harmless in (
        "0123456789abcdef" * 4,
        "a-sentence-with-many-hyphens-in-it",
        "select_all_customers_by_region",
    ):
        assert not find_credential(harmless)
    assert not find_credential("6f1ed002-ab55-4e3d-9a1b-0123456789ab")
    assert not find_credential("of the next page", "token")
    assert not find_credential("Basic authentication is what it wants")


@pytest.mark.parametrize(
    "text",
    ["/home/ann/x", "/etc", "/tmp/a b"[:6], "~/notes", "C:\\Users\\x", "\\\\host\\share", "/a/b/c"],
)
def test_absolute_paths_are_recognised(text: str) -> None:
    assert is_absolute_path(text)


@pytest.mark.parametrize(
    "text", ["a/b", "/", "and/or", "https://x.org/y", "/users", "<a href='/x/y'>", "\\d+/\\d+", ""]
)
def test_other_texts_are_not_paths(text: str) -> None:
    assert not is_absolute_path(text)


RUN = "def run(a: int = 1) -> int:\n    return a\n"


REFUSED = {
    f"print('hello')\n{RUN}": "Line 1 does work",
    f"import os\nfor x in []: pass\n{RUN}": "Line 2 does work",
    "class A:\n    for x in [1]:\n        print(x)\n" + RUN: "Line 2 does work",
    "class A:\n    class B:\n        with open('f'):\n            pass\n" + RUN: "Line 3 does work",
    f"import builtins\nbuiltins.open = None\n{RUN}": "Line 2 does work",
    f"x = {{}}\nx[print('x')] = 1\n{RUN}": "Line 2 does work",
    f"{RUN}    # \u202e }} after that\n": "Line 3 has characters that change the direction of text",
    "import os as o\ndef run(a):\n    return o.environ[a]\n": "Line 3 reads the environment",
    "import posix\ndef run(a):\n    return posix.environ[a]\n": "Line 3 reads the environment",
    f"def run(a={'-' * 900}1):\n    return a\n": "nested too deeply",
    "def run(:\n": "line 1",
    "def run(a):\n    print(a)\n": "returns nothing",
    "def one(a):\n    return a\ndef two(a):\n    return a\n": "no function `run`",
    "": "no function `run`",
    f"import requests\n{RUN}": "Line 1 imports 'requests'",
    "def run():\n    import boto3.session\n    return 1\n": "Line 2 imports 'boto3.session'",
    "import os\ndef run():\n    return os.environ['HOME']\n": "Line 3 reads the environment",
    ("from os import getenv as g\ndef run():\n    return g('HOME')\n"): (
        "Line 3 reads the environment"
    ),
    "def run():\n    return open('/home/ann/data.csv').read()\n": "Line 2 holds the absolute path",
    f"def run():\n    return '{RANDOM}'\n": "Line 2 holds what looks like a random text",
    ("def run(password='hunter22'):\n    return password\n"): (
        "Line 1 holds what looks like the value of 'password'"
    ),
    ("def run(*, password='hunter22'):\n    return password\n"): (
        "Line 1 holds what looks like the value of 'password'"
    ),
    ("def run(a):\n    user, password = 'bo', 'hunter22'\n    return a\n"): (
        "Line 2 holds what looks like the value of"
    ),
    ("def run(a):\n    return (password := 'hunter22')\n"): (
        "Line 2 holds what looks like the value of 'password'"
    ),
    f"def run(a):\n    return a  # with {RANDOM}\n": "Line 2 holds what looks like a random text",
    f"{RUN}# AKIA{'ABCDEFGHIJKLMNOP'}": "Line 3 holds what looks like an AWS access key",
    "x = 1\0\n": "cannot be parsed",
    "x" * 200_001: "200,001 characters",
    f"def run():\n    return {'(' * 2000}1{')' * 2000}\n": "cannot be parsed",
}


@pytest.mark.parametrize("source", REFUSED)
def test_code_that_cannot_be_a_skill_is_refused_with_its_line(source: str) -> None:
    with pytest.raises(SkillRefused) as refused:
        check_source(source, PACKAGES)
    assert REFUSED[source] in str(refused.value)
    assert RANDOM not in str(refused.value)
    assert "hunter22" not in str(refused.value)


HARMLESS = """
import functools
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto, unique
from typing import Annotated, Literal

@unique
class Kind(Enum):
    ONE = auto()

@dataclass(frozen=True)
class Row:
    name: str = "x"
    parts: list[str] = field(default_factory=list)

    @property
    def upper(self) -> str:
        return self.name.upper()

    @upper.setter
    def upper(self, value): pass

def again(function):
    return function

@contextmanager
def opened(): yield 1

LOW, HIGH = 1, 2

@again
@functools.lru_cache(maxsize=None)
def run(a: Literal["x"] = "x", b: Annotated[int, "count"] = 1) -> str:
    return Row(a).upper
"""


def test_definitions_are_not_work_at_import() -> None:
    check_source(HARMLESS, PACKAGES)


def test_dependencies_are_read_from_the_code() -> None:
    source = (
        "import re\nimport pandas as pd\nimport tools\nimport tools.time as clock\n"
        "from tools.git import git_log, git_show\n"
        "from tools import memory\nfrom skills.top_authors import run as top\n"
        "from skills.report.v2 import run as old\n"
        "import skills\nPATTERN = re.compile('x+')\n"
        "def run(repo: str) -> object:\n"
        "    tools.search('x')\n"
        "    return [git_log(repo), git_show(repo), clock.now(), memory.read_graph(), "
        "tools.sqlite.query('x'), top(), "
        "skills.other.run(), old()]\n"
    )
    check_source(source, PACKAGES)
    assert find_tool_names(source) == [
        "git.git_log",
        "git.git_show",
        "memory.read_graph",
        "sqlite.query",
        "time.now",
    ]
    assert find_skill_names(source) == ["other", "report@2", "top_authors"]
    assert [each.annotation for each in Skill("x", "", source).signature.parameters.values()] == [
        "str"
    ]
    check_source("import sklearn\n" + RUN, PACKAGES)
    check_source("import anything\n" + RUN, None)


def using(name: str, line: str) -> Skill:
    return Skill(name, "", f"{line}\n{RUN}", version=1)


def test_a_skill_must_not_use_itself_through_others() -> None:
    skills = {
        "one": (using("one", "from skills.two import run as two"),),
        "two": (using("two", "import skills.three.v2 as three"),),
    }
    user = "import skills\ndef other():\n    return skills.one.v1()\n"
    check_dependency_cycle(using("four", user), skills)
    with pytest.raises(SkillRefused, match="three would use itself, through one, three, two"):
        check_dependency_cycle(using("three", user), skills)


def test_cases_with_credentials_are_refused() -> None:
    check_case(RecordedCase({"city": "Oslo"}))
    with pytest.raises(SkillRefused, match="the value of 'password'"):
        check_case(RecordedCase({"password": "hunter22"}))
    with pytest.raises(SkillRefused, match="an AWS access key"):
        check_case(RecordedCase({}, stdout="AKIA" + "ABCDEFGHIJKLMNOP"))
