"""Finds credentials in text: by the formats that issuers give them, and by how little they look like words.

Rule 1: what is found is never repeated; a finding names its kind alone.
Rule 2: linear in the text, whatever it holds.
"""

from __future__ import annotations

import math
import re
from collections import Counter

CREDENTIAL_FORMATS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("an AWS access key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    (
        "a GitHub token",
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{30,255})"),
    ),
    ("a GitLab token", re.compile(r"\bglpat-[A-Za-z0-9_-]{20,64}")),
    ("an API key", re.compile(r"\b(?:sk|rk|pk)[-_](?:[a-z]{2,10}[-_]){0,3}[A-Za-z0-9_-]{20,200}")),
    ("a Slack token", re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,200}")),
    ("a Google API key", re.compile(r"\bAIza[A-Za-z0-9_-]{35}")),
    (
        "a JSON web token",
        re.compile(r"\beyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,1000}"),
    ),
    ("a private key", re.compile(r"-----BEGIN (?:[A-Z]{2,12} ){0,3}PRIVATE KEY-----")),
    (
        "a password in a URL",
        re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,80}:[^\s/@]{3,80}@"),
    ),
    (
        "a user's password",
        re.compile(r"\b[Bb]asic\s+(?=[A-Za-z+/]{0,60}[0-9=])[A-Za-z0-9+/]{12,400}={0,2}"),
    ),
    ("a bearer token", re.compile(r"\b[Bb]earer\s+[A-Za-z0-9._~+/-]{20,2000}")),
)
NAMED = re.compile(
    r"pass(?:word|wd|phrase)|secret|token|api_?key|credential|private_?key", re.IGNORECASE
)
WORD = re.compile(r"[A-Za-z0-9+/_=-]{20,200}")
HEX = re.compile(r"[0-9a-f]+|[0-9A-F]+|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
BITS = (
    4.2  # a character of a random base64 text of 24 characters has more; words and paths have less
)
MIN_NAMED = 6  # characters of a value that is called a secret


def find_known_credential(text: str) -> str:
    """Return what kind of credential `text` holds, by its format; "" if none."""
    return next((kind for kind, pattern in CREDENTIAL_FORMATS if pattern.search(text)), "")


def find_named_credential(text: str, name: str) -> str:
    """Return what kind of credential `text` is by what it is called; "" if that says nothing."""
    is_word = len(text) >= MIN_NAMED and not any(map(str.isspace, text))
    return f"the value of {name!r:.60}" if is_word and NAMED.search(name) else ""


def find_credential(text: str, name: str = "") -> str:
    """Return what kind of credential `text` is or holds, `name` being what code calls it; "" if none."""
    if kind := find_known_credential(text):
        return kind
    if kind := find_named_credential(text, name):
        return kind
    return "a random text such as keys are" if any(map(is_random_text, WORD.findall(text))) else ""


def is_random_text(word: str) -> bool:
    """Return whether a word of at least 20 characters is drawn by chance; hashes and UUIDs are not meant."""
    if HEX.fullmatch(word):
        return False
    kinds = (any(map(str.isupper, word)), any(map(str.islower, word)), any(map(str.isdigit, word)))
    return all(kinds) and bits_per_character(word) >= min(BITS, math.log2(len(word)) - 0.35)


def bits_per_character(text: str) -> float:
    """Return the bits that a character of `text` carries."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)
