"""The programs that the demo runs in place of a model; each is one step of a session."""

from __future__ import annotations

from pathlib import Path

QUESTION = (
    "Which hotfixes of the last three years were made while the person on call, in Tokyo, was "
    "asleep?"
)

COLLECT = """\
import re
from tools.git import git_log, git_show

REPO = {repository!r}
ENTRY = re.compile(
    r"Commit: (?P<sha>\\w+)\\nAuthor: (?P<author>.+)\\n"
    r"Date: (?P<date>.+)\\nMessage: (?P<subject>.+)"
)
QUARTERS = [("01-01", "03-31"), ("04-01", "06-30"), ("07-01", "09-30"), ("10-01", "12-31")]

hotfixes = []
for year in (2023, 2024, 2025):
    for number, (begin, end) in enumerate(QUARTERS, 1):
        log = git_log(
            REPO,
            max_count=1000,
            start_timestamp=f"{{year}}-{{begin}}T00:00:00Z",
            end_timestamp=f"{{year}}-{{end}}T23:59:59Z",
        )
        commits = [entry.groupdict() for entry in ENTRY.finditer(log)]
        urgent = [commit for commit in commits if commit["subject"].startswith("hotfix")]
        hotfixes += urgent
        counts = f"{{len(commits):3}} commits  {{len(urgent):2}} hotfixes"
        print(f"{{year}} Q{{number}}  {{counts}}  {{'#' * len(urgent)}}")

# What each of them changed, many at a time: only the number of lines is kept.
patches = tools.map(lambda commit: git_show(REPO, commit["sha"]), hotfixes)
for commit, patch in zip(hotfixes, patches):
    commit["lines"] = len(re.findall(r"^[+-](?![+-])", patch.value, re.MULTILINE))

lines = sum(commit["lines"] for commit in hotfixes)
f"{{len(hotfixes)}} hotfixes, {{lines:,}} lines changed in a hurry"
"""

ANSWER = """\
from collections import Counter
from tools.time import convert_time
{import_files}
def in_tokyo(commit):
    clock, hours_east = commit["date"][11:16], int(commit["date"][19:22])
    zone = f"Etc/GMT{{-hours_east:+d}}"  # the time zone database counts westwards
    return convert_time(zone, clock, target_timezone="Asia/Tokyo").target.datetime[11:16]

asleep = []
for commit, tokyo in zip(hotfixes, tools.map(in_tokyo, hotfixes)):
    if tokyo.value >= "23:00" or tokyo.value < "07:00":
        asleep.append({{**commit, "tokyo": tokyo.value}})

authors = Counter(commit["author"].split("<")[0].strip() for commit in asleep)
areas = Counter(re.search(r"\\((\\w+)\\)", commit["subject"])[1] for commit in asleep)
latest = sorted(asleep, key=lambda commit: commit["date"])[-5:]
entry = "{{date:.10}}  {{tokyo}} in Tokyo  {{sha:.8}}  {{subject}}"

report = [
    f"{{len(asleep)}} of {{len(hotfixes)}} hotfixes were made while Tokyo slept (23:00-07:00)",
    "by   " + ", ".join(f"{{name}} {{count}}" for name, count in authors.most_common()),
    "in   " + ", ".join(f"{{name}} {{count}}" for name, count in areas.most_common()),
    "",
    "the latest of them:",
    *(entry.format(**commit) for commit in latest),
]
{write}
"\\n".join(report)
"""

SAVE = """\
import json

with open("hotfixes.json", "w") as file:
    json.dump(hotfixes, file)

f"{len(hotfixes)} hotfixes saved in hotfixes.json"
"""

SPOIL = """\
# Only the parser, from here on. (The mistake: every subject begins with "hotfix".)
for found in (hotfixes, asleep):
    found[:] = [commit for commit in found if commit["subject"].startswith("parser")]

with open("hotfixes.json", "w") as file:
    json.dump(hotfixes, file)

f"{len(hotfixes)} hotfixes kept, {len(asleep)} of them at night; hotfixes.json overwritten"
"""

LOOK = """\
saved = json.load(open("hotfixes.json"))
f"{len(hotfixes)} hotfixes and {len(asleep)} at night in variables, {len(saved)} in hotfixes.json"
"""

BY_HOUR = """\
hours = Counter(commit["tokyo"][:2] for commit in asleep)
hour, count = hours.most_common(1)[0]
f"worst hour in Tokyo: {hour}:00, with {count} of {len(asleep)} hotfixes"
"""

JUDGE = """\
# How bad was each? That is not written anywhere: a model has to judge. Each subject is asked once.
said = [re.sub(r"^hotfix\\(\\w+\\): | \\(#\\d+\\)$", "", commit["subject"]) for commit in hotfixes]
different = sorted(set(said))
question = "How bad is this, from 1 (a nuisance) to 5 (beyond repair)? Only the number."
slots = ask_llm_batch(question, different)
badness = {message: int(slot.value) for message, slot in zip(different, slots)}

points = Counter()
for commit, message in zip(hotfixes, said):
    points[commit["author"].split("<")[0].strip()] += badness[message]
worst = [message for message in different if badness[message] == max(badness.values())]
answers = f"{len(different)} answers for {len(hotfixes)} hotfixes"

"\\n".join([
    f"{answers}, {sum(points.values())} points of badness in all",
    "mended by  " + ", ".join(f"{name} {count}" for name, count in points.most_common(3)),
    f"worst      {len(worst)} kinds, such as: {worst[0]}",
])
"""

LEARN = """\
import re
from collections import Counter
from tools.git import git_log

log = git_log(
    {repository!r},
    max_count=1000,
    start_timestamp="2024-01-01T00:00:00Z",
    end_timestamp="2024-03-31T23:59:59Z",
)
entries = re.findall(r"Author: (.+)\\nDate: .+\\nMessage: (.+)", log)
hotfixes = [author for author, subject in entries if subject.startswith("hotfix")]
authors = Counter(author.split("<")[0].strip() for author in hotfixes)
authors.most_common(3)
"""

REUSE = """\
from skills.hotfixes_by_author import run

ENDS = [("01-01", "03-31"), ("04-01", "06-30"), ("07-01", "09-30"), ("10-01", "12-31")]
busiest = {{}}
for number, (begin, end) in enumerate(ENDS, 1):
    first, last = f"2025-{{begin}}T00:00:00Z", f"2025-{{end}}T23:59:59Z"
    authors = run({repository!r}, start_timestamp=first, end_timestamp=last)
    busiest[f"2025 Q{{number}}"] = " ".join(map(str, authors[0])) if authors else "nobody"
busiest
"""


def collection_program(repository: Path) -> str:
    """Return the first step: read the history and keep the hotfixes."""
    return COLLECT.format(repository=str(repository))


def skill_task_program(repository: Path) -> str:
    """Return a program that becomes a skill."""
    return LEARN.format(repository=str(repository))


def skill_use_program(repository: Path) -> str:
    """Return a program of another conversation, which uses that skill."""
    return REUSE.format(repository=str(repository))


def report_program(report: Path | None) -> str:
    """Return the second step, which writes a report.

    With `report`, the filesystem server writes that file; without, it goes into the workspace.
    """
    if report is None:
        write = 'open("report.md", "w").write("\\n".join(report))'
        return ANSWER.format(import_files="", write=write)
    call = f'write_file(path={str(report)!r}, content="\\n".join(report))'
    return ANSWER.format(import_files="from tools.files import write_file\n", write=call)
