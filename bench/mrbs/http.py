"""HTTP: a shop behind a real HTTP server, with pages, statuses and a service that is busy."""

from __future__ import annotations

from random import Random
from typing import Any

from .task import Task
from .world import World

KINDS = ("lamp", "chair", "desk", "shelf", "rug")


def make_world(draw: Random) -> World:
    """Return 27 products, some of them busy, and 19 orders."""
    products = [
        {
            "id": number,
            "name": f"{draw.choice(KINDS)} {number}",
            "price": draw.randint(50, 990) / 10,  # ten percent are whole cents
            "stock": draw.randint(3, 40),
            "busy": 0,
        }
        for number in range(1, 28)
    ]
    busy, scarce, first, second = draw.sample(range(27), 4)
    products[busy]["busy"] = 2
    products[scarce]["stock"] = draw.randint(1, 2)
    orders = [
        {
            "id": number,
            "product": draw.randint(1, 27),
            "quantity": draw.randint(1, 5),
            "customer": draw.choice(("ann", "bea", "cem")),
        }
        for number in range(1, 20)
    ]
    facts = {
        "busy": products[busy]["id"],
        "scarce": products[scarce]["id"],
        "first": products[first]["id"],
        "second": products[second]["id"],
        "kind": draw.choice(KINDS),
    }
    return World({"web": {"products": products, "orders": orders}}, facts)


def product_of(world: World, fact: str) -> dict[str, Any]:
    """Return the product whose id is a fact."""
    found: dict[str, Any] = world.state["web"]["products"][world.facts[fact] - 1]
    return found


def expect_price(world: World) -> Any:
    return round(product_of(world, "first")["price"] + product_of(world, "second")["price"], 2)


def expect_value(world: World) -> Any:
    products = world.state["web"]["products"]
    return round(sum(each["price"] * each["stock"] for each in products), 2)


def expect_restocked(world: World) -> Any:
    product = product_of(world, "busy")
    product["stock"] += 10
    return product["stock"]


def expect_ordered(world: World) -> Any:
    scarce, other = product_of(world, "scarce"), product_of(world, "first")
    orders = world.state["web"]["orders"]
    taken = scarce["stock"]
    for product, quantity in ((scarce, taken), (other, 3 - taken)):
        orders.append({"product": product["id"], "quantity": quantity, "customer": "dora"})
        product["stock"] -= quantity
    return [taken, 3 - taken]


def expect_cancelled(world: World) -> Any:
    web = world.state["web"]
    gone = [each for each in web["orders"] if each["customer"] == "bea"]
    for order in gone:
        web["products"][order["product"] - 1]["stock"] += order["quantity"]
        web["orders"].remove(order)
    return sum(order["quantity"] for order in gone)


def expect_cheaper(world: World) -> Any:
    found = {}
    for product in world.state["web"]["products"]:
        if product["name"].startswith(world.facts["kind"]):
            product["price"] = round(product["price"] * 0.9, 2)
            found[str(product["id"])] = product["price"]
    return found


ALL_PRODUCTS = """
from tools.web import request
products, page = [], 1
while True:
    found = request("GET", f"/products?page={page}")["body"]
    if not found:
        break
    products += found
    page += 1
"""
ALL_ORDERS = ALL_PRODUCTS.replace("products", "orders")
RETRY = """
def send(method, path, body=None):
    while True:
        answer = request(method, path, body) if body else request(method, path)
        if answer["status"] != 503:
            return answer
"""

