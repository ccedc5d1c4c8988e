"""The composition root: builds every part from the settings and fits them together. No logic of its own."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from .agent.sub_agents import SubAgents
from .config import Config, ServerSettings, Verdict
from .context.resources import Access, Listed
from .context.service import Providers, open_providers, passed_over
from .errors import McpRuntimeError, Unavailable
from .inputs.service import Inputs
from .journal import lease
from .journal.lease import Lease
from .journal.retention import collect
from .journal.store import Journal, open_journal
from .llm.litellm import opened
from .llm.service import Models, broker_of
from .policy import Policy
from .runtime.calls import Route, Router
from .runtime.sessions import Runtime, open_runtime
from .runtime.trial import open_trial
from .sandbox import Backend, Check
from .sandbox.bundle import KERNEL_ARGV, KERNEL_ENV
from .sandbox.docker import DockerBackend
from .sandbox.local import LocalBackend
from .server.agents import open_agent_session
from .server.mcp import build_server
from .server.stdio import stdio_streams
from .skills.describe import Describer
from .skills.guides import Guides
from .skills.library import Library
from .skills.store import Store
from .tools.catalog import Catalog, open_catalog
from .tools.listed import identity, list_resources, read_resource
from .tools.resources import Resources
from .tools.upstream import open_upstreams

SETTLED_S = 60.0  # from a server's start until it has time for what is not urgent
CLEAR_UP_S = 3600.0  # between looks at what the journal need not keep any more
NAMED_SKILLS = 5  # that a client hears of before it asks
GATE = "gate"  # whose sessions those are in which skills are put to the test
UNUSED = "Rules name servers as code does: see `mcpruntime-server tools`."
EXAMINED_S = 60.0  # for which `doctor` waits until everything is indexed
SWEEP_SOON_S = 1.0  # a server that comes up has a client that waits
SWEEP_S = 300.0  # a crashed server's containers end by themselves; what is left of them can wait

logger = logging.getLogger(__name__)


def take_lease(folder: Path) -> Lease:
    """Return the lock by which other servers on the data folder know that this one is alive."""
    try:
        return Lease(folder)
    except OSError as exc:
        raise Unavailable(
            f"The data folder {folder} cannot be used: {exc.strerror}.",
            remedy="Make it writable, or name another with --data-dir.",
        ) from exc


@asynccontextmanager
async def make_backend(config: Config, owner: str) -> AsyncIterator[Backend]:
    """Yield the backend that the settings name; `auto` is Docker, because nothing else isolates."""
    is_alive = partial(lease.alive, config.server.data_dir)
    if config.sandbox.backend == "local":
        root = config.server.data_dir / "sandboxes"
        yield LocalBackend(config.sandbox, root, KERNEL_ARGV, KERNEL_ENV, owner, is_alive)
        return
    docker = DockerBackend(config.sandbox, config.server.data_dir, KERNEL_ARGV, KERNEL_ENV, owner, is_alive)
    try:
        yield docker
    finally:
        docker.close()


@dataclass(frozen=True)
class App:
    """Everything that a running server consists of."""

    config: Config
    journal: Journal
    catalog: Catalog
    library: Library
    providers: Providers
    backend: Backend
    runtime: Runtime


@asynccontextmanager
async def open_tools(config: Config) -> AsyncIterator[Catalog]:
    """Have the user's MCP servers ready to be started by whoever needs them."""
    base = config.file.parent if config.file else Path.cwd()
    async with (
        open_upstreams(config.mcpServers, base, config.server.data_dir / "logs") as upstreams,
        open_catalog(upstreams, config.server.shims_dir) as catalog,
    ):
        yield catalog


