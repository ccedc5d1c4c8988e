"""Text: long documents that are read in pieces, searched and annotated."""

from __future__ import annotations

import re
from collections import Counter
from random import Random
from typing import Any

from .task import Task
from .world import World

WORDS = (
    *("harbour", "engine", "valley", "lantern", "copper", "window", "garden", "bridge", "signal"),
    *("market", "river", "stone", "paper", "voice", "ladder", "meadow", "cellar", "ribbon"),
    *("anchor", "mirror"),
)


def make_world(draw: Random) -> World:
    """Return nine documents of up to 9,000 characters, with codes and dates in them."""
    documents: list[dict[str, Any]] = []
    for number in range(1, 10):
        sentences = [make_sentence(draw) for _ in range(draw.randint(40, 160))]
        documents.append({"id": number, "title": f"Report {number}", "text": " ".join(sentences)})
    rare = "quartz"
    for document in draw.sample(documents, 3):
        document["text"] += f" The {rare} was found by {draw.choice(WORDS)} number 7."
    facts = {"one": 1 + draw.randrange(9), "rare": rare, "word": draw.choice(WORDS)}
    return World({"text": {"documents": documents, "notes": []}}, facts)


def make_sentence(draw: Random) -> str:
    """Return a sentence, sometimes with a code, or with a word that begins with another."""
    words = draw.choices(WORDS, k=draw.randint(4, 9))
    if draw.random() < 0.3:
        words.append(f"{draw.choice(WORDS)}s")
    if draw.random() < 0.1:
        words.append(f"code-{draw.randint(100, 999)}")
    return f"{' '.join(words).capitalize()}."


def texts_of(world: World) -> dict[int, str]:
    """Return the texts of the documents by id."""
    return {each["id"]: each["text"] for each in world.state["text"]["documents"]}


def find_words(text: str) -> list[str]:
    """Return the words of a text in small letters, without codes."""
    words = re.findall(r"[a-z]+(?:-\d+)?", text.lower())
    return [word for word in words if "-" not in word]


def add_note(world: World, document: int, text: str) -> None:
    """Add a note to the expected state."""
    world.state["text"]["notes"].append({"document": document, "text": text})


def expect_sentences(world: World) -> Any:
    return texts_of(world)[world.facts["one"]].count(".")


def expect_rare(world: World) -> Any:
    found = sorted(
        number for number, text in texts_of(world).items() if world.facts["rare"] in text
    )
    for number in found:
        add_note(world, number, "checked")
    return found


def expect_frequent(world: World) -> Any:
    return Counter(find_words(texts_of(world)[world.facts["one"]]))[world.facts["word"]]


def expect_codes(world: World) -> Any:
    codes: set[int] = set()
    for text in texts_of(world).values():
        codes |= {int(code) for code in re.findall(r"code-(\d+)", text)}
    return sorted(codes)


def expect_longest(world: World) -> Any:
    best = {
        number: max(text.split(". "), key=len).rstrip(".")
        for number, text in texts_of(world).items()
    }
    for number, sentence in best.items():
        add_note(world, number, f"longest: {len(sentence)}")
    return max(len(sentence) for sentence in best.values())


def expect_ranking(world: World) -> Any:
    shares = {
        number: find_words(text).count(world.facts["word"]) / len(text)
        for number, text in texts_of(world).items()
    }
    return sorted(shares, key=lambda number: (-shares[number], number))


READ = """
from tools.text import list_documents, read_document

def read(number):
    text, start = "", 0
    while start >= 0:
        piece = read_document(number, start=start)
        text += piece["text"]
        start = piece["next_start"]
    return text
"""
ALL_TEXTS = READ + 'texts = {each["id"]: read(each["id"]) for each in list_documents()}\n'

