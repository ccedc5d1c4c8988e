"""Tasks about git histories."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .task import Task, Values, chosen
from .world import World


@dataclass(frozen=True)
class Commit:
    """One commit in the output of git; its subject is "kind(area): ..."."""

    sha: str
    author: str
    at: datetime
    subject: str

    @property
    def kind(self) -> str:
        return self.subject.partition("(")[0]

    @property
    def area(self) -> str:
        return self.subject.partition("(")[2].partition(")")[0]


def commits(world: World, values: Values) -> list[Commit]:
    """Return the history of the selected repository, newest first."""
    log = world.git(chosen(world, values, "{repo}"), "log", "--format=%H%x09%an%x09%ct%x09%s")
    lines = [line.split("\t") for line in log.splitlines()]
    return [
        Commit(sha, author, datetime.fromtimestamp(int(at), UTC), subject)
        for sha, author, at, subject in lines
    ]


def changed_files(world: World, values: Values, commit: Commit) -> dict[str, int]:
    """Return the files that a commit changed, with the number of lines it added to each."""
    repository = chosen(world, values, "{repo}")
    stat = world.git(repository, "show", "--numstat", "--format=", commit.sha)
    return {
        path: int(added)
        for added, _, path in (line.split("\t") for line in stat.splitlines() if line)
    }


def commits_by_author(world: World, values: Values) -> Any:
    area = chosen(world, values, "api")
    return dict(Counter(commit.author for commit in commits(world, values) if commit.area == area))


def commits_between(world: World, values: Values) -> Any:
    begin = datetime.fromisoformat(chosen(world, values, "2024-03-01T00:00:00Z"))
    end = datetime.fromisoformat(chosen(world, values, "2024-08-31T23:59:59Z"))
    months = [
        f"{commit.at:%Y-%m}" for commit in commits(world, values) if begin <= commit.at <= end
    ]
    return dict(sorted(Counter(months).items()))


def files_of_author(world: World, values: Values) -> Any:
    author, newest = chosen(world, values, "Ada Moreno"), chosen(world, values, 30)
    theirs = [commit for commit in commits(world, values)[:newest] if commit.author == author]
    return sorted({path for commit in theirs for path in changed_files(world, values, commit)})


def lines_added_by_kind(world: World, values: Values) -> Any:
    newest = chosen(world, values, 25)
    found: Counter[str] = Counter()
    for commit in commits(world, values)[:newest]:
        found[commit.kind] += sum(changed_files(world, values, commit).values())
    return dict(found)


def branches_with(world: World, values: Values) -> Any:
    repository, point = chosen(world, values, "{repo}"), chosen(world, values, "release-2")
    names = world.git(
        repository, "for-each-ref", "refs/heads", f"--contains={point}", "--format=%(refname:short)"
    )
    return names.split()


def pull_requests(world: World, values: Values) -> Any:
    above = chosen(world, values, 140)
    ends = [commit.subject.partition("(#")[2].rstrip(")") for commit in commits(world, values)]
    return sorted({int(end) for end in ends if end and int(end) > above})


def latest_commit(world: World, values: Values) -> Any:
    author = chosen(world, values, "Emi Tanaka")
    latest = next(commit for commit in commits(world, values) if commit.author == author)
    return {"sha": latest.sha[:10], "day": f"{latest.at:%Y-%m-%d}", "subject": latest.subject}


def weekdays(world: World, values: Values) -> Any:
    newest = chosen(world, values, 50)
    return dict(
        Counter(f"{commit.at:%A}" for commit in commits(world, values)[:newest]).most_common(2)
    )


def changed_since(world: World, values: Values) -> Any:
    repository, since, folder = (
        chosen(world, values, each) for each in ("{repo}", "release-1", "storage/")
    )
    names = world.git(repository, "diff", "--name-only", since).split()
    return sorted(name for name in names if name.startswith(folder))


def fix_share(world: World, values: Values) -> Any:
    kind, newest = chosen(world, values, "fix"), chosen(world, values, 40)
    recent = commits(world, values)[:newest]
    share: dict[str, float] = {}
    for author in {commit.author for commit in recent}:
        kinds = [commit.kind for commit in recent if commit.author == author]
        share[author] = round(100 * kinds.count(kind) / len(kinds), 1)
    return share


HISTORY = (
    Task(
        "commits_by_author",
        "Who has worked on the api part of this repository? Count commits by author.",
        (
            """\
