"""Suggestions for misspelled names."""

from __future__ import annotations

import pytest

from mcpruntime_server.protocol.suggestions import did_you_mean, find_misspelled, find_similar

SHOP = ["woo_products_get", "woo_products_list", "woo_orders_list", "woo_products_delete"]


@pytest.mark.parametrize(
    ("name", "names", "meant"),
    [
        ("list_products", SHOP, "woo_products_list"),
        ("get_products", SHOP, "woo_products_get"),
        ("remove_products", SHOP, "woo_products_delete"),
        ("search_products", ["woo_products_delete", "woo_products_get"], "woo_products_get"),
        ("list_products", ["woo_products_get"], "woo_products_get"),
        ("git_lgo", ["git_show", "git_log"], "git_log"),
        ("perPage", ["page", "per_page"], "per_page"),
        ("stauts", ["id", "status"], "status"),
        ("xyz", SHOP, ""),
        ("", SHOP, ""),
        ("a" * 1_000_000, ["a" * 1_000_000], ""),
    ],
)
def test_a_name_with_the_same_verb_is_preferred(name: str, names: list[str], meant: str) -> None:
    assert find_similar(name, names) == meant
    assert did_you_mean(name, names) == (f"Did you mean {meant!r}? " if meant else "")


def test_only_a_close_name_that_was_not_given_is_a_misspelling() -> None:
    assert find_misspelled("max_cuont", ["max_count"], ["max_cuont"]) == "max_count"
    assert find_misspelled("maxCount", ["max_count"], ["maxCount"]) == "max_count"
    assert not find_misspelled("label2", ["label1"], ["label1", "label2"])
    assert not find_misspelled("search", ["query"], ["search"])
    assert not find_misspelled("owner", ["order_number"], ["owner"])
