"""JSON pointers, in the form that `$ref` of a JSON schema uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote


def split_pointer(reference: str) -> Iterator[str]:
    """Yield the unescaped keys of a reference such as `#/$defs/name`.

    Raises `ValueError` unless it begins with `#`.
    """
    if not reference.startswith("#"):
        raise ValueError(f"The reference {reference!r:.80} leads out of the document.")
    for part in filter(None, reference[1:].split("/")):
        yield unquote(part).replace("~1", "/").replace("~0", "~")


def resolve_pointer(document: Any, reference: str) -> Any:
    """Return the part of a JSON document that a reference names.

    Raises `LookupError` or `ValueError`.
    """
    found = document
    for key in split_pointer(reference):
        if isinstance(found, list) and key.isdecimal():
            found = found[int(key)]
        elif isinstance(found, dict):
            found = found[key]
        else:
            raise LookupError(key)
    return found
