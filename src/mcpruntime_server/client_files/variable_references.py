"""References to variables in the values of clients, as this program writes them.

Each client has a form of its own; many have none, and then a text that looks like a reference is
only a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ..config.interpolation import VARIABLE_REFERENCE
from .client_kinds import References

NAME = "[A-Za-z_][A-Za-z0-9_]*"
BRACES = re.compile(rf"\$\{{({NAME}(?::-[^}}]*)?)\}}")
PREFIXED = re.compile(r"\$\{([^}]*)\}")
SHELL = re.compile(rf"\$(?:\{{({NAME}(?::-[^}}]*)?)\}}|({NAME}))|%({NAME})%")
OPENCODE = re.compile(r"\{(env|file):([^}]*)\}")


class UnknownReference(Exception):
    """A reference that only the client can resolve; the argument is its text."""


def variable_name(*words: str) -> str:
    """Return the name of a variable made of some words: GITHUB_TOKEN."""
    joined = "_".join(word for word in words if word)
    name = re.sub(r"[^A-Za-z0-9]+", "_", joined).strip("_").upper()
    return name if name[:1].isalpha() else f"VALUE_{name}".rstrip("_")


def escape_references(text: str) -> str:
    """Return a text in which nothing is a reference."""
    return text.replace("${", "$${")


def remove_references(text: str) -> str:
    """Return what a text has beside its references, as a program would see it."""
    return VARIABLE_REFERENCE.sub(lambda found: "${" if found["literal"] else "", text)


def has_references(text: str) -> bool:
    """Return whether a text refers to variables."""
    return any(not found["literal"] for found in VARIABLE_REFERENCE.finditer(text))


def translate_references(text: str, form: References, known: Mapping[str, str]) -> str:
    """Return a client's text with references as this program has them.

    `known` has what can be resolved now (`userHome`). Raises `UnknownReference`.
    """
    if form == "none":
        return escape_references(text)
    pattern, translate = FORMS[form]
    parts, end = [], 0
    for found in pattern.finditer(text):
        parts += [escape_references(text[end : found.start()]), translate(found, known)]
        end = found.end()
    return "".join([*parts, escape_references(text[end:])])


def translate_braces(found: re.Match[str], _: Mapping[str, str]) -> str:
    """Return `${NAME}` or `${NAME:-default}` as it is."""
    return f"${{{found[1]}}}"


def translate_prefixed(found: re.Match[str], known: Mapping[str, str]) -> str:
    """Return what `${env:NAME}`, `${input:id}` or `${userHome}` stands for."""
    kind, _, name = found[1].partition(":")
    if found[1] in known:
        return escape_references(known[found[1]])
    if kind == "env" and re.fullmatch(NAME, name):
        return f"${{{name}}}"
    if kind == "input" and name:  # the client asks its user
        return f"${{{variable_name(name)}}}"
    if re.fullmatch(rf"{NAME}(?::-[^}}]*)?", found[1]) and kind.isupper() and name[:1] in ("", "-"):
        return found[0]
    raise UnknownReference(found[0])


def translate_shell(found: re.Match[str], _: Mapping[str, str]) -> str:
    """Return `$NAME`, `${NAME}` or `%NAME%` as `${NAME}`."""
    return f"${{{found[1] or found[2] or found[3]}}}"


def translate_opencode(found: re.Match[str], _: Mapping[str, str]) -> str:
    """Return `{env:NAME}` as `${NAME}`; `{file:PATH}` becomes a variable of the file's name."""
    kind, name = found.groups()
    if kind == "env" and re.fullmatch(NAME, name):
        return f"${{{name}}}"
    raise UnknownReference(found[0])


def write_reference(form: References, name: str, text: str) -> str:
    """Return a reference to a variable as a client writes it, "" if it has none.

    `text` is the client's file, whose questions to its user are asked again.
    """
    if form == "prefixed":
        inputs = re.findall(r"\$\{input:([^}\"]+)\}", text)
        asked = next((each for each in inputs if variable_name(each) == name), "")
        return f"${{input:{asked}}}" if asked else f"${{env:{name}}}"
    written = {"braces": f"${{{name}}}", "shell": f"${name}", "opencode": f"{{env:{name}}}"}
    return written.get(form, "")


FORMS: Mapping[
    References, tuple[re.Pattern[str], Callable[[re.Match[str], Mapping[str, str]], str]]
] = {
    "braces": (BRACES, translate_braces),
    "prefixed": (PREFIXED, translate_prefixed),
    "shell": (SHELL, translate_shell),
    "opencode": (OPENCODE, translate_opencode),
}
