"""What the acts share: where they write, the demo's folder, and a client of its server.

Acts build on the programs of the first one. An act that is shown alone runs them unseen before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mcp import Client

from . import programs
from .demo_client import SESSION_NAME, DemoFolder, DemoStep, call_run_code, run_program
from .demo_console import DemoConsole


@dataclass
class DemoStage:
    """A running demo."""

    screen: DemoConsole
    folder: DemoFolder
    client: Client
    report: Path | None  # what the filesystem server writes; None without that server
    collected: list[DemoStep] = field(default_factory=list)

    @property
    def main_programs(self) -> tuple[str, str]:
        """The programs that collect the data and answer the question."""
        return (
            programs.collection_program(self.folder.repository),
            programs.report_program(self.report),
        )

    async def collect(self, *, is_shown: bool = False) -> bool:
        """Run the main programs unless they have run; return whether they succeeded."""
        if not self.collected:
            for program in self.main_programs:
                if is_shown:
                    step = await run_program(self.screen, self.client, program)
                else:
                    step = await self._run_unseen(program)
                self.collected.append(step)
                if not step.ok:
                    break
        return all(step.ok for step in self.collected)

    async def _run_unseen(self, program: str) -> DemoStep:
        with self.screen.show_wait("running the programs of the act `program`"):
            step = await call_run_code(
                self.screen, self.client, program, is_quiet=True, code=program, session=SESSION_NAME
            )
        if not step.ok:
            self.screen.write_block(step.text, "red")
        return step
