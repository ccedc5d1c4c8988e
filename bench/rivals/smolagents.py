"""smolagents: its interpreter in the process."""

from __future__ import annotations

from smolagents.local_python_executor import LocalPythonExecutor

from .measure import Programs, Rival, serve


class Smolagents(Rival):
    """The local executor, which is no sandbox."""

    programs = Programs(calls="for n in range(COUNT):\n    noop(n=n)\n'done'")

    async def open(self) -> None:
        """Make the interpreter."""
        self._executor = LocalPythonExecutor(additional_authorized_imports=[])
        self._executor.send_tools({"noop": lambda n: {"n": n}})

    async def run(self, code: str) -> str:
        """Return the value and the output."""
        result = self._executor(code)
        return f"{result.output}\n{result.logs}"


if __name__ == "__main__":
    serve(Smolagents)
