"""Weather: stations in pages, some of them offline, and alerts."""

from __future__ import annotations

from random import Random
from typing import Any

from .task import Task
from .world import World

NAMES = "Alta Brekke Corvo Dunmore Elva Farsund Gjesvik Haugen Inari Jokul Kilda Lerwick Mira Norr"


def make_world(draw: Random) -> World:
    """Return fourteen stations; three are offline, five have an alert, and one has a storm."""
    names = NAMES.split()
    draw.shuffle(names)
    offline = set(draw.sample(names, 3))
    temperatures = draw.sample(range(-150, 350), len(names))
    stations = [
        {
            "station": name,
            "online": name not in offline,
            "temperature_c": temperature / 10,
            "humidity": draw.randint(20, 99),
            "wind_kmh": draw.randint(0, 1200) / 10,
            "forecast": [make_day(draw, day) for day in range(1, 8)],
        }
        for name, temperature in zip(names, temperatures, strict=True)
    ]
    online = [name for name in names if name not in offline]
    alerted = draw.sample(online, 5)  # an odd number: not as many can be red as are not
    levels = ["yellow", "yellow", *draw.choices(("yellow", "red"), k=3)]
    alerts = [
        {"station": name, "level": level, "text": "test"}
        for name, level in zip(alerted, levels, strict=True)
    ]
    free = [name for name in online if name not in alerted]
    stations[names.index(free[2])]["wind_kmh"] = draw.randint(910, 1200) / 10
    facts = {"first": free[0], "second": free[1], "dead": sorted(offline)[0], "alerted": alerted[0]}
    return World({"weather": {"stations": stations, "alerts": alerts}}, facts)


def make_day(draw: Random, day: int) -> dict[str, Any]:
    """Return one day of a forecast."""
    low = draw.randint(-120, 200)
    high = low + draw.randint(10, 120)
    return {
        "day": day,
        "low_c": low / 10,
        "high_c": high / 10,
        "rain_mm": draw.randint(0, 400) / 10,
    }


def stations_of(world: World) -> dict[str, Any]:
    """Return the stations by name."""
    return {each["station"]: each for each in world.state["weather"]["stations"]}


def expect_warmer(world: World) -> Any:
    found = stations_of(world)
    names = (world.facts["first"], world.facts["second"])
    cold, warm = sorted(names, key=lambda name: found[name]["temperature_c"])
    difference = found[warm]["temperature_c"] - found[cold]["temperature_c"]
    return {"station": warm, "difference": round(difference, 1)}


def expect_rain(world: World) -> Any:
    forecast = stations_of(world)[world.facts["dead"]]["forecast"]
    return round(sum(day["rain_mm"] for day in forecast[:5]), 1)


def expect_coldest(world: World) -> Any:
    online = [each for each in stations_of(world).values() if each["online"]]
    coldest = min(online, key=lambda each: each["temperature_c"])
    return [coldest["station"], len(online)]


def expect_storms(world: World) -> Any:
    alerts = world.state["weather"]["alerts"]
    has_alert = {each["station"] for each in alerts}
    storms = sorted(
        name
        for name, each in stations_of(world).items()
        if each["online"] and each["wind_kmh"] > 60
    )
    for name in storms:
        if name not in has_alert:
            alerts.append({"station": name, "level": "orange", "text": "storm"})
    return storms


def expect_raised(world: World) -> Any:
    alerts = world.state["weather"]["alerts"]
    for alert in alerts:
        if alert["station"] == world.facts["alerted"]:
            alert.update(level="red", text="raised")
    return sum(alert["level"] == "red" for alert in alerts)


def expect_swing(world: World) -> Any:
    swings = {
        name: max(day["high_c"] for day in each["forecast"])
        - min(day["low_c"] for day in each["forecast"])
        for name, each in stations_of(world).items()
    }
    name = max(sorted(swings), key=lambda each: swings[each])
    return {"station": name, "swing": round(swings[name], 1)}


ALL_STATIONS = """
from tools.weather import list_stations
names, page = [], 1
while page:
    answer = list_stations(page=page)
    names += answer["stations"]
    page = answer["next_page"]
"""

