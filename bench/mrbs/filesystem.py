"""Filesystem: real files in folders, to be read, sorted, changed and counted."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath
from random import Random
from typing import Any

from .task import Task
from .world import World

LEVELS = ("INFO", "WARN", "ERROR")
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "juniper"]


def make_world(draw: Random) -> World:
    """Return logs, notes, drafts and settings. The largest log is not the one with most lines."""
    files: dict[str, str] = {}
    numbers = range(draw.randint(6, 9))
    largest, longest = draw.sample(numbers, 2)
    counts = {largest: 400, longest: 405}
    for number in numbers:
        weights = [1] * (len(WORDS) - 1) + [9 if number == largest else 1]  # for the longest word
        lines = [
            f"{draw.choice(LEVELS)} {draw.choices(WORDS, weights)[0]}"
            for _ in range(counts.get(number) or draw.randint(60, 380))
        ]
        files[f"logs/day{number}.log"] = "\n".join(lines) + "\n"
    for number in range(10):
        mark = draw.choice(("TODO", "DONE"))
        body = " ".join(draw.choices(WORDS, k=20))
        files[f"notes/n{number}.txt"] = f"{mark}: {draw.choice(WORDS)}\n{body}\n"
    files |= {f"drafts/{word}.txt": f"draft of {word}\n" for word in draw.sample(WORDS, 5)}
    files["settings.ini"] = f"port={draw.randint(2000, 8000)}\nname={draw.choice(WORDS)}\n"
    files["final/keep.txt"] = "kept\n"
    taken = sorted(path for path in files if path.startswith("drafts/"))[2]
    files[f"final/{PurePosixPath(taken).name}"] = "earlier\n"
    return World({"files": files}, {"word": draw.choice(WORDS)})


def logs_of(world: World) -> dict[str, str]:
    """Return the texts of the logs by path."""
    return {path: text for path, text in world.state["files"].items() if path.startswith("logs/")}


def expect_port(world: World) -> Any:
    files = world.state["files"]
    port = int(files["settings.ini"].split()[0].removeprefix("port="))
    files["settings.ini"] = files["settings.ini"].replace(f"port={port}", f"port={port + 1}")
    return port + 1


def expect_largest(world: World) -> Any:
    texts = logs_of(world)
    return {"name": max(sorted(texts), key=lambda path: len(texts[path])).removeprefix("logs/")}


def expect_errors(world: World) -> Any:
    counts = Counter(
        line.split()[1]
        for text in logs_of(world).values()
        for line in text.splitlines()
        if line.startswith("ERROR")
    )
    return dict(counts)


def expect_done(world: World) -> Any:
    files = world.state["files"]
    done = sorted(
        path
        for path, text in files.items()
        if path.startswith("notes/") and text.startswith("DONE:")
    )
    for path in done:
        files[path.replace("notes/", "archive/")] = files.pop(path)
    return len(done)


def expect_published(world: World) -> Any:
    files = world.state["files"]
    skipped = []
    for path in sorted(path for path in files if path.startswith("drafts/")):
        target = path.replace("drafts/", "final/")
        if target in files:
            skipped.append(path.removeprefix("drafts/"))
        else:
            files[target] = files.pop(path)
    return skipped


def expect_summary(world: World) -> Any:
    lines = []
    for path, text in sorted(logs_of(world).items()):
        levels = Counter(line.split()[0] for line in text.splitlines())
        name = path.removeprefix("logs/").removesuffix(".log")
        lines.append(f"{name},{levels['INFO']},{levels['WARN']},{levels['ERROR']}")
    world.state["files"]["reports/levels.csv"] = "\n".join(["day,info,warn,error", *lines]) + "\n"
    return len(lines)


TASKS = [
    Task(
        "next-port",
        "easy",
        "In the file settings.ini, raise the port by one and change nothing else. Return the new "
        "port as a number.",
        expect_port,
        """
import re
from tools.files import read_file, write_file
text = read_file("settings.ini")
port = int(re.search(r"port=(\\d+)", text)[1]) + 1
write_file("settings.ini", re.sub(r"port=\\d+", f"port={port}", text))
port
""",
        (
            """
import re
from tools.files import read_file, write_file
port = int(re.search(r"port=(\\d+)", read_file("settings.ini"))[1]) + 1
write_file("settings.ini", f"port={port}\\n")
port
""",
            """
import re
from tools.files import read_file
int(re.search(r"port=(\\d+)", read_file("settings.ini"))[1]) + 1
""",
        ),
        ("state",),
    ),
    Task(
        "largest-log",
        "easy",
        "Which file in the folder logs is the largest, or the first by name if several are? "
        "Return an object with its name under the key name.",
        expect_largest,
        """
from tools.files import list_folder
{"name": max(list_folder("logs"), key=lambda entry: entry["size"])["name"]}
""",
        (
            """
from tools.files import list_folder, read_file
names = [entry["name"] for entry in list_folder("logs")]
{"name": max(names, key=lambda name: read_file(f"logs/{name}").count("\\n"))}
""",
            """
