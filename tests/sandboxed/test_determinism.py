"""Randomness and time, each case in a process of its own because it changes the process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

START = """
import json, sys
from mcpruntime_server.sandboxed.kernel import determinism
randomness, clocks = determinism.install_determinism()
randomness.reseed({seed!r})
"""


def observed(code: str, seed: str = "seed") -> Any:
    """Run `code`, which assigns to `answer`, in a new process; return the answer."""
    program = f"{START.format(seed=seed)}{code}\nprint(json.dumps(answer))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


DRAWS = {
    "os.urandom": "import os\nanswer = os.urandom(8).hex()",
    "os.getrandom": "import os\nanswer = os.getrandom(8).hex()",
    "random": "import random\nanswer = [random.random(), random.sample(range(99), 5)]",
    "random.Random": "import random\nanswer = random.Random().random()",
    "random.SystemRandom": "import random\nanswer = random.SystemRandom().random()",
    "random.seed()": "import random\nrandom.seed(5)\nrandom.seed()\nanswer = random.random()",
    "secrets": "import secrets\nanswer = [secrets.token_hex(4), secrets.randbelow(10**9)]",
    "uuid4": "import uuid\nanswer = str(uuid.uuid4())",
    "numpy": "import numpy\nanswer = numpy.random.default_rng().random()",
    "tempfile": "import tempfile\nanswer = next(tempfile._get_candidate_names())",
}


@pytest.mark.parametrize("name", DRAWS)
def test_randomness_depends_on_the_seed(name: str) -> None:
    one, same, other = (observed(DRAWS[name], seed) for seed in ("one", "one", "other"))
    assert one == same
    assert one != other


def test_a_seed_in_user_code_works_as_usual() -> None:
    import random

    assert (
        observed("import random\nrandom.seed(7)\nanswer = random.random()")
        == random.Random(7).random()
    )


def test_draws_do_not_repeat() -> None:
    code = "import os\nanswer = len({os.urandom(8) for _ in range(10_000)})"
    assert observed(code) == 10_000


def test_unusual_sizes_work_as_usual() -> None:
    code = (
        "import os\ntry: os.urandom(-1)\n"
        "except ValueError: answer = [len(os.urandom(0)), len(os.urandom(10**6))]"
    )
    assert observed(code) == [0, 10**6]


READS = {
    "time.time": ("time", "import time\nseen = time.time()"),
    "time.monotonic": ("monotonic", "import time\nseen = time.monotonic()"),
    "time.perf_counter": ("perf_counter", "import time\nseen = time.perf_counter()"),
    "time.time_ns": ("time_ns", "import time\nseen = time.time_ns()"),
    "from time import time": ("time", "from time import time\nseen = time()"),
    "datetime.now": ("time", "import datetime\nseen = datetime.datetime.now().timestamp()"),
    "datetime.now with zone": (
        "time",
        "import datetime as d\nseen = d.datetime.now(d.timezone.utc).timestamp()",
    ),
    "datetime subclass": (
        "time",
        "import datetime\nclass D(datetime.datetime): pass\nseen = D.now().timestamp()",
    ),
}


@pytest.mark.parametrize("name", READS)
def test_readings_of_a_clock_are_recorded(name: str) -> None:
    clock, code = READS[name]
    readings, seen = observed(f"{code}\nanswer = [clocks.take_readings(), seen]")
    assert list(readings) == [clock]
    assert readings[clock] == [pytest.approx(seen, abs=1e-5)]


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.localtime()",
        "import time; time.gmtime()",
        "import time; time.ctime()",
        "import time; time.strftime('%Y')",
        "import datetime; datetime.date.today()",
        "import datetime; datetime.datetime.today()",
    ],
)
def test_calendar_functions_read_the_recorded_clock(code: str) -> None:
    assert list(observed(f"{code}\nanswer = clocks.take_readings()")) == ["time"]


@pytest.mark.parametrize(
    "code",
    ["import time; time.localtime(0)", "import time; time.ctime(0)", "import time; time.gmtime(0)"],
)
def test_a_conversion_does_not_read_a_clock(code: str) -> None:
    assert observed(f"{code}\nanswer = clocks.take_readings()") == {}


def test_what_only_waits_is_not_recorded() -> None:
    code = (
        "import threading, queue, asyncio\nclocks.take_readings()\n"
        "event = threading.Event(); event.wait(0.01)\n"
    )
    code += (
        "try: queue.Queue().get(timeout=0.01)\nexcept queue.Empty: pass\n"
        "asyncio.run(asyncio.sleep(0.01))\n"
    )
    assert observed(f"{code}answer = clocks.take_readings()") == {}


def test_types_of_datetime_stay_the_same_objects() -> None:
    code = "import datetime, time, pickle\nnow = datetime.datetime.now()\n"
    code += "answer = [type(now) is datetime.datetime, pickle.loads(pickle.dumps(now)) == now, "
    code += (
        "isinstance(datetime.date.today(), datetime.date), time.time.__name__, now.tzinfo is None]"
    )
    assert observed(code) == [True, True, True, "time", True]


def test_a_loop_that_reads_a_clock_is_recorded_up_to_a_limit() -> None:
    code = (
        "import time\nfor _ in range(30_000): time.time()\n"
        "first = len(clocks.take_readings()['time'])\ntime.time()\n"
    )
    code += "rest = clocks.take_readings()\nclocks.start_run()\ntime.time()\n"
    assert observed(f"{code}answer = [first, rest, len(clocks.take_readings()['time'])]") == [
        10_000,
        {},
        1,
    ]


def test_an_import_that_fails_raises_the_usual_error() -> None:
    code = "try: import no_such_module_at_all\nexcept ModuleNotFoundError as exc: answer = exc.name"
    assert observed(code) == "no_such_module_at_all"


def test_recorded_readings_are_replayed_in_order_and_recorded_again() -> None:
    code = "import time\nclocks.start_run({'time': [1.5, 2.5], 'perf_counter_ns': [7]})\n"
    code += (
        "seen = [time.time(), time.perf_counter_ns(), time.time()]\nlater = time.time()\n"
        "read = clocks.take_readings()\n"
    )
    seen, read, later = observed(f"{code}answer = [seen, read, later]")
    assert seen == [1.5, 7, 2.5]
    assert read == {"time": [1.5, 2.5, later], "perf_counter_ns": [7]}
    assert later > 1e9


@pytest.mark.parametrize("clock", ["monotonic", "perf_counter", "process_time", "thread_time"])
@pytest.mark.parametrize("after", ["", "_ns"])
def test_a_monotonic_clock_continues_from_replayed_readings(clock: str, after: str) -> None:
    code = (
        f"import time\nclocks.start_run({{'{clock}': [1e8]}})\ntime.{clock}()\nclocks.start_run()\n"
    )
    one, two = observed(f"{code}answer = [time.{clock}{after}(), time.{clock}{after}()]")
    unit = 1e9 if after else 1
    assert 1e8 * unit <= one <= two < 1.001e8 * unit


def test_replayed_readings_of_the_past_turn_no_monotonic_clock_back() -> None:
    code = (
        "import time\nfirst = time.monotonic()\nclocks.start_run({'monotonic': [1.0]})\n"
        "time.monotonic()\n"
    )
    assert observed(f"{code}answer = time.monotonic() >= first") is True


def test_what_is_not_a_recording_is_ignored() -> None:
    assert (
        observed(
            "import time\nclocks.start_run({'time': 'x', 'no clock': [1]})\n"
            "answer = time.time() > 1e9"
        )
        is True
    )
