"""Data analysis: a CSV file, pandas, and a plot, over three steps that share their variables.

Expect a table, the revenue of each region, and a picture that is saved as
`revenue.png`, or under the name that you give. The file is an input: code reads a copy of it.
"""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from example_settings import example_settings
from mcpruntime_server import embed_runtime

REGIONS = ("north", "south", "west")
LOAD = """
import pandas as pd

orders = pd.read_csv(CONTEXT.path, parse_dates=["day"])
orders.describe()[["eur"]].round(1)
"""
SUM_UP = """
monthly = orders.pivot_table("eur", orders.day.dt.month, "region", aggfunc="sum")
monthly.sum().round().astype(int).to_dict()
"""
PLOT = """
import matplotlib.pyplot as plt

axes = monthly.plot(figsize=(7, 4), title="Revenue in EUR, by month")
axes.set_xlabel("month")
plt.show()
"""


def write_orders(path: Path) -> None:
    """Write a year of orders; those of the west grow."""
    dice = random.Random(7)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["day", "region", "eur"])
        for _ in range(5_000):
            month, region = dice.randint(1, 12), dice.choice(REGIONS)
            growth = month / 6 if region == "west" else 1
            day = f"2026-{month:02}-{dice.randint(1, 28):02}"
            writer.writerow([day, region, round(dice.gauss(50, 10) * growth, 2)])


async def main(picture: Path) -> None:
    """Load a file, sum it up, plot it, and save the plot."""
    with (
        TemporaryDirectory() as folder,
        example_settings({"server.context_roots": [folder]}) as config,
    ):
        orders = Path(folder) / "orders.csv"
        write_orders(orders)
        async with embed_runtime(config) as runtime:
            session = runtime.session("orders")
            loaded = await session.run(LOAD, context=[str(orders)])
            print(f"What a model reads after the first step:\n\n{loaded.text}\n")
            print("revenue:", (await session.run(SUM_UP)).value)
            plotted = await session.run(PLOT)
            picture.write_bytes(plotted.media[0].data)
            print(f"plot: {picture}, {len(plotted.media[0].data):,} bytes")


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1] if len(sys.argv) > 1 else "revenue.png"))
