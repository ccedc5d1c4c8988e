#!/bin/bash
set -e
python3 - <<'END'
import csv, json
from collections import defaultdict
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

CENT = Decimal("0.01")
RATES = {"A": Decimal("0.19"), "B": Decimal("0.07"), "Z": Decimal(0)}
sums = defaultdict(lambda: defaultdict(Decimal))
with open("/root/data/lines.csv") as file:
    for row in csv.DictReader(file):
        net = Decimal(row["quantity"]) * Decimal(row["unit_price"])
        sums[row["invoice"]][row["code"]] += net.quantize(CENT, ROUND_HALF_EVEN)
totals = {}
for invoice, codes in sums.items():
    net = sum(codes.values())
    vat = sum((RATES[code] * part).quantize(CENT, ROUND_HALF_UP) for code, part in codes.items())
    totals[invoice] = {"net": f"{net:.2f}", "vat": f"{vat:.2f}", "gross": f"{net + vat:.2f}"}
with open("/root/totals.json", "w") as file:
    json.dump(totals, file)
END
