"""Prices, limits and providers of models, from the table that litellm ships.

This module reads the file, because importing litellm takes seconds.
"""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from ...protocol.payloads import JsonObject
from .model_backend import TokenPrices

TABLE_FILE = "model_prices_and_context_window_backup.json"


@cache
def load_price_table() -> dict[str, JsonObject]:
    """Return the rows of the table by model; empty if litellm does not ship it."""
    spec = importlib.util.find_spec("litellm")
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(next(iter(spec.submodule_search_locations)))
    try:
        table = json.loads((folder / TABLE_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return {name: row for name, row in table.items() if isinstance(row, dict)}


def find_model_row(model: str) -> JsonObject:
    """Return the row of a model, with or without its provider's prefix; empty if there is none."""
    table = load_price_table()
    return table.get(model) or table.get(model.partition("/")[2]) or {}


def find_max_input_tokens(model: str) -> int:
    """Return how many tokens a prompt may have; 0 if the limit is unknown."""
    tokens = find_model_row(model).get("max_input_tokens")
    return tokens if isinstance(tokens, int) else 0


def find_token_prices(model: str) -> TokenPrices:
    """Return the prices of a model; an unknown price is 0."""
    row = find_model_row(model)
    return TokenPrices(
        as_price(row.get("input_cost_per_token")), as_price(row.get("output_cost_per_token"))
    )


def as_price(value: Any) -> float:
    """Return a price of the table; 0 if it is not a number."""
    return float(value) if isinstance(value, int | float) else 0.0


@cache
def list_providers() -> frozenset[str]:
    """Return the provider prefixes of litellm's model names."""
    return frozenset(str(row.get("litellm_provider", "")) for row in load_price_table().values())
