"""The rule `reader`, called as an agent: it writes programs, based on the conversation alone.

If the conversation does not show the beginning of CONTEXT, the first program prints it. For rows of
messages, the program asks the model to label a few rows at a time and counts in code. In prose, it
searches for relevant sentences and sends only those to the model. For anything else it asks about
the whole text at once. After a failure it uses smaller pieces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .fake_reader import MESSAGE_ROW, ParsedQuestion, parse_question

AGENT_MARK = "[mcpruntime agent,"  # in the system prompt of `agent/system.txt`
PIECE_CHARS = 4_000  # characters that one model call reads
LINES_CODE = "CONTEXT.splitlines() if isinstance(CONTEXT, str) else CONTEXT"
LOOK_ANSWER = """\
I look at how the material begins.
```python
print(CONTEXT[:600] if isinstance(CONTEXT, str) else CONTEXT.peek(600))
```"""
ROWS_ANSWER = """\
I have every line judged, a few at once, and count in code.
```python
from collections import Counter

TOPICS = {topics!r}
pieces = [[]]
for line in {lines}:
    if sum(map(len, pieces[-1])) + len(line) > {room}:
        pieces.append([])
    if line.strip():
        pieces[-1].append(line)
prompt = f"Say for each line what it is about: one of {{', '.join(TOPICS)}}.\
 One topic for each line, in their order."
rows, unread = [], []
for first in range(0, len(pieces), 256):
    some = pieces[first : first + 256]
    for piece, slot in zip(some,\
 ask_llm_batch(prompt, ["\\n".join(piece) for piece in some], schema=list[str])):
        if slot.ok and len(slot.value) == len(piece):
            rows += [(line[:7], line.split(" | ")[1], topic)\
 for line, topic in zip(piece, slot.value)]
        else:
            unread.append(slot.error or len(piece))
if unread:
    raise RuntimeError(f"{{len(unread)}} of {{len(pieces)}} pieces were not read well:\
 {{unread[0]}}")
{conclude}
```"""
SUBMIT_CODE = {
    "count": "SUBMIT(sum(topic == {0!r} for _, _, topic in rows))",
    "compare": (
        "counts = Counter(topic for _, _, topic in rows)\n"
        "SUBMIT({0!r} if counts[{0!r}] > counts[{1!r}] else {1!r})"
    ),
    "month": (
        "months = Counter(month for month, _, topic in rows if topic == {0!r})\n"
        "SUBMIT(months.most_common(1)[0][0])"
    ),
    "pairs": (
        "users = [{{user for _, user, topic in rows if topic == wanted}} "
        "for wanted in ({0!r}, {1!r})]\n"
        "SUBMIT(sorted(users[0] & users[1]))"
    ),
}

PROSE_ANSWER = """\
I search for sentences that name what is asked for, and have only those read.
```python
import re

names = {names!r}
found = []
for line in {lines}:
    for sentence in re.findall(r"[^.]*\\b{noun}[^.]*\\.", line):
        if any(name in sentence for name in names):
            found.append(sentence.strip())
pieces = [[]]
for sentence in found:
    if sum(map(len, pieces[-1])) + len(sentence) > {room}:
        pieces.append([])
    pieces[-1].append(sentence)
slots = ask_llm_batch({question!r}, ["\\n".join(piece) for piece in pieces])
for slot in slots:
    if not slot.ok:
        raise slot.error
SUBMIT("\\n".join(slot.value for slot in slots if slot.value != "not found"))
```"""
WHOLE_ANSWER = """\
I ask about all of it at once.
```python
SUBMIT(ask_llm({question!r}, str(CONTEXT)))
```"""


def write_program(messages: Sequence[str]) -> str:
    """Return the next program of a conversation.

    The messages are the system prompt, the task, and then programs and their results in turns.
    """
    task, _, told = messages[1].removeprefix("Task:\n").partition("\n\nCONTEXT: ")
    results = [text for text in messages[2:] if text.startswith("Step ")]
    if not results and "\n" not in told:
        return LOOK_ANSWER
    failed = sum(": ok" not in result.split("\n")[0] for result in results)
    return choose_program(task.strip(), told + "".join(results[:1]), PIECE_CHARS >> failed)


def choose_program(task: str, preview: str, piece_chars: int) -> str:
    """Return a program that solves a task; `preview` is the beginning of the material."""
    asked = parse_question(task)
    if asked is not None and MESSAGE_ROW.search(preview):
        return count_rows_program(task, asked, piece_chars)
    asks = re.findall(r"[^.?\n]+\?", task)
    question = asks[-1].strip() if asks else task
    names = re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", question)
    nouns: list[str] = re.findall(r"the ([a-z]+?)s? (?:in|of|at)\b", question)
    if names and nouns:
        return PROSE_ANSWER.format(
            names=names, noun=nouns[-1], question=question, lines=LINES_CODE, room=piece_chars
        )
    return WHOLE_ANSWER.format(question=task)


def count_rows_program(task: str, question: ParsedQuestion, piece_chars: int) -> str:
    """Return a program that asks the model to label rows, and counts the labels."""
    listed = re.search(r"one of these topics: ([\w, ]+)\.", task)
    topics = listed[1].split(", ") if listed else list(question.topics)
    return ROWS_ANSWER.format(
        topics=topics,
        lines=LINES_CODE,
        room=piece_chars,
        conclude=SUBMIT_CODE[question.kind].format(*question.topics),
    )
