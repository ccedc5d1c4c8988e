"""Calculator: arithmetic that can fail, and registers that keep results."""

from __future__ import annotations

from math import prod
from random import Random
from typing import Any

from .task import Task
from .world import World


def make_world(draw: Random) -> World:
    """Return registers with readings, some of them 0."""
    names = draw.sample("abcdefghijklmnopqrstuvwxyz", 14)
    registers = {f"r_{name}": float(draw.randint(2, 60)) for name in names[:11]}
    registers |= {f"r_{name}": 0.0 for name in names[11:]}
    registers["total"] = float(draw.randint(100, 900))
    registers["factor"] = float(draw.randint(3, 9))
    registers["rate"] = draw.randint(11, 39) / 10
    return World({"calculator": {"registers": registers}}, {})


def readings(world: World) -> dict[str, float]:
    """Return the registers that hold readings."""
    found: dict[str, float] = world.state["calculator"]["registers"]
    return {name: value for name, value in sorted(found.items()) if name.startswith("r_")}


def expect_product(world: World) -> Any:
    registers = world.state["calculator"]["registers"]
    return registers["total"] * registers["factor"] - registers["rate"]


def expect_stored(world: World) -> Any:
    registers = world.state["calculator"]["registers"]
    old = registers["total"]
    registers["total"] = old + registers["factor"]
    return old


def expect_sum(world: World) -> Any:
    return sum(readings(world).values())


def expect_ratios(world: World) -> Any:
    total = world.state["calculator"]["registers"]["total"]
    return {name: total / value if value else -1.0 for name, value in readings(world).items()}


def expect_cleared(world: World) -> Any:
    registers = world.state["calculator"]["registers"]
    zeros = [name for name, value in readings(world).items() if value == 0]
    for name in zeros:
        del registers[name]
    return zeros


def expect_growth(world: World) -> Any:
    registers = world.state["calculator"]["registers"]
    value = registers["total"] * registers["rate"] ** 5
    result = value - prod(float(each) for each in (registers["factor"],) * 3)
    registers["growth"] = result
    return result


TASKS = [
    Task(
        "product",
        "easy",
        "What is the value of the calculator's register total, multiplied by that of factor, less "
        "that of rate?",
        expect_product,
        """
from tools.calculator import multiply, recall
multiply(recall("total"), recall("factor")) - recall("rate")
""",
        (
            """
from tools.calculator import multiply, recall
multiply(recall("total"), recall("factor") - recall("rate"))
""",
            """
from tools.calculator import recall, store
store("total", recall("total") * recall("factor"))
recall("total") - recall("rate")
""",
        ),
    ),
    Task(
        "store",
        "easy",
        "Add the register factor to the register total: store the sum in total. Return what total "
        "held before.",
        expect_stored,
        """
from tools.calculator import recall, store
store("total", recall("total") + recall("factor"))
""",
        (
            """
from tools.calculator import recall, store
store("total", recall("total") + recall("factor"))
recall("total")
""",
            """
from tools.calculator import recall
recall("total")
""",
        ),
        ("state",),
    ),
    Task(
        "sum",
        "medium",
        "Return the sum of all registers whose names begin with r_.",
        expect_sum,
        """
from tools.calculator import list_registers, recall
sum(recall(name) for name in list_registers() if name.startswith("r_"))
""",
        (
            """
from tools.calculator import list_registers, recall
sum(recall(name) for name in list_registers())
""",
            """
from tools.calculator import list_registers, recall
max(recall(name) for name in list_registers() if name.startswith("r_"))
""",
        ),
    ),
    Task(
        "ratios",
        "hard",
        "For each register whose name begins with r_, divide total by it. Return an object with "
        "the quotients by the names of the registers, and -1 where the calculator cannot divide.",
        expect_ratios,
        """
import tools
from tools.calculator import divide, list_registers, recall
total, found = recall("total"), {}
for name in list_registers():
    if name.startswith("r_"):
        try:
            found[name] = divide(total, recall(name))
        except tools.ToolError:
            found[name] = -1
found
""",
        (
            """
from tools.calculator import list_registers, recall
total = recall("total")
values = {name: recall(name) for name in list_registers() if name.startswith("r_")}
{name: total / value for name, value in values.items() if value}
""",
            """
from tools.calculator import list_registers, recall
total = recall("total")
values = {name: recall(name) for name in list_registers() if name.startswith("r_")}
{name: value / total if value else -1 for name, value in values.items()}
""",
        ),
        ("errors",),
    ),
    Task(
        "clear-zeros",
        "medium",
        "Clear every register whose name begins with r_ and whose value is 0. Return the sorted "
        "list of their names.",
        expect_cleared,
        """
from tools.calculator import clear, list_registers, recall
zeros = [name for name in list_registers() if name.startswith("r_") and recall(name) == 0]
for name in zeros:
    clear(name)
sorted(zeros)
""",
        (
            """
from tools.calculator import list_registers, recall
[name for name in list_registers() if name.startswith("r_") and recall(name) == 0]
""",
            """
from tools.calculator import clear, list_registers, recall
zeros = [name for name in list_registers() if name.startswith("r_") and recall(name) == 0]
for name in zeros[1:]:
    clear(name)
sorted(zeros)
""",
        ),
        ("state",),
    ),
    Task(
        "growth",
        "hard",
        "Take the register total, multiply it by rate five times, and subtract the third power of "
        "factor. Store the result in the new register growth and return it.",
        expect_growth,
        """
from tools.calculator import multiply, power, recall, store
value = recall("total")
for _ in range(5):
    value = multiply(value, recall("rate"))
result = value - power(recall("factor"), 3)
store("growth", result)
result
""",
        (
            """
from tools.calculator import recall, store
result = recall("total") * recall("rate") * 5 - recall("factor") ** 3
store("growth", result)
result
""",
            """
from tools.calculator import recall, store
result = recall("total") * recall("rate") ** 5 - recall("factor") ** 3
store("growth", result)
""",
        ),
        ("state",),
    ),
]
