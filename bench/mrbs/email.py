"""Email: a mailbox in pages, messages to sort and to answer, and addresses that are refused."""

from __future__ import annotations

import re
from collections import Counter
from random import Random
from typing import Any

from .task import Task
from .world import World

SENDERS = ("ann@north.example", "bo@south.example", "cy@east.example", "di@west.example")
TOPICS = ("invoice", "meeting", "delivery", "holiday")


def make_world(draw: Random) -> World:
    """Return 34 messages in two folders."""
    messages = [
        {
            "id": number,
            "folder": "inbox" if draw.random() < 0.8 else "later",
            "sender": draw.choice(SENDERS),
            **write_message(draw, draw.choice(TOPICS)),
            "is_read": draw.random() < 0.4,
        }
        for number in range(1, 35)
    ]
    mail = {
        "messages": messages[::-1],
        "folders": ["inbox", "later", "done", "bills"],
        "contacts": [*SENDERS[:3], "boss@north.example"],
        "sent": [],
    }
    facts = {"sender": draw.choice(SENDERS[:3]), "topic": draw.choice(TOPICS[1:])}
    for message in messages:
        if message["sender"] == facts["sender"]:
            message["is_read"] = False
    pin_messages(draw, messages, facts)
    return World({"mail": mail}, facts)


def write_message(draw: Random, topic: str) -> dict[str, Any]:
    """Return the subject and body of a message about a topic."""
    body = f"Dear all,\nthis is about the {topic}."
    if topic == "invoice":
        body += f"\nThe amount due is {draw.randint(10, 900)} EUR."
    return {"subject": f"{topic.capitalize()} {draw.randint(1000, 9999)}", "body": body}


