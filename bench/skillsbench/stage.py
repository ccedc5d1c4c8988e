"""Where tasks are done: a sandbox in which `/root` is the workspace, and a folder to pass files.

The folder is mounted read-only at `/task`. While an agent works, it has nothing of the task;
afterwards the agent's files are read from the server, and the task's tests see them in a session of
their own, so that nothing that an agent leaves running or installed takes part in the judgement.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import files as files_of_package
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
from docker import APIClient
from docker.utils import kwargs_from_env
from mcp.types import TextResourceContents

from ..code_server import CodeServer, ProgramAnswer, open_code_server
from ..engine import API_VERSION
from ..harness import SERVER_COMMAND, SETTINGS_FILE
from .dockerfile import TaskEnvironment
from .task import SkillsTask

IMAGE = "mcpruntime-bench"
DOCKERFILE = """\
FROM {base}
USER 0
RUN rm -rf /root /tests /solution /logs && ln -s /workspace /root && ln -s /task/tests /tests \
    && ln -s /task/solution /solution && ln -s /tmp/logs /logs
"""
PASSED_FOLDERS = ("root", "setup", "solution", "tests")
STEP_TIMEOUT_S = 120
NO_ENVIRONMENT = TaskEnvironment()
VERIFIER_PACKAGES = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")
LIMITS = {"data_dir": "data", "max_sessions": 4, "result_chars": 100_000}
# PIP_NO_INDEX: pip says at once that it has no network, instead of after a minute.
PREPARE = f"""
def _prepare():
    import json, os, shutil, subprocess
    shutil.copytree("/task/root", "/root", dirs_exist_ok=True)
    os.makedirs("/tmp/logs/verifier", exist_ok=True)
    with open("/task/setup/setup.json") as file:
        setup = json.load(file)
    os.environ.update(setup["variables"])
    problems = []
    for step in setup["steps"]:
        variables = {{**os.environ, "HOME": "/root", "PIP_NO_INDEX": "1", **step["variables"]}}
        try:
            os.makedirs(step["folder"], exist_ok=True)
            done = subprocess.run(step["command"], cwd=step["folder"], env=variables, text=True,
                                  capture_output=True, stdin=subprocess.DEVNULL,
                                  timeout={STEP_TIMEOUT_S})
        except (OSError, subprocess.SubprocessError) as exc:
            problems.append([step["text"], str(exc)])
            continue
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            problems.append([step["text"], f"exit code {{done.returncode}}, {{said[-1]}}"])
    return problems
_problems = _prepare()
del _prepare
_problems
"""
SOLVE = """
import os, subprocess
done = subprocess.run(["bash", "/solution/solve.sh"], cwd="/root", capture_output=True, text=True,
                      env={**os.environ, "HOME": "/root"})
[done.returncode, (done.stdout + done.stderr)[-2000:]]
"""
VERIFY = """
import subprocess
done = subprocess.run(
    ["python3", "-P", "-s", "-m", "pytest", "/tests/test_outputs.py", "-q", "--tb=short",
     "-p", "no:cacheprovider", "--rootdir=/tests", "-c", "/dev/null"],
    cwd="/root", capture_output=True, text=True,
    env={**VARIABLES, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp",
         "PYTHONPATH": "/task/verifier", "PYTHONDONTWRITEBYTECODE": "1"})
