"""The scripts whose names are known from earlier do what their commands do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_script(name: str, *options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *options],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_pool_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "pool.json"
    done = run_script("benchmark_pooling.py", "--quick", "--json", str(file), cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr  # a busy machine may be far over a bound
    result = json.loads(file.read_text())
    assert result["failures"] == {}
    [row] = result["details"]["rows"].values()
    assert row["title"] in done.stdout
    assert row["ours"]["n"] > 0


def test_an_installation_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("[server]\ndata_dir = 'data'\n[sandbox]\nbackend = 'docker'\n")
    done = run_script("verify_setup.py", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "doctor" in done.stdout
    done = run_script("verify_setup.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "image" in done.stdout
