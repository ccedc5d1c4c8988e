"""Math: series of numbers in pages, factors, equations and published results."""

from __future__ import annotations

import statistics
from fractions import Fraction
from random import Random
from typing import Any

from .task import Task
from .world import World


def make_world(draw: Random) -> World:
    """Return five series of up to 480 values, coefficients of equations, and whole numbers."""
    series: dict[str, list[float]] = {
        name: [draw.randint(-5_000, 5_000) / 10 for _ in range(draw.randint(210, 480))]
        for name in ("alpha", "beta", "gamma")
    }
    series["numbers"] = [float(draw.randint(1_000, 90_000)) for _ in range(12)]
    equations: list[float] = []
    for _ in range(8):
        a, b, c, d, x, y = (draw.randint(1, 9) for _ in range(6))
        if draw.random() < 0.3:
            c, d = 2 * a, 2 * b
        equations += [a, b, c, d, a * x + b * y, c * x + d * y]
    series["equations"] = equations
    taken = draw.choice(("alpha", "beta", "gamma"))
    facts = {"name": draw.choice(("alpha", "beta", "gamma"))}
    return World({"series": {"series": series, "published": {f"mean_{taken}": 0.0}}}, facts)


def series_of(world: World) -> dict[str, list[float]]:
    """Return all series."""
    found: dict[str, list[float]] = world.state["series"]["series"]
    return found


def smallest_factor(number: int) -> int:
    """Return the smallest prime factor of a number."""
    return next(each for each in range(2, number + 1) if number % each == 0)


def expect_mean(world: World) -> Any:
    return statistics.fmean(series_of(world)[world.facts["name"]])


def expect_extremes(world: World) -> Any:
    return {
        name: [min(values), max(values), len(values)]
        for name, values in series_of(world).items()
        if name not in ("numbers", "equations")
    }


def expect_published(world: World) -> Any:
    published = world.state["series"]["published"]
    refused = []
    for name in ("alpha", "beta", "gamma"):
        if f"mean_{name}" in published:
            refused.append(name)
        else:
            published[f"mean_{name}"] = statistics.fmean(series_of(world)[name])
    return refused


