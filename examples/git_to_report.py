"""Programmatic tool calling: one program over two real MCP servers, git and filesystem.

Called one by one, the tools would put every commit into the model's context. Here a program reads
all of them and writes a report, and only three numbers come back. Expect these, and the report.

It starts the servers with `uvx` and `npx`, or from where `scripts/test-upstreams` installs them.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from example_settings import example_settings, real_server
from mcpruntime_server import embed_runtime

PROGRAM = """
import re
from collections import Counter

from tools.filesystem import write_file
from tools.git import git_log

log = git_log(repo_path={repository!r}, max_count=1000)
commits = log.split("\\n\\n")
authors = Counter(re.findall("Author: (.+)", log))
lines = [f"{{count:4}} {{name}}" for name, count in authors.most_common()]
write_file(path={report!r}, content="\\n".join(["# Commits by author", *lines]) + "\\n")
{{"commits": len(commits), "authors": len(authors), "characters read": len(log)}}
"""


def create_repository(folder: Path) -> None:
    """Create a git repository with 300 commits by three people."""
    people = ("Ann <ann@example.org>", "Ben <ben@example.org>", "Cleo <cleo@example.org>")
    lines = []
    for number in range(300):
        who = f"{people[number * number % 7 % 3]} {1_750_000_000 + number * 3600} +0000"
        message = f"Change number {number}"
        lines += ["commit refs/heads/main", f"committer {who}", f"data {len(message)}", message]
    subprocess.run(["git", "init", "-q", "-b", "main", folder], check=True)
    history = "\n".join(lines).encode()
    subprocess.run(["git", "fast-import", "--quiet"], cwd=folder, input=history, check=True)


async def main() -> None:
    """Run the program over both servers, and print what it wrote."""
    with TemporaryDirectory() as name:
        repository, reports = Path(name) / "project", Path(name) / "reports"
        create_repository(repository)
        reports.mkdir()
        settings = {
            "mcpServers": {
                "git": real_server("mcp-server-git"),
                "filesystem": real_server("@modelcontextprotocol/server-filesystem", reports),
            },
            "policy.tools": {"filesystem.write_file": "allow"},  # it calls itself destructive
        }
        with example_settings(settings) as config:
            async with embed_runtime(config) as runtime:
                report = reports / "authors.md"
                program = PROGRAM.format(repository=str(repository), report=str(report))
                outcome = await runtime.session().run(program)
                print(f"What a model reads:\n\n{outcome.text}\n\nWhat the program wrote:\n")
                print(report.read_text())


if __name__ == "__main__":
    anyio.run(main)
