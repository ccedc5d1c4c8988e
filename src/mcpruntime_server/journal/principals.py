"""Principals: who owns sessions, runs and files, as one text that cannot be mistaken.

There are three kinds, which differ in their form. The local user has a reserved name. A user with
one of the server's own tokens is the name that the token was made for. A user of an OAuth issuer is
`ISSUER#SUBJECT`, so that the "alice" of an issuer is not the "alice" of a token, nor that of
another issuer.

A principal is safe to display: printable ASCII without spaces and quotes. It is not safe as the
name of a file, because names differ in case only and subjects are long: use `principal_file_name`.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

from ..errors import InvalidRequest

LOCAL_PRINCIPAL = "local"  # the user who runs the server over stdio, and the command line
# "gate" owned the sessions in which skills were tested, which journals may still have.
RESERVED_NAMES = frozenset({LOCAL_PRINCIPAL, "gate"})  # compared without case
TOKEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
MAX_SUBJECT_CHARS = 255  # as OpenID Connect has it
SUBJECT_SAFE = "@:/+=,!~"  # of a subject; the others are percent-encoded, "#" and "%" among them
FILE_PREFIX_CHARS = 40
FILE_DIGEST_CHARS = 32  # 128 bits: a subject cannot be searched that has the digest of another


def is_token_name(name: str) -> bool:
    """Return whether a token may be made for `name`."""
    return TOKEN_NAME.fullmatch(name) is not None and name.lower() not in RESERVED_NAMES


def issuer_principal(issuer: str, subject: str) -> str:
    """Return the principal of a subject of an OAuth issuer; raises `ValueError`.

    `issuer` comes from the settings, which allow no "#" in it.
    """
    if not 0 < len(subject) <= MAX_SUBJECT_CHARS:
        raise ValueError(f"A subject has 1 to {MAX_SUBJECT_CHARS} characters.")
    return f"{issuer}#{quote(subject, safe=SUBJECT_SAFE)}"


def check_principal(principal: str) -> None:
    """Raise `InvalidRequest` for what cannot be a principal."""
    issuer, mark, _ = principal.partition("#")
    is_of_issuer = bool(mark and "://" in issuer and re.fullmatch("[!#-&(-~]+", principal))
    if principal != LOCAL_PRINCIPAL and not is_token_name(principal) and not is_of_issuer:
        raise InvalidRequest(
            f"{principal!r:.80} is not a principal.",
            remedy="Give the name of a token, or ISSUER#SUBJECT.",
        )


def principal_file_name(principal: str) -> str:
    """Return the name of a file or folder for a principal, which no other principal has.

    It has lower-case letters, digits and `-` only, and at most 73 characters.
    """
    shown = re.sub(r"[^a-z0-9]+", "-", principal.lower()).strip("-")[-FILE_PREFIX_CHARS:]
    digest = hashlib.sha256(principal.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{shown.strip('-')}-{digest[:FILE_DIGEST_CHARS]}"
