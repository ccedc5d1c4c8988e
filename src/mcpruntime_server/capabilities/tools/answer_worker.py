"""The process that reads the large answers of an upstream; see `large_answers`.

Parsing, comparing and encoding megabytes holds the interpreter's lock, so a thread would keep the
event loop waiting as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import mcp_types as types
from pydantic import ValidationError

from ...journal.events import encode_json
from ...protocol.json_limits import is_nested_deeper
from ...protocol.payloads import JsonObject
from ...protocol.wire import MAX_DATA_DEPTH
from ..framed_worker import serve_requests
from ..json_schemas import compile_schema, find_violation
from ..redaction import Credentials
from .answer_protocol import AnswerReply, PageRequest, ResultRequest
from .message_limits import LARGE_BYTES, LimitExceeded, check_content, parse_upstream_message
from .observed_shapes import infer_shape
from .tool_results import error_message, error_texts, tool_result_data

if TYPE_CHECKING:
    from jsonschema_rs import Validator

MAX_ERROR_CHARS = 2_000
MAX_ERROR_DATA_CHARS = 64_000  # of the JSON of an error's data; more is left out
MISSING_CONTENT = "there is no structured content, although it has an output schema"
EncodedReply = tuple[AnswerReply, bytes]


class AnswerWorker:
    """Reads answers; knows the schemas and the credentials that earlier requests have brought."""

    def __init__(self) -> None:
        self._schemas: dict[int, Validator | str] = {}  # or why it is not valid
        self._credentials = Credentials(())

    def read(self, request: Mapping[str, Any], answer: bytes) -> EncodedReply:
        """Return the reply to a request about an answer."""
        if "credentials" in request:
            self._credentials = Credentials(request["credentials"])
        try:
            return self._read_message(request, parse_upstream_message(answer))
        except LimitExceeded as exc:
            return {"limit": exc.limit, "setting": exc.setting}, b""
        except ValidationError as exc:
            return {"invalid": f"its result is not a valid {exc.title}"}, b""
        except ValueError as exc:
            return {"invalid": self._shorten(str(exc))}, b""

    def _read_message(self, request: Mapping[str, Any], message: Any) -> EncodedReply:
        is_answer = isinstance(message, dict) and "method" not in message
        if not is_answer or type(message.get("id")) is not int or message["id"] != request["id"]:
            return {"is_other": True}, b""
        if "error" in message:
            error = types.ErrorData.model_validate(message["error"], by_name=False)
            data = self._bound_data(error.data)
            message = {"code": error.code, "message": self._shorten(error.message), "data": data}
            return {"error": message}, b""
        if not isinstance(message.get("result"), dict):
            raise ValueError("its answer has no result")
        if request["kind"] == "page":
            return read_page(request, message["result"])  # type: ignore[arg-type]
        return self._read_result(request, message["result"])  # type: ignore[arg-type]

    def _read_result(self, request: ResultRequest, found: JsonObject) -> EncodedReply:
        if found.get("resultType") == "input_required":
            return {"asks_input": True}, b""
        check_content(found)
        result = types.CallToolResult.model_validate(found, by_name=False)
        if result.is_error:
            text = error_message(self._credentials.redact(error_texts(result)))
            data = self._bound_data(result.structured_content)
            return {"is_error": True, "message": self._shorten(text), "data": data}, b""
        if request["schema"] is not None:
            self._check_schema(request, request["schema"], result)
        value = tool_result_data(result, request["is_wrapped"])
        if self._credentials:
            value = self._credentials.redact(value)
        if is_nested_deeper(value, MAX_DATA_DEPTH - 1):
            raise LimitExceeded(f"values nested more than {MAX_DATA_DEPTH} levels deep")
        return {"shape": infer_shape(value)}, encode_json(value).encode("ascii")

    def _check_schema(
        self, request: ResultRequest, number: int, result: types.CallToolResult
    ) -> None:
        """Raise `ValueError` if a result does not follow the tool's output schema."""
        if "structured_content" not in result.model_fields_set:
            raise ValueError(MISSING_CONTENT)
        if "schema_body" in request:
            try:
                self._schemas[number] = compile_schema(request["schema_body"])
            except ValueError as exc:
                self._schemas[number] = str(exc)
        validator = self._schemas[number]
        if isinstance(validator, str):
            problem = f"the schema is not valid: {validator}"
            raise ValueError(f"it cannot be compared with its output schema: {problem}")
        if violation := find_violation(result.structured_content, validator):
            raise ValueError(f"it does not follow its output schema: {violation}")

    def _bound_data(self, data: Any) -> Any:
        """Return the data of an error without credentials, or None if there is too much."""
        redacted = self._credentials.redact(data)
        return redacted if len(encode_json(redacted)) <= MAX_ERROR_DATA_CHARS else None

    def _shorten(self, text: str) -> str:
        return self._credentials.redact_text(text)[:MAX_ERROR_CHARS]


def read_page(request: PageRequest, result: JsonObject) -> EncodedReply:
    """Return the items on a page, one in each line, as many as are of use."""
    cursor = result.get("nextCursor")
    items = result.get(request["key"])
    if not isinstance(items, list) or not (cursor is None or isinstance(cursor, str)):
        raise ValueError(f"its page has no list of {request['key']}")
    lines: list[bytes] = []
    size = 0
    for item in items[: request["max_items"]]:
        line = encode_json(item)
        if len(line) > LARGE_BYTES and request["key"] == "tools":
            line = encode_json(bound_tool(item, request["max_parts"]))
        lines.append(line.encode("ascii"))
        size += len(line)
        if size > request["max_bytes"]:
            break
    return {"next_cursor": cursor}, b"\n".join(lines)


def bound_tool(item: Any, max_parts: int) -> Any:
    """Return a tool without schemas that exceed their bounds: the server does not build these."""
    from .output_checks import ToolBounds  # few tools are that large

    tool = types.Tool.model_validate(item, by_name=False)
    bounded = ToolBounds(max_parts).bound_tool(tool)
    return bounded.model_dump(mode="json", by_alias=True, exclude_unset=True)


def main() -> None:
    """Read answers until there are no more."""
    serve_requests(AnswerWorker().read)


if __name__ == "__main__":
    main()
