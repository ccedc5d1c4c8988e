"""Where a principal's own credentials go in the settings of an MCP server.

Rule 1: once variables are replaced, a placeholder is its name between two NUL characters, which no
setting can contain otherwise. So no text from a variable is taken for a placeholder.
Rule 2: a credential cannot change where it is sent. It is one segment or one value of a URL, never
a part of the host, and one value of a header.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from urllib.parse import quote

PER_PRINCIPAL = "per-principal"
PLACEHOLDER_FIELDS = ("args", "env", "url", "headers", "value")
DEFAULT_NAME = "default"  # of the credential that `${credential}` stands for
PLACEHOLDER = re.compile("\0([A-Za-z0-9_-]+)\0")
MAX_CREDENTIAL_BYTES = 8_192  # UTF-8; a private key with its certificates has about 6,000
MIN_CREDENTIAL_CHARS = 6  # a shorter one occurs by chance, so it could not be kept out of answers
HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


def mark_placeholder(name: str) -> str:
    """Return the text that stands for the credential `name`."""
    return f"\0{name}\0"


def find_placeholder_names(text: str) -> list[str]:
    """Return the names of the credentials that have a place in `text`."""
    return PLACEHOLDER.findall(text)


def is_in_host(url: str) -> bool:
    """Return whether a credential would be a part of the host of `url`, or of what is before it."""
    return "\0" in "".join(re.split(r"[/?#]", url, maxsplit=3)[:3])


def fill_text(text: str, secrets: Mapping[str, str]) -> str:
    """Return `text` with credentials in their places."""
    return PLACEHOLDER.sub(lambda found: secrets[found[1]], text)


def fill_url(url: str, secrets: Mapping[str, str]) -> str:
    """Return `url` with credentials, percent-encoded, in their places."""
    return PLACEHOLDER.sub(lambda found: quote(secrets[found[1]], safe=""), url)


def check_credential(text: str, fields: Collection[str]) -> str:
    """Return why a credential cannot be used in these fields, as a clause; "" if it can."""
    if len(text.encode("utf-8", "replace")) > MAX_CREDENTIAL_BYTES:
        return f"it has more than {MAX_CREDENTIAL_BYTES:,} bytes"
    if len(text) < MIN_CREDENTIAL_CHARS:
        return (
            f"it has fewer than {MIN_CREDENTIAL_CHARS} characters, "
            "so that it could not be kept out of answers"
        )
    if "\0" in text:
        return "it has a NUL character"
    if "headers" in fields and not HEADER_VALUE.fullmatch(text):
        return "it is sent in a header, which holds one line of ASCII characters"
    if "url" in fields and not text.strip("."):
        return "it is sent in a URL, where dots alone name another folder"
    return ""
