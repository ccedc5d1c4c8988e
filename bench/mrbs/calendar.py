"""Calendar: events of several people that must not overlap."""

from __future__ import annotations

from random import Random
from typing import Any

from .task import Task
from .world import World

PEOPLE = ("ann", "bo", "cy", "di")
TITLES = ("review", "call", "lunch", "training", "visit")
OPEN, CLOSE = 8, 18  # working hours


def make_world(draw: Random) -> World:
    """Return the events of four people on ten days, without overlaps."""
    events: list[dict[str, Any]] = []
    for person in PEOPLE:
        for day in range(1, 11):
            hour = OPEN + draw.randint(0, 2)
            while hour < CLOSE - 1:
                length = draw.randint(1, 3)
                events.append(
                    {
                        "id": len(events) + 1,
                        "person": person,
                        "title": draw.choice(TITLES),
                        "day": day,
                        "start": hour,
                        "end": min(hour + length, CLOSE),
                    }
                )
                hour = events[-1]["end"] + draw.randint(0, 3)
    person, other = draw.sample(PEOPLE, 2)
    # The event that is in the way ends when another begins, so that its end is no free hour.
    begins = {(each["person"], each["day"], each["start"]) for each in events}
    followed = [each for each in events if (each["person"], each["day"], each["end"]) in begins]
    busy = draw.choice([each for each in followed if each["person"] == person])
    facts = {
        "person": person,
        "other": other,
        "day": busy["day"],
        "busy_hour": busy["start"],
        "title": draw.choice(TITLES),
    }
    return World({"calendar": {"people": list(PEOPLE), "events": events}}, facts)


def events_of(world: World, person: str, day: int | None = None) -> list[dict[str, Any]]:
    """Return the events of a person, on one day or on all."""
    return [
        each
        for each in world.state["calendar"]["events"]
        if each["person"] == person and day in (None, each["day"])
    ]


def hours_free(world: World, person: str, day: int) -> set[int]:
    """Return the working hours in which a person is free."""
    taken = {
        hour for each in events_of(world, person, day) for hour in range(each["start"], each["end"])
    }
    return set(range(OPEN, CLOSE)) - taken


def add_event(world: World, person: str, title: str, day: int, start: int, end: int) -> None:
    """Add an event to the expected state."""
    event = {"person": person, "title": title, "day": day, "start": start, "end": end}
    world.state["calendar"]["events"].append(event)


def expect_hours(world: World) -> Any:
    found = events_of(world, world.facts["person"], world.facts["day"])
    hours = sum(each["end"] - each["start"] for each in found)
    return {"hours": hours, "first": min(each["start"] for each in found), "events": len(found)}


def expect_busiest(world: World) -> Any:
    hours = {
        person: sum(each["end"] - each["start"] for each in events_of(world, person))
        for person in PEOPLE
    }
    best = max(sorted(hours), key=lambda person: hours[person])
    return [best, hours[best]]


def expect_booked(world: World) -> Any:
    person, day = world.facts["person"], world.facts["day"]
    after = [hour for hour in hours_free(world, person, day) if hour >= world.facts["busy_hour"]]
    hour = min(after, default=CLOSE)
    add_event(world, person, "dentist", day, hour, hour + 1)
    return {"start": hour}


def expect_meeting(world: World) -> Any:
    person, other = world.facts["person"], world.facts["other"]
    for day in range(1, 29):
        shared = hours_free(world, person, day) & hours_free(world, other, day)
        for hour in sorted(shared):
            if {hour, hour + 1} <= shared:
                for each in (person, other):
                    add_event(world, each, "planning", day, hour, hour + 2)
                return [day, hour]
    raise AssertionError("no day is free")


def expect_deleted(world: World) -> Any:
    events = world.state["calendar"]["events"]
    gone = [each for each in events if each["title"] == world.facts["title"] and each["day"] > 5]
    for event in gone:
        events.remove(event)
    return {person: sum(each["person"] == person for each in gone) for person in PEOPLE}


def expect_shifted(world: World) -> Any:
    found = events_of(world, world.facts["other"], 1)
    for event in found:
        event["day"] = 15
    return len(found)


