"""Compares ways to answer questions about long texts with a model that has a small window.

Run `python -m bench run long-context --help`, or `make bench-llm`. The tasks are those of
`long_tasks`; the model is `forgetful:N:reader` (`fake_reader`). The server calls it over HTTP, and
the benchmark is an MCP client of the server. It compares three strategies:

- one call: the question and the whole text in one prompt;
- chunks: a note on each piece that fits into the window, and one call over all notes; the model
  writes no code;
- recursion: the same model drives the command `agent` (`fake_programmer`), whose programs ask it
  about small pieces of CONTEXT. Its time includes the start of a server and of a process.

The benchmark shows what the runtime achieves with such a model in scores, calls, tokens, seconds
and memory, and that it works with 16 million characters. It does not show how good a real model is:
the reader is a lexicon with a window whose errors grow with the text, and the programmer knows how
to solve these tasks. Tokens are characters/4, and the prices are assumptions (`--usd-in`,
`--usd-out`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from statistics import mean
from typing import Any

import anyio
from mcp import Client

from . import fake_llm
from .harness import SERVER_COMMAND, USAGE_META_KEY, start_server
from .long_tasks import TASK_KINDS, Task, TaskKind, make_task
from .results import RESULTS_FOLDER, record_result

DEFAULT_SIZES, QUICK_SIZES = (13, 15, 18, 20, 22, 24), (13, 15, 18)  # powers of 2
# Up to 2^SMALL_SIZE characters, each task has `TEXTS_PER_TASK` texts; above that, it has one.
TEXTS_PER_TASK, SMALL_SIZE = 3, 18
WINDOW_CHARS = 16_384  # the part of a message that the model sees
MIN_SIZE, MAX_SIZE = 11, 24
QUESTION_CHARS = 1_000  # the part of the window for the question
BATCH_PIECES = 256  # pieces in one batch
SANDBOX_FOLDER = "/texts"
RUN_TIMEOUT_S = 3_600.0
DEFAULT_RESULTS = RESULTS_FOLDER / "long-context.json"
TABLE_LAYOUT = "{:<8} {:>10} {:<10} {:>6} {:>7} {:>12} {:>11} {:>9} {:>8} {:>8}"
TABLE_HEADER = (
    "task",
    "characters",
    "strategy",
    "score",
    "calls",
    "tokens in",
    "tokens out",
    "USD",
    "seconds",
    "peak MB",
)

ONE_CALL_CODE = "ask_llm({question!r}, open({path!r}).read())"
CHUNKS_CODE = """\
note = "This is part {{}} of {{}} of a longer text. Note briefly what it has on this question: {{}}"
question = {question!r}
text = open({path!r}).read()
parts = [text[at : at + {size}] for at in range(0, len(text), {size})]
notes = []
for first in range(0, len(parts), {at_once}):
    some = parts[first : first + {at_once}]
    numbers = range(first + 1, first + 1 + len(some))
    for slot in ask_llm_batch(\
[note.format(number, len(parts), question) for number in numbers], some):
        if not slot.ok:
            raise slot.error
        notes.append(slot.value)
ask_llm(f"These are notes on all parts of a longer text. Answer from them: {{question}}",\
 "\\n".join(notes))
"""

session_numbers = count(1)


@dataclass(frozen=True)
class BenchmarkSetup:
    """The parts of the benchmark: clients, model server, and the folder with the texts."""

    client: Client
    settings: Path
    model: fake_llm.ModelServer
    window_chars: int
    texts_folder: Path
    sandbox_folder: str

    @property
    def model_name(self) -> str:
        """The model's name."""
        return f"forgetful:{self.window_chars}:reader"

    def new_session(self) -> str:
        """Return a new session name; within a session, the cache answers repeated questions."""
        return f"way {next(session_numbers)}"


@dataclass(frozen=True)
class ResultLine:
    """One line of the table."""

    task: TaskKind
    characters: int
    strategy: str
    score: float
    calls: int
    tokens_in: int
    tokens_out: int
    usd: float
    seconds: float
    peak_mb: float
    failed: str = ""

    @property
    def table_row(self) -> str:
        """The line as printed text."""
        figures = (
            f"{self.calls:,}",
            f"{self.tokens_in:,}",
            f"{self.tokens_out:,}",
            f"{self.usd:.4f}",
        )
        told = TABLE_LAYOUT.format(
            *(self.task, f"{self.characters:,}", self.strategy, f"{self.score:.2f}", *figures),
            *(f"{self.seconds:.1f}", f"{self.peak_mb:.0f}"),
        )
        return f"{told}  {self.failed}".rstrip()


@dataclass(frozen=True)
class TaskResult:
    """An answer, and the peak memory of the sandbox during the task."""

    answer: Any
    peak_mb: float


Strategy = Callable[[BenchmarkSetup, Task, str], Awaitable[TaskResult]]


async def answer_in_one_call(stage: BenchmarkSetup, task: Task, path: str) -> TaskResult:
    """Send the whole text in one prompt."""
    return await run_to_answer(stage, ONE_CALL_CODE.format(question=task.question, path=path))


