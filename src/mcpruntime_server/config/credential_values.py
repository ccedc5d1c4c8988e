"""Recognise the credentials among the values that an MCP server is given.

What counts as one: every value of `env`, `headers`, `args` and the URL, and every part of it that
is a value itself (`KEY=value`, JSON, a line, what follows "Bearer"), if its name says so
(`--token`, `API_KEY`) and it has six characters; and whatever its name, if it has eight and is not
plain. Plain are numbers, paths, words, addresses, and names of hosts, packages and languages:
replacing `production`, `us-east-1` or `/home/me` would falsify what they are in.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from urllib.parse import parse_qsl, unquote, urlsplit

from .credentials import find_known_credential, is_credential_name, is_random_text

MIN_NAMED_CHARS = 6
MIN_UNNAMED_CHARS = 8  # shorter values occur by chance
MAX_NESTED_VALUES = 5  # values within values, such as a URL in JSON in a variable
PLAIN_VALUES = tuple(
    map(
        re.compile,
        (
            r"[+-]?[0-9.,:_-]+(?:T[0-9.:]+Z?)?",  # a number, a date
            r"(?:[~.]{0,2}[/\\]|[A-Za-z]:[/\\]).*",  # a path
            # words, with one number or short ones among them: "us-east-1", "en_US.UTF-8"
            r"(?=[^0-9]*[0-9]{0,4}[^0-9]*$|(?:[^0-9]*[0-9]{1,2}(?![0-9]))*[^0-9]*$)"
            r"(?:[A-Z]?[a-z]+|[A-Z]+|[0-9]+)(?:[ ._:/-](?:[A-Z]?[a-z]+|[A-Z]+|[0-9]+))*",
            r"[\w.+-]+@(?:[\w-]+\.)+[A-Za-z]{2,12}",  # a mail address
            r"(?:(?:[a-z0-9-]+\.)+[a-z]{2,12}|localhost)(?::[0-9]+)?(?:/[a-z.-]*)*",  # a host
            # a package
            r"(?:@[a-z0-9-]+/[a-z0-9._-]+|[a-z-]+)"
            r"(?:(?:@|==)(?:latest|[~^v]?[0-9]+(?:\.[0-9a-z]+)+))?",
        ),
    )
)
KEY_AND_VALUE = re.compile(r"([A-Za-z_][\w. -]{0,80})[=:]\s*(\"[^\"]*\"|'[^']*'|[^;&\s]+)")
ASSIGNMENT = re.compile(r"-{0,2}([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
COMMON_VALUE = re.compile(  # plain whatever its name is: AUTH_MODE=required
    r"(?i)bearer|debug|default|development|disabled|enabled|external|internal|localhost|oauth2"
    r"|optional|private|production|public|required|staging|testing|verbose|warning"
)
AMOUNT_NAME = re.compile(r"(?i)max|min|limit|budget|count|tokens$|size|timeout|ttl|port$|expir")
AMOUNT = re.compile(r"[0-9]{1,9}")
AUTHORIZATION = re.compile(
    r"(?i)(?:^|[:=]\s*[\"']?)(basic|bearer|token|apikey)\s+([^\s\"']+)[\"']?\s*$"
)
ADDRESS_SECRET = re.compile(r"[0-9a-fA-F-]{24,}|[A-Za-z0-9_~-]*[0-9][A-Za-z0-9_~-]*")
MIN_ADDRESS_SECRET_CHARS = 16  # of a key that is a part of a URL's path
QUOTES = "\"'"


def find_value_credentials(name: str, text: str) -> set[str]:
    """Return the credentials in a value of the settings, which may be all of it."""
    return {value for key, value in _split_value(name, text) if is_credential(key, value)}


def is_credential(name: str, value: str) -> bool:
    """Return whether a value of the settings is a credential."""
    if COMMON_VALUE.fullmatch(value) or (AMOUNT_NAME.search(name) and AMOUNT.fullmatch(value)):
        return False
    if is_credential_name(name):
        return len(value) >= MIN_NAMED_CHARS
    return len(value) >= MIN_UNNAMED_CHARS and not is_plain(value)


def is_plain(value: str) -> bool:
    """Return whether a value says nothing secret."""
    if find_known_credential(value):
        return False
    if any(pattern.fullmatch(value) for pattern in PLAIN_VALUES):
        return True
    if assignment := ASSIGNMENT.fullmatch(value):
        return not is_credential(assignment[1], assignment[2])
    return "://" in value and not any(
        is_credential(key, part) for key, part in _split_address(value)
    )


def name_arguments(args: Sequence[str]) -> list[tuple[str, str]]:
    """Return the values among arguments, each with the name of its option, if it has one."""
    found = []
    for before, argument in zip_longest(("", *args), args, fillvalue=""):
        option = before.strip("-") if before.startswith("-") and "=" not in before else ""
        if not argument.startswith("-") or is_credential_name(option):
            found.append((option, argument))
        elif "=" not in argument and not argument.startswith("--"):
            found.append(("", argument[2:]))  # as in -pPASSWORD
        else:
            found.append(("", argument))
    return found


def _split_value(name: str, text: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield a value and the values in it, each with its name."""
    if not text or depth > MAX_NESTED_VALUES:
        return
    assignment = ASSIGNMENT.fullmatch(text)
    if not (assignment and is_plain(text)) and not text.startswith("--"):
        yield name, text
    inner = {("", text.strip()), ("", text.strip(QUOTES))} - {("", text)}
    found = [(name, each) for _, each in inner]
    if assignment:
        found.append((assignment[1], assignment[2]))
    found += [(name, line) for line in text.splitlines() if line != text and line[:5] != "-----"]
    found += [(key.strip(), each.strip(QUOTES)) for key, each in KEY_AND_VALUE.findall(text)]
    found += _split_json(name, text)
    found += _split_address(text)
    if authorization := AUTHORIZATION.search(text):
        scheme, credential = authorization.groups()
        found.append(("credential", credential))
        if scheme.lower() == "basic":
            found += _split_basic(credential)
    for key, each in found:
        if each != text:
            yield from _split_value(key, each, depth + 1)


def _split_json(name: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield the texts in JSON, each with its key."""
    if text.lstrip()[:1] not in ("{", "["):
        return
    try:
        remaining = [(name, json.loads(text))]
    except (ValueError, RecursionError):
        return
    while remaining:
        key, value = remaining.pop()
        if isinstance(value, dict):
            remaining += value.items()
        elif isinstance(value, list):
            remaining += [(key, each) for each in value]
        elif isinstance(value, str):
            yield key, value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, str(value)


def _split_basic(credential: str) -> list[tuple[str, str]]:
    """Return the user and the password of a Basic authorization."""
    try:
        user, _, password = base64.b64decode(credential).decode().partition(":")
    except ValueError:
        return []
    return [("", user), ("password", password)]


def _split_address(text: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a URL that may be secret; none if `text` is not one."""
    try:
        url = urlsplit(text.removeprefix("jdbc:"))
        user, password = url.username or "", url.password or ""
    except ValueError:
        return
    if not url.scheme or not url.netloc:
        return
    for name, value in (("" if password else "credential", user), ("password", password)):
        yield name, value
        yield name, unquote(value)
    yield from parse_qsl(url.query)
    yield from parse_qsl(url.fragment)
    for part in url.path.split("/"):
        is_long = len(part) >= MIN_ADDRESS_SECRET_CHARS
        if is_long and (ADDRESS_SECRET.fullmatch(part) or is_random_text(part)):
            yield "credential", part