TASKS = [
    Task(
        "hours-of-day",
        "easy",
        "How many hours of events does $person have in the calendar on day $day, how many events "
        "are these, and at which hour does the first begin? Return an object with the keys hours, "
        "events and first.",
        expect_hours,
        """
from tools.calendar import list_events
events = list_events("$person", $day)
hours = sum(each["end"] - each["start"] for each in events)
{"hours": hours, "events": len(events), "first": events[0]["start"]}
""",
        (
            """
from tools.calendar import list_events
events = list_events("$person", $day)
hours = sum(each["end"] - each["start"] + 1 for each in events)
{"hours": hours, "events": len(events), "first": events[0]["start"]}
""",
            """
from tools.calendar import list_events
events = list_events("$person", $day)
hours = sum(each["end"] - each["start"] for each in events)
{"hours": hours, "events": len(events), "first": events[-1]["start"]}
""",
        ),
    ),
    Task(
        "busiest",
        "medium",
        "Who has the most hours of events in the calendar on days 1 to 10? If several have, take "
        "the first by name. Return a list of the name and the number of hours.",
        expect_busiest,
        """
from tools.calendar import list_events, list_people
hours = {
    person: sum(each["end"] - each["start"] for day in range(1, 11)
                for each in list_events(person, day))
    for person in list_people()
}
best = max(sorted(hours), key=hours.get)
[best, hours[best]]
""",
        (
            """
from tools.calendar import list_events, list_people
counts = {person: sum(len(list_events(person, day)) for day in range(1, 11))
          for person in list_people()}
best = max(sorted(counts), key=counts.get)
[best, counts[best]]
""",
            """
from tools.calendar import list_events, list_people
hours = {
    person: sum(each["end"] - each["start"] for day in range(1, 10)
                for each in list_events(person, day))
    for person in list_people()
}
best = max(sorted(hours), key=hours.get)
[best, hours[best]]
""",
        ),
    ),
    Task(
        "next-free-hour",
        "medium",
        "Create an event dentist of one hour for $person on day $day: at $busy_hour, or at the "
        "first free hour after it. Return an object with the key start.",
        expect_booked,
        """
import tools
from tools.calendar import create_event
for start in range($busy_hour, 24):
    try:
        create_event("$person", "dentist", $day, start, start + 1)
        break
    except tools.ToolError:
        continue
{"start": start}
""",
        (
            """
import tools
from tools.calendar import create_event
try:
    create_event("$person", "dentist", $day, $busy_hour, $busy_hour + 1)
except tools.ToolError:
    pass
{"start": $busy_hour}
""",
            """
from tools.calendar import create_event, list_events
start = next(each["end"] for each in list_events("$person", $day) if each["start"] == $busy_hour)
create_event("$person", "dentist", $day, start, start + 1)
{"start": start}
""",
        ),
        ("errors", "state"),
    ),
    Task(
        "plan-meeting",
        "hard",
        "Find the earliest time, by day and then hour, at which both $person and $other are free "
        "for two hours within 8 to 18. Create an event planning of two hours for each of them. "
        "Return a list of the day and the start.",
        expect_meeting,
        """
from tools.calendar import create_event, list_events

def free(person, day):
    taken = {hour for each in list_events(person, day)
             for hour in range(each["start"], each["end"])}
    return set(range(8, 18)) - taken

def find():
    for day in range(1, 29):
        shared = free("$person", day) & free("$other", day)
        for hour in sorted(shared):
            if hour + 1 in shared:
                return [day, hour]

day, hour = find()
for person in ("$person", "$other"):
    create_event(person, "planning", day, hour, hour + 2)
[day, hour]
""",
        (
            """
from tools.calendar import create_event
for person in ("$person", "$other"):
    create_event(person, "planning", 28, 8, 10)
[28, 8]
""",
            """
import tools
from tools.calendar import create_event

def find():
    for day in range(1, 29):
        for hour in range(8, 18):
            try:
                create_event("$person", "planning", day, hour, hour + 1)
                create_event("$other", "planning", day, hour, hour + 1)
                return [day, hour]
            except tools.ToolError:
                pass

find()
""",
        ),
        ("state",),
    ),
    Task(
        "delete-late",
        "hard",
        "Delete all events with the title $title after day 5, up to day 10, of all people. Return "
        "an object with the number of deleted events by person.",
        expect_deleted,
        """
from tools.calendar import delete_event, list_events, list_people
counts = {}
for person in list_people():
    counts[person] = 0
    for day in range(6, 11):
        for each in list_events(person, day):
            if each["title"] == "$title":
                delete_event(each["id"])
                counts[person] += 1
counts
""",
        (
            """
from tools.calendar import delete_event, list_events, list_people
counts = {}
for person in list_people():
    counts[person] = 0
    for day in range(1, 11):
        for each in list_events(person, day):
            if each["title"] == "$title":
                delete_event(each["id"])
                counts[person] += 1
counts
""",
            """
from tools.calendar import list_events, list_people
{person: sum(each["title"] == "$title" for day in range(6, 11)
             for each in list_events(person, day)) for person in list_people()}
""",
        ),
        ("state",),
    ),
    Task(
        "move-day",
        "medium",
        "Move all events of $other on day 1 to day 15, at the same hours. Return how many there "
        "were.",
        expect_shifted,
        """
from tools.calendar import list_events, move_event
events = list_events("$other", 1)
for each in events:
    move_event(each["id"], 15, each["start"])
len(events)
""",
        (
            """
from tools.calendar import create_event, list_events
events = list_events("$other", 1)
for each in events:
    create_event("$other", each["title"], 15, each["start"], each["end"])
len(events)
""",
            """
from tools.calendar import list_events, move_event
events = list_events("$other", 1)
for position, each in enumerate(events):
    move_event(each["id"], 15, 4 * position)
len(events)
""",
        ),
        ("state",),
    ),
]
