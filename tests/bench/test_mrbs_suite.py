"""The suite runs over real servers and sandboxes, and what cheats there does not pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest

from bench.fake_llm import API_KEY, start_model_server
from bench.mrbs import CATEGORIES, TASKS, make_world
from bench.mrbs.stage import Stage, open_stage
from bench.mrbs.suite import TaskRunner, main
from bench.mrbs.task import fill_in
from bench.mrbs.world import write_state
from tests.helpers.sizes import ONLY_LONG, choose_cases, choose_size

ROOT = Path(__file__).parents[2]
MRBS = (sys.executable, "-m", "bench", "run", "mrbs")
ECHO_CATEGORIES = list(CATEGORIES)[: choose_size("ECHO_CATEGORIES", short=1, long=11)]
REPEATERS = [  # mode, the model's rule, and its turns; the last one repeats the result of a call
    ("function-calling", "echo", 1),
    ("llm", "parrot", 1),
    ("function-calling", "tool", 2),
][choose_size("ECHO_RULES", short=-1, long=0) :]
TASKS_BY_NAME = {task.name: task for task in TASKS}


def run_suite(file: Path, *options: str) -> dict[str, Any]:
    command = [*MRBS, "--json", str(file), *options]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with open_stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@ONLY_LONG  # a minute of a processor; the next tests have a model with programs and with functions
def test_a_model_does_a_task_with_programs_recursion_and_function_calls(tmp_path: Path) -> None:
    outcomes = {}
    for mode in ("llm", "recursive", "function-calling"):
        result = run_suite(tmp_path / f"{mode}.json", "--mode", mode, "--only", "calculator/growth")
        [outcomes[mode]] = result["details"]["tasks"]
        assert result["environment"]["sources"]
    assert {each["calls"] for each in outcomes.values()} == {14}
    used = {mode: outcome["usage"] for mode, outcome in outcomes.items()}
    assert {mode: (each["turns"], each["requests_of_programs"]) for mode, each in used.items()} == {
        "llm": (3, 0),
        "recursive": (1, 3),  # it chooses functions with ask_llm, and a sub-agent asks twice
        "function-calling": (15, 0),
    }
    before = {mode: outcome["requests_before_call"] for mode, outcome in outcomes.items()}
    assert before == {"llm": 3, "recursive": 4, "function-calling": 1}
    tokens = {mode: each["tokens_in"] for mode, each in used.items()}
    assert tokens["function-calling"] > tokens["recursive"] > tokens["llm"] > 0
    assert outcomes["function-calling"]["result_chars"] > 14


def test_recursion_needs_a_server_whose_model_is_known() -> None:
    assert main(["--mode", "recursive", "--server", "http://127.0.0.1:1/mcp"]) == 2


@pytest.mark.parametrize(("mode", "rule", "turns"), choose_cases(REPEATERS))
def test_a_model_that_repeats_what_it_saw_does_no_task(
    tmp_path: Path, mode: str, rule: str, turns: int
) -> None:
    command = [sys.executable, "-m", "bench.fake_llm"]
    file = tmp_path / "echo.json"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as model:
        try:
            assert model.stdout is not None
            url = json.loads(model.stdout.readline())["url"]
            options = ("--model", f"openai/{rule}", "--api-base", url, "--api-key-variable", "KEY")
            more = ("--categories", *ECHO_CATEGORIES, "--attempts", "1")
            done = subprocess.run(
                [*MRBS, "--mode", mode, *options, *more, "--json", str(file)],
                cwd=ROOT,
                env={**os.environ, "KEY": API_KEY},
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
        finally:
            model.terminate()
    assert done.returncode == 1, done.stdout + done.stderr
    tasks = json.loads(file.read_text())["details"]["tasks"]
    assert len(tasks) == 6 * len(ECHO_CATEGORIES)
    for task in tasks:
        assert not task["is_right"]
        assert task["usage"]["turns"] == turns, "the model answered"


@contextmanager
def record_requests(url: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run a proxy before a model; yield its address and the requests that it has seen."""
    seen: list[dict[str, Any]] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            seen.append(json.loads(body))
            headers = {"content-type": "application/json", "authorization": f"Bearer {API_KEY}"}
            answer = httpx2.post(f"{url}/chat/completions", content=body, headers=headers)
            self.send_response(answer.status_code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", seen
        finally:
            server.shutdown()
            thread.join()


def test_a_retry_shows_the_error_and_never_the_answer(tmp_path: Path) -> None:
    task = TASKS_BY_NAME["calculator/growth"]
    world = make_world(task, 0)
    answer = task.expect(world.copy())
    programs = ["1 / 0", "raise ValueError('not like this')", "# answer\n12345"]
    replies = [{"reply": f"```python\n{program}\n```"} for program in programs]
    with start_model_server() as model, record_requests(model.url) as (url, seen):
        model.set_script(*replies)
        command = [*MRBS, "--mode", "llm", "--model", "openai/echo", "--only", task.name]
        command += ["--api-base", url, "--json", str(tmp_path / "retry.json")]
        done = subprocess.run(
            [*command, "--api-key-variable", "BENCH_KEY"],
            cwd=ROOT,
            env={**os.environ, "BENCH_KEY": API_KEY},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 1, done.stdout + done.stderr
    first, second, third = (request["messages"] for request in seen)
    assert "ZeroDivisionError" in second[-1]["content"]
    assert "not like this" in third[-1]["content"]
    assert first[1]["content"] == fill_in(task.prompt, world)
    assert [each["role"] for each in third] == ["system", *["user", "assistant"] * 2, "user"]
    for text in (json.dumps(request) for request in seen):
        assert str(int(answer)) not in text
        assert "WRONG" not in text
        assert "expected" not in text


async def test_no_end_state_can_be_written_without_the_tools(stage: Stage, tmp_path: Path) -> None:
    for task in TASKS:
        if "state" not in task.covers:
            continue
        world = make_world(task, 0)
        expected = world.copy()
        value = task.expect(expected)
        write_state(tmp_path / "state", expected.whole_state())
        files = {
            str(path.relative_to(tmp_path / "state")): path.read_bytes().hex()
            for path in (tmp_path / "state").rglob("*")
            if path.is_file()
        }
        stage.prepare(world)
        program = f"""
import os
for folder in (".", "/workspace", "/tmp/state", {str(stage.state_folder)!r}):
    for name, content in {files!r}.items():
        try:
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, "wb").write(bytes.fromhex(content))
        except OSError:
            pass
{value!r}
"""
        answer = await stage.server.run_program(program, "writes files")
        assert answer.is_ok, answer.text
        judgement = stage.judge(task, world, answer.value)
        assert judgement.problems, task.name
        assert all("end state" in each for each in judgement.problems), judgement.problems


async def test_a_program_can_read_neither_checkers_nor_states(stage: Stage) -> None:
    program = f"""
import importlib, os
found = [path for path in ({str(stage.state_folder)!r}, {str(ROOT / "bench")!r})
         if os.path.exists(path)]
for name in ("bench", "bench.mrbs", "bench.servers.base"):
    try:
        importlib.import_module(name)
        found.append(name)
    except ImportError:
        pass
found += [name for name in os.environ if name.startswith("BENCH_")]
found
"""
    answer = await stage.server.run_program(program, "looks around")
    assert (answer.is_ok, answer.value) == (True, [])


async def test_equal_seeds_give_equal_results(stage: Stage) -> None:
    task = TASKS_BY_NAME["chained/cold-report"]
    outcomes = []
    for _ in range(2):
        outcome = await TaskRunner("baseline", 3, 1, 0, stage).run(task)
        outcomes.append({**outcome.as_json(), "seconds": 0, "calls_made": stage.list_calls()})
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["is_right"]


async def test_an_answer_that_is_right_for_one_seed_is_wrong_for_another(stage: Stage) -> None:
    task = TASKS_BY_NAME["calculator/sum"]
    one, other = make_world(task, 0), make_world(task, 1)
    stage.prepare(other)
    answer = await stage.server.run_program(repr(task.expect(one.copy())), "hard-coded")
    assert not stage.judge(task, other, answer.value).is_right
    answer = await stage.server.run_program(fill_in(task.reference, other), "done")
    assert stage.judge(task, other, answer.value).is_right
