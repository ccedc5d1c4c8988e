"""The worker: the process that runs user code. One interpreter, one namespace, one run at a time.

The supervisor forks it and talks to it over a socket (`worker_channel`). Its fds 1 and 2 are pipes
that the supervisor reads, so that output of C code and of child processes arrives in the same way
as `print`.

Rule: whatever user code raises, closes or leaves behind, `serve` sends exactly one `RunDone` for
each run and then waits for the next one.
"""

from __future__ import annotations

import builtins
import os
import socket
import sys
import types
from select import select

from ...protocol import wire
from ...protocol.library_names import PACKAGES_MODULE
from ...protocol.presentation import SKILL_FILE_PREFIX, describe_error
from ..library import (
    display,
    exports,
    guidance,
    knowledge,
    models,
    packages,
    planned,
    skills,
    tools,
)
from . import determinism, forks
from .code_runner import CodeRunner, parse_code
from .standard_streams import StandardStreams
from .usage_meter import UsageMeter
from .worker_channel import STEP_FILE_PREFIX, InterruptHandler, WorkerChannel

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Set, Tuple

    from ...protocol.payloads import JsonObject
    from .connection_order import ConnectionOrder
    from .observation import Probe

REAP_POLL_S = 0.002


class SourceRegistry:
    """The code of runs, which tracebacks and `inspect` find once `linecache` is imported."""

    def __init__(self, workspace: str) -> None:
        self.prefixes = (STEP_FILE_PREFIX, SKILL_FILE_PREFIX, workspace)  # of what a user wrote
        self.pending: Dict[str, Any] = {}  # entries for `linecache` until it is imported
        determinism.ImportHooks.run_after_import(
            "linecache", lambda module: module.cache.update(self.pending)
        )

    def register(self, name: str, code: str) -> None:
        """Add the lines of `code`, whose file name is `name`."""
        self.pending[name] = (len(code), None, code.splitlines(keepends=True), name)
        if "linecache" in sys.modules:
            sys.modules["linecache"].cache.update(self.pending)
            self.pending.clear()