from tools.files import list_folder
{"name": min(list_folder("logs"), key=lambda entry: entry["size"])["name"]}
""",
        ),
    ),
    Task(
        "error-counts",
        "medium",
        "Each line of the files in logs has a level and a word. Count the lines with the level "
        "ERROR by word, over all files. Return an object with the counts.",
        expect_errors,
        """
from collections import Counter
from tools.files import list_folder, read_file
counts = Counter()
for entry in list_folder("logs"):
    for line in read_file(f"logs/{entry['name']}").splitlines():
        level, word = line.split()
        if level == "ERROR":
            counts[word] += 1
dict(counts)
""",
        (
            """
from collections import Counter
from tools.files import list_folder, read_file
counts = Counter()
for entry in list_folder("logs")[:-1]:
    for line in read_file(f"logs/{entry['name']}").splitlines():
        level, word = line.split()
        if level == "ERROR":
            counts[word] += 1
dict(counts)
""",
            """
from collections import Counter
from tools.files import list_folder, read_file
counts = Counter()
for entry in list_folder("logs"):
    for line in read_file(f"logs/{entry['name']}").splitlines():
        counts[line.split()[1]] += 1
dict(counts)
""",
        ),
        ("large",),
    ),
    Task(
        "archive-done",
        "medium",
        "Move every file of the folder notes whose text begins with DONE: into the folder "
        "archive, under the same name. Return how many there were.",
        expect_done,
        """
from tools.files import list_folder, move_file, read_file
moved = 0
for entry in list_folder("notes"):
    if read_file(f"notes/{entry['name']}").startswith("DONE:"):
        move_file(f"notes/{entry['name']}", f"archive/{entry['name']}")
        moved += 1
moved
""",
        (
            """
from tools.files import list_folder, read_file, write_file
moved = 0
for entry in list_folder("notes"):
    text = read_file(f"notes/{entry['name']}")
    if text.startswith("DONE:"):
        write_file(f"archive/{entry['name']}", text)
        moved += 1
moved
""",
            """
from tools.files import list_folder, move_file
entries = list_folder("notes")
for entry in entries:
    move_file(f"notes/{entry['name']}", f"archive/{entry['name']}")
len(entries)
""",
        ),
        ("state",),
    ),
    Task(
        "publish-drafts",
        "hard",
        "Move all files from the folder drafts into the folder final. A file whose name exists "
        "there already stays where it is. Return the sorted names of the files that stayed.",
        expect_published,
        """
import tools
from tools.files import list_folder, move_file
stayed = []
for entry in list_folder("drafts"):
    try:
        move_file(f"drafts/{entry['name']}", f"final/{entry['name']}")
    except tools.ToolError:
        stayed.append(entry["name"])
sorted(stayed)
""",
        (
            """
from tools.files import delete_file, list_folder, read_file, write_file
names = [entry["name"] for entry in list_folder("drafts")]
stayed = [entry["name"] for entry in list_folder("final") if entry["name"] in names]
for name in names:
    write_file(f"final/{name}", read_file(f"drafts/{name}"))
    delete_file(f"drafts/{name}")
stayed
""",
            """
from tools.files import list_folder, move_file
for entry in list_folder("drafts"):
    move_file(f"drafts/{entry['name']}", f"final/{entry['name']}")
[]
""",
        ),
        ("errors", "state"),
    ),
    Task(
        "level-report",
        "hard",
        "Write the file reports/levels.csv: the header day,info,warn,error and then, for each "
        "file of logs in the order of names, a line with its name without .log and the number of "
        "lines of each level. Every line ends with a newline. Return the number of lines without "
        "the header.",
        expect_summary,
        """
from collections import Counter
from tools.files import list_folder, read_file, write_file
lines = ["day,info,warn,error"]
for entry in list_folder("logs"):
    text = read_file(f"logs/{entry['name']}")
    levels = Counter(line.split()[0] for line in text.splitlines())
    day = entry["name"].removesuffix(".log")
    lines.append(f"{day},{levels['INFO']},{levels['WARN']},{levels['ERROR']}")
write_file("reports/levels.csv", "\\n".join(lines) + "\\n")
len(lines) - 1
""",
        (
            """
from collections import Counter
from tools.files import list_folder, read_file, write_file
lines = ["day,info,warn,error"]
for entry in list_folder("logs"):
    text = read_file(f"logs/{entry['name']}")
    levels = Counter(line.split()[0] for line in text.splitlines())
    lines.append(f"{entry['name']},{levels['INFO']},{levels['WARN']},{levels['ERROR']}")
write_file("reports/levels.csv", "\\n".join(lines) + "\\n")
len(lines) - 1
""",
            """
from tools.files import list_folder, read_file
lines = []
for entry in list_folder("logs"):
    text = read_file(f"logs/{entry['name']}")
    lines.append(f"{entry['name']},{text.count('INFO')},{text.count('WARN')},{text.count('ERROR')}")
with open("levels.csv", "w") as file:
    file.write("\\n".join(lines) + "\\n")
len(lines)
""",
        ),
        ("large", "state"),
    ),
]
