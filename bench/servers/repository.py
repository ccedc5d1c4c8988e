"""The branches of a real git repository."""

from __future__ import annotations

import subprocess

from anyio import to_thread
from typing_extensions import TypedDict

from .base import StatefulServer, ToolError
from .names import REPOSITORY_FOLDER

server = StatefulServer("repository")


class Branch(TypedDict):
    """A branch and the commit at its end."""

    name: str
    commit: str


def run_git(*arguments: str) -> str:
    """Return the output of a git command; raises `ToolError` with what git says."""
    folder = server.folder / REPOSITORY_FOLDER
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    if done.returncode:
        raise ToolError(done.stderr.decode(errors="replace").strip())
    return done.stdout.decode()


@server.tool(reads=True)
async def list_branches() -> list[Branch]:
    """Return all branches."""
    listing = await to_thread.run_sync(
        run_git, "for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads"
    )
    lines = (line.rpartition(" ") for line in listing.splitlines())
    return [{"name": name, "commit": commit} for name, _, commit in lines]


@server.tool()
async def create_branch(name: str, start: str = "main") -> Branch:
    """Create a branch where another ends; fails if it exists."""
    await to_thread.run_sync(run_git, "branch", "--", name, start)
    commit = await to_thread.run_sync(run_git, "rev-parse", "--verify", f"refs/heads/{name}")
    return {"name": name, "commit": commit.strip()}


if __name__ == "__main__":
    server.run()