@asynccontextmanager
async def open_app(config: Config, *, resumes: bool = True) -> AsyncIterator[App]:
    """Bring everything up; leaving takes it down in the opposite order, sandboxes included.

    One that `resumes` goes on with the runs that dead servers left under way.
    """
    folder = config.server.data_dir
    with take_lease(folder) as held:
        async with (
            open_journal(folder, held) as journal,
            open_tools(config) as catalog,
            open_context(config, catalog) as providers,
            opened(config.llm) as litellm,
        ):
            packages = None if config.sandbox.image else config.sandbox.packages
            policy = Policy(config.policy)
            resources = Resources(catalog.upstreams, policy.may_read)
            inputs = Inputs(journal, config.server.context_roots, resources.read)
            models = Models(config.llm, journal, broker_of(config.llm, litellm), inputs.resolved)
            agents = SubAgents(models, inputs)
            guides = Guides(config.skills.folders)
            library = Library(Store(config.skills.folder), journal, packages, catalog.schema, guides)
            if config.skills.describe == "model":
                library.describer = Describer(models.ask_for, config.llm.model)
            router = Router(
                {
                    "tools": tools_route(catalog, policy),
                    "catalog": Route(catalog.answer, lambda _: "read", listed=False),
                    "skills": Route(library.answer, lambda _: "read", listed=False),
                    "llm": Route(models.answer, lambda _: "read"),
                    "context": Route(providers.answer, lambda _: "read", listed=False, is_open=lambda _: True),
                    "agent": Route(agents.answer, agents.effect),
                }
            )
            async with make_backend(config, held.owner) as backend, anyio.create_task_group() as background:
                background.start_soon(sweep, backend)
                background.start_soon(clear_up, journal, library, config.server)
                settings = config.server, config.sandbox
                waits_s = config.policy.expires_s
                async with open_runtime(*settings, journal, router, backend, waits_s=waits_s, inputs=inputs) as runtime:
                    catalog.on_change = runtime.package_changed
                    library.open_trial = partial(open_trial, runtime, GATE)
                    agents.open_place = partial(open_agent_session, runtime, config)
                    runtime.costs = models.costs
                    runtime.on_code = partial(anticipate, catalog, background)
                    if resumes:
                        background.start_soon(resume, runtime)
                    yield App(config, journal, catalog, library, providers, backend, runtime)
                background.cancel_scope.cancel()


def open_context(config: Config, catalog: Catalog) -> AbstractAsyncContextManager[Providers]:
    """Have the providers of the settings ready; nothing of them is read before somebody asks."""

    def access(server: str) -> Access:
        upstream = next(each for each in catalog.upstreams.values() if each.name == server)

        async def listed() -> list[Listed]:
            return [Listed(each.uri, each.mime_type, each.version) for each in await list_resources(upstream)]

        return Access(identity(upstream), listed, partial(read_resource, upstream))

    return open_providers(config.context, config.server.data_dir, access)


def tools_route(catalog: Catalog, policy: Policy) -> Route:
    """Return the way to the user's MCP servers: what may be called is the policy's matter."""

    def verdict(target: str) -> Verdict:
        effect, destructive = catalog.effect(target), catalog.is_destructive(target)
        return policy.verdict(target.removeprefix("tools."), effect=effect, destructive=destructive)

    return Route(catalog.call, catalog.effect, prepare=catalog.prepare, verdict=verdict, is_open=catalog.is_open)


def anticipate(catalog: Catalog, background: TaskGroup, code: str) -> None:
    """Start the upstreams that `code` is going to import, while it is on its way."""
    if names := catalog.named_in(code):
        background.start_soon(start_upstreams, catalog, names)


async def start_upstreams(catalog: Catalog, names: Sequence[str]) -> None:
    """Start upstreams ahead of their use; a failure is told to the code that imports them."""
    try:
        await catalog.start(names)
    except Exception:  # a mistake of ours in what is only a head start must not end the server
        logger.exception("the upstreams %s could not be started ahead", ", ".join(names))


async def resume(runtime: Runtime) -> None:
    """Have runs go on that servers left under way when they died; failures are told to whoever asks for the session."""
    try:
        await runtime.resume_interrupted()
    except McpRuntimeError as exc:
        logger.error("runs of dead servers do not go on: %s", exc)


async def clear_up(journal: Journal, library: Library, settings: ServerSettings) -> None:
    """Keep the journal within its limits of age and size, and retire skills, from a while after the start on."""
    await anyio.sleep(SETTLED_S)
    while True:
        try:
            cleared = await collect(journal, settings.keep_days, settings.keep_mb)
            if cleared.sessions:
                logger.info("removed %d sessions from the journal, %d bytes", len(cleared.sessions), cleared.bytes)
        except McpRuntimeError as exc:
            logger.warning("the journal was not cleared up: %s", exc)
        try:
            for skill in await library.tidy():
                logger.info("retired the skill %s: %s", skill.id, " ".join(skill.reasons))
        except McpRuntimeError as exc:
            logger.warning("the skills were not looked through: %s", exc)
        await anyio.sleep(CLEAR_UP_S)


