"""JSON schemas from untrusted sources: which ones code may use, and whether a value follows one.

Rule 1: schema and value may both come from an attacker, and they are compared on the host. So a
schema of code is refused if it is too large, refers to itself or to another document, or uses a
keyword whose check can take unbounded time.
Rule 2: nothing here waits, and a comparison cannot be interrupted. Callers know what it costs
before they make it (`schema_cost`), or make it in a process of its own (`schema_checks`).
Rule 3: patterns are searched in linear time. Those that need more (with references to what was
matched, or looking around) may take so many steps back and no more. No reference is ever fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import CallFailed
from .json_pointers import resolve_pointer
from .schema_cost import measure_size

if TYPE_CHECKING:
    from jsonschema_rs import PatternOptionsType, ValidationError, Validator

MAX_SCHEMA_CHARS = 50_000
MAX_NESTING = 40
MAX_SCHEMA_PARTS = 20_000  # the target of a reference counts once per reference
MAX_PROBLEM_CHARS = 300
MAX_ALLOWED_CHARS = 2_000  # of the allowed values in a problem
PATTERN_BYTES = 256 << 10  # of a compiled pattern; counts of repetitions make it large
PATTERN_STEPS = 10_000  # back, while a pattern that looks around is searched in one text
DIALECT = "$schema"
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
    if not isinstance(schema, dict):
        raise refuse_schema("A schema must be a JSON schema, given as a dict.")
    size = measure_size(schema, MAX_SCHEMA_PARTS, MAX_NESTING)
    if size.depth > MAX_NESTING:
        raise refuse_schema(f"The schema is nested more than {MAX_NESTING} levels deep.")
    if size.parts > MAX_SCHEMA_PARTS or size.chars > MAX_SCHEMA_CHARS:
        raise refuse_schema(f"The schema has more than {MAX_SCHEMA_CHARS:,} characters.")
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARS:
        raise refuse_schema(f"The schema has more than {MAX_SCHEMA_CHARS:,} characters.")
    if keyword := find_refused_keyword(schema):
        raise refuse_schema(f"The schema uses `{keyword}`, which can take unbounded time to check.")
    try:
        parts = count_schema_parts(schema)
    except RecursionError:
        raise refuse_schema("The schema is nested too deeply.") from None
    if parts > MAX_SCHEMA_PARTS:
        raise refuse_schema(
            f"The schema has more than {MAX_SCHEMA_PARTS:,} parts, references expanded."
        )
    try:
        compile_schema(schema)
    except ValueError as exc:
        raise refuse_schema(f"This is not a valid JSON schema: {exc}") from None


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


def compile_schema(schema: Mapping[str, Any]) -> Validator:
    """Return a schema in the form that values are compared with; raises `ValueError`."""
    from jsonschema_rs import FancyRegexOptions

    try:
        return compile_linear(schema)
    except ValueError:  # perhaps a pattern that cannot be searched in linear time
        options = FancyRegexOptions(PATTERN_STEPS, PATTERN_BYTES, PATTERN_BYTES)
        return _compile_with(schema, options)


def compile_linear(schema: Mapping[str, Any]) -> Validator:
    """Return a schema whose patterns are all searched in linear time; raises `ValueError`."""
    from jsonschema_rs import RegexOptions

    return _compile_with(schema, RegexOptions(PATTERN_BYTES, PATTERN_BYTES))


def _compile_with(schema: Mapping[str, Any], patterns: PatternOptionsType) -> Validator:
    import jsonschema_rs  # here, because the start of a server does not need it

    chosen: type[Validator] = jsonschema_rs.Draft202012Validator
    for dialect, validator in {
        "http://json-schema.org/draft-04/schema": jsonschema_rs.Draft4Validator,
        "http://json-schema.org/draft-06/schema": jsonschema_rs.Draft6Validator,
        "http://json-schema.org/draft-07/schema": jsonschema_rs.Draft7Validator,
        "https://json-schema.org/draft/2019-09/schema": jsonschema_rs.Draft201909Validator,
    }.items():
        if str(schema.get(DIALECT)).rstrip("#") == dialect:
            chosen = validator
    # Any other dialect is read as the newest one; it is never fetched.
    content = {key: value for key, value in schema.items() if key != DIALECT}
    try:
        return chosen(content, validate_formats=False, pattern_options=patterns, offline=True)
    except ValueError as exc:
        message = getattr(exc, "message", str(exc))
        raise ValueError(message[:MAX_PROBLEM_CHARS]) from None


def find_violation(value: Any, validator: Validator) -> str:
    """Return where and how a value violates a compiled schema, "" if it does not."""
    from jsonschema_rs import ValidationError

    try:
        if validator.is_valid(value):  # which does not compare again what it knows
            return ""
        validator.validate(value)
    except ValidationError as exc:
        return describe_violation(exc)
    except ValueError as exc:  # a value that is not JSON
        return f"the value: {str(exc)[:MAX_PROBLEM_CHARS]}"
    return ""


def describe_violation(violation: ValidationError) -> str:
    """Return where and how a value violates a schema."""
    place = format_place(violation.instance_path) if violation.instance_path else "the value"
    if allowed := list_allowed_values(violation):
        got = json.dumps(violation.instance, ensure_ascii=False)[:MAX_PROBLEM_CHARS]
        listed = ", ".join(json.dumps(each, ensure_ascii=False) for each in allowed)
        return f"{place}: {got} is not one of {listed[:MAX_ALLOWED_CHARS]}"
    return f"{place}: {violation.message[:MAX_PROBLEM_CHARS]}"


def format_place(path: list[str | int]) -> str:
    """Return a place in a value as people write it, such as `$.rows[2].name`."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in path]
    return f"${''.join(parts)}"[:MAX_PROBLEM_CHARS]


def list_allowed_values(violation: ValidationError) -> list[Any]:
    """Return the values that a schema allows where it was violated; [] if they are not listed."""
    from jsonschema_rs import ValidationErrorKind as Kind

    match violation.kind:
        case Kind.Enum(options=options):
            return options
        case Kind.Constant(expected_value=expected):
            return [expected]
        case Kind.Type(types=["null"]):
            return [None]
        case Kind.AnyOf(context=branches) | Kind.OneOfNotValid(context=branches):
            alternatives = [list_allowed_values(each[0]) for each in branches if each]
            return (
                [value for values in alternatives for value in values] if all(alternatives) else []
            )
    return []