class Worker:
    """Executes runs in the namespace of `__main__`."""

    def __init__(
        self,
        sock: socket.socket,
        stdout: int,
        stderr: int,
        setup: wire.Setup,
        generation: int,
        parked_score: int,
    ) -> None:
        self.setup = setup
        self.parked_score = parked_score
        self.streams = StandardStreams(stdout, stderr)
        self.randomness, self.clocks = determinism.install_determinism()
        self.usage_meter = UsageMeter()
        self.interrupts = InterruptHandler()
        self.channel = WorkerChannel(sock, self.interrupts, generation, self.clocks)
        determinism.ImportHooks.run_after_import("asyncio", self.install_event_loop)
        self.connection_order: Optional[ConnectionOrder] = None
        if setup.web is not None:
            from ..library import web_libraries
            from .connection_order import ConnectionOrder

            self.connection_order = ConnectionOrder(determinism.ThreadNames.current_name)
            self.connection_order.install()
            web_libraries.install_web_libraries(
                determinism.ImportHooks.run_after_import,
                self.connection_order.proxy,
                self.connection_order.next_request,
            )
        self.has_inputs = False
        self.workspace = os.getcwd()
        self.sources = SourceRegistry(self.workspace)
        main_module = sys.modules["__main__"] = types.ModuleType("__main__")
        tools.install_tools(self.channel.call_host, self.channel.call_host_async)
        main_module.__dict__["tools"] = sys.modules["tools"]
        main_module.__dict__["skills"] = skills.install_skills()
        main_module.__dict__.update(models.install_models())
        self.display = display.install_display(determinism.ImportHooks.run_after_import)
        exports.install_export()
        main_module.__dict__["knowledge"] = knowledge.install_knowledge()
        packages_folder = (setup.facts or {}).get("packages_folder") or ""
        self.packages = packages.install_packages_module(packages_folder)
        main_module.__dict__[PACKAGES_MODULE] = self.packages
        self.code_runner = CodeRunner(main_module.__dict__)
        self.guide = guidance.SandboxGuide(setup.facts)
        builtins.help = self.guide.help  # type: ignore[assignment]
        if hasattr(os, "sched_getaffinity"):
            # The original returns the host's number, whatever the container may use.
            os.cpu_count = lambda: len(os.sched_getaffinity(0))
        forks.install_guards()
        self.streams.install()

    def install_event_loop(self, module: types.ModuleType) -> None:
        """Let `asyncio`, once it is imported, make event loops that can be replayed."""
        from . import event_loop

        event_loop.install_event_loop(self.clocks, self.channel)

    def serve(self) -> None:
        """Handle commands until the supervisor closes the channel; never returns."""
        while True:
            self.await_intermediate()
            message = self.channel.receive_command()
            if isinstance(message, wire.Execute):
                try:
                    done = self.execute_run(message)
                except BaseException:  # noqa: BLE001 - user code damaged what this module needs
                    os._exit(wire.BROKEN_EXIT_CODE)
                self.channel.send(done)
            elif isinstance(message, wire.Park):
                self.park_fork(message.run_number)

    def await_intermediate(self) -> None:
        """Reap the intermediate process of the last fork, unless a command arrives first."""
        while (
            not forks.reap_intermediate(os.WNOHANG)
            and not select([self.channel.sock], [], [], REAP_POLL_S)[0]
        ):
            pass

    def park_fork(self, run_number: int) -> None:
        """Leave a parked fork of this process behind, or report why that is impossible.

        Also returns in each process that is later promoted from that fork.
        """
        generation = 0
        try:
            reason, offsets = forks.find_park_obstacle(self.runtime_descriptors(), self.workspace)
            if not reason:
                self.clocks.keep_process_clocks()
                generation = forks.park_fork(self.channel.sock, run_number, self.parked_score)
        except Exception as exc:  # noqa: BLE001 - user code may have changed anything
            reason = f"the interpreter could not be forked: {exc}"
        if reason:
            self.channel.send(wire.ParkFailed(run_number, reason))
        elif generation:
            try:
                self.reinitialize(generation, offsets)
            except BaseException:  # noqa: BLE001 - must not continue half initialised
                os._exit(wire.BROKEN_EXIT_CODE)

    def runtime_descriptors(self) -> Set[int]:
        """Return the descriptors of this process that belong to the runtime."""
        return {
            1,
            2,
            self.channel.sock.fileno(),
            *self.streams.pipes.values(),
            self.usage_meter.clear_refs_fd,
            *forks.event_loop_descriptors(self.code_runner.event_loop),
        }

    def reinitialize(self, generation: int, file_offsets: Dict[int, int]) -> None:
        """Continue as worker `generation` in a promoted fork of the process that this was."""
        self.usage_meter.reinitialize()
        forks.reopen_files(file_offsets)
        forks.renew_event_loop(self.code_runner.event_loop)
        self.channel.reinitialize(generation)

    # one run --------------------------------------------------------------------------------------

    def execute_run(self, message: wire.Execute) -> wire.RunDone:
        """Run the code of `message` and return its outcome; raises nothing that the code raises."""
        self.streams.reset()
        self.channel.start_run(message.run_number, message.filename)
        if message.stale_packages:
            tools.forget_stale_modules(message.stale_packages)
        self.guide.facts["fetchers"] = message.fetchers or []
        skills.reset_for_run()
        if message.inputs or self.has_inputs:
            self.provide_inputs(message.inputs or [])
        self.sources.register(message.filename, message.code)
        planned.PlannedResult.first_end = None
        models.Submitted.first_of_run = None
        self.display.start_run()
        self.randomness.reseed(message.seed)
        self.clocks.start_run(message.clock_readings)
        if self.connection_order is not None:
            self.connection_order.start_run()
        probe = self.prepare_probe(message.inspection)
        self.usage_meter.start()
        status, value, error = self.execute_code(message, probe)
        if self.connection_order is not None:
            self.connection_order.release()
        observed = None if probe is None else probe.finish()
        self.streams.flush()
        if self.channel.is_foreign_process:
            os._exit(status != "ok")  # user code called `fork`; only the parent reports the outcome
        return wire.RunDone(
            message.run_number,
            status,
            value,
            error,
            self.usage_meter.measure_usage(),
            self.clocks.take_readings(),
            self.display.take_media(),
            observed,  # type: ignore[arg-type]
        )

    def prepare_probe(self, inspection: Optional[JsonObject]) -> Optional[Probe]:
        """Return the probe of a run, if it has one."""
        if inspection is None or inspection["kind"] != "probe":
            return None
        from . import observation

        return observation.Probe(inspection, self.channel)  # type: ignore[arg-type]

    def execute_inspection(self, inspection: JsonObject) -> JsonObject:
        """Return the `value` of a run that only looks at the state that it starts from."""
        from json import dumps

        from . import observation

        found = observation.list_variables(
            self.code_runner.namespace,
            self.code_runner.initial_names,
            inspection,  # type: ignore[arg-type]
        )
        return {"kind": "json", "text": dumps(found), "type": "list", "cut": False}

    def provide_inputs(self, descriptions: List[Any]) -> None:
        """Set `CONTEXT`; its module is imported by the first run that has inputs."""
        from ..library import inputs

        inputs.set_context(self.code_runner.namespace, descriptions)
        self.has_inputs = bool(descriptions)

    def execute_code(
        self, message: wire.Execute, probe: Optional[Probe]
    ) -> Tuple[str, Optional[JsonObject], Optional[JsonObject]]:
        """Return status, value and error of one run. Interrupts are raised only while armed."""
        try:
            try:
                self.interrupts.is_armed = True
                if message.inspection is not None and message.inspection["kind"] == "variables":
                    return "ok", self.execute_inspection(message.inspection), None
                value = self.evaluate_code(message.code, message.filename, probe)
                if models.Submitted.first_of_run is not None:
                    raise models.Submitted.first_of_run
                shown = None if value is None else self.present(value)
            finally:
                self.interrupts.disarm()
            if planned.PlannedResult.first_end is not None:
                raise planned.PlannedResult.first_end
            return "ok", shown, None
        except SystemExit as exc:
            end = planned.find_cause(exc)
            if end is exc and exc.code in (None, 0):
                submitted = models.Submitted.first_of_run
                if submitted is None:
                    return "ok", None, None
                return "ok", self.present(submitted.value), None
            return "error", None, self.describe_exception(end)
        except KeyboardInterrupt as exc:
            self.interrupts.disarm()
            return "interrupted", None, self.describe_exception(exc)
        except BaseException as exc:  # noqa: BLE001 - user code may raise anything
            return "error", None, self.describe_exception(planned.find_cause(exc))
        finally:
            self.code_runner.cancel_task()

    def evaluate_code(self, code: str, name: str, probe: Optional[Probe]) -> Any:
        """Install the packages that `code` declares, run it, and return its last value."""
        tree = parse_code(code, name)
        dependencies = packages.find_script_dependencies(code)
        if dependencies:
            self.packages.install(*dependencies)
        return self.code_runner.evaluate(tree, name, probe)

    def present(self, value: Any) -> JsonObject:
        """Return the `value` of `RunDone`: whole, or cut to what a client is shown."""
        setup = self.setup
        return self.display.present(
            value, setup.max_shown_chars, setup.max_shown_items, setup.max_value_chars
        )

    def describe_exception(self, exc: BaseException) -> JsonObject:
        """Return the `error` of `RunDone`, even if `exc` cannot be formatted."""
        try:
            error = describe_error(exc, self.sources.prefixes)
        except BaseException as failure:  # noqa: BLE001 - a hostile __str__, no memory, no stack
            return {
                "type": type(exc).__name__,
                "message": f"(not printable: {type(failure).__name__})",
                "traceback": "",
            }
        hint = self.guide.find_hint(exc, self.sources.pending)
        return {**error, "hint": hint} if hint else error
