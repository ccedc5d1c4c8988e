"""Measures how well the server finds skills and tools, compared with a plain BM25.

Recall@3 is the share of queries whose skill is among the first three, MRR the mean of 1/rank (0
beyond the tenth). The queries for skills are of three kinds: requests by a person who saw only the
list of skills (`retrieval_requests`), queries whose words are not in the descriptions, and plain
ones (both in `retrieval_tasks`). The skills are saved through MCP: their code is a comment, because
the gate runs each of them. The tools are those of the real MCP servers that the tests use. The
plain BM25 matches whole words of names and descriptions.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters

from .harness import TestServer, first_text, start_server
from .results import RESULTS_FOLDER, ResultRecorder, record_result
from .retrieval_requests import SKILL_REQUESTS, TOOL_REQUESTS
from .retrieval_tasks import QUERIES, SKILLS, Entry

SERVERS_FOLDER = Path(__file__).parents[1] / ".venvs"
TOOL_SERVERS: Mapping[str, tuple[str, ...]] = {  # command and arguments, below `SERVERS_FOLDER`
    "git": ("mcp-server-git/bin/mcp-server-git",),
    "time": ("mcp-server-time/bin/mcp-server-time",),
    "excel": ("excel-mcp-server/bin/excel-mcp-server", "stdio"),
    "files": ("node/node_modules/.bin/mcp-server-filesystem", "."),
    "memory": ("node/node_modules/.bin/mcp-server-memory",),
    "everything": ("node/node_modules/.bin/mcp-server-everything",),
    "browser": ("node/node_modules/.bin/playwright-mcp",),
}
FOUND_COUNT = 3  # the number of results of `list_skills`
RANKED_COUNT = 10
PLAIN_COUNT = 14  # plain queries, at the end of `QUERIES`

Search = Callable[[str], Sequence[str]]
Queries = Sequence[tuple[str, str]]  # queries with the name of the right skill or tool


SKILL_CODE = (
    "import skills\n[[each.name for each in skills.search(q, {count})] for q in {queries!r}]"
)
TOOL_CODE = """import tools
[[f"{{each.server}}.{{each.name.rpartition('.')[2]}}" for each in tools.search(q, {count})]
 for q in {queries!r}]"""
LIMITS = {"data_dir": "data", "result_items": 10_000, "result_chars": 1_000_000}
EXAMPLES = {"str": "north", "int": 3, "float": 1.5, "list": ["a", "b"]}  # arguments by type


async def search_skills(server: TestServer, queries: Queries) -> Search:
    """Return the search of the skill library, with its answers to `queries`."""
    return await ask_all(server, SKILL_CODE, queries)


async def search_tools(server: TestServer, queries: Queries) -> Search:
    """Return the search of the catalogue, with its answers to `queries`."""
    return await ask_all(server, TOOL_CODE, queries)


async def ask_all(server: TestServer, code: str, queries: Queries) -> Search:
    """Return the answers that code in a sandbox gets, as a search."""
    texts = [query for query, _ in queries]
    found = await server.run_code(code.format(count=RANKED_COUNT, queries=texts))
    value = found["value"]
    answers = ast.literal_eval(value) if isinstance(value, str) else value
    return dict(zip(texts, answers, strict=True)).__getitem__


async def save_library(server: TestServer) -> None:
    """Save `SKILLS` through MCP; each becomes active with a run that calls it."""
    for entry in SKILLS:
        names, source = skill_source(entry)
        draft = {"code": source, "name": entry.name, "description": entry.summary}
        await server.client.call_tool("save_skill", draft)
        call = f"from skills.{entry.name}.v1 import run\nrun({names})"
        run = (await server.run_code(call, "library"))["run"]
        saved = await server.client.call_tool("save_skill", {"run": run, "name": entry.name})
        if (saved.structured_content or {}).get("state") != "active":
            raise RuntimeError(f"{entry.name} is not active: {first_text(saved)}")


def skill_source(entry: Entry) -> tuple[str, str]:
    """Return the arguments of an example call and the code of a skill, which returns them."""
    [function] = ast.parse(f"def run{entry.signature}: pass").body
    assert isinstance(function, ast.FunctionDef)
    kinds = {
        each.arg: ast.unparse(each.annotation or ast.Name("str")) for each in function.args.args
    }
    arguments = ", ".join(f"{name}={EXAMPLES[kind]!r}" for name, kind in kinds.items())
    code = "\n".join(f"    # {line}" for line in entry.body.splitlines())
    head = f"def run({ast.unparse(function.args)}):"
    return arguments, f"{head}\n{code}\n    return [{', '.join(kinds)}]\n"


def tool_entries() -> dict[str, dict[str, object]]:
    """Return the settings of the installed servers."""
    return {
        name: {"command": str(SERVERS_FOLDER / command), "args": arguments}
        for name, (command, *arguments) in TOOL_SERVERS.items()
    }


async def list_descriptions() -> dict[str, str]:
    """Return the descriptions of the tools of the installed servers, by their names."""
    found: dict[str, str] = {}
    for server, (command, *arguments) in TOOL_SERVERS.items():
        parameters = StdioServerParameters(command=str(SERVERS_FOLDER / command), args=arguments)
        async with Client(parameters) as client:
            for tool in (await client.list_tools()).tools:
                found[f"{server}.{tool.name}"] = tool.description or ""
    return found


def plain_search(descriptions: Mapping[str, str]) -> Search:
    """Return a BM25 search (k1 1.2, b 0.75) over names and descriptions."""
    documents = [split_words(f"{name} {text}") for name, text in descriptions.items()]
    holders = Counter(word for document in documents for word in set(document))
    mean = sum(map(len, documents)) / len(documents)

    def score(document: list[str], query: list[str]) -> float:
        counts, total = Counter(document), 0.0
        for word in query:
            if word in counts:
                rarity = math.log(
                    1 + (len(documents) - holders[word] + 0.5) / (holders[word] + 0.5)
                )
                length = 1.2 * (0.25 + 0.75 * len(document) / mean)
                total += rarity * counts[word] * 2.2 / (counts[word] + length)
        return total

    def search(query: str) -> list[str]:
        words = split_words(query)
        scores = {
            name: score(document, words)
            for name, document in zip(descriptions, documents, strict=True)
        }
        found = [name for name, value in scores.items() if value > 0]
        return sorted(found, key=lambda name: (-scores[name], name))[:RANKED_COUNT]

    return search


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def module_name(name: str) -> str:
    """Return a name as code in a sandbox writes it."""
    return name.replace("-", "_")


def measure(search: Search, queries: Queries) -> tuple[float, float]:
    """Return recall@3 and MRR."""
    ranks: list[int] = []
    for query, name in queries:
        found = [module_name(each) for each in search(query)]
        wanted = module_name(name)
        ranks.append(found.index(wanted) + 1 if wanted in found else 0)
    recall = sum(0 < rank <= FOUND_COUNT for rank in ranks) / len(ranks)
    return recall, sum(1 / rank for rank in ranks if rank) / len(ranks)


def format_figures(kind: str, search: Search, queries: Queries) -> str:
    """Return one entry of the table."""
    recall, reciprocal_rank = measure(search, queries)
    return f"{kind} ({len(queries)}) {recall:.2f} / {reciprocal_rank:.2f}"


async def measure_all(recorder: ResultRecorder, verbose: bool) -> None:
    """Print the tables; if `verbose`, also the queries without the right result."""
    kinds: dict[str, Queries] = {
        "requests": SKILL_REQUESTS,
        "in other words": QUERIES[:-PLAIN_COUNT],
        "plainly": QUERIES[-PLAIN_COUNT:],
    }
    skill_queries = [query for queries in kinds.values() for query in queries]
    sections = {"server": LIMITS, "mcpServers": tool_entries()}
    async with start_server(sections=sections) as server:
        await save_library(server)
        library = await search_skills(server, skill_queries)
        await server.run_code("import tools\nassert not tools.list().problems")
        catalogue = await search_tools(server, TOOL_REQUESTS)
    print(f"queries over {len(SKILLS)} skills: recall@{FOUND_COUNT} / MRR")
    plain = plain_search({entry.name: entry.summary for entry in SKILLS})
    for name, search in (("plain BM25", plain), ("the library", library)):
        figures = (format_figures(kind, search, queries) for kind, queries in kinds.items())
        print(f"{name:13}", *figures, sep="  ")
        recorder.details[f"skills, {name}"] = {
            kind: measure(search, queries) for kind, queries in kinds.items()
        }
    descriptions = await list_descriptions()
    print(f"requests over {len(descriptions)} tools of {len(TOOL_SERVERS)} servers")
    plain_tools = plain_search(descriptions)
    for name, search in (("plain BM25", plain_tools), ("the catalogue", catalogue)):
        print(f"{name:13}", format_figures("requests", search, TOOL_REQUESTS), sep="  ")
        recorder.details[f"tools, {name}"] = {"requests": measure(search, TOOL_REQUESTS)}
    if verbose:
        print_misses(library, skill_queries)
        print_misses(catalogue, TOOL_REQUESTS)


def main(arguments: Sequence[str]) -> int:
    """Print the tables; with `-v`, also print the queries without the right result."""
    with record_result("retrieval", RESULTS_FOLDER / "retrieval.json") as recorder:
        anyio.run(measure_all, recorder, "-v" in arguments)
    return 0


def print_misses(search: Search, queries: Queries) -> None:
    """Print the queries whose skill or tool is not among the first `FOUND_COUNT` results."""
    for query, name in queries:
        found = list(search(query))[:FOUND_COUNT]
        if name not in found:
            print(f"{query!r}: {name}, found {', '.join(found) or 'nothing'}")
