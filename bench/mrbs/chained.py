"""Chained workflows: what one server answers decides what another is told."""

from __future__ import annotations

from random import Random
from typing import Any

from . import calendar, database, email, filesystem, http, transforms, weather
from .task import Task
from .world import World

PARTS = (weather, filesystem, database, http, email, calendar, transforms)


def make_world(draw: Random) -> World:
    """Return the worlds of other categories together; contacts get the customers' addresses."""
    state: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for part in PARTS:
        world = part.make_world(draw)
        state |= world.state
        name = part.__name__.rpartition(".")[2]
        facts |= {f"{name}_{key}": fact for key, fact in world.facts.items()}
    for product in state["web"]["products"]:
        product["busy"] = 0
    for number in (3, 21):  # on the first page and on the last but one
        state["web"]["products"][number]["stock"] = draw.randint(3, 7)
    state["mail"]["contacts"] += [f"{person}@office.example" for person in calendar.PEOPLE]
    return World(state, facts)


def send(world: World, to: str, subject: str, body: str) -> None:
    """Send a message in the expected state."""
    email.send(world, to, subject, body)


def expect_report(world: World) -> Any:
    name, online = weather.expect_coldest(world)
    text = f"{name} is the coldest of {online} stations.\n"
    world.state["files"]["reports/cold.txt"] = text
    return len(text)


def expect_restock(world: World) -> Any:
    web = world.state["web"]
    low = [each for each in web["products"] if each["stock"] < 8]
    for product in low:
        product["stock"] = 20
    ids = ", ".join(str(each["id"]) for each in low)
    send(world, "boss@north.example", "Restocked", ids)
    return len(low)


def expect_letters(world: World) -> Any:
    found: dict[str, int] = {}
    for person in calendar.PEOPLE:
        hours = sum(each["end"] - each["start"] for each in calendar.events_of(world, person, 1))
        if hours > 4:
            send(
                world, f"{person}@office.example", "Busy day", f"You have {hours} hours of events."
            )
            found[person] = hours
    return found


def expect_loaded(world: World) -> Any:
    names = {each["id"]: each["name"] for each in world.facts["transforms_people"]}
    totals: dict[int, int] = {}
    for sale in world.facts["transforms_sales"]:
        totals[sale["person"]] = totals.get(sale["person"], 0) + sale["cents"]
    best = sorted(totals, key=lambda person: (-totals[person], person))[:3]
    customers = database.rows_of(world, "customers")
    first = max(each["id"] for each in customers) + 1
    for number, person in enumerate(best):
        customers.append({"id": first + number, "name": names[person], "city": "Oslo"})
    return [names[person] for person in best]


def expect_visits(world: World) -> Any:
    booked: dict[str, int] = {}
    stormy = [
        each["station"]
        for each in world.state["weather"]["stations"]
        if each["online"] and each["wind_kmh"] > 90
    ]
    person = world.facts["calendar_person"]
    for number, station in enumerate(sorted(stormy)):
        day = 20 + number
        calendar.add_event(world, person, f"inspect {station}", day, 9, 12)
        booked[station] = day
    return booked


def expect_bills(world: World) -> Any:
    total = email.expect_due(world)
    paid = sum(
        each["cents"] for each in database.rows_of(world, "orders") if each["status"] == "paid"
    )
    email.expect_moved(world)
    lines = f"due,{total}\npaid,{paid / 100:.2f}\n"
    world.state["files"]["reports/bills.csv"] = lines
    return round(paid / 100 - total, 2)