async def answer_by_chunks(stage: BenchmarkSetup, task: Task, path: str) -> TaskResult:
    """Take a note on each chunk, then answer from all notes."""
    size = stage.window_chars - QUESTION_CHARS
    return await run_to_answer(
        stage,
        CHUNKS_CODE.format(question=task.question, path=path, size=size, at_once=BATCH_PIECES),
    )


async def answer_by_agent(stage: BenchmarkSetup, task: Task, path: str) -> TaskResult:
    """Let the command `agent` write and run programs; the memory is that of the last one."""
    command = [SERVER_COMMAND, "--config", str(stage.settings), "agent", "--json", "--recursive"]
    text = stage.texts_folder / "text"
    done = await anyio.run_process(
        [*command, "--context", str(text), task.question], check=False, stderr=subprocess.PIPE
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode("utf-8", "replace")[-500:] or done.stdout.decode())
    outcome = json.loads(done.stdout)
    last = await stage.client.call_tool("run_code", {"run": outcome["run"]})
    usage = (last.meta or {}).get(USAGE_META_KEY, {})
    return TaskResult(outcome["value"], usage.get("peak_mb", 0.0))


async def run_to_answer(stage: BenchmarkSetup, code: str) -> TaskResult:
    """Run a program to its end in a new session; raises `RuntimeError` if it fails."""
    result = await run_to_end(stage.client, code, stage.new_session())
    if result["status"] != "ok":
        raise RuntimeError((result.get("error") or {}).get("message") or str(result)[:300])
    return TaskResult(result.get("value"), result["usage"].get("peak_mb", 0.0))


async def run_to_end(client: Client, code: str, session: str) -> dict[str, Any]:
    """Run code to its end without a time limit, and return the result.

    Raises:
        RuntimeError: The tool call failed.
    """
    arguments: dict[str, Any] = {"code": code, "session": session}
    while True:
        answer = await client.call_tool("run_code", arguments)
        result: dict[str, Any] = answer.structured_content or {}
        if answer.is_error or not result:
            raise RuntimeError(f"run_code failed: {answer.content}")
        if result["status"] not in ("queued", "running"):
            return {**result, "usage": (answer.meta or {}).get(USAGE_META_KEY, {})}
        arguments = {"run": result["run"]}


STRATEGIES: dict[str, Strategy] = {
    "one call": answer_in_one_call,
    "chunks": answer_by_chunks,
    "recursion": answer_by_agent,
}


async def run_benchmark(options: argparse.Namespace) -> list[ResultLine]:
    """Return the lines of the table; print each as soon as it is measured."""
    print(TABLE_LAYOUT.format(*TABLE_HEADER))
    lines: list[ResultLine] = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        fake_llm.start_model_server() as model,
    ):
        texts = Path(folder) / "texts"
        texts.mkdir()
        is_local = options.backend == "local"
        sandbox = {
            "pool_size": 0,
            "timeout_s": RUN_TIMEOUT_S,
            **({"backend": "local"} if is_local else {}),
        }
        mounts = {} if is_local else {"mounts": [f"{texts}:{SANDBOX_FOLDER}"]}
        async with start_server(
            Path(folder), server_sections(model, options.window), **sandbox, **mounts
        ) as ours:
            stage = BenchmarkSetup(
                ours.client,
                Path(folder) / "server.toml",
                model,
                options.window,
                texts,
                str(texts) if is_local else SANDBOX_FOLDER,
            )
            # The first request also starts the model process; no strategy pays for that.
            await run_to_answer(stage, "ask_llm('Are you there?')")
            for size in options.sizes:
                for kind in options.tasks:
                    for line in await compare_strategies(stage, kind, size, options):
                        lines.append(line)
                        print(line.table_row, flush=True)
    return lines


async def compare_strategies(
    stage: BenchmarkSetup, kind: TaskKind, size: int, options: argparse.Namespace
) -> list[ResultLine]:
    """Return a line for each strategy: its averages over all texts of a kind and size."""
    found: dict[str, list[ResultLine]] = {name: [] for name in options.strategies}
    for seed in range(options.seed, options.seed + (options.texts if size <= SMALL_SIZE else 1)):
        task = await anyio.to_thread.run_sync(make_task, kind, 2**size, seed)
        await anyio.Path(stage.texts_folder / "text").write_text(task.text, encoding="utf-8")
        for name, lines in found.items():
            lines.append(await measure_task(stage, task, name, options.usd_in, options.usd_out))
    return [average_lines(lines) for lines in found.values()]


def average_lines(lines: Sequence[ResultLine]) -> ResultLine:
    """Return one line with the means, the highest peak memory and the first failure."""
    return replace(
        lines[0],
        score=mean(line.score for line in lines),
        calls=round(mean(line.calls for line in lines)),
        tokens_in=round(mean(line.tokens_in for line in lines)),
        tokens_out=round(mean(line.tokens_out for line in lines)),
        usd=mean(line.usd for line in lines),
        seconds=mean(line.seconds for line in lines),
        peak_mb=max(line.peak_mb for line in lines),
        failed=next((line.failed for line in lines if line.failed), ""),
    )


