"""JSON schemas from untrusted code: which ones are accepted, and whether a value follows one.

Rule: schema and value may both come from an attacker, and they are compared on the host. So a
schema is refused if it is too large, refers to itself or to another document, or uses a keyword
whose check can take unbounded time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import CallFailed
from .json_pointers import resolve_pointer

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

MAX_SCHEMA_CHARS = 50_000
MAX_NESTING = 40
MAX_SCHEMA_PARTS = 20_000  # the target of a reference counts once per reference
MAX_PROBLEM_CHARS = 300
MAX_ALLOWED_CHARS = 2_000  # of the allowed values in a problem
REFUSED_KEYWORDS: Mapping[str, type] = {
    "pattern": str,
    "patternProperties": dict,
    "uniqueItems": bool,
    "unevaluatedProperties": object,
    "unevaluatedItems": object,
    "$dynamicRef": str,
    "$recursiveRef": str,
    "$id": str,
    "$anchor": str,
}


def check_schema(schema: Any) -> None:
    """Raise `CallFailed` unless `schema` is a JSON schema that is safe to validate with."""
    import jsonschema  # here, because the start of a server does not need it
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema, dict):
        raise refuse_schema("A schema must be a JSON schema, given as a dict.")
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARS:
        raise refuse_schema(f"The schema has more than {MAX_SCHEMA_CHARS:,} characters.")
    if nesting_depth(schema) > MAX_NESTING:
        raise refuse_schema(f"The schema is nested more than {MAX_NESTING} levels deep.")
    if keyword := find_refused_keyword(schema):
        raise refuse_schema(f"The schema uses `{keyword}`, which can take unbounded time to check.")
    try:
        if count_schema_parts(schema) > MAX_SCHEMA_PARTS:
            raise refuse_schema(
                f"The schema has more than {MAX_SCHEMA_PARTS:,} parts, references expanded."
            )
        jsonschema.Draft202012Validator.check_schema(schema)
    except SchemaError as exc:
        raise refuse_schema(
            f"This is not a valid JSON schema: {exc.message[:MAX_PROBLEM_CHARS]}"
        ) from None
    except RecursionError:
        raise refuse_schema("The schema is nested too deeply.") from None


def refuse_schema(message: str) -> CallFailed:
    """Return the error for a schema that is not accepted."""
    return CallFailed("invalid_arguments", message)


def nesting_depth(value: Any) -> int:
    """Return how deeply a JSON value is nested, counted up to `MAX_NESTING` + 1.

    The function does not recurse.
    """
    deepest = 0
    pending = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        deepest = max(deepest, depth)
        if depth <= MAX_NESTING:
            pending += [(child, depth + 1) for child in children_of(item)]
    return deepest


def children_of(value: Any) -> Iterator[Any]:
    """Yield the items of a list or the values of a dict; nothing for other values."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def find_refused_keyword(schema: Any) -> str:
    """Return the first keyword of a schema that is in `REFUSED_KEYWORDS`; "" if there is none."""
    pending = [schema]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            for keyword, kind in REFUSED_KEYWORDS.items():
                if keyword in item and isinstance(item[keyword], kind):
                    return keyword
        pending += children_of(item)
    return ""


def count_schema_parts(schema: Mapping[str, Any]) -> int:
    """Return the number of parts of a schema with its references expanded.

    Raises `CallFailed` if references form a cycle or have no target.
    """
    known: dict[str, int] = {}
    being_counted: set[str] = set()

    def count_target(reference: str) -> int:
        if reference in being_counted:
            raise refuse_schema(f"The schema refers to itself: {reference[:MAX_PROBLEM_CHARS]}")
        if reference not in known:
            being_counted.add(reference)
            known[reference] = count_parts(resolve_reference(schema, reference))
            being_counted.discard(reference)
        return known[reference]

    def count_parts(part: Any) -> int:
        if isinstance(part, list):
            return 1 + sum(map(count_parts, part))
        if not isinstance(part, dict):
            return 1
        count = 1 + sum(count_parts(value) for name, value in part.items() if name != "$defs")
        if isinstance(part.get("$ref"), str):
            count += count_target(part["$ref"])
        return count

    return count_parts(schema)


def resolve_reference(schema: Mapping[str, Any], reference: str) -> Any:
    """Return the part of a schema that a reference names; raises `CallFailed`."""
    try:
        return resolve_pointer(schema, reference)
    except (LookupError, ValueError):
        raise unresolved_reference(reference) from None


def unresolved_reference(reference: str) -> CallFailed:
    """Return the error for a reference that the schema does not contain."""
    return refuse_schema(
        f"The schema refers to a part that does not exist: {reference[:MAX_PROBLEM_CHARS]}"
    )


def find_schema_violation(value: Any, schema: Mapping[str, Any]) -> str:
    """Return where and how a value violates a schema, "" if it does not.

    Raises `CallFailed` for a bad schema.
    """
    import jsonschema
    from jsonschema.exceptions import ValidationError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    no_network = Registry()  # the default registry would fetch references
    try:
        jsonschema.Draft202012Validator(schema, registry=no_network).validate(value)
    except ValidationError as exc:
        place = exc.json_path[:MAX_PROBLEM_CHARS] if exc.path else "the value"
        if allowed := list_allowed_values(exc):
            got = json.dumps(exc.instance, ensure_ascii=False)[:MAX_PROBLEM_CHARS]
            listed = ", ".join(json.dumps(each, ensure_ascii=False) for each in allowed)
            return f"{place}: {got} is not one of {listed[:MAX_ALLOWED_CHARS]}"
        return f"{place}: {exc.message[:MAX_PROBLEM_CHARS]}"
    except OverflowError:  # from the division for `multipleOf`
        return "it contains a number that is too large"
    except (Unresolvable, RecursionError) as exc:
        raise unresolved_reference(str(exc)) from None
    return ""


def list_allowed_values(violation: ValidationError) -> list[Any]:
    """Return the values that a schema allows where it was violated; [] if they are not listed."""
    keyword: Any = violation.validator
    expected: Any = violation.validator_value
    if keyword == "enum":
        return list(expected)
    if keyword == "const":
        return [expected]
    if keyword == "type" and expected == "null":
        return [None]
    if keyword not in ("anyOf", "oneOf") or not violation.context:
        return []
    alternatives = [list_allowed_values(each) for each in violation.context]
    return [value for values in alternatives for value in values] if all(alternatives) else []
