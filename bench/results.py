"""What a suite has measured: the one format of all result files.

Rule: every figure in a report comes from a `SuiteResult`, and it says where it was measured.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).parents[1]
RESULTS_FOLDER = Path(__file__).with_name("results")
SHOWN_DIGITS = 12
RECORDED_PACKAGES = ("mcpruntime-server", "mcp", "litellm", "docker", "pydantic")

Better = Literal["lower", "higher"]


class Environment(BaseModel):
    """Where and with what a suite ran."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: str  # the tree of `src`, as `git rev-parse COMMIT:src` has it for a commit
    harness: str  # that of `bench`
    system: str
    processor: str
    processors: int
    memory_gb: float
    load_before: float
    load_after: float
    python: str
    packages: dict[str, str]


class Measurement(BaseModel):
    """Samples of one quantity; two results are compared by `name`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    unit: str
    samples: list[float]
    better: Better = "lower"
    labels: dict[str, str] = Field(default_factory=dict)


class SuiteResult(BaseModel):
    """One run of a suite. `details` is the suite's own data, which its report shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    suite: str
    mode: str = ""
    model: str = ""
    server: str = ""
    seed: int = 0
    is_quick: bool = False
    started: str
    took_s: float
    environment: Environment
    measurements: list[Measurement]
    details: dict[str, Any] = Field(default_factory=dict)
    failures: dict[str, str] = Field(default_factory=dict)

    def write(self, file: Path) -> None:
        """Write the result as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_result(file: Path) -> SuiteResult:
    """Return the result in a file; raises `ValueError` if the file has none."""
    return SuiteResult.model_validate_json(file.read_text(encoding="utf-8"))


class ResultRecorder:
    """Collects what a suite measures, and makes it a result."""

    def __init__(self, suite: str, **facts: Any) -> None:
        self.measurements: list[Measurement] = []
        self.details: dict[str, Any] = {}
        self.failures: dict[str, str] = {}
        self._facts: Mapping[str, Any] = {"suite": suite, **facts}
        self._began = time.monotonic()
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._load_before = os.getloadavg()[0]
        self.sources, self._harness = hash_tree("src"), hash_tree("bench")

    def add(
        self,
        name: str,
        unit: str,
        samples: list[float],
        better: Better = "lower",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Add the samples of one quantity."""
        rounded = [round(each, 6) for each in samples]
        self.measurements.append(
            Measurement(
                name=name, unit=unit, samples=rounded, better=better, labels=dict(labels or {})
            )
        )

    def result(self) -> SuiteResult:
        """Return everything so far as a result."""
        return SuiteResult(
            **self._facts,
            started=self._started,
            took_s=round(time.monotonic() - self._began, 1),
            environment=describe_environment(self._load_before, self.sources, self._harness),
            measurements=self.measurements,
            details=self.details,
            failures=self.failures,
        )


@contextmanager
def record_result(suite: str, file: Path, **facts: Any) -> Iterator[ResultRecorder]:
    """Yield a recorder, and write its result to `file` at the end."""
    recorder = ResultRecorder(suite, **facts)
    yield recorder
    recorder.result().write(file)


def describe_environment(load_before: float, sources: str, harness: str) -> Environment:
    """Return the facts about this machine, and the trees that a suite began with."""
    return Environment(
        sources=sources,
        harness=harness,
        system=platform.platform(),
        processor=_read_processor_name(),
        processors=os.cpu_count() or 0,
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        load_before=round(load_before, 2),
        load_after=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        packages=_list_versions(),
    )


def hash_tree(folder: str) -> str:
    """Return the id of the Git tree of a folder as it is on disk, committed or not.

    Unlike a commit, a tree keeps its id when the history is rebased. Empty outside a checkout.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        index = {"GIT_INDEX_FILE": str(Path(temporary) / "index")}
        _run_git("add", "--all", "--", folder, variables=index)
        return _run_git("write-tree", f"--prefix={folder}/", variables=index)[:SHOWN_DIGITS]


def _run_git(*arguments: str, variables: Mapping[str, str]) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def _read_processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _list_versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
