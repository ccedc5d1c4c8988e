"""Measures how well the server's indexes find skills and tools, compared with a plain BM25.

Recall@3 is the share of queries whose skill is among the first three, MRR the mean of 1/rank (0
beyond the tenth). The queries for skills are of three kinds: requests by a person who saw only the
list of skills (`retrieval_requests`), queries whose words are not in the descriptions, and plain
ones (both in `retrieval_tasks`). The tools are those of the real MCP servers that the tests use.
The plain BM25 matches whole words of names and descriptions. Run it with `make bench-skills`.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters

sys.path.append(str(Path(__file__).parent))

from mcpruntime_server.capabilities.skills.model import Skill
from mcpruntime_server.capabilities.skills.search_index import SkillIndex
from mcpruntime_server.capabilities.tools.catalog import index_row
from mcpruntime_server.capabilities.tools.shim_generator import describe_module
from mcpruntime_server.capabilities.tools.tool_index import ToolIndex, ToolRow
from retrieval_requests import SKILL_REQUESTS, TOOL_REQUESTS
from retrieval_tasks import QUERIES, SKILLS, Entry

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


def library_search() -> Search:
    """Return the search of the skill library over `SKILLS`, without usage data."""
    index = SkillIndex()
    skills = {entry.name: to_skill(entry) for entry in SKILLS}
    return lambda query: index.search(skills, query, RANKED_COUNT)


def to_skill(entry: Entry) -> Skill:
    """Return an entry as a skill of the store."""
    source = f"{entry.body}\n\n\ndef run{entry.signature}:\n    return 0\n"
    return Skill(entry.name, entry.summary, source, version=1, state="active")


def tool_search(rows: Sequence[ToolRow]) -> Search:
    """Return the search of the catalogue over `rows`."""
    index = ToolIndex()
    for server in TOOL_SERVERS:
        index.replace_server(server, [row for row in rows if row.server == server])
    return lambda query: [".".join(found) for found in index.search(query, RANKED_COUNT)]


async def list_tools() -> tuple[list[ToolRow], dict[str, str]]:
    """Return the tools of the installed servers: as the catalogue indexes them, and as described.

    The second value maps each name to the description that the server sends.
    """
    rows: list[ToolRow] = []
    descriptions: dict[str, str] = {}
    for server, (command, *arguments) in TOOL_SERVERS.items():
        parameters = StdioServerParameters(command=str(SERVERS_FOLDER / command), args=arguments)
        async with Client(parameters) as client:
            tools = (await client.list_tools()).tools
            module = describe_module(server, server, tools)
            for tool, shim in zip(tools, module.tools, strict=True):
                rows.append(replace(index_row(server, shim), tool=tool.name))
                descriptions[f"{server}.{tool.name}"] = tool.description or ""
    return rows, descriptions


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


def measure(search: Search, queries: Queries) -> tuple[float, float]:
    """Return recall@3 and MRR."""
    ranks: list[int] = []
    for query, name in queries:
        found = list(search(query))
        ranks.append(found.index(name) + 1 if name in found else 0)
    recall = sum(0 < rank <= FOUND_COUNT for rank in ranks) / len(ranks)
    return recall, sum(1 / rank for rank in ranks if rank) / len(ranks)


def format_figures(kind: str, search: Search, queries: Queries) -> str:
    """Return one entry of the table."""
    recall, reciprocal_rank = measure(search, queries)
    return f"{kind} ({len(queries)}) {recall:.2f} / {reciprocal_rank:.2f}"


def main() -> None:
    """Print the tables; with `-v`, also print the queries without the right result."""
    plain = plain_search({entry.name: entry.summary for entry in SKILLS})
    library = library_search()
    kinds: dict[str, Queries] = {
        "requests": SKILL_REQUESTS,
        "in other words": QUERIES[:-PLAIN_COUNT],
        "plainly": QUERIES[-PLAIN_COUNT:],
    }
    print(f"queries over {len(SKILLS)} skills: recall@{FOUND_COUNT} / MRR")
    for name, search in (("plain BM25", plain), ("the library", library)):
        print(
            f"{name:13}",
            *(format_figures(kind, search, queries) for kind, queries in kinds.items()),
            sep="  ",
        )
    rows, descriptions = anyio.run(list_tools)
    plain_tools = plain_search(descriptions)
    tools = tool_search(rows)
    print(f"requests over {len(rows)} tools of {len(TOOL_SERVERS)} servers")
    for name, search in (("plain BM25", plain_tools), ("the catalogue", tools)):
        print(f"{name:13}", format_figures("requests", search, TOOL_REQUESTS), sep="  ")
    if "-v" in sys.argv:
        print_misses(library, (*SKILL_REQUESTS, *QUERIES))
        print_misses(tools, TOOL_REQUESTS)


def print_misses(search: Search, queries: Queries) -> None:
    """Print the queries whose skill or tool is not among the first `FOUND_COUNT` results."""
    for query, name in queries:
        found = list(search(query))[:FOUND_COUNT]
        if name not in found:
            print(f"{query!r}: {name}, found {', '.join(found) or 'nothing'}")


if __name__ == "__main__":
    main()
