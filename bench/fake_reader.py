"""The rule `reader` of the deterministic model: it reads short texts well and long ones badly.

The reader understands plain questions with a lexicon. It can name the topic of each line, count,
compare, find a month or users, and find the number that opens a vault. When a prompt asks for
notes on a part of a text, it writes tallies, which it can read again. It shares no code with the
generator of the texts (`long_tasks`).

Its limit is attention: in a text of N characters it misjudges the share
`SLIP_SHARE * (N / ATTENTION_CHARS) ** 3` of the lines and misses the same share of the facts. A
slip depends only on the line and on the length of the text: the same request has the same answer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from zlib import crc32

# In a text of `ATTENTION_CHARS` characters, the reader misjudges the share `SLIP_SHARE`.
ATTENTION_CHARS, SLIP_SHARE, MAX_SLIP_SHARE = 16_384, 0.3, 0.5
TOPIC_CUES = {
    "billing": r"euros left|euros more|owe me|charged|statement shows|discount|\bfee\b|invoice",
    "delivery": r"parcel|courier|tracking|warehouse|to the address|\bvan\b|was to be here|driver",
    "defect": r"stopped working|crack|smells|noise|hinge|switch on|battery|leaks",
    "login": r"password|six digits|locked out|user name|reset|sign in|profile|let me in",
    "praise": r"that good|deserves|loves|hoped for|wonderful|at once|worth every|envies",
    "cancellation": (
        r"subscription|longer want|take back|renew|the club|changed my mind|nothing more"
        r"|may have the"
    ),
}
TOPICS = tuple(TOPIC_CUES)
TOPIC_CUE = re.compile(
    "|".join(f"(?P<{topic}>{cues})" for topic, cues in TOPIC_CUES.items()), re.IGNORECASE
)
SETTLED_PHRASES = re.compile(
    r"was fine|were fine|were right|as agreed|on the day you said|on time|is fine|as it should be"
    r"|no longer a worry|no trouble|used to",
    re.IGNORECASE,
)
CLAUSE_END = re.compile(r"[.?!]\s|, but ")
MESSAGE_ROW = re.compile(r"^(\d{4}-\d\d)-\d\d \| (u\d+) \| (.+)$", re.MULTILINE)
MARKED_DATA = re.compile(r"\n\n<data [0-9a-f]+>\n(.*?)(?:\n</data [0-9a-f]+>|\Z)", re.DOTALL)
SENTENCE = re.compile(r"[^.\n]+\.")
VAULT_PHRASES = re.compile(r"\bopen\b|yields|inside the vault|combination|unlocks")
NOTE_LINE = re.compile(r"^(\w+): (.+)$", re.MULTILINE)
WHOLE_TEXT = "all"  # the key of a tally that does not distinguish months or users

Tally = dict[str, Counter[str]]  # topic -> month, user or `WHOLE_TEXT` -> rows


@dataclass(frozen=True)
class ParsedQuestion:
    """A question that the reader understands: its kind and its topics."""

    kind: str
    topics: tuple[str, ...]


def read_text(text: str, schema: Mapping[str, Any] | None) -> str:
    """Return the answer to a prompt: a question followed by material."""
    question, data = split_material(text)
    found = answer_question(question, data)
    if schema is None:
        return found if isinstance(found, str) else json.dumps(found)
    return json.dumps({"value": found} if "value" in schema.get("properties", {}) else found)


def split_material(text: str) -> tuple[str, str]:
    """Split a prompt into question and material.

    Without data marks, the material follows the first blank line.
    """
    if marked := MARKED_DATA.search(text):
        return text[: marked.start()], marked[1]
    question, _, data = text.partition("\n\n")
    return question, data


def answer_question(question: str, data: str) -> Any:
    """Return the reader's answer to a question about `data`."""
    if re.search(r"\beach line\b.*\bone of\b", question, re.DOTALL):
        return [judge_topic(line, len(data)) for line in data.splitlines() if line.strip()]
    if re.search(r"\bvaults?\b", question):
        return format_facts(find_facts(question, data))
    asked = parse_question(question)
    if asked is None:
        return "I do not know."
    if re.search(r"\bthese are notes\b", question, re.IGNORECASE):
        return conclude_answer(asked, parse_notes(data))
    tally = count_rows(asked, data)
    if re.search(r"\bnote briefly\b", question, re.IGNORECASE):
        return "\n".join(f"{topic}: {format_counts(tally[topic])}" for topic in asked.topics)
    return conclude_answer(asked, tally)


# rows ---------------------------------------------------------------------------------------------


