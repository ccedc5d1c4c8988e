"""Three servers, one program: search issues, create a branch for each, and notify its owner.

The program loops over what it finds, so the number of issues costs the model nothing. One address
is unknown to the mail server: the program handles that failure, and the ledger lists every write.
Expect two branches in the real repository, and one person who could not be told.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from example_settings import example_settings, small_server
from mcpruntime_server import embed_runtime

PROGRAM = """
from tools import ToolError
from tools.mail import send_message
from tools.repository import create_branch
from tools.tracker import comment_on_issue, search_issues

told, untold = {}, []
for issue in search_issues("crash"):
    name = f"fix/{issue['id']}"
    create_branch(name)
    comment_on_issue(issue["id"], f"Work goes on in {name}.")
    try:
        send_message(issue["assignee"], issue["title"], f"Please continue in {name}.")
        told[issue["id"]] = issue["assignee"]
    except ToolError as problem:
        untold.append(str(problem))
{"told": told, "untold": untold}
"""

ISSUES = [
    ("Crash when the list is empty", "Happens at each start.", True, "ann"),
    ("The logo is blurred", "On large screens.", True, "ann"),
    ("Slow search", "And after a minute it crashes, too.", True, "ben"),
    ("Crash in the old parser", "Replaced since.", False, "cleo"),
]


def create_repository(folder: Path) -> None:
    """Create a git repository with one commit."""
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "init", "-q", "-b", "main", folder], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "Start"], check=True)


async def main() -> None:
    """Run the program over the three servers, and look at what they have now."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        create_repository(folder / "repository")
        fields = ("title", "body", "is_open", "assignee")
        issues = [
            {"id": number, **dict(zip(fields, issue, strict=True)), "comments": []}
            for number, issue in enumerate(ISSUES, 1)
        ]
        servers = {
            "tracker": small_server("tracker", folder, {"issues": issues}),
            "repository": small_server("repository", folder, {}),
            "mail": small_server("mail", folder, {"contacts": ["ann"], "sent": []}),
        }
        with example_settings({"mcpServers": servers}) as config:
            async with embed_runtime(config) as runtime:
                outcome = await runtime.session().run(PROGRAM)
        print(f"What a model reads:\n\n{outcome.text}\n\nThe branches now:")
        subprocess.run(["git", "branch"], cwd=folder / "repository", check=True)


if __name__ == "__main__":
    anyio.run(main)
