"""Knowledge providers as clients see them: resources, and a prompt that adds passages to a task."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from typing import Annotated

from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver.prompts import Prompt
from mcp.types import Resource, ResourceTemplate
from pydantic import Field

from ..capabilities.data_marks import DATA_NOTICE, mark_as_data
from ..capabilities.knowledge.provider import clean_line, replace_control_characters
from ..capabilities.knowledge.service import URI_SCHEME, KnowledgeService
from ..errors import CallFailed, NotFound
from ..protocol.payloads import PassageData
from .resources import MAX_LISTED_RESOURCES

MAX_PROMPT_PASSAGES = 6
MAX_NAMED_PROVIDERS = 5  # in the instructions
MAX_TITLE_CHARS = 200  # of a passage

KNOWLEDGE_INSTRUCTIONS = (
    '\nKnowledge to ground code in ({}): knowledge.search("words") finds passages, '
    "knowledge.get(passage) reads on."
)
PASSAGE_INSTRUCTIONS = (
    f"{DATA_NOTICE} Name the source and the lines of what you use; "
    "knowledge.search(...) in run_code finds more."
)
NO_PASSAGES_TEXT = "No passage matches; knowledge.describe() in run_code lists what there is."


class KnowledgeResources:
    """Documents of providers as resources."""

    scheme = URI_SCHEME

    def __init__(self, providers: KnowledgeService, max_chars: int) -> None:
        self._providers = providers
        self._max_chars = max_chars  # of a text; the address of a part leads to the rest

    async def list_resources(self) -> Sequence[Resource]:
        """Return some documents of each provider."""
        try:
            documents = await self._providers.list_documents(MAX_LISTED_RESOURCES)
        except CallFailed:
            return []  # other resources are still listed; `doctor` reports the problem
        return [
            Resource(
                uri=uri,
                name=name,
                description=f"Knowledge: {provider}",
                mime_type=text_mime_type(name),
            )
            for provider, name, uri in documents
        ]

    def list_templates(self) -> Sequence[ResourceTemplate]:
        """Return the template for the addresses of documents."""
        if not self._providers.names:
            return []
        names = ", ".join(self._providers.names)
        return [
            ResourceTemplate(
                uri_template=f"{URI_SCHEME}{{provider}}/{{+name}}",
                name="knowledge",
                description=f"A text of a provider ({names}); add #L3-20 for lines 3 to 20",
            )
        ]

    async def read_resource(self, uri: str) -> ReadResourceContents:
        """Return a document or a passage, as far as it fits; raises `NotFound`."""
        try:
            part = await self._providers.get(uri, chars=self._max_chars)
        except CallFailed as exc:
            raise NotFound(exc.message, remedy=exc.remedy) from None
        address = uri.partition("#")[0]
        text = part["text"]
        if not part["is_whole"]:
            first, end = part["span"]["chars"]
            omitted = part["size"] - len(text)
            text += f"\n[{omitted:,} more characters: {address}#C{end}-{first + part['size']}]"
        return ReadResourceContents(text, text_mime_type(address))


def text_mime_type(name: str) -> str:
    """Return the MIME type of a text by its name."""
    guessed = mimetypes.guess_type(name)[0] or ""
    if guessed.startswith("text/") or guessed in ("application/json", "application/toml"):
        return guessed
    return "text/plain"


def knowledge_instructions(names: Sequence[str]) -> str:
    """Return the part of the server's instructions about providers; "" if there are none."""
    if not names:
        return ""
    more = ", ..." if len(names) > MAX_NAMED_PROVIDERS else ""
    return KNOWLEDGE_INSTRUCTIONS.format(", ".join(names[:MAX_NAMED_PROVIDERS]) + more)


def format_grounded_task(
    task: str, passages: Sequence[PassageData], problems: Sequence[str]
) -> str:
    """Return a task and passages that may help, marked as data."""
    blocks = [task, PASSAGE_INSTRUCTIONS if passages else NO_PASSAGES_TEXT]
    blocks += [mark_as_data(_format_passage(each)) for each in passages]
    blocks += [f"! {problem}" for problem in problems]
    return "\n\n".join(blocks)


def _format_passage(passage: PassageData) -> str:
    first_line, last_line = passage["span"]["lines"]
    title = clean_line(passage["title"], MAX_TITLE_CHARS)
    place = f"{passage['source']}: {passage['name']}" + (f" > {title}" if title else "")
    text = replace_control_characters(passage["text"])
    return f"{place}, lines {first_line}-{last_line}, {passage['uri']}\n\n{text}"


def build_grounded_prompt(providers: KnowledgeService) -> Prompt:
    """Return the prompt that adds passages to a task."""

    async def grounded(task: Annotated[str, Field(description="What is to be done")]) -> str:
        try:
            answer = await providers.search(task, MAX_PROMPT_PASSAGES)
        except CallFailed as exc:
            return format_grounded_task(task, [], [str(exc)])
        return format_grounded_task(task, answer["passages"], answer["problems"])

    return Prompt.from_function(
        grounded,
        title="Grounded task",
        description="A task, and passages of knowledge that may help.",
    )