TASKS = [
    Task(
        "count-sentences",
        "easy",
        "How many full stops does the document $one have?",
        expect_sentences,
        READ + 'read($one).count(".")\n',
        (
            READ + 'read_document($one)["text"].count(".")\n',
            READ + "len(read($one).split())\n",
        ),
        ("large",),
    ),
    Task(
        "note-rare",
        "medium",
        "Add the note checked to every document that has the word $rare. Return the sorted list "
        "of the ids of these documents.",
        expect_rare,
        """
from tools.text import add_note, search_word
found = sorted(search_word("$rare"))
for number in found:
    add_note(number, "checked")
found
""",
        (
            """
from tools.text import add_note, search_word
found = sorted(search_word("$rare"))
add_note(found[0], "checked")
found
""",
            """
from tools.text import add_note, list_documents, read_document
found = [each["id"] for each in list_documents()
         if "$rare" in read_document(each["id"])["text"]]
for number in found:
    add_note(number, "checked")
found
""",
        ),
        ("state",),
    ),
    Task(
        "count-word",
        "medium",
        "How often does the word $word occur in the document $one? Capital letters do not matter.",
        expect_frequent,
        READ
        + """
import re
len(re.findall(r"\\b$word\\b", read($one).lower()))
""",
        (
            READ
            + """
import re
len(re.findall(r"\\b$word\\b", read_document($one)["text"].lower()))
""",
            READ + 'read($one).lower().count("$word")\n',
        ),
        ("large",),
    ),
    Task(
        "collect-codes",
        "hard",
        "The documents have codes such as code-123. Return the sorted list of all different "
        "numbers of these codes, over all documents.",
        expect_codes,
        ALL_TEXTS
        + """
import re
sorted({int(code) for text in texts.values() for code in re.findall(r"code-(\\d+)", text)})
""",
        (
            READ
            + """
import re
pieces = [read_document(each["id"])["text"] for each in list_documents()]
sorted({int(code) for text in pieces for code in re.findall(r"code-(\\d+)", text)})
""",
            ALL_TEXTS
            + """
import re
sorted(int(code) for text in texts.values() for code in re.findall(r"code-(\\d+)", text))
""",
        ),
        ("large", "pages"),
    ),
    Task(
        "note-longest",
        "hard",
        "Sentences end with a full stop. For each document, add a note longest: N, where N is the "
        "number of characters of its longest sentence, without the full stop and the space "
        "between sentences. Return the largest N.",
        expect_longest,
        ALL_TEXTS
        + """
from tools.text import add_note
longest = {number: max(len(part.strip()) for part in text.split("."))
           for number, text in texts.items()}
for number, length in longest.items():
    add_note(number, f"longest: {length}")
max(longest.values())
""",
        (
            ALL_TEXTS
            + """
from tools.text import add_note
longest = {number: max(len(part) for part in text.split("."))
           for number, text in texts.items()}
for number, length in longest.items():
    add_note(number, f"longest: {length}")
max(longest.values())
""",
            ALL_TEXTS
            + """
max(len(part.strip()) for text in texts.values() for part in text.split("."))
""",
        ),
        ("large", "state"),
    ),
    Task(
        "rank",
        "hard",
        "Rank the documents by how often the word $word occurs in them, with any capital letters, "
        "divided by the number of their characters: the highest first, and the lower id first if "
        "two are equal. Return the list of ids.",
        expect_ranking,
        ALL_TEXTS
        + """
import re
shares = {number: len(re.findall(r"\\b$word\\b", text.lower())) / len(text)
          for number, text in texts.items()}
sorted(shares, key=lambda number: (-shares[number], number))
""",
        (
            ALL_TEXTS
            + """
import re
shares = {number: len(re.findall(r"\\b$word\\b", text.lower()))
          for number, text in texts.items()}
sorted(shares, key=lambda number: (-shares[number], number))
""",
            ALL_TEXTS
            + """
import re
shares = {number: len(re.findall(r"\\b$word\\b", text.lower())) / len(text)
          for number, text in texts.items()}
sorted(shares, key=lambda number: (shares[number], number))
""",
        ),
        ("large",),
    ),
]
