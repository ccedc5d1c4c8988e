"""A calendar of several people: events have a day, a start and an end hour, and never overlap."""

from __future__ import annotations

from typing_extensions import TypedDict

from .base import StatefulServer, ToolError, find_record, next_id

server = StatefulServer("calendar")


class Event(TypedDict):
    """An event of a person; hours are whole, from 0 to 24."""

    id: int
    person: str
    title: str
    day: int
    start: int
    end: int


@server.tool(reads=True)
async def list_people() -> list[str]:
    """Return the people who have a calendar."""
    result: list[str] = server.read_state()["people"]
    return result


@server.tool(reads=True)
async def list_events(person: str, day: int) -> list[Event]:
    """Return the events of a person on a day from 1 to 28, by start."""
    state = server.read_state()
    check_person(state["people"], person)
    found = [each for each in state["events"] if (each["person"], each["day"]) == (person, day)]
    return sorted(found, key=lambda each: int(each["start"]))


@server.tool()
async def create_event(person: str, title: str, day: int, start: int, end: int) -> Event:
    """Create an event; fails if it overlaps another of this person."""
    with server.change_state() as state:
        check_person(state["people"], person)
        event: Event = {
            "id": next_id(state["events"]),
            "person": person,
            "title": title,
            "day": day,
            "start": start,
            "end": end,
        }
        check_is_free(state["events"], event)
        state["events"].append(event)
    return event


@server.tool()
async def move_event(id: int, day: int, start: int) -> Event:
    """Move an event, which keeps its length; fails if it overlaps another of this person."""
    with server.change_state() as state:
        event = find_record(state["events"], "id", id)
        end = start + event["end"] - event["start"]
        moved: Event = {**event, "day": day, "start": start, "end": end}  # type: ignore[typeddict-item]
        check_is_free([each for each in state["events"] if each["id"] != id], moved)
        event.update(moved)
    return moved


@server.tool()
async def delete_event(id: int) -> bool:
    """Delete an event."""
    with server.change_state() as state:
        state["events"].remove(find_record(state["events"], "id", id))
    return True


def check_person(people: list[str], person: str) -> None:
    """Raise `ToolError` if a person has no calendar."""
    if person not in people:
        raise ToolError(f"{person!r} has no calendar.")


def check_is_free(events: list[Event], event: Event) -> None:
    """Raise `ToolError` if an event is invalid or overlaps another of its person."""
    if not (1 <= event["day"] <= 28 and 0 <= event["start"] < event["end"] <= 24):
        raise ToolError("An event is on a day from 1 to 28, and within the hours 0 to 24.")
    for each in events:
        is_same_day = (each["person"], each["day"]) == (event["person"], event["day"])
        if is_same_day and each["start"] < event["end"] and event["start"] < each["end"]:
            raise ToolError(f"{event['person']!r} is busy: {each['title']!r} is at that time.")


if __name__ == "__main__":
    server.run()
