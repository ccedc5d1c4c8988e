"""No part of a credential comes back from base64, whatever stands beside it."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.capabilities.credential_forms import MIN_ENCODED_BYTES
from mcpruntime_server.capabilities.redaction import REDACTED, Credentials

SECRETS = st.text(
    "abcdefghijkLMNOP0123456789~>?\u00ff", min_size=MIN_ENCODED_BYTES, max_size=90
).filter(lambda secret: len(set(secret)) > 2)  # else the same text quotes it at two places
BESIDE = st.binary(max_size=100).map(lambda data: bytes(byte & 15 | 16 for byte in data))
LINE_LENGTHS = st.sampled_from([64, 76])
LINE_BREAKS = st.sampled_from(["\n", "\r\n", "\\n", "\\r\\n"])
URL_SAFE = str.maketrans("+/", "-_")


def quote_in_base64(before: bytes, secret: str, after: bytes) -> tuple[str, int, int]:
    """Return base64, and between which of its characters the bits of `secret` are."""
    data = secret.encode()
    first = len(before) * 8 // 6
    last = -((len(before) + len(data)) * -8 // 6)
    return base64.b64encode(before + data + after).decode(), first, last


@given(before=BESIDE, secret=SECRETS, after=BESIDE, is_url_safe=st.booleans())
def test_exactly_the_characters_with_bits_of_a_credential_are_replaced(
    before: bytes, secret: str, after: bytes, is_url_safe: bool
) -> None:
    text, first, last = quote_in_base64(before, secret, after)
    text = text.translate(URL_SAFE) if is_url_safe else text
    rest = text[last:]
    expected = text[:first] + REDACTED + ("" if set(rest) <= {"="} else rest)
    known = Credentials([secret])
    assert known.redact_text(f"it is {text}.") == f"it is {expected}."
    assert known.redact_bytes(text.encode()) == expected.encode()


@given(before=BESIDE, char=st.sampled_from("0az~"), count=st.integers(6, 20), after=BESIDE)
def test_nothing_remains_of_a_credential_that_repeats_itself(
    before: bytes, char: str, count: int, after: bytes
) -> None:
    text, first, last = quote_in_base64(before, char * count, after)
    kept_before, *_, kept_after = Credentials([char * count]).redact_text(text).split(REDACTED)
    assert text[:first].startswith(kept_before)
    assert text[last:].endswith(kept_after)


@given(
    before=BESIDE,
    secret=SECRETS,
    after=BESIDE,
    length=LINE_LENGTHS,
    line_break=LINE_BREAKS,
    start=st.integers(0, 300),
)
def test_base64_in_lines_is_searched_as_one(
    before: bytes, secret: str, after: bytes, length: int, line_break: str, start: int
) -> None:
    text, first, last = quote_in_base64(before, secret, after)
    lines = [text[at : at + length] for at in range(0, len(text), length)]
    known = Credentials([secret])
    written = line_break.join(lines)
    for redacted in (
        known.redact_text(f"it is: {written}{line_break}"),
        read_in_two(known, f"it is: {written}{line_break}", start),
    ):
        kept = redacted.removeprefix("it is: ").replace(line_break, "")
        kept_before, *_, kept_after = kept.split(REDACTED)
        assert text[:first].startswith(kept_before)
        assert text[last:].endswith(kept_after)
        assert len(kept_before) == first


def read_in_two(known: Credentials, text: str, start: int) -> str:
    """Return a text that comes in two parts, as the log of an upstream does, redacted."""
    data = text.encode()
    done, rest = known.redact_beginning(data[:start])
    done_next, rest = known.redact_beginning(rest + data[start:])
    return (done + done_next + known.redact_bytes(rest)).decode()
