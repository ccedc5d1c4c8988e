"""The load is applied to real servers. Its figures depend on the machine and are not checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.commands import find_complaints
from tests.helpers.sizes import ONLY_LONG

ROOT = Path(__file__).parents[2]


@ONLY_LONG  # twenty seconds of two processors; test_perf.py measures servers in the same way
def test_a_little_load_is_measured_without_an_error(tmp_path: Path) -> None:
    file = tmp_path / "load.json"
    options = ("--quick", "--clients", "2", "--duration", "3", "--json", str(file))
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "load", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, find_complaints(done.stderr)) == (0, [])
    report = json.loads(file.read_text())
    assert report["failures"] == {}
    rows = report["details"]["rows"]
    assert rows["load"]["ours"]["n"] == rows["load"]["baseline"]["n"] > 20
    assert rows["load-errors"]["figure"] == rows["readers-missed"]["figure"] == 0
    for row in rows.values():
        assert row["title"] in done.stdout
