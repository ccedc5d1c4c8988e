"""The credentials that an upstream was given never come back from it.

They are replaced in answers, errors and logs before anything else sees these.

Rule 1: what counts as one: every value of `env`, `headers`, `args` and the secret parts of a URL,
if its name says so (`--token`, `API_KEY`) and it has six characters; and whatever its name, if it
has eight and is not plain. Plain are numbers, paths, addresses without a password, and words of
letters: replacing `production`, `8080` or `/home/me` in answers would falsify them.
Rule 2: each is replaced as it is, escaped as JSON, percent-encoded, in hexadecimal and in base64,
alone or as either half of a Basic authorization; a number also as a JSON number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from ...config import UpstreamSettings
from ...config.credentials import is_credential_name
from ..credential_forms import encode_base64_forms

MIN_NAMED_CHARS = 6
MIN_UNNAMED_CHARS = 8  # shorter values occur by chance
REDACTED = "***"
PATH = re.compile(r"[~.]{0,2}[/\\]|[A-Za-z]:[/\\]")
WORDS = re.compile(r"[A-Z]?[a-z]+(?:[ ._:/-][A-Z]?[a-z]+)*|[A-Z]+(?:[ ._:-][A-Z]+)*")
BASE64_END = r"[A-Za-z0-9+/]{0,4}={0,2}"  # which depends on what follows the value
NUMBER = re.compile(r"[+-]?[0-9.,:_-]+")


class Credentials:
    """The secret values that one upstream was given; replaces them in what it sends."""

    def __init__(self, values: Iterable[str]) -> None:
        known = set(values)
        # The longest first, so that no rest remains of a form that contains another one.
        forms = sorted({form for value in known for form in spell(value)}, key=len, reverse=True)
        pattern = "|".join(forms)
        self._pattern = re.compile(pattern) if forms else None
        self._bytes_pattern = re.compile(pattern.encode())
        self._numbers = {int(value) for value in known if value.isascii() and value.isdigit()}
        self.max_form_bytes = max((len(form.encode()) for form in forms), default=0)

    def __bool__(self) -> bool:
        return self._pattern is not None

    def redact(self, value: Any) -> Any:
        """Return JSON data with every known credential in it replaced."""
        if isinstance(value, str):
            return self.redact_text(value)
        if isinstance(value, list):
            return [self.redact(item) for item in value]
        if isinstance(value, dict):
            return {self.redact_text(key): self.redact(item) for key, item in value.items()}
        if self._numbers and type(value) is int and value in self._numbers:
            return REDACTED
        return value

    def redact_text(self, text: str) -> str:
        """Return `text` with every known credential replaced."""
        return text if self._pattern is None else self._pattern.sub(REDACTED, text)

    def redact_bytes(self, data: bytes) -> bytes:
        """Return `data` with every known credential replaced."""
        return self._bytes_pattern.sub(REDACTED.encode(), data) if self else data


def spell(value: str) -> Iterator[str]:
    """Yield patterns of the forms in which `value` may occur in a text."""
    in_json = (json.dumps(value, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False))
    in_addresses = quote(value), quote(value, safe=""), quote_plus(value)
    for form in (value, *in_json, *in_addresses, value.encode().hex()):
        yield re.escape(form)
    for form in encode_base64_forms(value):
        yield re.escape(form) + BASE64_END


def collect_credentials(settings: UpstreamSettings) -> Credentials:
    """Return the credentials in `settings`."""
    named = [(name, value.get_secret_value()) for name, value in settings.env.items()]
    for name, header in settings.headers.items():
        text = header.get_secret_value()
        named += [("credentials", each) for each in text.split()[1:]]  # after "Bearer" or "Basic"
        named.append((name, text))
    named += _named_arguments(settings.args)
    found = {value for name, value in named if is_credential(name, value)}
    for text in (settings.url or "", *(value for _, value in named)):
        found.update(_url_credentials(text))
    return Credentials(found)


def is_credential(name: str, value: str) -> bool:
    """Return whether a value of the settings is a credential."""
    if is_credential_name(name):
        return len(value) >= MIN_NAMED_CHARS
    return len(value) >= MIN_UNNAMED_CHARS and not is_plain(value)


def is_plain(value: str) -> bool:
    """Return whether a value says nothing secret: a number, a path, an address, or words."""
    if NUMBER.fullmatch(value) or WORDS.fullmatch(value) or PATH.match(value):
        return True
    return "://" in value and not any(_url_credentials(value))


def _named_arguments(args: Sequence[str]) -> list[tuple[str, str]]:
    """Return the values among arguments, each with the name of its option, if it has one."""
    found = []
    for before, argument in zip_longest(("", *args), args, fillvalue=""):
        option, is_joined, value = argument.partition("=")
        if not argument.startswith("-"):
            found.append((before.strip("-") if before.startswith("-") else "", argument))
        elif is_joined:
            found.append((option.strip("-"), value))
    return found


def _url_credentials(text: str) -> list[str]:
    """Return the password and the secret parameters of a URL; none if `text` is not one."""
    try:
        url = urlsplit(text)
        password = url.password or ""
    except ValueError:
        return []
    if not url.scheme or not url.netloc:
        return []
    named = [("password", password), ("password", unquote(password))]
    named += [pair for pair in parse_qsl(url.query) if is_credential_name(pair[0])]
    return [value for name, value in named if is_credential(name, value)]


def reveal_secrets(table: Mapping[str, Any]) -> dict[str, str]:
    """Return the secret values of a settings table in plain text; only for `transport`."""
    return {name: value.get_secret_value() for name, value in table.items()}
