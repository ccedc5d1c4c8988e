"""Weather stations: current readings, forecasts in pages, and alerts that can be sent."""

from __future__ import annotations

from typing_extensions import TypedDict

from .base import StatefulServer, ToolError, find_record

server = StatefulServer("weather")
PAGE_SIZE = 5


class StationPage(TypedDict):
    """Some stations; `next_page` is 0 on the last page."""

    stations: list[str]
    next_page: int


class Reading(TypedDict):
    """What a station reads now."""

    station: str
    temperature_c: float
    humidity: int
    wind_kmh: float


class ForecastDay(TypedDict):
    """One day of a forecast."""

    day: int
    low_c: float
    high_c: float
    rain_mm: float


class Alert(TypedDict):
    """An alert that was sent."""

    station: str
    level: str
    text: str


@server.tool(reads=True)
async def list_stations(page: int = 1) -> StationPage:
    """Return the names of the stations, five on a page."""
    names = [each["station"] for each in server.read_state()["stations"]]
    found = names[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
    return {"stations": found, "next_page": page + 1 if len(names) > page * PAGE_SIZE else 0}


@server.tool(reads=True)
async def current(station: str) -> Reading:
    """Return what a station reads now; fails if the station is offline."""
    found = find_record(server.read_state()["stations"], "station", station)
    if not found["online"]:
        raise ToolError(f"The station {station!r} is offline.")
    return {
        "station": station,
        "temperature_c": found["temperature_c"],
        "humidity": found["humidity"],
        "wind_kmh": found["wind_kmh"],
    }


@server.tool(reads=True)
async def forecast(station: str, days: int = 3) -> list[ForecastDay]:
    """Return the forecast of 1 to 7 days; works for stations that are offline, too."""
    if not 1 <= days <= 7:
        raise ToolError(f"A forecast has 1 to 7 days, not {days}.")
    found = find_record(server.read_state()["stations"], "station", station)
    result: list[ForecastDay] = found["forecast"][:days]
    return result


@server.tool(reads=True)
async def list_alerts() -> list[Alert]:
    """Return all alerts."""
    result: list[Alert] = server.read_state()["alerts"]
    return result


@server.tool()
async def send_alert(station: str, level: str, text: str) -> Alert:
    """Send an alert; its level is yellow, orange or red, and a station has at most one."""
    if level not in ("yellow", "orange", "red"):
        raise ToolError(f"The level is yellow, orange or red, not {level!r}.")
    with server.change_state() as state:
        find_record(state["stations"], "station", station)
        if any(each["station"] == station for each in state["alerts"]):
            raise ToolError(f"The station {station!r} has an alert already: cancel it first.")
        alert: Alert = {"station": station, "level": level, "text": text}
        state["alerts"].append(alert)
    return alert


@server.tool()
async def cancel_alert(station: str) -> bool:
    """Cancel the alert of a station; fails if it has none."""
    with server.change_state() as state:
        state["alerts"].remove(find_record(state["alerts"], "station", station))
    return True


if __name__ == "__main__":
    server.run()
