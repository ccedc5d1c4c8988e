"""The JSON data that calls carry between the library in the sandbox and the host, as types.

The library imports this module for type checking only: importing `typing` would slow down every
start of a sandbox. Standard library only, Python >= 3.9.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, TypedDict

JsonObject = Dict[str, Any]  # free JSON: arguments of calls, what others send or are sent
JsonSchema = Dict[str, Any]  # perhaps of a hostile author, and then no schema at all


class SandboxFacts(TypedDict):
    """What a sandbox is told about itself, for `help()` and hints."""

    is_isolated: bool  # a container without a network; else a process on the user's machine
    timeout_s: float  # of a run that asks for no other
    roots: List[str]  # folders of the user whose files `context` may name
    mounts: List[str]  # folders of the sandbox that are the user's: "/data", "/out (writable)"
    export_dir: str  # the user's folder that `export` copies files to
    fetchers: List[str]  # tools that fetch from the network, as far as known when a run starts
    packages_folder: str  # where packages appear that code asks for; "": it may not ask
    web_rules: List[str]  # the web requests that code may make


class InputDescription(TypedDict):
    """One input of a run, as `Execute` names it to the worker."""

    id: str
    name: str
    path: str  # inside the sandbox
    size: int  # bytes of the whole file
    modified_ns: int  # 0: the time of modification says nothing
    problem: str  # why it cannot be read; "" if it can
    start: int  # the part of the file that is the input, in bytes
    end: Optional[int]  # None: up to the end of the file


class ShownValue(TypedDict):
    """A value as it is shown; `kind` is "json", "repr", or "error" if there is none."""

    kind: str
    text: str
    type: str
    cut: bool


class Inspection(TypedDict, total=False):
    """What to observe: in a run (`probe`), or in the state that a run starts from."""

    kind: str  # "probe" | "variables"
    max_chars: int  # of a value
    max_items: int  # of a list or an object in it
    expression: str  # a probe's
    line: int
    first_hit: int  # the executions of the line before this one are only counted
    max_hits: int  # and so are those after so many


class InspectionResult(TypedDict):
    """What a probe has to say at the end of its run."""

    line: int  # of the statement that was probed; 0 if there is none
    hit_count: int
    problem: str  # why values are missing; "" if none are


class VariableData(TypedDict):
    """A variable of the session, as the worker describes it."""

    name: str
    value: ShownValue
    length: Optional[int]
    shape: Optional[List[int]]
    digest: str  # of its content


class SliceBounds(TypedDict):
    """A part of an input, in bytes."""

    input: str  # its id
    start: int
    end: int


SliceReference = TypedDict("SliceReference", {"$slice": SliceBounds})


class TextSpan(TypedDict):
    """Where a passage is in its document: lines are counted from 1, the last one included."""

    lines: List[int]
    chars: List[int]


class PassageData(TypedDict):
    """One passage that a search found."""

    text: str
    source: str  # the provider
    name: str  # the document
    title: str
    uri: str
    span: TextSpan
    score: float


class SearchAnswer(TypedDict):
    """The answer to `knowledge.search`, best passages first."""

    passages: List[PassageData]
    problems: List[str]


class DocumentPart(TypedDict):
    """The answer to `knowledge.get`: at most `chars` characters of a document or passage."""

    text: str
    uri: str
    source: str
    size: int  # characters of the whole document or passage
    start: int
    span: TextSpan
    is_whole: bool


class SkippedData(TypedDict):
    """How many documents were skipped for one reason, and the names of the first few."""

    count: int
    names: List[str]


class ProviderSummary(TypedDict):
    """One provider in the answer to `knowledge.describe`."""

    name: str
    kind: str
    title: str
    documents: int
    passages: int
    skipped: Dict[str, SkippedData]  # by reason
    problem: str  # "" if there is none


class OutlineEntry(TypedDict, total=False):
    """One document of a provider: its headings, or its schema and rows if it is a table."""

    name: str
    uri: str
    titles: List[str]
    schema: str
    rows: Optional[int]  # None: too many to count quickly
    samples: List[JsonObject]


class ProviderDescription(ProviderSummary):
    """The answer to `knowledge.describe` for one provider."""

    documents_shown: int
    outline: List[OutlineEntry]


class ToolDescription(TypedDict):
    """One tool in a listing."""

    server: str
    tool: str
    signature: str
    summary: str
    effect: str


class ToolListing(TypedDict):
    """The answer to `catalog.search` and `catalog.list`."""

    tools: List[ToolDescription]
    problems: List[str]  # why the tools of some servers are missing


class PackageWheel(TypedDict):
    """The file of a package; its digest is the name of its folder below that of packages."""

    name: str
    version: str
    sha256: str


class SkillSource(TypedDict, total=False):
    """The answer to `skills.source`: the source of a version, or the text of a guide."""

    skill: str
    version: int
    state: str
    source: str
    digest: str
    guide: str
    wheels: List[PackageWheel]


class SkillDescription(TypedDict):
    """One skill in the answer to `skills.search`."""

    name: str
    version: int
    state: str
    signature: str
    summary: str


class SkillListing(TypedDict):
    """The answer to `skills.search`."""

    skills: List[SkillDescription]


class PresentedValue(TypedDict):
    """A value as text of bounded length."""

    kind: str  # "json" or "repr"
    text: str
    type: str
    cut: bool  # whether something was left out


class SkillUse(TypedDict, total=False):
    """The outcome of a call of a skill, as `skills.used` reports it."""

    skill: str
    version: int
    ok: bool
    error: str
    inputs: JsonObject  # the arguments by parameter name, if the call can become a case
    output: PresentedValue


class ModelRequestData(TypedDict, total=False):
    """The arguments of `llm.ask`."""

    prompt: str
    data: Any  # text, JSON data or a `SliceReference`
    schema: JsonSchema
    model: str
    max_tokens: int


class CallError(TypedDict):
    """Why a call failed."""

    kind: str
    message: str
    data: Any


class BatchAnswer(TypedDict, total=False):
    """The answer to one request of `llm.batch`: a value or an error."""

    ok: bool
    value: Any
    error: CallError


class AgentTaskData(TypedDict, total=False):
    """The arguments of `agent.run`."""

    task: str
    context: Any  # text, JSON data or a `SliceReference`
    budget: JsonObject
    schema: JsonSchema
    model: str
