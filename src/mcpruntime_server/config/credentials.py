"""Recognise credentials: by their names, by the formats of their issuers, and by randomness.

Rule 1: a finding names the kind of a credential and never repeats it.
Rule 2: every search is linear in the length of the text.
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
    (
        "an API key",
        re.compile(r"\b(?:sk|rk|pk)[-_](?:[a-z]{2,10}[-_]){0,3}[A-Za-z0-9_-]{20,200}"),
    ),
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
CERTAIN_NAME = re.compile(
    r"pass(?:word|wd|phrase)|secret|token|api_?key|credential|private_?key", re.IGNORECASE
)
LIKELY_NAME = re.compile(
    r"key|token|secret|passw|pwd|credential|auth|cookie|dsn|session(?:$|[-_]?id)", re.IGNORECASE
)
KEY_LIKE_TEXT = re.compile(r"(?=.*[0-9=+%])[A-Za-z0-9+/=_%~-]{16,}")
RANDOM_WORD = re.compile(r"[A-Za-z0-9+/_=-]{20,200}")
HEX_OR_UUID = re.compile(
    r"[0-9a-f]+|[0-9A-F]+|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
)
MIN_ENTROPY_BITS = 4.2  # a character of 24 random base64 characters has more; a word or path, less
MIN_NAMED_CHARS = 6  # of a value whose name calls it a credential


def is_credential_name(name: str) -> bool:
    """Say whether an option, a header or a variable of this name is likely to hold a credential."""
    return LIKELY_NAME.search(name) is not None


def is_key_like(word: str) -> bool:
    """Say whether a word looks like a key: at least 16 characters, and not letters alone."""
    return KEY_LIKE_TEXT.fullmatch(word) is not None


def find_known_credential(text: str) -> str:
    """Return the kind of credential that `text` holds, by its format; "" if there is none."""
    return next((kind for kind, pattern in CREDENTIAL_FORMATS if pattern.search(text)), "")


def find_named_credential(text: str, name: str) -> str:
    """Return the kind of credential that `text` is, by its name; "" if the name does not say."""
    is_word = len(text) >= MIN_NAMED_CHARS and not any(map(str.isspace, text))
    return f"the value of {name!r:.60}" if is_word and CERTAIN_NAME.search(name) else ""


def find_credential(text: str, name: str = "") -> str:
    """Return the kind of credential that `text` is or holds, "" if none.

    `name` is what code calls the text.
    """
    if kind := find_known_credential(text) or find_named_credential(text, name):
        return kind
    has_random_word = any(map(is_random_text, RANDOM_WORD.findall(text)))
    return "a random text such as keys are" if has_random_word else ""


def is_random_text(word: str) -> bool:
    """Say whether a word of at least 20 characters looks random; hashes and UUIDs do not count."""
    if HEX_OR_UUID.fullmatch(word):
        return False
    kinds = (any(map(str.isupper, word)), any(map(str.islower, word)), any(map(str.isdigit, word)))
    if not all(kinds):
        return False
    return bits_per_character(word) >= min(MIN_ENTROPY_BITS, math.log2(len(word)) - 0.35)


def bits_per_character(text: str) -> float:
    """Return the entropy of `text`, in bits per character."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)
