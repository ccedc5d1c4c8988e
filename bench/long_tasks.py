"""Long texts with questions whose answers are known.

*Rows* are messages of customers. The topic of a message follows from its words and is written
nowhere; many messages also mention a settled matter. The questions (counts, comparisons, months,
pairs of topics) need every row, as in OOLONG. *Haystacks* are prose with one fact to find, or
several, among sentences with the same names and with other numbers. Kind, size and seed determine
a task completely.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from itertools import permutations
from random import Random
from typing import Literal

from .long_words import (
    CLOSINGS,
    FACT_SENTENCES,
    GOODS,
    MONTHS,
    NAMES,
    OPENINGS,
    PLACES,
    PROSE_SENTENCES,
    SETTLED_SENTENCES,
    SINCES,
    THINGS,
    TIMES,
    TOPIC_SENTENCES,
)

TaskKind = Literal["count", "compare", "month", "pairs", "needle", "needles"]
TASK_KINDS: tuple[TaskKind, ...] = ("count", "compare", "month", "pairs", "needle", "needles")
TOPICS = tuple(TOPIC_SENTENCES)
FIRST_DAY = date(2024, 1, 1)
MONTH_NAMES = [f"2024-{month:02}" for month in range(1, 13)]
DAYS = 366
CHARS_PER_USER, MAX_USERS = 1_200, 1_000  # average characters per user; the most users
TOPICS_PER_USER = 3  # each user writes about so many topics
MIN_TEXT_CHARS = 2_048
CLEAR_RATIO = 1.1  # the least ratio of two counts that a question compares
PLANTED_FACTS = 5  # facts in a task of the kind `needles`
DECOY_FACTS = 3  # facts about places that are not in the question
ROWS_INSTRUCTIONS = (
    "Each line is a message: date, user, text. Each is about one of these topics: "
    + ", ".join(TOPICS)
    + ". Which one has to be judged from its words; what is settled does not count.\n"
)


@dataclass(frozen=True)
class MessageRow:
    """A message and its topic."""

    day: date
    user: str
    topic: str
    text: str

    @property
    def month(self) -> str:
        """The month in the format of answers."""
        return f"{self.day:%Y-%m}"

    @property
    def line(self) -> str:
        """The message as a line of the text."""
        return f"{self.day} | {self.user} | {self.text}"


@dataclass(frozen=True)
class Task:
    """A question about a text.

    `truth` contains the words of the right answer, or the number for a count.
    """

    kind: TaskKind
    question: str
    text: str = field(repr=False)
    truth: tuple[str, ...]

    def score(self, answer: object) -> float:
        """Return a score from 0 to 1: by relative error for a count, by F1 for everything else."""
        told = str(answer)
        if self.kind == "count":
            found = re.search(r"-?\d+", told)
            right = int(self.truth[0])
            return 0.0 if found is None else max(0.0, 1 - abs(int(found[0]) - right) / right)
        return f1_score(self.truth, set(re.findall(ANSWER_PATTERNS[self.kind], told)))


ANSWER_PATTERNS: Mapping[TaskKind, str] = {
    "compare": "|".join(TOPICS),
    "month": r"\b\d{4}-\d\d\b",
    "pairs": r"\bu\d{4}\b",
    "needle": r"\b\d{5}\b",
    "needles": r"\b\d{5}\b",
}


def f1_score(truth: Collection[str], found: Collection[str]) -> float:
    """Return the harmonic mean of precision and recall."""
    right = len(set(truth) & set(found))
    return 2 * right / (len(set(truth)) + len(set(found)))


def make_task(kind: TaskKind, size: int, seed: int = 0) -> Task:
    """Return a task on a text of almost `size` characters; raises `ValueError` for a small size."""
    if size < MIN_TEXT_CHARS:
        raise ValueError(f"a text has at least {MIN_TEXT_CHARS:,} characters, and not {size:,}")
    if kind in ("needle", "needles"):
        return make_haystack(kind, size, seed)
    rows = make_rows(size, seed)
    chance = Random(f"{kind} {size} {seed}")
    question, truth = QUESTION_MAKERS[kind](rows, chance)
    return Task(kind, ROWS_INSTRUCTIONS + question, "\n".join(row.line for row in rows), truth)


# rows ---------------------------------------------------------------------------------------------


@cache
def make_rows(size: int, seed: int = 0) -> tuple[MessageRow, ...]:
    """Return messages, ordered by day."""
    chance = Random(f"rows {size} {seed}")
    users = [
        f"u{number:04}"
        for number in chance.sample(range(10_000), min(MAX_USERS, max(6, size // CHARS_PER_USER)))
    ]
    habits = {user: chance.sample(TOPICS, TOPICS_PER_USER) for user in users}
    shares = {topic: chance.uniform(0.6, 1.6) for topic in TOPICS}
    seasons = {
        (topic, month): shares[topic] * chance.uniform(0.4, 2.0)
        for topic in TOPICS
        for month in range(1, 13)
    }
    rows: list[MessageRow] = []
    left = size + 1  # the last row has no newline
    while True:
        day = FIRST_DAY + timedelta((size - left) * DAYS // size if rows else 0)
        user = chance.choice(users)
        weights = [seasons[topic, day.month] for topic in habits[user]]
        topic = chance.choices(habits[user], weights)[0]
        row = MessageRow(day, user, topic, write_message(chance, topic))
        left -= len(row.line) + 1
        if left < 0:
            return tuple(rows)
        rows.append(row)


def write_message(random: Random, topic: str) -> str:
    """Return a text about a topic.

    It may also have an aside about a settled matter, an opening and a closing.
    """
    said = fill_template(random, random.choice(TOPIC_SENTENCES[topic]))
    if random.random() < 0.6:
        other = random.choice([each for each in TOPICS if each != topic])
        aside = fill_template(random, random.choice(SETTLED_SENTENCES[other]))
        said = random.choice(
            (
                f"{aside}, but {said}",
                f"{aside}. {capitalize_first(said)}",
                f"{said}. {capitalize_first(aside)}",
            )
        )
    opening = random.choice(OPENINGS) if random.random() < 0.3 else ""
    closing = " " + fill_template(random, random.choice(CLOSINGS)) if random.random() < 0.4 else ""
    return f"{opening}{said if opening else capitalize_first(said)}.{closing}"


def fill_template(random: Random, template: str) -> str:
    """Return a template with random words in its placeholders."""
    return template.format(
        thing=random.choice(THINGS),
        time=random.choice(TIMES),
        since=random.choice(SINCES),
        amount=random.randrange(5, 400),
        number=random.randrange(10_000, 99_999),
        place=random.choice(PLACES),
    )


def capitalize_first(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[:1].upper() + text[1:]


QuestionAndTruth = tuple[str, tuple[str, ...]]  # a question and its truth


def ask_count(rows: Collection[MessageRow], random: Random) -> QuestionAndTruth:
    """Ask for the number of messages about a topic."""
    counts = Counter(row.topic for row in rows)
    topic = random.choice(sorted(counts))
    return f"How many messages are about {topic}?", (str(counts[topic]),)


def ask_compare(rows: Collection[MessageRow], random: Random) -> QuestionAndTruth:
    """Ask which of two topics has more messages; their counts are close but clearly different."""
    counts = Counter(row.topic for row in rows)
    pairs = sorted(permutations(counts, 2), key=lambda pair: counts[pair[0]] / counts[pair[1]])
    more, less = next(
        (pair for pair in pairs if counts[pair[0]] >= CLEAR_RATIO * counts[pair[1]]), pairs[-1]
    )
    one, other = random.sample((more, less), 2)
    return f"Are more messages about {one} or about {other}?", (more,)


def ask_month(rows: Collection[MessageRow], random: Random) -> QuestionAndTruth:
    """Ask for the month with most messages about a topic that has a clear maximum."""
    counts = Counter((row.topic, row.month) for row in rows)
    best: dict[str, tuple[float, str]] = {}
    for topic in TOPICS:
        (most, month), (next_to, _), *_ = sorted(
            ((counts[topic, each], each) for each in MONTH_NAMES), reverse=True
        )
        best[topic] = (most / max(1, next_to), month)
    clear = [topic for topic, (ratio, _) in best.items() if ratio >= CLEAR_RATIO] or [
        max(TOPICS, key=best.__getitem__)
    ]
    topic = random.choice(clear)
    return f"In which month (as YYYY-MM) are most messages about {topic}?", (best[topic][1],)


def ask_pairs(rows: Collection[MessageRow], random: Random) -> QuestionAndTruth:
    """Ask for the users who wrote about both of two topics; there is at least one."""
    users = {topic: {row.user for row in rows if row.topic == topic} for topic in TOPICS}
    pairs = [pair for pair in permutations(TOPICS, 2) if users[pair[0]] & users[pair[1]]]
    one, other = random.choice(pairs)
    both = tuple(sorted(users[one] & users[other]))
    return f"Which users have written both about {one} and about {other}?", both


QUESTION_MAKERS = {
    "count": ask_count,
    "compare": ask_compare,
    "month": ask_month,
    "pairs": ask_pairs,
}


# haystacks ----------------------------------------------------------------------------------------


def make_haystack(kind: TaskKind, size: int, seed: int = 0) -> Task:
    """Return a task whose facts are at random positions in prose."""
    chance = Random(f"{kind} {size} {seed}")
    asked = PLANTED_FACTS if kind == "needles" else 1
    places = chance.sample(PLACES, asked + DECOY_FACTS)
    codes = [str(code) for code in chance.sample(range(10_000, 99_999), len(places))]
    facts = [
        chance.choice(FACT_SENTENCES).format(place=place, code=code, name=chance.choice(NAMES))
        for place, code in zip(places, codes, strict=True)
    ]
    sentences = list(write_prose(chance, size - sum(len(fact) + 1 for fact in facts)))
    for fact in facts:
        sentences.insert(chance.randrange(len(sentences) + 1), fact)
    text = "".join(
        f"{sentence}{' ' if number % 5 else chr(10)}"
        for number, sentence in enumerate(sentences, 1)
    )
    wanted = places[:asked]
    question = (
        f"Which number opens the vault in {wanted[0]}?"
        if asked == 1
        else f"Which numbers open the vaults in {', '.join(wanted[:-1])} and {wanted[-1]}? "
        "Name each with its number."
    )
    return Task(kind, question, text, tuple(codes[:asked]))


def write_prose(random: Random, size: int) -> Iterator[str]:
    """Yield sentences that fit into `size` characters with a separator after each."""
    while True:
        place, other = random.sample(PLACES, 2)
        sentence = random.choice(PROSE_SENTENCES).format(
            place=place,
            other=other,
            month=random.choice(MONTHS),
            goods=random.choice(GOODS),
            name=random.choice(NAMES),
            number=random.choice((random.randrange(2, 100), random.randrange(100, 99_999))),
        )
        size -= len(sentence) + 1
        if size < 0:
            return
        yield sentence
