"""smolagents: its executor in a container with a Jupyter kernel gateway."""

from __future__ import annotations

from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.remote_executors import DockerExecutor

from .measure import Programs, Rival, serve


class SmolagentsDocker(Rival):
    """The executor builds its image itself, from one of a registry."""

    programs = Programs(value="print(1 + 1)", get_variable="print(kept + 1)")

    async def open(self) -> None:
        """Build the image and start the container."""
        self._executor = DockerExecutor([], AgentLogger(level=LogLevel.OFF), build_new_image=False)

    async def run(self, code: str) -> str:
        """Return the value and the output."""
        result = self._executor(code)
        return f"{result.output}\n{result.logs}"

    async def close(self) -> None:
        """Remove the container."""
        self._executor.cleanup()


if __name__ == "__main__":
    serve(SmolagentsDocker)