[done.returncode, (done.stdout + done.stderr)[-2000:]]
"""


@dataclass(frozen=True)
class Verdict:
    """What the tests of a task say."""

    has_passed: bool
    output: str


class SkillsStage:
    """The measured server, and the folder that its sandboxes see at `/task`."""

    def __init__(self, server: CodeServer, folder: Path, settings: Path) -> None:
        self.server = server
        self._folder = folder
        self._settings = settings

    async def prepare(
        self,
        session: str,
        files: Mapping[str, bytes],
        environment: TaskEnvironment = NO_ENVIRONMENT,
    ) -> list[str]:
        """Start a session that has these files below `/root`, and run the steps of an environment.

        Return the steps that could not be followed, with the reason of each. The session keeps the
        variables of the environment.
        """
        setup = {
            "variables": environment.variables,
            "steps": [asdict(step) for step in environment.steps],
        }
        write_files(self._folder / "root", files)
        write_files(self._folder / "setup", {"setup.json": json.dumps(setup).encode()})
        answer = await self.server.run_program(PREPARE, session)
        self._clear()
        if not answer.is_ok:
            raise RuntimeError(f"The files were not copied: {answer.text[:500]}")
        problems = json.loads(answer.value) if isinstance(answer.value, str) else answer.value
        return [f"{step}: {reason}" for step, reason in problems]

    async def solve(self, task: SkillsTask, session: str) -> str:
        """Run the reference solution; return what was wrong with it."""
        shutil.copytree(task.folder / "solution", self._folder / "solution")
        make_readable(self._folder / "solution")
        answer = await self.server.run_program(SOLVE, session)
        self._clear()
        code, output = read_pair(answer)
        return "" if code == 0 else f"solve.sh ended with {code}: {output}"

    async def verify(self, task: SkillsTask, session: str, files: Mapping[str, bytes]) -> Verdict:
        """Run the tests of a task on the files that an agent left, in a new session."""
        await self.prepare(session, files)
        shutil.copytree(task.folder / "tests", self._folder / "tests")
        make_readable(self._folder / "tests")
        variables = f"VARIABLES = {dict(task.environment.variables)!r}\n"
        answer = await self.server.run_program(variables + VERIFY, session)
        self._clear()
        code, output = read_pair(answer)
        return Verdict(code == 0, output)

    async def read_files(self, session: str) -> dict[str, bytes]:
        """Return the workspace files of a session as the server has them."""
        command = [SERVER_COMMAND, "--config", str(self._settings), "files", session, "--json"]
        listed = await anyio.run_process(command)
        files: dict[str, bytes] = {}
        for path in (str(each["path"]) for each in json.loads(listed.stdout)):
            uri = f"workspace://{quote(session)}/{quote(path)}"
            [content] = (await self.server.client.read_resource(uri)).contents
            files[path] = (
                content.text.encode()
                if isinstance(content, TextResourceContents)
                else base64.b64decode(content.blob)
            )
        return files

    def _clear(self) -> None:
        for name in PASSED_FOLDERS:
            shutil.rmtree(self._folder / name, ignore_errors=True)


def read_pair(answer: ProgramAnswer) -> tuple[Any, str]:
    """Return the exit code and the output that a program returned; -1 if it failed itself."""
    value = json.loads(answer.value) if isinstance(answer.value, str) else answer.value
    return (value[0], value[1]) if answer.is_ok else (-1, answer.text[-2000:])


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder, readable by all."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f"A file of a task leads outside: {name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    make_readable(folder)


def make_readable(folder: Path) -> None:
    """Let everybody read a folder and run its scripts: the user of a sandbox is another one."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)


def write_verifier(folder: Path) -> None:
    """Copy pytest and what it needs from this environment: there is no network to install it.

    Bytecode goes with it, and counts because a file keeps its time: a sandbox cannot write any.
    """
    for package in VERIFIER_PACKAGES:
        for file in files_of_package(package) or ():
            if file.suffix == ".py" and ".." not in file.parts:
                source, target = Path(str(file.locate())), folder / file
                compiled = Path(cache_from_source(str(target)))
                compiled.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
                with suppress(FileNotFoundError):  # it has not been imported here
                    shutil.copy2(cache_from_source(str(source)), compiled)


def build_image() -> str:
    """Build the image with `/root` from the sandbox image of our server; return its name."""
    command = [SERVER_COMMAND, "image", "build"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.findall(r"mcpruntime-sandbox:\w+", done.stdout + done.stderr)
    if not found:
        raise RuntimeError(f"`image build` named no image: {done.stdout}{done.stderr}")
    base = found[-1]
    tag = f"{IMAGE}:{base.rpartition(':')[2]}"
    engine = APIClient(version=API_VERSION, timeout=120, **kwargs_from_env())
    try:
        text = DOCKERFILE.format(base=base).encode()
        lines = list(
            engine.build(
                fileobj=io.BytesIO(text), tag=tag, network_mode="none", rm=True, decode=True
            )
        )
    finally:
        engine.close()
    if errors := [line["error"] for line in lines if "error" in line]:
        raise RuntimeError(f"The image {tag} could not be built: {errors}")
    return tag


@asynccontextmanager
async def open_stage(folder: Path, image: str, timeout_s: float) -> AsyncIterator[SkillsStage]:
    """Run our server with the image and the folder; its skills are those of this folder alone."""
    passed = folder / "task"
    write_verifier(passed / "verifier")
    make_readable(folder)
    sandbox: dict[str, Any] = {"backend": "docker", "image": image, "mounts": [f"{passed}:/task"]}
    sandbox |= {"timeout_s": timeout_s, "max_timeout_s": max(3600.0, timeout_s)}
    async with open_code_server(
        "", folder, {}, sections={"server": LIMITS}, sandbox=sandbox
    ) as server:
        yield SkillsStage(server, passed, folder / SETTINGS_FILE)
