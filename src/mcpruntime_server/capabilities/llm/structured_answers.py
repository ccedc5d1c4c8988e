"""The messages of a request, and the value in the model's answer.

An answer that violates the schema is requested once more. A truncated answer is an error, because
nothing in half a value shows that the rest is missing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from anyio import to_thread

from ...errors import CallFailed
from ...journal.large_values import iter_encoded
from ...protocol.json_limits import has_more_values
from ...protocol.payloads import JsonObject
from ..data_marks import DATA_NOTICE, mark_as_data
from ..json_schemas import MAX_NESTING, nesting_depth
from ..model_requests import Completion, Messages
from ..schema_checks import check_value
from .model_backend import ModelRequest, ModelResponse

SYSTEM_PROMPT = "Answer the question as briefly as it allows, with nothing but the answer."
SCHEMA_INSTRUCTION = (
    "Answer with one JSON value that follows this JSON schema, and nothing else:\n{schema}"
)
REPAIR_INSTRUCTION = (
    "The answer does not follow the schema: {problem}\nAnswer again, with the JSON value alone."
)
BAD_ANSWER = "llm_bad_answer"
CODE_FENCE = "```"
JSON_START_CHARS = ("{", "[", '"')  # of JSON other than numbers and words
WRAPPER_KEY = "value"  # the key of an object around a plain value; some providers want objects
MAX_REPEATED_ANSWER_CHARS = 2_000  # of a wrong answer that the model sees again
MAX_QUOTED_ANSWER_CHARS = 1_000  # of a wrong answer in an error
MAX_ANSWER_VALUES = 50_000  # those in arrays and objects included


async def answer_request(
    request: ModelRequest, complete: Callable[[Messages], Awaitable[Completion]]
) -> ModelResponse:
    """Return the answer to a request; raises `CallFailed`, also for a truncated answer.

    `complete` sends messages to a model. An answer that violates the schema is requested once more.
    """
    messages = build_messages(request)
    first = await complete(messages)
    try:
        return ModelResponse(await parse_completion(first, request), len(first.text), first.usage)
    except ValueError as problem:
        messages = build_repair_messages(messages, first.text, str(problem))
    second = await complete(messages)
    usage = first.usage + second.usage
    try:
        return ModelResponse(await parse_completion(second, request), len(second.text), usage)
    except ValueError as problem:
        raise CallFailed(
            BAD_ANSWER,
            f"The model's answer does not follow the schema: {problem}.",
            remedy="Ask for less at once, or use another model.",
            data={"text": second.text[:MAX_QUOTED_ANSWER_CHARS]},
        ) from None


def build_messages(request: ModelRequest) -> list[dict[str, str]]:
    """Return the messages of a request, with the data apart from the prompt."""
    system = [SYSTEM_PROMPT]
    prompt = request.prompt
    if request.data:
        system.append(DATA_NOTICE)
        prompt = f"{prompt}\n\n{mark_as_data(request.data)}"
    if request.schema is not None:
        schema = json.dumps(request.schema, ensure_ascii=False)
        system.append(SCHEMA_INSTRUCTION.format(schema=schema))
    return [
        {"role": "system", "content": "\n".join(system)},
        {"role": "user", "content": prompt},
    ]


def build_repair_messages(messages: Messages, answer: str, problem: str) -> list[dict[str, str]]:
    """Return the messages that repeat a request after a wrong answer."""
    return [
        *map(dict, messages),
        {"role": "assistant", "content": answer[:MAX_REPEATED_ANSWER_CHARS]},
        {"role": "user", "content": REPAIR_INSTRUCTION.format(problem=problem)},
    ]


async def parse_completion(completion: Completion, request: ModelRequest) -> Any:
    """Return the value of an answer.

    Raises `ValueError` if it violates the schema, `CallFailed` if it is truncated.
    """
    if completion.is_truncated:
        raise CallFailed(
            BAD_ANSWER,
            "The answer reached its limit of tokens and is cut off.",
            remedy="Ask for less at once, or raise `max_tokens` of the request or of [llm].",
            data={"text": completion.text[:MAX_QUOTED_ANSWER_CHARS]},
        )
    if request.schema is None:
        return completion.text
    return await parse_structured_answer(completion.text, request.schema)


async def parse_structured_answer(answer: str, schema: Mapping[str, Any]) -> Any:
    """Return the JSON value in an answer.

    Raises `ValueError`, whose message says how the answer violates the schema.
    """
    value = await to_thread.run_sync(read_answer, answer, schema)
    if problem := await check_value(value, schema):
        raise ValueError(problem)
    return value


def read_answer(answer: str, schema: Mapping[str, Any]) -> Any:
    """Return the JSON value in an answer, not compared with the schema; raises `ValueError`.

    An answer may be the text alone that the schema wraps.
    """
    try:
        value = extract_json(answer)
    except ValueError:
        if not is_plain_text_answer(answer.strip(), schema):
            raise
        value = answer.strip()
    if is_wrapper_schema(schema) and not (isinstance(value, dict) and WRAPPER_KEY in value):
        value = {WRAPPER_KEY: value}
    if nesting_depth(value) > MAX_NESTING:
        raise ValueError(f"it is nested more than {MAX_NESTING} levels deep")
    return value


def is_plain_text_answer(text: str, schema: Mapping[str, Any]) -> bool:
    """Return whether an answer that is not JSON stands for the text that the schema wraps."""
    looks_like_json = text[:1] in JSON_START_CHARS or CODE_FENCE in text
    return is_text_wrapper(schema) and not looks_like_json


def extract_json(answer: str) -> Any:
    """Return the JSON value that an answer is or contains; raises `ValueError`."""
    problem: Exception = ValueError()
    for text in candidate_texts(answer):
        if has_more_values(text, MAX_ANSWER_VALUES):
            raise ValueError(f"it has more than {MAX_ANSWER_VALUES:,} values")
        try:
            value = json.loads(text, object_pairs_hook=reject_duplicate_keys)
            check_journaled(value)
        except (ValueError, RecursionError) as exc:
            problem = exc
        else:
            return value
    raise ValueError(f"it is not JSON ({problem})")


def check_journaled(value: Any) -> None:
    """Raise `ValueError` for a value that the journal cannot hold, such as one with an infinity.

    It is encoded in pieces: the encoder lets no other thread work until it returns.
    """
    for _ in iter_encoded(value):
        pass


def candidate_texts(answer: str) -> Iterator[str]:
    """Yield the whole answer, its fenced part, and the part from the first brace to the last.

    Each search takes one pass, because a hostile answer may consist of fences or braces alone.
    """
    yield answer
    first, last = answer.find(CODE_FENCE), answer.rfind(CODE_FENCE)
    if 0 <= first < last:
        yield answer[first:last].partition("\n")[2]
    first, last = answer.find("{"), answer.rfind("}")
    if 0 <= first < last:
        yield answer[first : last + 1]


def is_wrapper_schema(schema: Mapping[str, Any]) -> bool:
    """Return whether a schema describes an object whose only purpose is to wrap one value."""
    properties = schema.get("properties")
    return (
        isinstance(properties, dict)
        and properties.keys() == {WRAPPER_KEY}
        and schema.get("required") == [WRAPPER_KEY]
    )


def is_text_wrapper(schema: Mapping[str, Any]) -> bool:
    """Return whether a schema wraps a text, so that an answer may be the text alone."""
    if not is_wrapper_schema(schema):
        return False
    inner = schema["properties"][WRAPPER_KEY]
    if not isinstance(inner, dict):
        return False
    alternatives = inner.get("anyOf")
    return any(
        isinstance(each, dict) and (each.get("type") == "string" or "enum" in each)
        for each in (inner, *(alternatives if isinstance(alternatives, list) else ()))
    )


def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> JsonObject:
    """Return a JSON object.

    Raises `ValueError` for a repeated key, which parsers treat differently.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        key = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {key[:80]!r} occurs twice")
    return found