TASKS = [
    Task(
        "two-prices",
        "easy",
        "What do the products $first and $second of the shop's HTTP API cost together, one of "
        "each? Round to two decimals.",
        expect_price,
        "from tools.web import request\n"
        + RETRY
        + """
round(send("GET", "/products/$first")["body"]["price"]
      + send("GET", "/products/$second")["body"]["price"], 2)
""",
        (
            """
from tools.web import request
round(2 * request("GET", "/products/$first")["body"]["price"], 2)
""",
            """
from tools.web import request
[request("GET", "/products/$first")["body"], request("GET", "/products/$second")["body"]]
""",
        ),
    ),
    Task(
        "stock-value",
        "medium",
        "What is the whole stock behind the shop's HTTP API worth: the sum of price times stock "
        "over all products? Round to two decimals.",
        expect_value,
        ALL_PRODUCTS + 'round(sum(each["price"] * each["stock"] for each in products), 2)\n',
        (
            """
from tools.web import request
products = request("GET", "/products?page=1")["body"]
round(sum(each["price"] * each["stock"] for each in products), 2)
""",
            ALL_PRODUCTS + 'round(sum(each["price"] for each in products), 2)\n',
        ),
        ("pages",),
    ),
    Task(
        "restock-busy",
        "medium",
        "Add 10 to the stock of the product $busy through the shop's HTTP API. The service may be "
        "busy: then try again. Return the new stock.",
        expect_restocked,
        "from tools.web import request\n"
        + RETRY
        + """
stock = send("GET", "/products/$busy")["body"]["stock"]
send("PATCH", "/products/$busy", {"stock": stock + 10})["body"]["stock"]
""",
        (
            "from tools.web import request\n"
            + RETRY
            + """
send("PATCH", "/products/$busy", {"stock": 10})["body"]["stock"]
""",
            """
from tools.web import request
answer = request("GET", "/products/$busy")
request("PATCH", "/products/$busy", {"stock": 10})
answer["status"]
""",
        ),
        ("errors", "state"),
    ),
    Task(
        "order-three",
        "hard",
        "The customer dora wants three pieces of the product $scarce, ordered through the shop's "
        "HTTP API. If there are not enough, order what there is and the rest from the product "
        "$first. Return the two quantities as a list.",
        expect_ordered,
        "from tools.web import request\n"
        + RETRY
        + """
def order(product, quantity):
    body = {"product": product, "quantity": quantity, "customer": "dora"}
    return send("POST", "/orders", body)["status"]

stock, wanted = 0, 3
if order($scarce, wanted) == 409:
    stock = send("GET", "/products/$scarce")["body"]["stock"]
    order($scarce, stock)
    order($first, wanted - stock)
[stock, wanted - stock]
""",
        (
            """
from tools.web import request
body = {"product": $scarce, "quantity": 3, "customer": "dora"}
request("POST", "/orders", body)
[3, 0]
""",
            """
from tools.web import request
body = {"product": $first, "quantity": 3, "customer": "dora"}
request("POST", "/orders", body)
[0, 3]
""",
        ),
        ("errors", "state"),
    ),
    Task(
        "cancel-orders",
        "hard",
        "Cancel all orders of the customer bea through the shop's HTTP API. Return how many "
        "pieces were cancelled together.",
        expect_cancelled,
        ALL_ORDERS
        + """
gone = [each for each in orders if each["customer"] == "bea"]
for each in gone:
    request("DELETE", f"/orders/{each['id']}")
sum(each["quantity"] for each in gone)
""",
        (
            """
from tools.web import request
gone, page = 0, 1
while True:
    orders = request("GET", f"/orders?page={page}")["body"]
    if not orders:
        break
    for each in orders:
        if each["customer"] == "bea":
            request("DELETE", f"/orders/{each['id']}")
            gone += 1
    page += 1
gone
""",
            ALL_ORDERS
            + """
sum(each["quantity"] for each in orders if each["customer"] == "bea")
""",
        ),
        ("pages", "state"),
    ),
    Task(
        "discount",
        "hard",
        "Lower the price of every product of the shop's HTTP API whose name begins with $kind by "
        "ten percent, rounded to two decimals. The service may be busy: then try again. Return an "
        "object with the new prices by the ids of the products.",
        expect_cheaper,
        ALL_PRODUCTS
        + RETRY
        + """
found = {}
for each in products:
    if each["name"].startswith("$kind"):
        price = round(each["price"] * 0.9, 2)
        send("PATCH", f"/products/{each['id']}", {"price": price})
        found[str(each["id"])] = price
found
""",
        (
            ALL_PRODUCTS
            + """
found = {}
for each in products:
    price = round(each["price"] * 0.9, 2)
    request("PATCH", f"/products/{each['id']}", {"price": price})
    found[str(each["id"])] = price
found
""",
            ALL_PRODUCTS
            + """
{str(each["id"]): round(each["price"] * 0.9, 2) for each in products
 if each["name"].startswith("$kind")}
""",
        ),
        ("errors", "pages", "state"),
    ),
]
