"""The benchmark measures real servers. Its figures depend on the machine and are not checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.perf import main
from tests.helpers.commands import find_complaints

ROOT = Path(__file__).parents[2]


def test_rows_are_measured_printed_and_written_as_json(tmp_path: Path) -> None:
    file = tmp_path / "new" / "perf.json"
    rows = [each for name in ("warm_run", "cold_session", "tool_list") for each in ("--only", name)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "perf", "--quick", "--json", str(file), *rows],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode in (0, 1)  # a busy machine may be far over a bound
    assert find_complaints(done.stderr) == []
    assert "left behind" not in done.stdout
    report = json.loads(file.read_text())
    assert list(report["details"]["rows"]) == ["warm", "cold", "tools-list"]
    for row in report["details"]["rows"].values():
        assert row["title"] in done.stdout
        assert row["ours"]["p50"] > 0
    warm = report["details"]["rows"]["warm"]
    assert warm["figure"] == pytest.approx(warm["ours"]["p50"] / warm["baseline"]["p50"], rel=0.01)
    assert warm["met"] is (warm["figure"] <= warm["bound"])
    assert report["is_quick"] is True
    assert report["failures"] == {}


def test_a_row_that_is_not_there_is_told_with_those_that_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--only", "nonsense"]) == 2
    assert "warm_run" in capsys.readouterr().err