async def sweep(backend: Backend) -> None:
    """Remove what dead servers left behind, soon and from time to time."""
    await anyio.sleep(SWEEP_SOON_S)
    while True:
        try:
            if count := await backend.sweep():
                logger.info("removed %d sandboxes of servers that are gone", count)
        except McpRuntimeError as exc:
            logger.warning("nothing was swept: %s", exc)
        await anyio.sleep(SWEEP_S)


async def serve_stdio(config: Config) -> None:
    """Serve MCP on stdin and stdout until stdin ends or the process is told to stop."""
    async with open_app(config) as app:
        timed_out: set[str] = set()
        packages = app.catalog.package_names()
        isolated, skills = app.backend.isolated, await skills_line(app.library)
        server = build_server(
            config, app.runtime, app.library, app.providers, packages, timed_out, isolated=isolated, skills=skills
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(_until_signal, tasks.cancel_scope)
            async with stdio_streams(timed_out) as (incoming, outgoing):
                lowlevel = server._lowlevel_server  # the SDK has no public way to run on streams of one's own
                await lowlevel.run(incoming, outgoing, lowlevel.create_initialization_options())
            tasks.cancel_scope.cancel()


async def skills_line(library: Library) -> str:
    """Return a sentence on the skills that there are, naming the best."""
    try:
        count, best = await library.count(), [skill.name for skill in await library.find("", NAMED_SKILLS)]
    except McpRuntimeError as exc:
        logger.warning("the skills cannot be read: %s", exc)
        return ""
    if not best:
        return "There are none yet: save_skill keeps a run."
    return f"There are {count}; the best: {', '.join(best)}." if count > 1 else f"There is one: {best[0]}."


async def _until_signal(scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            logger.info("stopping: %s", number.name)
            scope.cancel()
            return


# for the command line -------------------------------------------------------------------------------


async def examine(config: Config) -> list[Check]:
    """Check everything that a server with these settings depends on."""
    checks = [check_data_folder(config.server.data_dir)]
    if not checks[0].ok:
        return checks
    with take_lease(config.server.data_dir) as held:
        async with make_backend(config, held.owner) as backend:
            checks += await backend.check()
    async with open_tools(config) as catalog:
        checks += [Check("upstreams", False, problem, "Rename one of them.") for problem in catalog.problems]
        unused = Policy(config.policy).unused(catalog.package_names())
        checks += [Check("policy", True, f"{name} is about no server here.", UNUSED, warning=True) for name in unused]
        for report in await catalog.examine():
            detail = report.error or f"{report.tools} tools, importable as tools.{report.server}"
            checks.append(Check(f"upstream {report.upstream}", not report.error, detail, report.remedy))
            checks += [Check(f"upstream {report.upstream}", True, problem) for problem in report.problems]
        with stdout_kept():
            checks += await examine_context(config, catalog)
    return checks


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Have what a provider of the user's prints go to stderr, and what programs print that it starts.

    Other programs read what `doctor` says.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


async def examine_context(config: Config, catalog: Catalog) -> list[Check]:
    """Index every provider as far as time allows, and say how it is."""
    checks = []
    async with open_context(config, catalog) as providers:
        for each in await providers.examine(EXAMINED_S):
            over = passed_over(each)
            detail = f"{each['documents']:,} documents, {each['passages']:,} passages"
            detail += f"; passed over: {over}" if over else ""
            ok, problem = not each["is_failed"], each["problem"]
            checks.append(
                Check(f"context {each['name']}", ok, detail if ok else problem, problem, warning=bool(problem))
            )
    return checks


def check_data_folder(folder: Path) -> Check:
    """Say whether the journal can be kept in `folder`."""
    try:
        with take_lease(folder):
            return Check("data folder", True, str(folder))
    except Unavailable as exc:
        return Check("data folder", False, exc.message, exc.remedy)


async def list_tools(config: Config) -> dict[str, Any]:
    """Return {"tools", "problems"} of all upstreams, which are started for it."""
    async with open_tools(config) as catalog:
        return await catalog.listing()


async def show_module(config: Config, package: str) -> str:
    """Return the source of one upstream's generated module."""
    async with open_tools(config) as catalog:
        return (await catalog.shim(package))["source"]