TASKS = [
    Task(
        "cold-report",
        "medium",
        "Find the weather station with the lowest temperature now, among those that are online. "
        "Write the file reports/cold.txt with the one line "
        '"NAME is the coldest of N stations.", with the full stop. N is the number of stations '
        "that are online, and the line ends with a newline. Return the number of characters of "
        "the file, the newline included.",
        expect_report,
        weather.ALL_STATIONS
        + """
import tools
from tools.files import write_file
from tools.weather import current
readings = []
for name in names:
    try:
        readings.append(current(name))
    except tools.ToolError:
        pass
coldest = min(readings, key=lambda each: each["temperature_c"])
text = f"{coldest['station']} is the coldest of {len(readings)} stations.\\n"
write_file("reports/cold.txt", text)
len(text)
""",
        (
            weather.ALL_STATIONS
            + """
import tools
from tools.files import write_file
from tools.weather import current
readings = []
for name in names:
    try:
        readings.append(current(name))
    except tools.ToolError:
        pass
coldest = min(readings, key=lambda each: each["temperature_c"])
text = f"{coldest['station']} is the coldest of {len(names)} stations.\\n"
write_file("reports/cold.txt", text)
len(text)
""",
            weather.ALL_STATIONS
            + """
import os
import tools
from tools.weather import current
readings = []
for name in names:
    try:
        readings.append(current(name))
    except tools.ToolError:
        pass
coldest = min(readings, key=lambda each: each["temperature_c"])
text = f"{coldest['station']} is the coldest of {len(readings)} stations.\\n"
os.makedirs("reports", exist_ok=True)
with open("reports/cold.txt", "w") as file:
    file.write(text)
len(text)
""",
        ),
        ("errors", "pages", "state"),
    ),
    Task(
        "restock-and-tell",
        "hard",
        "Set the stock of every product of the shop's HTTP API that has fewer than 8 pieces to "
        "20. Then send boss@north.example one message with the subject Restocked, whose body "
        "lists the ids of these products, ascending, separated by a comma and a space. Return how "
        "many there were.",
        expect_restock,
        http.ALL_PRODUCTS
        + """
from tools.mail import send_message
low = [each["id"] for each in products if each["stock"] < 8]
for number in low:
    request("PATCH", f"/products/{number}", {"stock": 20})
send_message("boss@north.example", "Restocked", ", ".join(map(str, sorted(low))))
len(low)
""",
        (
            """
from tools.mail import send_message
from tools.web import request
products = request("GET", "/products")["body"]
low = [each["id"] for each in products if each["stock"] < 8]
for number in low:
    request("PATCH", f"/products/{number}", {"stock": 20})
send_message("boss@north.example", "Restocked", ", ".join(map(str, sorted(low))))
len(low)
""",
            http.ALL_PRODUCTS
            + """
from tools.mail import send_message
low = [each["id"] for each in products if each["stock"] < 8]
for number in low:
    request("PATCH", f"/products/{number}", {"stock": 20})
    send_message("boss@north.example", "Restocked", str(number))
len(low)
""",
        ),
        ("pages", "state"),
    ),
    Task(
        "busy-letters",
        "medium",
        "Send a message to every person of the calendar who has more than 4 hours of events on "
        "day 1. The address is the name with @office.example, the subject is Busy day, and the "
        'body is "You have N hours of events.", with the full stop. Return an object with the '
        "hours by person, of those who got one.",
        expect_letters,
        """
from tools.calendar import list_events, list_people
from tools.mail import send_message
found = {}
for person in list_people():
    hours = sum(each["end"] - each["start"] for each in list_events(person, 1))
    if hours > 4:
        send_message(f"{person}@office.example", "Busy day", f"You have {hours} hours of events.")
        found[person] = hours
found
""",
        (
            """
from tools.calendar import list_events, list_people
from tools.mail import send_message
found = {}
for person in list_people():
    hours = len(list_events(person, 1))
    if hours > 2:
        send_message(f"{person}@office.example", "Busy day", f"You have {hours} hours of events.")
        found[person] = hours
found
""",
            """
from tools.calendar import list_events, list_people
found = {}
for person in list_people():
    hours = sum(each["end"] - each["start"] for each in list_events(person, 1))
    if hours > 4:
        found[person] = hours
found
""",
        ),
        ("state",),
    ),
    Task(
        "load-best",
        "hard",
        "The source sales names people by their id in the source people. Take the three people "
        "with the highest total of cents, and insert them as customers into the database, with "
        "the city Oslo. Return the list of their names, the highest total first.",
        expect_loaded,
        transforms.READ
        + """
from tools.database import execute
names = {each["id"]: each["name"] for each in read("people")}
totals = {}
for each in read("sales"):
    totals[each["person"]] = totals.get(each["person"], 0) + int(each["cents"])
best = sorted(totals, key=lambda person: (-totals[person], int(person)))[:3]
for person in best:
    execute("INSERT INTO customers (name, city) VALUES (?, 'Oslo')", [names[person]])
[names[person] for person in best]
""",
        (
            transforms.READ
            + """
from collections import Counter
from tools.database import execute
names = {each["id"]: each["name"] for each in read("people")}
counts = Counter(each["person"] for each in read("sales"))
best = [person for person, _ in counts.most_common(3)]
for person in best:
    execute("INSERT INTO customers (name, city) VALUES (?, 'Oslo')", [names[person]])
[names[person] for person in best]
""",
            transforms.READ
            + """
from tools.database import execute
totals = {}
for each in read("sales"):
    totals[each["person"]] = totals.get(each["person"], 0) + int(each["cents"])
best = sorted(totals, key=lambda person: -totals[person])[:3]
for person in best:
    execute("INSERT INTO customers (name, city) VALUES (?, 'Oslo')", [person])
best
""",
        ),
        ("large", "state"),
    ),
    Task(
        "plan-inspections",
        "hard",
        "For every weather station that is online and reads more than 90 km/h of wind, create an "
        "event for $calendar_person from 9 to 12, with the title inspect and the name of the "
        "station. Take the stations in the order of their names, one a day, from day 20 on. "
        "Return an object with the day by station.",
        expect_visits,
        weather.ALL_STATIONS
        + """
import tools
from tools.calendar import create_event
from tools.weather import current
booked = {}
for name in sorted(names):
    try:
        reading = current(name)
    except tools.ToolError:
        continue
    if reading["wind_kmh"] > 90:
        booked[name] = 20 + len(booked)
        create_event("$calendar_person", f"inspect {name}", booked[name], 9, 12)
booked
""",
        (
            weather.ALL_STATIONS
            + """
import tools
from tools.calendar import create_event
from tools.weather import current
booked = {}
for name in sorted(names):
    try:
        reading = current(name)
    except tools.ToolError:
        continue
    if reading["wind_kmh"] > 50:
        booked[name] = 20 + len(booked)
        create_event("$calendar_person", f"inspect {name}", booked[name], 9, 12)
booked
""",
            weather.ALL_STATIONS
            + """
from tools.calendar import create_event
from tools.weather import current
booked = {}
for name in sorted(names):
    if current(name)["wind_kmh"] > 90:
        booked[name] = 20 + len(booked)
        create_event("$calendar_person", f"inspect {name}", booked[name], 9, 12)
booked
""",
        ),
        ("errors", "pages", "state"),
    ),
    Task(
        "bills",
        "hard",
        "Messages about invoices in the inbox say which amount is due in EUR. Sum these amounts, "
        "and move the messages into the folder bills. Sum the cents of all paid orders of the "
        "database as EUR. Write the file reports/bills.csv with the two lines due,SUM and "
        "paid,SUM, the first sum as a whole number and the second with two decimals; each line "
        "ends with a newline. Return the paid sum minus the due sum, rounded to two decimals.",
        expect_bills,
        email.INBOX
        + """
import re
from tools.database import query
from tools.files import write_file
from tools.mail import move_message, read_message
due = 0
for each in messages:
    if each["subject"].startswith("Invoice"):
        due += int(re.search(r"due is (\\d+) EUR", read_message(each["id"])["body"])[1])
        move_message(each["id"], "bills")
paid = query("SELECT SUM(cents) FROM orders WHERE status = 'paid'")["rows"][0][0] / 100
write_file("reports/bills.csv", f"due,{due}\\npaid,{paid:.2f}\\n")
round(paid - due, 2)
""",
        (
            email.INBOX
            + """
import re
from tools.database import query
from tools.files import write_file
from tools.mail import move_message, read_message
due = 0
for each in messages:
    if each["subject"].startswith("Invoice"):
        due += int(re.search(r"due is (\\d+) EUR", read_message(each["id"])["body"])[1])
        move_message(each["id"], "bills")
paid = query("SELECT SUM(cents) FROM orders")["rows"][0][0] / 100
write_file("reports/bills.csv", f"due,{due}\\npaid,{paid:.2f}\\n")
round(paid - due, 2)
""",
            email.INBOX
            + """
import re
from tools.database import query
from tools.files import write_file
from tools.mail import read_message
due = 0
for each in messages:
    if each["subject"].startswith("Invoice"):
        due += int(re.search(r"due is (\\d+) EUR", read_message(each["id"])["body"])[1])
paid = query("SELECT SUM(cents) FROM orders WHERE status = 'paid'")["rows"][0][0] / 100
write_file("reports/bills.csv", f"due,{due}\\npaid,{paid:.2f}\\n")
round(paid - due, 2)
""",
        ),
        ("pages", "state"),
    ),
]
