"""Tool results as plain JSON data for sandboxed code.

Rule 1: structured content is the result if there is any; its text blocks only repeat it.
Rule 2: otherwise each content block becomes one value, and several blocks become a list.
Rule 3: a text block that is a JSON object or array is parsed; every other text stays text.
Rule 4: a credential that an upstream was given never comes back. It is replaced before anything
else sees the result.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlsplit

from mcp import types

from ...config import UpstreamSettings
from ...config.credentials import is_credential_name

MIN_CREDENTIAL_CHARS = (
    8  # characters; shorter values occur by chance and replacing them would falsify results
)
REDACTED = "***"
FASTMCP_WRAPPER_KEY = (
    "x-fastmcp-wrap-result"  # how one server framework marks an output schema as a wrapper
)


def has_result_wrapper(tool: types.Tool) -> bool:
    """Return whether `tool` declares the `{"result": value}` that SDKs wrap around a non-object."""
    schema = tool.output_schema
    properties = schema.get("properties") if schema else None
    if not schema or not isinstance(properties, dict) or set(properties) != {"result"}:
        return False
    if schema.get(FASTMCP_WRAPPER_KEY) is True:
        return True
    title = str(schema.get("title", ""))
    return schema.get("required") == ["result"] and title.endswith("Output")


def to_json_data(result: types.CallToolResult, is_wrapped: bool) -> Any:
    """Return `result` as JSON data; `is_wrapped` is the tool's `has_result_wrapper`."""
    structured = result.structured_content
    if structured is not None:
        has_wrapper = is_wrapped and isinstance(structured, dict) and "result" in structured
        return structured["result"] if has_wrapper else structured
    values = [content_block_value(block) for block in result.content]
    if len(values) == 1:
        return values[0]
    return values or None


def error_message(result: types.CallToolResult, limit: int) -> str:
    """Return the text of a failed result, at most `limit` characters."""
    texts = [block.text for block in result.content if isinstance(block, types.TextContent)]
    return "\n".join(texts).strip()[:limit] or "the tool failed without a message"


def content_block_value(block: types.ContentBlock) -> Any:
    """Return one content block as JSON data: parsed text, or a dict with `type` and its data."""
    if isinstance(block, types.TextContent):
        return parse_text(block.text)
    if isinstance(block, types.ImageContent | types.AudioContent):
        return {"type": block.type, "mimeType": block.mime_type, "data": block.data}
    if isinstance(block, types.EmbeddedResource):
        resource = block.resource
        value = {"type": "resource", "uri": str(resource.uri), "mimeType": resource.mime_type}
        if isinstance(resource, types.BlobResourceContents):
            return {**value, "data": resource.blob}
        return {**value, "text": resource.text}
    return block.model_dump(mode="json", by_alias=True, exclude_none=True)


def parse_text(text: str) -> Any:
    """Return the JSON object or array in `text`, else `text` itself."""
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return text


def _reject_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


class Credentials:
    """The secret values that one upstream was given; replaces them in what it sends."""

    def __init__(self, values: Iterable[str]) -> None:
        # The longest first, so that no rest remains of a value that contains another one.
        self._values = sorted(
            {value for value in values if len(value) >= MIN_CREDENTIAL_CHARS}, key=len, reverse=True
        )
        self._encoded = [value.encode() for value in self._values]

    def __bool__(self) -> bool:
        return bool(self._values)

    def redact(self, value: Any) -> Any:
        """Return JSON data with every known credential in it replaced."""
        if isinstance(value, str):
            return self.redact_text(value)
        if isinstance(value, list):
            return [self.redact(item) for item in value]
        if isinstance(value, dict):
            return {self.redact_text(key): self.redact(item) for key, item in value.items()}
        return value

    def redact_text(self, text: str) -> str:
        """Return `text` with every known credential replaced."""
        for value in self._values:
            if value in text:
                text = text.replace(value, REDACTED)
        return text

    def redact_bytes(self, data: bytes) -> bytes:
        """Return `data` with every known credential replaced."""
        for value in self._encoded:
            data = data.replace(value, REDACTED.encode())
        return data


def collect_credentials(settings: UpstreamSettings) -> Credentials:
    """Return the credentials in `settings`.

    These are all header values, and those values of `env`, `args` and `url` whose names look
    secret.
    """
    values = [
        word for value in settings.headers.values() for word in value.get_secret_value().split()
    ]
    values += [value.get_secret_value() for value in settings.headers.values()]
    values += [
        value.get_secret_value() for name, value in settings.env.items() if is_credential_name(name)
    ]
    values += _credential_arguments(settings.args)
    for text in filter(None, (settings.url, *settings.args)):
        values += _url_credentials(text)
    return Credentials(values)


def _credential_arguments(args: Sequence[str]) -> list[str]:
    """Return the values of `--token VALUE` and `--token=VALUE`, for names that look secret."""
    found = []
    for flag, following in zip_longest(args, args[1:], fillvalue=""):
        name, is_joined, value = flag.partition("=")
        if name.startswith("-") and is_credential_name(name.strip("-")):
            found.append(value if is_joined else following)
    return found


def _url_credentials(text: str) -> list[str]:
    """Return the password and the secret parameters of a URL; none if `text` is not one."""
    try:
        url = urlsplit(text)
    except ValueError:
        return []
    if not url.scheme or not url.netloc:
        return []
    parameters = [value for name, value in parse_qsl(url.query) if is_credential_name(name)]
    return [url.password or "", *parameters]


def reveal_secrets(table: Mapping[str, Any]) -> dict[str, str]:
    """Return the secret values of a settings table in plain text; only for `transport`."""
    return {name: value.get_secret_value() for name, value in table.items()}
