"""The rule `reader`, asked as an agent: it writes programs, by what stands in the conversation and by nothing else.

It first looks at how CONTEXT begins. Rows of messages it has labelled, a few at once, and counts them in code; in prose
it searches for sentences that may matter and has only those read. What it cannot count it asks about in one piece. A
program that failed it writes again, with smaller pieces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fake_reader import ROW, Asked, understood

AGENT = "[mcpruntime agent,"  # in the system prompt of `agent/system.txt`
PIECE = 4_000  # characters that it has read at once
LOOK = "I look at how the material begins.\n```python\nprint(str(CONTEXT.peek(600)))\n```"

ROWS = """\
I have every line judged, a few at a time, and count in code.
```python
from collections import Counter

TOPICS = {topics!r}
pieces = [str(piece) for piece in CONTEXT.chunks({piece}, by="lines")]
prompt = f"Say for each line what it is about: one of {{', '.join(TOPICS)}}. One topic for each line, in their order."
rows, unread = [], []
for first in range(0, len(pieces), 256):
    some = pieces[first : first + 256]
    for piece, slot in zip(some, ask_llm_batch(prompt, some, schema=list[str])):
        lines = [line for line in piece.splitlines() if line.strip()]
        if slot.ok and len(slot.value) == len(lines):
            rows += [(line[:7], line.split(" | ")[1], topic) for line, topic in zip(lines, slot.value)]
        else:
            unread.append(slot.error or len(lines))
if unread:
    raise RuntimeError(f"{{len(unread)}} of {{len(pieces)}} pieces were not read well: {{unread[0]}}")
{conclude}
```"""
CONCLUDE = {
    "count": "SUBMIT(sum(topic == {0!r} for _, _, topic in rows))",
    "compare": (
        "counts = Counter(topic for _, _, topic in rows)\nSUBMIT({0!r} if counts[{0!r}] > counts[{1!r}] else {1!r})"
    ),
    "month": (
        "months = Counter(month for month, _, topic in rows if topic == {0!r})\nSUBMIT(months.most_common(1)[0][0])"
    ),
    "pairs": (
        "users = [{{user for _, user, topic in rows if topic == wanted}} for wanted in ({0!r}, {1!r})]\n"
        "SUBMIT(sorted(users[0] & users[1]))"
    ),
}

PROSE = """\
I search for sentences that name what is asked for, and have only those read.
```python
import re

names = {names!r}
found = []
for piece in CONTEXT.chunks(100_000, by="lines"):
    for sentence in re.findall(r"[^.\\n]*\\b{noun}[^.\\n]*\\.", str(piece)):
        if any(name in sentence for name in names):
            found.append(sentence.strip())
pieces, room = [[]], {piece}
for sentence in found:
    if sum(map(len, pieces[-1])) + len(sentence) > room:
        pieces.append([])
    pieces[-1].append(sentence)
slots = ask_llm_batch({question!r}, ["\\n".join(piece) for piece in pieces])
for slot in slots:
    if not slot.ok:
        raise slot.error
SUBMIT("\\n".join(slot.value for slot in slots if slot.value != "not found"))
```"""
WHOLE = """\
I ask about all of it at once.
```python
SUBMIT(ask_llm({question!r}, str(CONTEXT.peek(10_000_000))))
```"""


def program(texts: Sequence[str]) -> str:
    """Return the next program of a conversation: system prompt, task, and then answers and what came of them."""
    task = task_in(texts[1])
    results = [text for text in texts[2:] if text.startswith("Step ")]
    if not results:
        return LOOK
    failed = sum(": ok" not in result.split("\n")[0] for result in results)
    return solving(task, results[0], PIECE >> failed)


def task_in(text: str) -> str:
    """Return the task as it was given."""
    return re.split(r"\n\n(?:CONTEXT|Skills|Submit): ", text.removeprefix("Task:\n"))[0].strip()


def solving(task: str, look: str, piece: int) -> str:
    """Return the program that solves a task on material that looks so."""
    asked = understood(task)
    if asked is not None and ROW.search(look):
        return counting(task, asked, piece)
    asks = re.findall(r"[^.?\n]+\?", task)
    question = asks[-1].strip() if asks else task
    names = re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", question)
    nouns: list[str] = re.findall(r"the ([a-z]+?)s? (?:in|of|at)\b", question)
    if names and nouns:
        return PROSE.format(names=names, noun=nouns[-1], question=question, piece=piece)
    return WHOLE.format(question=task)


def counting(task: str, asked: Asked, piece: int) -> str:
    """Return the program that has rows labelled, and counts."""
    listed = re.search(r"one of these topics: ([\w, ]+)\.", task)
    topics = listed[1].split(", ") if listed else list(asked.topics)
    return ROWS.format(topics=topics, piece=piece, conclude=CONCLUDE[asked.kind].format(*asked.topics))
