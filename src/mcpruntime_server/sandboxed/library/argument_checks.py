"""Checks arguments against what the schema of a tool allows, before a call is sent.

What is allowed is given as *choices*:

- a tuple: these values, all of them scalars; empty if anything is allowed;
- a text: this JSON type;
- a list: at least one of these choices;
- `{"items": choices}` for an array;
- `{"fields": {name: choices}}` for an object; with `"others"`, the choices of all other keys, or
  False if there may be none.

Rule 1: standard library only, Python >= 3.9; imported by the first call that needs it.
Rule 2: what is not sure to be refused is accepted, because the server has the last word: values
that are not JSON, and those of another type than an array or an object that is allowed here. Text
may stand for a number.
Rule 3: the work is bounded, whatever the schema and the value.
"""

from __future__ import annotations

from ...protocol.suggestions import did_you_mean

TYPE_CHECKING = False  # importing `typing` would slow down the first call
if TYPE_CHECKING:
    from typing import Any, List, Optional, Sequence, Tuple

EXTRA_NAME = "**"  # the choices of the parameters that a tool does not name
MAX_CHECKS = 100_000  # of one argument; what is left then is for the server
MAX_VALUE_CHARS = 80  # of a refused value in an error
MAX_LISTED_KEYS = 30  # that an error lists
SCALARS = (str, int, float, type(None))
JSON_VALUES = (*SCALARS, list, tuple, dict)  # others are converted later
FLAG_WORDS = ("true", "false", "yes", "no", "on", "off", "y", "n", "t", "f")
TYPE_WORDS = {
    "string": "a text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "a bool",
    "null": "None",
    "array": "a list",
    "object": "a dict",
}


class Refusal:
    """Why an argument is refused: the value at `path` is none of `allowed`, or a key is unknown."""

    def __init__(
        self, path: str, value: Any, allowed: Sequence[Any], types: Sequence[str] = ()
    ) -> None:
        self.path = path
        self.value = value
        self.allowed = list(allowed)
        self.types = list(types)
        self.is_constant = len(self.allowed) == 1  # often what tells the branches of a union apart
        self.is_key = False

    def merge(self, other: Refusal) -> None:
        """Add what another branch allows in the same place."""
        self.allowed += [each for each in other.allowed if each not in self.allowed]
        self.types += [each for each in other.types if each not in self.types]

    def format(self) -> str:
        """Return the rest of a sentence that begins with the name of the tool."""
        words = [each for each in self.allowed if isinstance(each, str)]
        hint = did_you_mean(self.value, words) if isinstance(self.value, str) else ""
        shown = [*map(repr, self.allowed), *(TYPE_WORDS[each] for each in self.types)]
        if self.is_key:
            more = f" and {len(shown) - MAX_LISTED_KEYS} more"
            keys = ", ".join(shown[:MAX_LISTED_KEYS]) or "none"
            keys += more if len(shown) > MAX_LISTED_KEYS else ""
            return f"does not accept {self.path}. {hint}Allowed keys: {keys}."
        value = repr(self.value)[:MAX_VALUE_CHARS]
        return f"does not accept {self.path} = {value}. {hint}Allowed: {', '.join(shown)}."


class ArgumentChecker:
    """Checks one argument."""

    def __init__(self) -> None:
        self._checks_left = MAX_CHECKS

    def find_refusal(self, path: str, value: Any, choices: Any) -> Optional[Refusal]:
        """Return why `value`, which is at `path`, is not allowed; None if it may be."""
        self._checks_left -= 1
        if self._checks_left < 0 or not isinstance(value, JSON_VALUES):
            return None
        if isinstance(choices, list):
            return self._check_union(path, value, choices)
        if isinstance(choices, tuple):
            is_allowed = not choices or value in choices
            return None if is_allowed else Refusal(path, value, choices)
        if isinstance(choices, str):
            return (
                None if matches_json_type(value, choices) else Refusal(path, value, (), [choices])
            )
        if "items" in choices:
            items = value if isinstance(value, (list, tuple)) else ()
            return self._check_items(path, items, choices["items"])
        return self._check_fields(path, value, choices) if isinstance(value, dict) else None

    def _check_items(self, path: str, items: Sequence[Any], choices: Any) -> Optional[Refusal]:
        for index, item in enumerate(items):
            if self._checks_left < 0:
                return None
            refusal = self.find_refusal(f"{path}[{index}]", item, choices)
            if refusal is not None:
                return refusal
        return None

    def _check_fields(self, path: str, value: Any, choices: Any) -> Optional[Refusal]:
        """Check the fields, those with one allowed value first, and then all other keys."""
        fields, others = choices["fields"], choices.get("others", ())
        for name in sorted(fields, key=lambda name: not is_constant(fields[name])):
            if name in value:
                refusal = self.find_refusal(f"{path}[{name!r}]", value[name], fields[name])
                if refusal is not None:
                    return refusal
        for key in value if others != () else ():
            if self._checks_left < 0:
                return None
            if key in fields or not isinstance(key, str):
                continue
            key_path = f"{path}[{key[:MAX_VALUE_CHARS]!r}]"
            if others is False:
                refusal = Refusal(key_path, key, list(fields))
                refusal.is_key, refusal.is_constant = True, False
                return refusal
            refusal = self.find_refusal(key_path, value[key], others)
            if refusal is not None:
                return refusal
        return None

    def _check_union(self, path: str, value: Any, branches: List[Any]) -> Optional[Refusal]:
        """Return the refusal of the branch that was probably meant, if all of them refuse."""
        inner = []
        for branch in branches:
            if not fits_branch(value, branch):
                continue
            refusal = self.find_refusal(path, value, branch)
            if refusal is None:
                return None
            if refusal.path != path:
                inner.append(refusal)
        if not inner:
            return Refusal(path, value, *list_alternatives(branches))
        # A field with one allowed value tells branches apart: the others are not meant.
        meant = [each for each in inner if not each.is_constant] or inner
        best = meant[0]
        for each in meant[1:]:
            if each.path == best.path and each.is_key == best.is_key:
                best.merge(each)
        return best


def is_constant(choices: Any) -> bool:
    """Return whether a single value is allowed."""
    return isinstance(choices, tuple) and len(choices) == 1


def fits_branch(value: Any, branch: Any) -> bool:
    """Return whether a value has the type of a branch of a union."""
    if isinstance(branch, tuple):
        return isinstance(value, SCALARS)
    if isinstance(branch, str):
        return isinstance(value, SCALARS) == (branch not in ("array", "object"))
    return isinstance(value, (list, tuple) if "items" in branch else dict)


def list_alternatives(branches: Sequence[Any]) -> Tuple[List[Any], List[str]]:
    """Return the values and the types that the branches of a union allow."""
    values = [each for branch in branches if isinstance(branch, tuple) for each in branch]
    types = [branch for branch in branches if isinstance(branch, str)]
    types += ["array" if "items" in each else "object" for each in branches if type(each) is dict]
    return values, list(dict.fromkeys(types))


def matches_json_type(value: Any, kind: str) -> bool:
    """Return whether a value has a JSON type, or stands for one that has it."""
    if kind == "null":
        return value is None
    if kind == "array":
        return isinstance(value, (list, tuple))
    if kind == "object":
        return isinstance(value, dict)
    if value is None or not isinstance(value, SCALARS):
        return False
    if not isinstance(value, str):
        return kind != "string"
    if kind == "string":
        return True
    is_flag = kind == "boolean" and value.strip().lower() in FLAG_WORDS
    return is_flag or any(each.isdigit() for each in value[:MAX_VALUE_CHARS])
