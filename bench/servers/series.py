"""Series of numbers, in pages, and mathematics on whole numbers and equations."""

from __future__ import annotations

from typing_extensions import TypedDict

from .base import StatefulServer, ToolError

server = StatefulServer("series")
PAGE_SIZE = 100
SINGULAR_BELOW = 1e-9


class Page(TypedDict):
    """Some values of a series; `next_offset` is -1 at the end."""

    values: list[float]
    next_offset: int


@server.tool(reads=True)
async def list_series() -> list[str]:
    """Return the names of all series."""
    return sorted(server.read_state()["series"])


@server.tool(reads=True)
async def read_series(name: str, offset: int = 0) -> Page:
    """Return up to 100 values of a series."""
    values = server.read_state()["series"].get(name)
    if values is None:
        raise ToolError(f"There is no series {name!r}.")
    end = offset + PAGE_SIZE
    return {"values": values[offset:end], "next_offset": end if end < len(values) else -1}


@server.tool(reads=True)
async def factorize(number: int) -> list[int]:
    """Return the prime factors of a number from 2 on, ascending."""
    if number < 2:
        raise ToolError(f"{number} has no prime factors.")
    factors: list[int] = []
    divisor = 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return [*factors, number] if number > 1 else factors


@server.tool(reads=True)
async def solve_pair(a: float, b: float, c: float, d: float, e: float, f: float) -> list[float]:
    """Return x and y of the equations a x + b y = e and c x + d y = f; fails if not unique."""
    determinant = a * d - b * c
    if abs(determinant) < SINGULAR_BELOW:
        raise ToolError("The equations have no unique solution.")
    return [(e * d - b * f) / determinant, (a * f - e * c) / determinant]


@server.tool()
async def publish(name: str, value: float) -> bool:
    """Publish a result under a name; fails if the name is taken."""
    with server.change_state() as state:
        if name in state["published"]:
            raise ToolError(f"{name!r} is published already.")
        state["published"][name] = value
    return True


if __name__ == "__main__":
    server.run()
