"""llm-sandbox: a session in a container of the image that this server uses."""

from __future__ import annotations

from llm_sandbox import SandboxSession

from .measure import Programs, Rival, serve


class LlmSandbox(Rival):
    """A container; each run is a new process in it. The image has all that the programs need."""

    programs = Programs(value="print(1 + 1)", get_variable="print(kept + 1)")

    async def open(self) -> None:
        """Start the container."""
        self._session = SandboxSession(
            lang="python",
            image=self.request["image"],
            keep_template=True,
            skip_environment_setup=True,
            runtime_configs={"network_mode": "none", "entrypoint": [], "user": "root"},
        )
        self._session.open()

    async def run(self, code: str) -> str:
        """Return the output."""
        result = self._session.run(code)
        if result.exit_code:
            raise RuntimeError(result.stderr or result.stdout)
        return str(result.stdout)

    async def close(self) -> None:
        """Remove the container."""
        self._session.close()


if __name__ == "__main__":
    serve(LlmSandbox)
