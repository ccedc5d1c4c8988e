"""What models cost and who provides them, from the table that litellm ships; importing it would take seconds."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

TABLE_FILE = "model_prices_and_context_window_backup.json"


@cache
def load_price_table() -> dict[str, dict[str, Any]]:
    """Return the table; empty if this litellm has none."""
    spec = importlib.util.find_spec("litellm")
    folders = spec.submodule_search_locations if spec is not None else None
    try:
        found = json.loads((Path(next(iter(folders or [""]))) / TABLE_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return {name: each for name, each in found.items() if isinstance(each, dict)}


def find_model_row(model: str) -> dict[str, Any]:
    """Return the row of a model; empty if it has none."""
    return load_price_table().get(model) or load_price_table().get(model.partition("/")[2]) or {}


def find_max_input_tokens(model: str) -> int:
    """Return how many tokens a model takes in; 0 where that is not known."""
    tokens = find_model_row(model).get("max_input_tokens")
    return tokens if isinstance(tokens, int) else 0


def find_token_prices(model: str) -> tuple[float, float]:
    """Return USD for a token in, and for one out; 0 where that is not known."""
    known = find_model_row(model)
    costs = known.get("input_cost_per_token"), known.get("output_cost_per_token")
    one, other = (float(cost) if isinstance(cost, int | float) else 0.0 for cost in costs)
    return one, other


@cache
def list_providers() -> frozenset[str]:
    """Return what litellm's names of models begin with."""
    return frozenset(str(each.get("litellm_provider", "")) for each in load_price_table().values())
