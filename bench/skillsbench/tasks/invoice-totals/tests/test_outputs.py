"""The totals are those of the handbook, computed here in whole thousandths."""

import csv
import json
from fractions import Fraction
from pathlib import Path

LINES = Path("/root/data/lines.csv")
TOTALS = Path("/root/totals.json")
PERCENT = {"A": 19, "B": 7, "Z": 0}


def expected_cents():
    """Return net and VAT of each invoice in cents."""
    parts = {}
    for row in csv.DictReader(LINES.read_text().splitlines()):
        exact = Fraction(row["quantity"]) * Fraction(row["unit_price"]) * 100
        codes = parts.setdefault(row["invoice"], {})
        codes[row["code"]] = codes.get(row["code"], 0) + round(exact)  # to even
    return {
        invoice: (sum(codes.values()), sum(half_away(PERCENT[c] * n) for c, n in codes.items()))
        for invoice, codes in parts.items()
    }


def half_away(hundredths):
    """Return hundredths of a cent as cents."""
    return (abs(hundredths) + 50) // 100 * (1 if hundredths >= 0 else -1)


def test_each_invoice_has_its_totals():
    totals = json.loads(TOTALS.read_text())
    expected = expected_cents()
    assert set(totals) == set(expected)
    for invoice, (net, vat) in expected.items():
        wanted = {"net": net, "vat": vat, "gross": net + vat}
        found = {key: totals[invoice][key] for key in wanted}
        assert found == {key: f"{cents / 100:.2f}" for key, cents in wanted.items()}, invoice


def test_the_lines_are_as_they_were():
    text = LINES.read_text()
    assert len(text.splitlines()) == 61
    assert sum(map(ord, text)) == 63607
