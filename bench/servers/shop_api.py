"""The HTTP server behind `web`: products and orders in a JSON file, with pages and faults.

Every product whose `busy` is above 0 answers so many requests with 503 first. Its first line of
output is its address.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .names import STATE_VARIABLE

PAGE_SIZE = 8
STATE_FILE = Path(os.environ[STATE_VARIABLE]) / "web.json"


def read_state() -> dict[str, Any]:
    """Return the state."""
    state: dict[str, Any] = json.loads(STATE_FILE.read_text("utf-8"))
    return state


def write_state(state: dict[str, Any]) -> None:
    """Replace the state."""
    STATE_FILE.write_text(json.dumps(state), "utf-8")


def refuse(status: int, message: str, **headers: str) -> JSONResponse:
    """Return an error."""
    return JSONResponse({"error": message}, status, headers=headers)


def list_page(request: Request, records: list[dict[str, Any]]) -> JSONResponse:
    """Return one page of records."""
    page = int(request.query_params.get("page", "1"))
    return JSONResponse([public(each) for each in records[(page - 1) * PAGE_SIZE :][:PAGE_SIZE]])


def public(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without what clients do not see."""
    return {key: value for key, value in record.items() if key != "busy"}


async def list_products(request: Request) -> Response:
    """Return a page of products."""
    return list_page(request, read_state()["products"])


async def list_orders(request: Request) -> Response:
    """Return a page of orders."""
    return list_page(request, read_state()["orders"])


async def handle_product(request: Request) -> Response:
    """Return or change a product."""
    state = read_state()
    found = [each for each in state["products"] if each["id"] == request.path_params["id"]]
    if not found:
        return refuse(404, "There is no such product.")
    [product] = found
    if product["busy"]:
        product["busy"] -= 1
        write_state(state)
        return refuse(503, "Busy: try again.", **{"retry-after": "0"})
    if request.method == "PATCH":
        change = await request.json()
        if set(change) - {"price", "stock"} or any(value < 0 for value in change.values()):
            return refuse(422, "Only price and stock can be changed, to 0 or more.")
        product.update(change)
        write_state(state)
    return JSONResponse(public(product))


async def create_order(request: Request) -> Response:
    """Create an order, which takes the products from the stock."""
    asked = await request.json()
    state = read_state()
    products = {each["id"]: each for each in state["products"]}
    product = products.get(asked.get("product"))
    quantity = asked.get("quantity", 0)
    if product is None:
        return refuse(404, "There is no such product.")
    if not isinstance(quantity, int) or quantity < 1:
        return refuse(422, "The quantity is 1 or more.")
    if product["stock"] < quantity:
        return refuse(409, f"Only {product['stock']} are in stock.")
    product["stock"] -= quantity
    order = {
        "id": max((each["id"] for each in state["orders"]), default=0) + 1,
        "product": product["id"],
        "quantity": quantity,
        "customer": asked.get("customer", ""),
    }
    state["orders"].append(order)
    write_state(state)
    return JSONResponse(order, 201)


async def handle_order(request: Request) -> Response:
    """Return or cancel an order; its products return to the stock."""
    state = read_state()
    found = [each for each in state["orders"] if each["id"] == request.path_params["id"]]
    if not found:
        return refuse(404, "There is no such order.")
    [order] = found
    if request.method == "DELETE":
        state["orders"].remove(order)
        for product in state["products"]:
            if product["id"] == order["product"]:
                product["stock"] += order["quantity"]
        write_state(state)
    return JSONResponse(order)


APP = Starlette(
    routes=[
        Route("/products", list_products),
        Route("/products/{id:int}", handle_product, methods=["GET", "PATCH"]),
        Route("/orders", list_orders),
        Route("/orders", create_order, methods=["POST"]),
        Route("/orders/{id:int}", handle_order, methods=["GET", "DELETE"]),
    ]
)


def main() -> None:
    """Serve until terminated."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(APP, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