def judge_topic(line: str, seen: int) -> str:
    """Return the topic of a line, or a wrong topic if the reader slips.

    A line without cues has the first topic.
    """
    text = line.rsplit(" | ", maxsplit=1)[-1]
    open_clauses = [
        clause for clause in CLAUSE_END.split(text) if not SETTLED_PHRASES.search(clause)
    ]
    cues = Counter(
        cue.lastgroup or "" for clause in open_clauses for cue in TOPIC_CUE.finditer(clause)
    )
    topic = max(TOPICS, key=lambda each: cues[each])
    if not is_misjudged(line, seen):
        return topic
    return TOPICS[
        (TOPICS.index(topic) + 1 + crc32(text.encode()) % (len(TOPICS) - 1)) % len(TOPICS)
    ]


def is_misjudged(line: str, seen: int) -> bool:
    """Return whether the reader misjudges a line of a text of `seen` characters."""
    digest = blake2b(f"{seen} {line}".encode("utf-8", "replace"), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32 < min(
        MAX_SLIP_SHARE, SLIP_SHARE * (seen / ATTENTION_CHARS) ** 3
    )


def parse_question(question: str) -> ParsedQuestion | None:
    """Parse the last sentence with a question mark; return None if it has no known form."""
    asks = re.findall(r"[A-Z][^.?\n]*\?", question)
    last = asks[-1] if asks else ""
    topics = tuple(topic for topic in re.findall(r"[a-z]+", last) if topic in TOPIC_CUES)
    for kind, words in {
        "month": "which month",
        "pairs": "users",
        "compare": "more messages",
        "count": "how many",
    }.items():
        if words in last.lower() and len(topics) == (2 if kind in ("pairs", "compare") else 1):
            return ParsedQuestion(kind, topics)
    return None


def count_rows(question: ParsedQuestion, data: str) -> Tally:
    """Return the tally of all complete rows."""
    tally: Tally = {topic: Counter() for topic in question.topics}
    for row in MESSAGE_ROW.finditer(data):
        topic = judge_topic(row[0], len(data))
        if topic in tally:
            tally[topic][{"month": row[1], "pairs": row[2]}.get(question.kind, WHOLE_TEXT)] += 1
    return tally


def format_counts(counts: Counter[str]) -> str:
    """Return the counts of one topic as a line of notes."""
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items())) or "none"


def parse_notes(notes: str) -> Tally:
    """Return the sum of the tallies in notes."""
    tally: Tally = {}
    for topic, counts in NOTE_LINE.findall(notes):
        found = tally.setdefault(topic, Counter())
        for name, number in re.findall(r"([\w-]+) (\d+)(?:, |$)", counts):
            found[name] += int(number)
    return tally


def conclude_answer(question: ParsedQuestion, tally: Tally) -> Any:
    """Return the answer to a question from a tally."""
    counts = [tally.get(topic, Counter()) for topic in question.topics]
    conclude: dict[str, Callable[[], Any]] = {
        "count": lambda: sum(counts[0].values()),
        "compare": lambda: max(
            question.topics, key=lambda topic: sum(tally.get(topic, Counter()).values())
        ),
        "month": lambda: max(sorted(counts[0]), key=lambda month: counts[0][month], default="none"),
        "pairs": lambda: sorted(counts[0].keys() & counts[1].keys()),
    }
    return conclude[question.kind]()


# facts --------------------------------------------------------------------------------------------


def find_facts(question: str, data: str) -> dict[str, str]:
    """Return the numbers that open the vaults in the question, by place."""
    places = set(re.findall(r"[A-Z][a-z]+", question.rpartition("vault")[2]))
    found: dict[str, str] = {}
    for sentence in vault_sentences(data):
        place, number = (
            re.search(r"vault in ([A-Z][a-z]+)", sentence),
            re.search(r"\b\d{5}\b", sentence),
        )
        if place and number and place[1] in places and not is_misjudged(sentence, len(data)):
            found[place[1]] = number[0]
    return found


def vault_sentences(data: str) -> Iterator[str]:
    """Yield the sentences about numbers that open vaults, also from the short form of notes."""
    for sentence in SENTENCE.findall(data):
        if "vault" in sentence and VAULT_PHRASES.search(sentence):
            yield sentence
    for place, code in re.findall(r"^([A-Z][a-z]+): (\d{5})$", data, re.MULTILINE):
        yield f"{code} unlocks the vault in {place}."


def format_facts(facts: Mapping[str, str]) -> str:
    """Return facts as the text of an answer."""
    return "\n".join(f"{place}: {code}" for place, code in facts.items()) or "not found"


def label_lines(lines: Sequence[str]) -> list[str]:
    """Return the topics of lines that the reader reads one by one, which is most accurate."""
    return [judge_topic(line, len(line)) for line in lines]
