"""Mask the credentials in text that is shown to a person."""

from __future__ import annotations

import re

from ..config.credential_values import find_value_credentials
from ..config.credentials import find_credential

MASK = "********"
QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"' + r"|'[^'\n]*'")
NAME_BEFORE = re.compile(r"""(?:"([^"\n]*)"|'([^'\n]*)'|([\w.-]+))\s*[:=]\s*$""")
NAME_AFTER = re.compile(r"\s*[:=]")
REFERENCE = re.compile(r"\$\{[^}]*\}|\{env:[^}]*\}")


def mask_credentials(text: str) -> str:
    """Return JSON or TOML text in which quoted values that look like credentials are masked.

    References to variables stay. A value may be on the line after the option that names it.
    """
    option = ""

    def mask(found: re.Match[str]) -> str:
        nonlocal option
        value = found[0][1:-1]
        before = NAME_BEFORE.search(text, text.rfind("\n", 0, found.start()) + 1, found.start())
        name = next(filter(None, before.groups()), "") if before else option
        option = value.strip("-") if value.startswith("-") and "=" not in value else ""
        rest = REFERENCE.sub("", value)
        is_name = NAME_AFTER.match(text, found.end()) is not None
        if is_name or not rest.strip() or not is_secret(name, rest):
            return found[0]
        return f"{found[0][0]}{MASK}{found[0][-1]}"

    return QUOTED.sub(mask, text)


def is_secret(name: str, value: str) -> bool:
    """Return whether a value of this name is or holds a credential."""
    return bool(find_value_credentials(name, value) or find_credential(value, name))
