"""Replace known credentials in what comes back from outside.

Rule 1: each is replaced as it is, escaped for JSON, Python or HTML, percent-encoded, in hexadecimal
and in base64, alone or as either half of a Basic authorization; a number also as a JSON number;
and where neighbours in a list have its parts.
Rule 2: this is about those who repeat what they were given. One that wants to tell it can spell it
in endless ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from .credential_forms import make_form_patterns
from .form_search import MAX_LINE_CHARS, MIN_LINE_CHARS, FormSearch, replace_spans

MAX_NUMBER_DIGITS = 300  # of a credential that is a number
MAX_BREAK_BYTES = 4  # of a line break in JSON
REDACTED = "***"
FIRST_CHARACTER = re.compile(  # of a pattern, also if it is one of several: "[aA]"
    r"(?:\\.|\[\w+\]|[^\\\[\](){}.*+?^$|])(?![*+?{])", re.DOTALL
)
MAX_UNGROUPED = 8  # alternatives that are not worth a group
MAX_GROUP_DEPTH = 4


class Credentials:
    """The secret values that one upstream was given; replaces them in what it sends."""

    def __init__(self, values: Iterable[str]) -> None:
        known = set(values)
        self.values = tuple(sorted(known))
        # The longest first, so that no rest remains of a form that contains another one.
        forms = {form for value in known for form in make_form_patterns(value)}
        pattern = join_alternatives(sorted(forms, key=len, reverse=True))
        self._texts = FormSearch(pattern) if forms else None
        self._bytes = FormSearch(pattern.encode("utf-8", "surrogateescape"))
        self._numbers = {
            int(value)
            for value in known
            if value.isascii() and value.isdigit() and len(value) <= MAX_NUMBER_DIGITS
        }
        self.max_form_bytes = max((len(form.encode()) for form in forms), default=0)
        line_count = self.max_form_bytes // MIN_LINE_CHARS + 2  # with the one that it begins in
        self.max_form_bytes += line_count * MAX_BREAK_BYTES + MAX_LINE_CHARS

    def __bool__(self) -> bool:
        return self._texts is not None

    def redact(self, value: Any) -> Any:
        """Return JSON data with every known credential in it replaced."""
        if isinstance(value, str):
            return self.redact_text(value)
        if isinstance(value, list):
            return [self.redact(item) for item in self._redact_neighbours(value)]
        if isinstance(value, dict):
            return {self.redact_text(key): self.redact(item) for key, item in value.items()}
        if self._numbers and type(value) in (int, float) and value in self._numbers:
            return REDACTED
        return value

    def _redact_neighbours(self, values: list[Any]) -> list[Any]:
        """Return a list without the parts of a credential that are in texts beside each other."""
        texts = [value for value in values if isinstance(value, str)]
        if self._texts is None or len(texts) < 2:
            return values
        whole = "".join(texts)
        spans = self._texts.find_spans(whole)
        if not spans:
            return values
        found: list[Any] = []
        start = 0
        for value in values:
            if not isinstance(value, str):
                found.append(value)
                continue
            end = start + len(value)
            kept, position = "", start
            for first, last in spans:
                if first < end and last > start:
                    kept += whole[position : max(first, start)] + REDACTED
                    position = min(last, end)
            found.append(kept + whole[position:end])
            start = end
        return found

    def redact_text(self, text: str) -> str:
        """Return `text` with every known credential replaced."""
        if self._texts is None or not (spans := self._texts.find_spans(text)):
            return text
        return replace_spans(text, spans, REDACTED)

    def redact_bytes(self, data: bytes) -> bytes:
        """Return `data` with every known credential replaced."""
        if not self or not (spans := self._bytes.find_spans(data)):
            return data
        return replace_spans(data, spans, REDACTED.encode())

    def redact_beginning(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the beginning of `data` with every credential replaced, and the rest unchanged.

        The rest may hold the beginning of one that goes on in what follows.
        """
        end = len(data) - self.max_form_bytes
        if end <= 0:
            return b"", data
        for start, stop in self._bytes.find_spans(data) if self else ():
            if start < end < stop:
                end = start
        return self.redact_bytes(data[:end]), data[end:]


def join_alternatives(patterns: Sequence[str], depth: int = MAX_GROUP_DEPTH) -> str:
    """Return a pattern that matches any of `patterns`; of several that match, the first.

    Those that begin with the same character are grouped, because `re` tries each alternative of a
    group at every place of a text.
    """
    if len(patterns) <= MAX_UNGROUPED or not depth:
        return "|".join(patterns)
    groups: dict[str, list[str]] = {}
    for pattern in patterns:
        found = FIRST_CHARACTER.match(pattern)
        head = found[0] if found else ""
        groups.setdefault(head, []).append(pattern[len(head) :])
    joined = []
    for head, rests in groups.items():
        if not head or len(rests) == 1:
            joined += [head + rest for rest in rests]
        else:
            joined.append(f"{head}(?:{join_alternatives(rests, depth - 1)})")
    return "|".join(joined)
