"""A calculator with registers: it divides by zero never, and keeps what it is told to."""

from __future__ import annotations

from .base import StatefulServer, ToolError

server = StatefulServer("calculator")
MAX_EXPONENT = 64


@server.tool(reads=True)
async def add(a: float, b: float) -> float:
    """Return a + b."""
    return a + b


@server.tool(reads=True)
async def multiply(a: float, b: float) -> float:
    """Return a * b."""
    return a * b


@server.tool(reads=True)
async def divide(a: float, b: float) -> float:
    """Return a / b; fails if b is 0."""
    if b == 0:
        raise ToolError("Division by zero.")
    return a / b


@server.tool(reads=True)
async def power(base: float, exponent: int) -> float:
    """Return base to the power of exponent, which is from 0 to 64."""
    if not 0 <= exponent <= MAX_EXPONENT:
        raise ToolError(f"The exponent {exponent} is not from 0 to {MAX_EXPONENT}.")
    return float(base**exponent)


@server.tool(reads=True)
async def list_registers() -> list[str]:
    """Return the names of all registers."""
    return sorted(server.read_state()["registers"])


@server.tool(reads=True)
async def recall(register: str) -> float:
    """Return the value of a register; fails if nothing was stored there."""
    found = server.read_state()["registers"].get(register)
    if found is None:
        raise ToolError(f"The register {register!r} is empty.")
    return float(found)


@server.tool()
async def store(register: str, value: float) -> float:
    """Store a value in a register and return the value that was there before, or 0."""
    with server.change_state() as state:
        before = state["registers"].get(register, 0.0)
        state["registers"][register] = value
    return float(before)


@server.tool()
async def clear(register: str) -> bool:
    """Empty a register; fails if it is empty."""
    with server.change_state() as state:
        if register not in state["registers"]:
            raise ToolError(f"The register {register!r} is empty.")
        del state["registers"][register]
    return True


if __name__ == "__main__":
    server.run()