TASKS = [
    Task(
        "warmer",
        "easy",
        "Which of the weather stations $first and $second reads the higher temperature now, and "
        "by how many degrees? Return an object with the keys station and difference, the latter "
        "rounded to one decimal.",
        expect_warmer,
        """
from tools.weather import current
readings = [current("$first"), current("$second")]
cold, warm = sorted(readings, key=lambda each: each["temperature_c"])
difference = warm["temperature_c"] - cold["temperature_c"]
{"station": warm["station"], "difference": round(difference, 1)}
""",
        (
            """
from tools.weather import current
readings = [current("$first"), current("$second")]
warm, cold = sorted(readings, key=lambda each: each["temperature_c"])
difference = warm["temperature_c"] - cold["temperature_c"]
{"station": warm["station"], "difference": round(difference, 1)}
""",
            """
from tools.weather import current
readings = [current("$first"), current("$second")]
warm = max(readings, key=lambda each: each["temperature_c"])
{"station": warm["station"], "difference": warm["temperature_c"]}
""",
        ),
    ),
    Task(
        "rain-sum",
        "easy",
        "How many millimetres of rain does the forecast of the weather station $dead have in its "
        "next five days together? Return the sum, rounded to one decimal.",
        expect_rain,
        """
from tools.weather import forecast
round(sum(day["rain_mm"] for day in forecast("$dead", days=5)), 1)
""",
        (
            """
from tools.weather import forecast
round(sum(day["rain_mm"] for day in forecast("$dead")), 1)
""",
            """
from tools.weather import forecast
forecast("$dead", days=5)[-1]["rain_mm"]
""",
        ),
    ),
    Task(
        "coldest",
        "medium",
        "Find the weather station with the lowest temperature now. Stations that are offline do "
        "not count. Return a list of its name and the number of stations that are online.",
        expect_coldest,
        ALL_STATIONS
        + """
import tools
from tools.weather import current
readings = []
for name in names:
    try:
        readings.append(current(name))
    except tools.ToolError:
        pass
[min(readings, key=lambda each: each["temperature_c"])["station"], len(readings)]
""",
        (
            """
import tools
from tools.weather import current, list_stations
readings = []
for name in list_stations()["stations"]:
    try:
        readings.append(current(name))
    except tools.ToolError:
        pass
[min(readings, key=lambda each: each["temperature_c"])["station"], len(readings)]
""",
            ALL_STATIONS
            + """
import tools
from tools.weather import current
readings = []
for name in names:
    try:
        readings.append(current(name))
    except tools.ToolError:
        pass
[min(readings, key=lambda each: each["temperature_c"])["station"], len(names)]
""",
        ),
        ("errors", "pages"),
    ),
    Task(
        "storm-alerts",
        "hard",
        "Send an orange alert with the text storm for every weather station that is online and "
        "reads more than 60 km/h of wind. Leave stations alone that have an alert already. Return "
        "the sorted names of all stations with such a wind, those with an earlier alert included.",
        expect_storms,
        ALL_STATIONS
        + """
import tools
from tools.weather import current, list_alerts, send_alert
storms = []
for name in names:
    try:
        reading = current(name)
    except tools.ToolError:
        continue
    if reading["wind_kmh"] > 60:
        storms.append(name)
known = {alert["station"] for alert in list_alerts()}
for name in storms:
    if name not in known:
        send_alert(name, "orange", "storm")
sorted(storms)
""",
        (
            ALL_STATIONS
            + """
import tools
from tools.weather import current, send_alert
storms = []
for name in names:
    try:
        if current(name)["wind_kmh"] > 60:
            send_alert(name, "red", "storm")
            storms.append(name)
    except tools.ToolError:
        pass
sorted(storms)
""",
            ALL_STATIONS
            + """
import tools
from tools.weather import current
storms = []
for name in names:
    try:
        if current(name)["wind_kmh"] > 60:
            storms.append(name)
    except tools.ToolError:
        pass
storms[::-1]
""",
        ),
        ("errors", "pages", "state"),
    ),
    Task(
        "raise-alert",
        "medium",
        "The alert of the weather station $alerted must become red, with the text raised. Return "
        "how many alerts are red afterwards.",
        expect_raised,
        """
from tools.weather import cancel_alert, list_alerts, send_alert
cancel_alert("$alerted")
send_alert("$alerted", "red", "raised")
sum(alert["level"] == "red" for alert in list_alerts())
""",
        (
            """
import tools
from tools.weather import list_alerts, send_alert
try:
    send_alert("$alerted", "red", "raised")
except tools.ToolError:
    pass
sum(alert["level"] == "red" for alert in list_alerts())
""",
            """
from tools.weather import cancel_alert, list_alerts, send_alert
cancel_alert("$alerted")
send_alert("$alerted", "red", "raised")
len(list_alerts())
""",
        ),
        ("errors", "state"),
    ),
    Task(
        "largest-swing",
        "hard",
        "For all weather stations, offline ones included, take the forecast of seven days. Which "
        "has the largest difference between its highest high and its lowest low? If two are equal, "
        "take the first by name. Return an object with station and swing, rounded to one decimal.",
        expect_swing,
        ALL_STATIONS
        + """
from tools.weather import forecast
best = {"station": "", "swing": -1}
for name in sorted(names):
    days = forecast(name, days=7)
    swing = max(day["high_c"] for day in days) - min(day["low_c"] for day in days)
    if swing > best["swing"] + 1e-9:
        best = {"station": name, "swing": round(swing, 1)}
best
""",
        (
            ALL_STATIONS
            + """
from tools.weather import forecast
best = {"station": "", "swing": -1}
for name in sorted(names):
    swing = max(day["high_c"] - day["low_c"] for day in forecast(name, days=7))
    if swing > best["swing"] + 1e-9:
        best = {"station": name, "swing": round(swing, 1)}
best
""",
            ALL_STATIONS
            + """
from tools.weather import forecast
best = {"station": "", "swing": -1}
for name in sorted(names):
    days = forecast(name, days=7)
    swing = max(day["high_c"] for day in days) - min(day["high_c"] for day in days)
    if swing > best["swing"] + 1e-9:
        best = {"station": name, "swing": round(swing, 1)}
best
""",
        ),
        ("pages",),
    ),
]
