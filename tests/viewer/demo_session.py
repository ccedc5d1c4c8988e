"""A session of 60 steps as an agent might leave it: failures, branches, files, images and calls.

`python -m tests.viewer.demo_session FOLDER` makes a data folder with it and serves the pages until
it is interrupted; with an existing folder it only serves. Step 37 of `shop-report` fails
because of step 12: a region in its list has no orders, and step 37 divides by their number.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from ..helpers.event_streams import ApiClient, connect_api
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import write_settings
from ..server.conftest import upstream_entry
from ..upstreams.orders import make_orders

PICTURE = """
import struct, zlib
def chart(values, width=480, height=180):
    top = max(values)
    rows = []
    for y in range(height):
        row = bytearray([0])
        for x in range(width):
            place = x * len(values) // width
            is_high = height - y < values[place] / top * (height - 20)
            is_bar = is_high and x % (width // len(values)) > 4
            row += bytes((91, 91, 214) if is_bar else (250, 250, 252))
        rows.append(bytes(row))
    def chunk(kind, data):
        content = kind + data
        return struct.pack('>I', len(data)) + content + struct.pack('>I', zlib.crc32(content))
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return (b'\\x89PNG\\r\\n\\x1a\\n' + chunk(b'IHDR', head)
            + chunk(b'IDAT', zlib.compress(b''.join(rows))) + chunk(b'IEND', b''))
"""
QUERY = "SELECT status, count(*) AS orders, sum(quantity * unit_price) AS revenue"
FIRST_STEPS = [
    "from tools.orders import query, list_tables, describe_table\nlist_tables()",
    "[describe_table(table=name) for name in ('orders', 'items')]",
    "rows = query(sql='SELECT id, placed, status, channel FROM orders ORDER BY id LIMIT 8')\nrows",
    "import time\nfor name in ('web', 'phone', 'partner'):\n    time.sleep(0.15)\n"
    "    print(f'\\x1b[32mok\\x1b[0m {name:<10} loaded')\n    time.sleep(0.1)",
    "undefined_name + 1",
    f"""totals = query(sql='''{QUERY}
    FROM orders JOIN items ON items.order_id = orders.id
    GROUP BY status ORDER BY revenue DESC''')
totals""",
    PICTURE + "\nshow(chart([round(row['revenue']) for row in totals]))",
    "import json\nopen('totals.json', 'w').write(json.dumps(totals, indent=1))\n"
    "open('notes.md', 'w').write('# Report\\n\\nTotals are final.\\n')",
    "import sys\nfor place in range(1200):\n    print(f'row {place:05} checked')\n"
    "print('2 rows have no customer', file=sys.stderr)",
    "{'regions': ['EMEA', 'APAC', 'AMER'], 'limits': {'low': 0.1, 'high': 0.9}, 'final': False}",
]
MIDDLE = """region = {region!r}
found = query(sql='''SELECT o.status, count(*) AS n FROM orders o
    JOIN customers c ON c.id = o.customer_id WHERE c.region = ? GROUP BY o.status''',
    params=[region])
shares[region, {number}] = {{row['status']: row['n'] for row in found}}
print(region, sum(row['n'] for row in found), 'orders')"""
REGION_LIST = """regions = ['EMEA', 'APAC', 'AMER', 'ANTARCTICA']
len(regions)"""
RETURNS = """# What a returned order costs on average, by region
returned = dict.fromkeys(regions, 0)
for (region, _), counts in shares.items():
    returned[region] = counts.get('returned', 0)
cost = {}
for region, count in returned.items():
    total = query(sql='''SELECT coalesce(sum(quantity * unit_price), 0) AS total FROM orders o
        JOIN items i ON i.order_id = o.id JOIN customers c ON c.id = o.customer_id
        WHERE c.region = ? AND o.status = 'returned' ''', params=[region])[0]['total']
    print(f'{region:<12} {count:>4} {total:>12,.2f}')
    cost[region] = total / count
cost"""
REPLACE = """from tools.editor import replace_text
from tools.orders import query
product = query(sql='SELECT name, price FROM products ORDER BY id LIMIT 1')[0]
before = f'# Prices\\n\\n- {product["name"]}: 10.00\\n- Shipping: 4.90\\n'
after = before.replace('10.00', f'{product["price"]:.2f}').replace('4.90', '5.90')
replace_text(path='site/prices.md', old_text=before, new_text=after)"""
REGIONS = ("EMEA", "APAC", "AMER")


def list_demo_steps() -> list[str]:
    """Return the code of the 60 steps."""
    steps = [*FIRST_STEPS, "shares = {}", REGION_LIST]
    while len(steps) < 36:
        number = len(steps)
        steps.append(MIDDLE.format(region=REGIONS[number % 3], number=number))
    steps.append(RETURNS)
    while len(steps) < 60:
        number = len(steps)
        lines = f"open('part-{number % 5}.csv', 'w').write('a,b\\n' * {number})" * (number % 4 == 0)
        steps.append(f"share_{number} = len(shares) * {number}\n{lines}\nshare_{number}")
    return steps


def write_demo_settings(folder: Path, **more: Any) -> Path:
    """Write the settings of the demo, and make what its upstreams work on."""
    settings = write_settings(
        folder,
        mcpServers={
            "orders": upstream_entry("orders", str(folder / "orders.db")),
            "counted": upstream_entry("counted", str(folder / "done")),
            "editor": upstream_entry("editor"),
        },
        sandbox={"backend": "local", "pool_size": 0},
        policy={"tools": {"counted.add": "ask", "editor.replace_text": "ask"}},
        **more,
    )
    make_orders(folder / "orders.db")
    return settings


async def execute_demo(api: ApiClient, count: int = 60, name: str = "shop-report") -> str:
    """Execute the first steps of the demo in a session, with two branches; return its id."""
    session = ""
    for number, code in enumerate(list_demo_steps()[:count], 1):
        [*_, end] = await api.execute(code, session=name)
        session = end.data["session"]
        if number in (14, 22):  # a try that is given up again
            for attempt in range(number // 7):
                await api.execute(f"attempt = {attempt}\nattempt ** 2", session=name)
            await api.post(f"/sessions/{session}/rewind", {"step": number})
    return session


async def execute_others(api: ApiClient, session: str) -> None:
    """Execute what else the list of sessions shows: forks, a plan, and a run that waits."""
    forked = (await api.post(f"/sessions/{session}/fork", {"step": 9, "name": "shop-fork"})).json()
    await api.execute("print('another way')", session=forked["session"])
    await api.execute("raise ValueError('no such file: prices.csv')", session="prices")
    await api.execute("sorted({3, 1, 2})", session="scratch")
    ask = "from tools.counted import add\nadd(item='send the report to the whole company').result"
    await api.post("/execute", {"code": ask, "session": "mailing", "wait_s": 1})
    await api.post("/execute", {"code": REPLACE, "session": "prices-page", "wait_s": 5})
    plan = {"code": ask, "session": "plan", "dry_run": True}
    await api.post("/execute", plan)


async def serve_demo(settings: Path, *, is_new: bool) -> None:
    """Serve the demo until it is interrupted, and make it first if it is new."""
    async with open_http_service(settings, "--no-auth", port=8322) as service:
        if is_new:
            await fill_demo(service)
        print(f"the pages: {service.url.removesuffix('/mcp')}/", flush=True)
        await anyio.sleep_forever()


async def fill_demo(service: HttpService) -> None:
    """Execute everything of the demo as the local user."""
    async with connect_api(service, "") as api:
        session = await execute_demo(api)
        await execute_others(api, session)


def main(folder: Path) -> None:
    """Serve the demo in a folder, which is made unless it is there."""
    settings = folder / "server.toml"
    is_new = not settings.exists()
    if is_new:
        folder.mkdir(parents=True, exist_ok=True)
        settings = write_demo_settings(folder)
    with suppress(KeyboardInterrupt):
        anyio.run(partial(serve_demo, settings, is_new=is_new))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