def expect_prime(world: World) -> Any:
    numbers = [int(each) for each in series_of(world)["numbers"]]
    return {str(number): number // smallest_factor(number) for number in numbers}


def expect_solutions(world: World) -> Any:
    values = series_of(world)["equations"]
    found: list[Any] = []
    for at in range(0, len(values), 6):
        a, b, c, d, e, f = (Fraction(each) for each in values[at : at + 6])
        if a * d == b * c:
            found.append(None)
        else:
            y = (f - c * e / a) / (d - c * b / a)
            found.append([float((e - b * y) / a), float(y)])
    return found


def expect_drop(world: World) -> Any:
    values = series_of(world)[world.facts["name"]]
    worst = max(
        (values[i] - later, i, j)
        for i in range(len(values))
        for j, later in enumerate(values)
        if j > i
    )
    world.state["series"]["published"]["drop"] = worst[0]
    return round(worst[0], 1)


READ = """
from tools.series import read_series

def read(name):
    values, offset = [], 0
    while offset >= 0:
        page = read_series(name, offset=offset)
        values += page["values"]
        offset = page["next_offset"]
    return values
"""

TASKS = [
    Task(
        "mean",
        "easy",
        "What is the mean of all values of the series $name? Do not round it.",
        expect_mean,
        READ + 'values = read("$name")\nsum(values) / len(values)\n',
        (
            READ + 'values = read_series("$name")["values"]\nsum(values) / len(values)\n',
            READ + 'values = sorted(read("$name"))\nvalues[len(values) // 2]\n',
        ),
        ("pages",),
    ),
    Task(
        "extremes",
        "medium",
        "For the series alpha, beta and gamma, return an object with a list by the name of each: "
        "its smallest value, its largest value, and the number of its values.",
        expect_extremes,
        READ
        + """
found = {}
for name in ("alpha", "beta", "gamma"):
    values = read(name)
    found[name] = [min(values), max(values), len(values)]
found
""",
        (
            READ
            + """
found = {}
for name in ("alpha", "beta", "gamma"):
    values = read_series(name)["values"]
    found[name] = [min(values), max(values), len(values)]
found
""",
            READ
            + """
found = {}
for name in ("alpha", "beta", "gamma"):
    values = read(name)
    found[name] = [max(values), min(values), len(values)]
found
""",
        ),
        ("pages", "large"),
    ),
    Task(
        "publish-means",
        "hard",
        "Publish the mean of each of the series alpha, beta and gamma as mean_ and its name, such "
        "as mean_alpha. A name that is taken is refused: leave it. Return the sorted list of the "
        "series whose mean was refused.",
        expect_published,
        READ
        + """
import tools
from tools.series import publish
refused = []
for name in ("alpha", "beta", "gamma"):
    values = read(name)
    try:
        publish(f"mean_{name}", sum(values) / len(values))
    except tools.ToolError:
        refused.append(name)
sorted(refused)
""",
        (
            READ
            + """
import tools
from tools.series import publish
refused = []
for name in ("alpha", "beta", "gamma"):
    values = read_series(name)["values"]
    try:
        publish(f"mean_{name}", sum(values) / len(values))
    except tools.ToolError:
        refused.append(name)
sorted(refused)
""",
            READ
            + """
from tools.series import publish
for name in ("alpha", "beta", "gamma"):
    values = read(name)
    publish(f"mean_{name}", sum(values) / len(values))
[]
""",
        ),
        ("errors", "pages", "state"),
    ),
    Task(
        "cofactors",
        "medium",
        "For each value n of the series numbers, divide n by its smallest prime factor. Return an "
        "object with the results by n; write n as a text without a decimal point.",
        expect_prime,
        READ
        + """
from tools.series import factorize
found = {}
for value in read("numbers"):
    number = int(value)
    found[str(number)] = number // factorize(number)[0]
found
""",
        (
            READ
            + """
from tools.series import factorize
{str(int(value)): int(value) // factorize(int(value))[-1] for value in read("numbers")}
""",
            READ
            + """
from tools.series import factorize
{str(int(value)): factorize(int(value))[0] for value in read("numbers")}
""",
        ),
    ),
    Task(
        "solve-equations",
        "hard",
        "Each six values of the series equations are a, b, c, d, e and f of the equations a x + b "
        "y = e and c x + d y = f. Solve each pair. Return the list of solutions [x, y], in order, "
        "with null where there is no unique solution.",
        expect_solutions,
        READ
        + """
import tools
from tools.series import solve_pair
values, found = read("equations"), []
for at in range(0, len(values), 6):
    try:
        found.append(solve_pair(*values[at : at + 6]))
    except tools.ToolError:
        found.append(None)
found
""",
        (
            READ
            + """
import tools
from tools.series import solve_pair
values, found = read("equations"), []
for at in range(0, len(values), 6):
    try:
        found.append(solve_pair(*values[at : at + 6])[::-1])
    except tools.ToolError:
        found.append(None)
found
""",
            READ
            + """
from tools.series import solve_pair
values = read("equations")
[solve_pair(*values[0:6])]
""",
        ),
        ("errors",),
    ),
    Task(
        "largest-drop",
        "hard",
        "Find the largest drop in the series $name: the largest difference between a value and "
        "any later value. Publish it as drop, and return it rounded to one decimal.",
        expect_drop,
        READ
        + """
from tools.series import publish
highest, drop = float("-inf"), float("-inf")
for value in read("$name"):
    drop = max(drop, highest - value) if highest > float("-inf") else drop
    highest = max(highest, value)
publish("drop", drop)
round(drop, 1)
""",
        (
            READ
            + """
from tools.series import publish
values = read("$name")
drop = max(one - two for one, two in zip(values, values[1:]))
publish("drop", drop)
round(drop, 1)
""",
            READ
            + """
from tools.series import publish
values = read("$name")
publish("drop", values[0] - min(values))
round(values[0] - min(values), 1)
""",
        ),
        ("large", "pages", "state"),
    ),
]