import re
from collections import Counter
from tools.git import git_log

log = git_log("{repo}", max_count=500)
area = "api"
entries = re.findall(r"Author: (.+)\\nDate: .+\\nMessage: \\w+\\((\\w+)\\)", log)
counts = Counter(author for author, where in entries if where == area)
for author, n in counts.most_common():
    print(author, n)
dict(counts)
""",
        ),
        ({"api": "storage"}, {"{repo}": "{repo2}"}, {"{repo}": "{repo2}", "api": "docs"}),
        commits_by_author,
    ),
    Task(
        "commits_between",
        "How many commits were there each month from March to August 2024?",
        (
            """\
import tools
log = tools.git.git_log("{repo}")
print(log[:600])
""",
            """\
import re

log = tools.git.git_log(
    "{repo}",
    max_count=1000,
    start_timestamp="2024-03-01T00:00:00Z",
    end_timestamp="2024-08-31T23:59:59Z",
)
months = {}
for month in re.findall(r"^Date: (\\d{4}-\\d{2})", log, re.MULTILINE):
    months[month] = months.get(month, 0) + 1
dict(sorted(months.items()))
""",
        ),
        (
            {"2024-08-31T23:59:59Z": "2024-12-31T23:59:59Z"},
            {"{repo}": "{repo2}", "2024-03-01T00:00:00Z": "2024-02-01T00:00:00Z"},
        ),
        commits_between,
    ),
    Task(
        "files_of_author",
        "Which files did Ada Moreno touch in the last 30 commits?",
        (
            """\
import re
import tools
from tools.git import git_log, git_show

REPO = "{repo}"
entry = re.compile(r"Commit: (\\w+)\\nAuthor: (.+)\\n")
newest = entry.findall(git_log(REPO, max_count=3))
print(newest)
print(git_show(REPO, newest[0][0])[:400])
""",
            """\
author = "Ada Moreno"
shas = [sha for sha, who in entry.findall(git_log(REPO, max_count=30)) if who == author]
patches = tools.map(lambda sha: git_show(REPO, sha), shas)
files = set()
for patch in patches:
    files.update(re.findall(r"^\\+\\+\\+ (?:b/)?(\\S+)", patch.value, re.M))
sorted(files)
""",
        ),
        ({30: 50}, {"Ada Moreno": "Dana Weiss"}, {"{repo}": "{repo2}", 30: 20}),
        files_of_author,
    ),
    Task(
        "lines_added_by_kind",
        "How many lines did features, fixes and so on add in the last 25 commits?",
        (
            """\
import re
from collections import defaultdict
from tools.git import git_log, git_show

def added(patch):
    lines = patch.splitlines()
    return sum(1 for line in lines if line.startswith("+") and not line.startswith("+++"))

def parse(log):
    for block in log.split("Commit: ")[1:]:
        sha = block.split()[0].strip("'")
        subject = re.search(r"Message: (.*)", block).group(1)
        yield sha, subject

totals = defaultdict(int)
for sha, subject in parse(git_log("{repo}", 25)):
    totals[subject.split("(")[0]] += added(git_show("{repo}", sha))
dict(totals)
""",
        ),
        ({25: 10}, {"{repo}": "{repo2}"}),
        lines_added_by_kind,
    ),
    Task(
        "branches_with",
        "Which branches have everything that release-2 has?",
        (
            """\