def pin_messages(draw: Random, messages: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Make the messages without which a wrong program would be right by chance.

    The oldest is an invoice, so that invoices are on the last page, and the sender has another one.
    About the topic, there are messages to answer, already read, and of a refused sender.
    """
    sender, topic = facts["sender"], facts["topic"]
    other = next(each for each in SENDERS if each != sender)
    kinds = (
        (sender, "invoice", False),
        (sender, topic, False),
        (other, topic, True),
        (SENDERS[3], topic, False),
    )
    pinned = [messages[0], *draw.sample(messages[1:], len(kinds) - 1)]
    for message, (address, about, is_read) in zip(pinned, kinds, strict=True):
        message.update({"folder": "inbox", "sender": address, "is_read": is_read})
        message.update(write_message(draw, about))


def inbox_of(world: World) -> list[dict[str, Any]]:
    """Return the messages of the inbox, the newest first."""
    return [each for each in world.state["mail"]["messages"] if each["folder"] == "inbox"]


def send(world: World, to: str, subject: str, body: str) -> None:
    """Send a message in the expected state."""
    world.state["mail"]["sent"].append({"to": to, "subject": subject, "body": body})


def expect_unread(world: World) -> Any:
    return {"unread": sum(not each["is_read"] for each in inbox_of(world))}


def expect_newest(world: World) -> Any:
    newest = next(each for each in inbox_of(world) if each["sender"] == world.facts["sender"])
    newest["is_read"] = True
    return newest["subject"]


def expect_due(world: World) -> Any:
    return sum(
        int(number)
        for each in inbox_of(world)
        for number in re.findall(r"due is (\d+) EUR", each["body"])
    )


def expect_moved(world: World) -> Any:
    moved = [each for each in inbox_of(world) if each["subject"].startswith("Invoice")]
    for message in moved:
        message["folder"] = "bills"
    return sorted(message["id"] for message in moved)


def expect_answered(world: World) -> Any:
    refused = 0
    for message in inbox_of(world):
        if message["subject"].lower().startswith(world.facts["topic"]) and not message["is_read"]:
            if message["sender"] in world.state["mail"]["contacts"]:
                send(world, message["sender"], f"Re: {message['subject']}", "Thank you.")
            else:
                refused += 1
    return {"refused": refused}


def expect_digest(world: World) -> Any:
    counts = Counter(each["sender"] for each in inbox_of(world))
    lines = [f"{sender}: {counts[sender]}" for sender in sorted(counts)]
    send(world, "boss@north.example", "Digest", "\n".join(lines))
    for message in inbox_of(world):
        message["is_read"] = True
    return len(inbox_of(world))


INBOX = """
from tools.mail import list_messages
messages, page = [], 1
while page:
    answer = list_messages("inbox", page=page)
    messages += answer["messages"]
    page = answer["next_page"]
"""

TASKS = [
    Task(
        "unread",
        "easy",
        "How many messages in the inbox of the mailbox are not read? Return an object with the "
        "key unread.",
        expect_unread,
        INBOX + '{"unread": sum(not each["is_read"] for each in messages)}\n',
        (
            """
from tools.mail import list_messages
{"unread": sum(not each["is_read"] for each in list_messages()["messages"])}
""",
            INBOX + '{"unread": len(messages)}\n',
        ),
        ("pages",),
    ),
    Task(
        "newest-of-sender",
        "easy",
        "Return the subject of the newest message from $sender in the inbox, and mark it as read.",
        expect_newest,
        INBOX
        + """
from tools.mail import mark_read
newest = next(each for each in messages if each["sender"] == "$sender")
mark_read(newest["id"])
newest["subject"]
""",
        (
            INBOX
            + """
from tools.mail import mark_read
oldest = [each for each in messages if each["sender"] == "$sender"][-1]
mark_read(oldest["id"])
oldest["subject"]
""",
            INBOX
            + """
newest = next(each for each in messages if each["sender"] == "$sender")
f"{newest['subject']} ({newest['id']})"
""",
        ),
        ("pages", "state"),
    ),
    Task(
        "amount-due",
        "medium",
        "Messages about invoices say which amount is due. What is the sum of these amounts in EUR "
        "over the whole inbox?",
        expect_due,
        INBOX
        + """
import re
from tools.mail import read_message
total = 0
for each in messages:
    if each["subject"].startswith("Invoice"):
        total += int(re.search(r"due is (\\d+) EUR", read_message(each["id"])["body"])[1])
total
""",
        (
            INBOX
            + """
import re
sum(int(re.search(r"\\d+", each["subject"])[0]) for each in messages
    if each["subject"].startswith("Invoice"))
""",
            """
import re
from tools.mail import list_messages, read_message
total = 0
for each in list_messages()["messages"]:
    found = re.search(r"due is (\\d+) EUR", read_message(each["id"])["body"])
    total += int(found[1]) if found else 0
total
""",
        ),
        ("pages",),
    ),
    Task(
        "file-invoices",
        "medium",
        "Move all messages of the inbox whose subject begins with Invoice into the folder bills. "
        "Return the sorted list of their ids.",
        expect_moved,
        INBOX
        + """
from tools.mail import move_message
found = [each["id"] for each in messages if each["subject"].startswith("Invoice")]
for number in found:
    move_message(number, "bills")
sorted(found)
""",
        (
            """
from tools.mail import list_messages, move_message
found, page = [], 1
while page:
    answer = list_messages("inbox", page=page)
    for each in answer["messages"]:
        if each["subject"].startswith("Invoice"):
            move_message(each["id"], "done")
            found.append(each["id"])
    page = answer["next_page"]
sorted(found)
""",
            INBOX
            + """
sorted(each["id"] for each in messages if each["subject"].startswith("Invoice"))
""",
        ),
        ("pages", "state"),
    ),
    Task(
        "answer-unread",
        "hard",
        "Answer every unread message of the inbox whose subject begins with the word $topic, in "
        "any capital letters. The answer goes to its sender, has the subject Re:, a space and the "
        'old subject, and the body "Thank you.", with the full stop. Leave the messages unread. '
        "Some senders are refused: skip them. Return an object with the key refused, the number "
        "of answers that were refused.",
        expect_answered,
        INBOX
        + """
import tools
from tools.mail import send_message
refused = 0
for each in messages:
    if each["subject"].lower().startswith("$topic") and not each["is_read"]:
        try:
            send_message(each["sender"], f"Re: {each['subject']}", "Thank you.")
        except tools.ToolError:
            refused += 1
{"refused": refused}
""",
        (
            INBOX
            + """
import tools
from tools.mail import send_message
refused = 0
for each in messages:
    if each["subject"].lower().startswith("$topic"):
        try:
            send_message(each["sender"], f"Re: {each['subject']}", "Thank you.")
        except tools.ToolError:
            refused += 1
{"refused": refused}
""",
            INBOX
            + """
from tools.mail import send_message
for each in messages:
    if each["subject"].lower().startswith("$topic") and not each["is_read"]:
        send_message(each["sender"], each["subject"], "Thank you.")
{"refused": 0}
""",
        ),
        ("errors", "pages", "state"),
    ),
    Task(
        "digest",
        "hard",
        "Send boss@north.example a message with the subject Digest. Its body has a line for each "
        "sender in the inbox, sorted by address: the address, a colon, a space, and the number of "
        "messages; lines are separated by newlines, without one at the end. Mark all messages of "
        "the inbox as read. Return how many messages the inbox has.",
        expect_digest,
        INBOX
        + """
from collections import Counter
from tools.mail import mark_read, send_message
counts = Counter(each["sender"] for each in messages)
body = "\\n".join(f"{sender}: {counts[sender]}" for sender in sorted(counts))
send_message("boss@north.example", "Digest", body)
for each in messages:
    if not each["is_read"]:
        mark_read(each["id"])
len(messages)
""",
        (
            INBOX
            + """
from collections import Counter
from tools.mail import send_message
counts = Counter(each["sender"] for each in messages)
body = "\\n".join(f"{sender}: {counts[sender]}" for sender in sorted(counts))
send_message("boss@north.example", "Digest", body)
len(messages)
""",
            INBOX
            + """
from collections import Counter
from tools.mail import mark_read, send_message
unread = [each for each in messages if not each["is_read"]]
counts = Counter(each["sender"] for each in unread)
body = "\\n".join(f"{sender}: {counts[sender]}" for sender in sorted(counts))
send_message("boss@north.example", "Digest", body)
for each in unread:
    mark_read(each["id"])
len(messages)
""",
        ),
        ("pages", "state"),
    ),
]