def server_sections(model: fake_llm.ModelServer, window: int) -> dict[str, Any]:
    """Return settings whose limits the benchmark does not reach."""
    llm = {
        "model": f"forgetful:{window}:reader",
        "api_base": model.url,
        "api_key": fake_llm.API_KEY,
        "timeout_s": 300.0,
    }
    budgets = {level: {"calls": 10_000_000} for level in ("run", "session", "principal")}
    limits = {
        "wait_s": 250.0,
        "result_chars": 5_000_000,
        "result_items": 1_000_000,
        "max_sessions": 2,
    }
    return {"server": {"data_dir": "data", **limits}, "llm": {**llm, **budgets}}


async def measure_task(
    stage: BenchmarkSetup, task: Task, name: str, usd_in: float, usd_out: float
) -> ResultLine:
    """Do a task with one strategy and return its line; a failure has the score 0."""
    stage.model.set_script()
    began, failed, done = time.perf_counter(), "", TaskResult("", 0.0)
    try:
        done = await STRATEGIES[name](stage, task, f"{stage.sandbox_folder}/text")
    except RuntimeError as exc:
        failed = " ".join(str(exc).split())[:200]
    seconds, counts = time.perf_counter() - began, stage.model.read_counts()
    tokens_in, tokens_out = counts.get("tokens in", 0), counts.get("tokens out", 0)
    usd = (tokens_in * usd_in + tokens_out * usd_out) / 1e6
    score = 0.0 if failed else task.score(done.answer)
    calls = counts.get("calls", 0)
    return ResultLine(
        *(
            task.kind,
            len(task.text),
            name,
            score,
            calls,
            tokens_in,
            tokens_out,
            usd,
            seconds,
            done.peak_mb,
            failed,
        )
    )


def summarize_scores(
    lines: Sequence[ResultLine], sizes: Iterable[int], strategies: Sequence[str]
) -> Iterable[str]:
    """Yield mean scores by size, over all tasks."""
    yield f"{'mean score':<12}" + "".join(f"{name:>12}" for name in strategies)
    for size in sizes:
        here = [line for line in lines if 2 ** (size - 1) < line.characters <= 2**size]
        means = [mean(line.score for line in here if line.strategy == name) for name in strategies]
        yield f"{f'2^{size}':<12}" + "".join(f"{score:12.2f}" for score in means)


def parse_size(text: str) -> int:
    """Return the exponent of a size from the command line."""
    if not text.isdecimal() or not MIN_SIZE <= int(text) <= MAX_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r} is no power of 2 from {MIN_SIZE} to {MAX_SIZE}")
    return int(text)


def parse_window(text: str) -> int:
    """Return a window size from the command line.

    The window must hold a question and as many characters of text.
    """
    if not text.isdecimal() or int(text) < 2 * QUESTION_CHARS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of characters from {2 * QUESTION_CHARS:,} on"
        )
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument(
        "--sizes",
        type=parse_size,
        nargs="+",
        metavar="N",
        help=f"texts of 2^N characters; default {DEFAULT_SIZES}",
    )
    top.add_argument("--quick", action="store_true", help=f"sizes {QUICK_SIZES}")
    top.add_argument("--tasks", nargs="+", choices=TASK_KINDS, default=TASK_KINDS)
    top.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    top.add_argument(
        "--texts",
        type=int,
        default=TEXTS_PER_TASK,
        metavar="N",
        help=f"for each task, up to 2^{SMALL_SIZE} characters",
    )
    top.add_argument("--seed", type=int, default=0)
    top.add_argument(
        "--window",
        type=parse_window,
        default=WINDOW_CHARS,
        help="characters that the model sees of a message",
    )
    top.add_argument(
        "--usd-in", type=float, default=0.5, help="assumed price of a million tokens in"
    )
    top.add_argument("--usd-out", type=float, default=2.0, help="and of as many out")
    top.add_argument("--backend", choices=("docker", "local"), default="docker")
    top.add_argument(
        "--json", type=Path, default=DEFAULT_RESULTS, metavar="FILE", help="where the figures go"
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a task failed."""
    options = build_parser().parse_args(arguments)
    options.sizes = options.sizes or (QUICK_SIZES if options.quick else DEFAULT_SIZES)
    with record_result("long-context", options.json, seed=options.seed) as recorder:
        lines = anyio.run(run_benchmark, options)
        for line in lines:
            name = f"{line.task}/{line.characters}/{line.strategy}"
            recorder.add(name, "score", [line.score], "higher")
        recorder.details["lines"] = [asdict(line) for line in lines]
    print(
        f"\ncost at an assumed {options.usd_in:g} USD in and {options.usd_out:g} USD out "
        "a million tokens; scores are"
    )
    print("the relative error of counts, taken from 1, and F1 of everything else\n")
    print("\n".join(summarize_scores(lines, options.sizes, options.strategies)))
    return 1 if any(line.failed for line in lines) else 0