from tools.git import git_branch
text = git_branch("{repo}", "local", contains="release-2")
[line.strip("* ").strip() for line in text.splitlines() if line.strip()]
""",
        ),
        ({"release-2": "release-1"}, {"{repo}": "{repo2}", "release-2": "feature/quota"}),
        branches_with,
    ),
    Task(
        "pull_requests",
        "List the pull request numbers above 140 that the commit messages mention.",
        (
            """\
import re
import tools

messages = [l for l in tools.git.git_log("{repo}", max_count=1000).splitlines() if l.startswith("Message:")]
print(len(messages), messages[:2])
numbers = {int(n) for line in messages for n in re.findall(r"#(\\d+)", line)}
sorted(n for n in numbers if n > 140)
""",
        ),
        ({140: 160}, {"{repo}": "{repo2}"}),
        pull_requests,
    ),
    Task(
        "latest_commit",
        "What was Emi Tanaka's latest commit?",
        (
            '''\
import re
from tools.git import git_log

_ENTRY = re.compile(r"Commit: (?P<sha>\\w+)\\nAuthor: (?P<author>.+)\\nDate: (?P<date>.+)\\nMessage: (?P<subject>.+)")

def latest_commit(repo_path: str, author: str) -> dict:
    """Return the newest commit of an author: sha, day and subject."""
    for match in _ENTRY.finditer(git_log(repo_path, max_count=2000)):
        if match["author"] == author:
            return {"sha": match["sha"][:10], "day": match["date"][:10], "subject": match["subject"]}
    raise LookupError(f"{author} has no commit in {repo_path}")

latest_commit("{repo}", "Emi Tanaka")
''',
        ),
        ({"Emi Tanaka": "Chidi Okafor"}, {"{repo}": "{repo2}", "Emi Tanaka": "Greta Lind"}),
        latest_commit,
    ),
    Task(
        "weekdays",
        "On which two weekdays were most of the last 50 commits made?",
        (
            """\
from datetime import datetime
from collections import Counter
from tools.git import git_log

dates = [line[6:] for line in git_log("{repo}", max_count=50).splitlines() if line.startswith("Date: ")]
days = Counter(datetime.strptime(d, "%Y-%m-%d").strftime("%A") for d in dates)
""",
            """\
days = Counter(datetime.fromisoformat(d.strip()).strftime("%A") for d in dates)
print(days)
dict(days.most_common(2))
""",
        ),
        ({50: 35}, {"{repo}": "{repo2}", 50: 60}),
        weekdays,
        fails=frozenset({0}),
    ),
    Task(
        "changed_since",
        "What has changed in storage/ since release-1?",
        (
            """\
import re
import tools

branches = tools.git.git_branch("{repo}", branch_type="local")
print(branches)
""",
            """\
diff = tools.git.git_diff("{repo}", target="release-1", context_lines=0)
paths = set(re.findall(r"^diff --git a/(\\S+) b/", diff, re.MULTILINE))
sorted(path for path in paths if path.startswith("storage/"))
""",
        ),
        (
            {"storage/": "ui/"},
            {"release-1": "release-2"},
            {"{repo}": "{repo2}", "storage/": "docs/"},
        ),
        changed_since,
    ),
    Task(
        "fix_share",
        "What share of everyone's last commits are fixes? Look at the last 40.",
        (
            """\
import re
import pandas as pd
from tools.git import git_log

log = git_log("{repo}", max_count=40)
df = pd.DataFrame(re.findall(r"Author: (.+)\\nDate: .+\\nMessage: (\\w+)", log), columns=["author", "kind"])
df["hit"] = df["kind"] == "fix"
share = (df.groupby("author")["hit"].mean() * 100).round(1)
share.to_dict()
""",
        ),
        ({"fix": "feat"}, {40: 60}, {"{repo}": "{repo2}"}),
        fix_share,
    ),
)
