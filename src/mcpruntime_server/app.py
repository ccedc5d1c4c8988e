"""The composition root: builds every part from the settings and fits them together. No logic of its own."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    redirect_stdout,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
from anyio.abc import TaskGroup, TaskStatus

from .capabilities.agent.sub_agents import SubAgents
from .capabilities.inputs.store import InputStore
from .capabilities.knowledge.resource_provider import ListedResource, ResourceAccess
from .capabilities.knowledge.service import KnowledgeService, format_skipped, open_knowledge
from .capabilities.llm.model_process import open_model_process
from .capabilities.llm.model_service import ModelService, select_backend
from .capabilities.policy import Policy
from .capabilities.skills.descriptions import SkillDescriber
from .capabilities.skills.guides import GuideFolders
from .capabilities.skills.library import SkillLibrary
from .capabilities.skills.saving import SkillSaver
from .capabilities.skills.store import SkillStore
from .capabilities.tools.catalog import Catalog, ToolListing, open_catalog
from .capabilities.tools.input_resources import UpstreamResources
from .capabilities.tools.resource_listing import list_resources, read_text_resource, upstream_digest
from .capabilities.tools.upstream import open_upstreams
from .config import Config, ServerSettings, Verdict
from .errors import McpRuntimeError, Unavailable
from .journal import server_lease
from .journal.retention import collect_garbage
from .journal.server_lease import ServerLease
from .journal.store import Journal, open_journal
from .runtime.package_changes import PackageChanges
from .runtime.router import Route, Router
from .runtime.runtime import Runtime, open_runtime
from .runtime.scratch_run import open_scratch_runner
from .sandbox import Backend, HealthCheck
from .sandbox.bundle import KERNEL_ARGV, KERNEL_ENV
from .sandbox.docker_backend import DockerBackend
from .sandbox.local_backend import LocalBackend
from .server.agent_runs import open_agent_run_session
from .server.delivery import DeliveryCursor
from .server.mcp_server import build_mcp_server
from .server.stdio_transport import open_stdio_streams

MAINTENANCE_DELAY_S = 60.0  # from a server's start until it has time for what is not urgent
MAINTENANCE_INTERVAL_S = 3600.0  # between looks at what the journal need not keep any more
MAX_NAMED_SKILLS = 5  # that a client hears of before it asks
GATE_PRINCIPAL = "gate"  # whose sessions those are in which skills are put to the test
UNUSED_RULE_REMEDY = "Rules name servers as code does: see `mcpruntime-server tools`."
INDEXING_TIMEOUT_S = 60.0  # for which `doctor` waits until everything is indexed
FIRST_SWEEP_DELAY_S = 1.0  # a server that comes up has a client that waits
SWEEP_INTERVAL_S = (
    300.0  # a crashed server's containers end by themselves; what is left of them can wait
)

logger = logging.getLogger(__name__)


def acquire_lease(folder: Path) -> ServerLease:
    """Return the lock by which other servers on the data folder know that this one is alive."""
    try:
        return ServerLease(folder)
    except OSError as exc:
        raise Unavailable(
            f"The data folder {folder} cannot be used: {exc.strerror}.",
            remedy="Make it writable, or name another with --data-dir.",
        ) from exc


@asynccontextmanager
async def open_backend(config: Config, owner: str) -> AsyncIterator[Backend]:
    """Yield the backend that the settings name; `auto` is Docker, because nothing else isolates."""
    is_alive = partial(server_lease.is_server_alive, config.server.data_dir)
    if config.sandbox.backend == "local":
        root = config.server.data_dir / "sandboxes"
        yield LocalBackend(config.sandbox, root, KERNEL_ARGV, KERNEL_ENV, owner, is_alive)
        return
    docker = DockerBackend(
        config.sandbox, config.server.data_dir, KERNEL_ARGV, KERNEL_ENV, owner, is_alive
    )
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
    library: SkillLibrary
    saver: SkillSaver
    providers: KnowledgeService
    backend: Backend
    inputs: InputStore
    runtime: Runtime


@asynccontextmanager
async def open_tools(config: Config) -> AsyncIterator[Catalog]:
    """Have the user's MCP servers ready to be started by whoever needs them."""
    base = config.sources.file.parent if config.sources.file else Path.cwd()
    async with (
        open_upstreams(config.mcpServers, base, config.server.data_dir / "logs") as upstreams,
        open_catalog(upstreams, config.server.shims_dir) as catalog,
    ):
        yield catalog


@asynccontextmanager
async def open_app(config: Config, *, resume_runs: bool = True) -> AsyncIterator[App]:
    """Bring everything up; leaving takes it down in the opposite order, sandboxes included.

    One that `resumes` goes on with the runs that dead servers left under way.
    """
    folder = config.server.data_dir
    with acquire_lease(folder) as held:
        async with (
            open_journal(folder, held) as journal,
            open_tools(config) as catalog,
            open_knowledge_providers(config, catalog) as providers,
            open_model_process(config.llm) as litellm,
        ):
            packages = None if config.sandbox.image else config.sandbox.packages
            policy = Policy(config.policy)
            resources = UpstreamResources(catalog.upstreams, policy.may_read_resources)
            inputs = InputStore(journal, config.server.context_roots, resources.read_resource)
            models = ModelService(
                config.llm, journal, select_backend(config.llm, litellm), inputs.resolve_data
            )
            agents = SubAgents(models, inputs)
            guides = GuideFolders(config.skills.folders)
            library = SkillLibrary(
                SkillStore(config.skills.folder), journal, catalog.schema_digest, guides
            )
            describer = None
            if config.skills.describe == "model":
                describer = SkillDescriber(models.ask_for_session, config.llm.model)
            router = Router(
                {
                    "tools": build_tools_route(catalog, policy),
                    "catalog": Route(catalog.handle_call, lambda _: "read", is_listed=False),
                    "skills": Route(library.handle_call, lambda _: "read", is_listed=False),
                    "llm": Route(models.handle_call, lambda _: "read"),
                    "knowledge": Route(
                        providers.handle_call,
                        lambda _: "read",
                        is_listed=False,
                        is_open_world=lambda _: True,
                    ),
                    "agent": Route(agents.handle_call, agents.call_effect),
                }
            )
            async with (
                open_backend(config, held.owner) as backend,
                anyio.create_task_group() as background,
            ):
                background.start_soon(sweep_sandboxes, backend)
                background.start_soon(maintain_stores, journal, library, config.server)
                package_changes = PackageChanges()
                catalog.on_change = package_changes.record_change
                async with open_runtime(
                    config.server,
                    config.sandbox,
                    journal,
                    router,
                    backend,
                    inputs,
                    package_changes=package_changes,
                    get_spending=models.run_costs,
                    announce_code=partial(start_imported_upstreams, catalog, background),
                    question_expires_s=config.policy.expires_s,
                ) as runtime:
                    open_trial = partial(open_scratch_runner, runtime, GATE_PRINCIPAL)
                    saver = SkillSaver(library, journal, packages, open_trial, describer)
                    agents.open_session = partial(open_agent_run_session, runtime, config)
                    if resume_runs:
                        background.start_soon(resume_interrupted_runs, runtime)
                    yield App(
                        config=config,
                        journal=journal,
                        catalog=catalog,
                        library=library,
                        saver=saver,
                        providers=providers,
                        backend=backend,
                        inputs=inputs,
                        runtime=runtime,
                    )
                background.cancel_scope.cancel()


def open_knowledge_providers(
    config: Config, catalog: Catalog
) -> AbstractAsyncContextManager[KnowledgeService]:
    """Have the providers of the settings ready; nothing of them is read before somebody asks."""

    def access(server: str) -> ResourceAccess:
        upstream = next(each for each in catalog.upstreams.values() if each.name == server)

        async def listed() -> list[ListedResource]:
            return [
                ListedResource(each.uri, each.mime_type, each.version)
                for each in await list_resources(upstream)
            ]

        return ResourceAccess(
            upstream_digest(upstream), listed, partial(read_text_resource, upstream)
        )

    return open_knowledge(config.knowledge, config.server.data_dir, access)


def build_tools_route(catalog: Catalog, policy: Policy) -> Route:
    """Return the way to the user's MCP servers: what may be called is the policy's matter."""

    def verdict(target: str) -> Verdict:
        effect, destructive = catalog.effect(target), catalog.is_destructive(target)
        return policy.decide(target.removeprefix("tools."), effect=effect, destructive=destructive)

    return Route(
        catalog.call_tool,
        catalog.effect,
        prepare=catalog.prepare_call,
        verdict_for=verdict,
        is_open_world=catalog.is_open_world,
    )


def start_imported_upstreams(catalog: Catalog, background: TaskGroup, code: str) -> None:
    """Start the upstreams that `code` is going to import, while it is on its way."""
    if names := catalog.find_idle_packages(code):
        background.start_soon(start_upstreams, catalog, names)


async def start_upstreams(catalog: Catalog, names: Sequence[str]) -> None:
    """Start upstreams ahead of their use; a failure is told to the code that imports them."""
    try:
        await catalog.start_upstreams(names)
    except Exception:  # a mistake of ours in what is only a head start must not end the server
        logger.exception("the upstreams %s could not be started ahead", ", ".join(names))


async def resume_interrupted_runs(runtime: Runtime) -> None:
    """Have runs go on that servers left under way when they died; failures are told to whoever asks for the session."""
    try:
        await runtime.resume_interrupted_runs()
    except McpRuntimeError as exc:
        logger.error("runs of dead servers do not go on: %s", exc)


async def maintain_stores(
    journal: Journal, library: SkillLibrary, settings: ServerSettings
) -> None:
    """Keep the journal within its limits of age and size, and retire skills, from a while after the start on."""
    await anyio.sleep(MAINTENANCE_DELAY_S)
    while True:
        try:
            cleared = await collect_garbage(journal, settings.keep_days, settings.keep_mb)
            if cleared.sessions:
                logger.info(
                    "removed %d sessions from the journal, %d bytes",
                    len(cleared.sessions),
                    cleared.bytes,
                )
        except McpRuntimeError as exc:
            logger.warning("the journal was not cleared up: %s", exc)
        try:
            for skill in await library.retire_unused():
                logger.info("retired the skill %s: %s", skill.id, " ".join(skill.reasons))
        except McpRuntimeError as exc:
            logger.warning("the skills were not looked through: %s", exc)
        await anyio.sleep(MAINTENANCE_INTERVAL_S)


async def sweep_sandboxes(backend: Backend) -> None:
    """Remove what dead servers left behind, soon and from time to time."""
    await anyio.sleep(FIRST_SWEEP_DELAY_S)
    while True:
        try:
            if count := await backend.remove_orphans():
                logger.info("removed %d sandboxes of servers that are gone", count)
        except McpRuntimeError as exc:
            logger.warning("nothing was swept: %s", exc)
        await anyio.sleep(SWEEP_INTERVAL_S)


async def serve_stdio(config: Config) -> None:
    """Serve MCP on stdin and stdout until stdin ends or the process is told to stop."""
    async with open_app(config) as app:
        cursor = DeliveryCursor()  # over stdio there is one client
        packages = app.catalog.package_names()
        isolated, skills = app.backend.is_isolated, await skills_sentence(app.library)
        server = build_mcp_server(
            config,
            app.runtime,
            app.library,
            app.saver,
            app.providers,
            packages,
            app.inputs,
            lambda _: cursor,
            is_isolated=isolated,
            skills_sentence=skills,
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(_cancel_on_signal, tasks.cancel_scope)
            async with open_stdio_streams(cursor.record_timed_out) as (incoming, outgoing):
                lowlevel = (
                    server._lowlevel_server
                )  # the SDK has no public way to run on streams of one's own
                await lowlevel.run(incoming, outgoing, lowlevel.create_initialization_options())
            tasks.cancel_scope.cancel()


async def skills_sentence(library: SkillLibrary) -> str:
    """Return a sentence on the skills that there are, naming the best."""
    try:
        count, best = (
            await library.count_available(),
            [skill.name for skill in await library.search("", MAX_NAMED_SKILLS)],
        )
    except McpRuntimeError as exc:
        logger.warning("the skills cannot be read: %s", exc)
        return ""
    if not best:
        return "There are none yet: save_skill keeps a run."
    return (
        f"There are {count}; the best: {', '.join(best)}."
        if count > 1
        else f"There is one: {best[0]}."
    )


async def _cancel_on_signal(scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            logger.info("stopping: %s", number.name)
            scope.cancel()
            return


# for the command line -------------------------------------------------------------------------------


async def run_checks(config: Config) -> list[HealthCheck]:
    """Check everything that a server with these settings depends on."""
    checks = [check_data_folder(config.server.data_dir)]
    if not checks[0].is_ok:
        return checks
    with acquire_lease(config.server.data_dir) as held:
        async with open_backend(config, held.owner) as backend:
            checks += await backend.run_checks()
    async with open_tools(config) as catalog:
        checks += [
            HealthCheck("upstreams", False, problem, "Rename one of them.")
            for problem in catalog.problems
        ]
        unused = Policy(config.policy).unused_rules(catalog.package_names())
        checks += [
            HealthCheck(
                "policy",
                True,
                f"{name} is about no server here.",
                UNUSED_RULE_REMEDY,
                is_warning=True,
            )
            for name in unused
        ]
        for report in await catalog.examine_upstreams():
            detail = report.error or f"{report.tools} tools, importable as tools.{report.server}"
            checks.append(
                HealthCheck(f"upstream {report.upstream}", not report.error, detail, report.remedy)
            )
            checks += [
                HealthCheck(f"upstream {report.upstream}", True, problem)
                for problem in report.problems
            ]
        with redirect_stdout_to_stderr():
            checks += await check_knowledge(config, catalog)
    return checks


@contextmanager
def redirect_stdout_to_stderr() -> Iterator[None]:
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


async def check_knowledge(config: Config, catalog: Catalog) -> list[HealthCheck]:
    """Index every provider as far as time allows, and say how it is."""
    checks = []
    async with open_knowledge_providers(config, catalog) as providers:
        for each in await providers.check_providers(INDEXING_TIMEOUT_S):
            over = format_skipped(each)
            detail = f"{each['documents']:,} documents, {each['passages']:,} passages"
            detail += f"; skipped: {over}" if over else ""
            ok, problem = not each["is_failed"], each["problem"]
            checks.append(
                HealthCheck(
                    f"knowledge {each['name']}",
                    ok,
                    detail if ok else problem,
                    problem,
                    is_warning=bool(problem),
                )
            )
    return checks


def check_data_folder(folder: Path) -> HealthCheck:
    """Say whether the journal can be kept in `folder`."""
    try:
        with acquire_lease(folder):
            return HealthCheck("data folder", True, str(folder))
    except Unavailable as exc:
        return HealthCheck("data folder", False, exc.message, exc.remedy)


async def list_tools(config: Config) -> ToolListing:
    """Start all upstreams and return their tools."""
    async with open_tools(config) as catalog:
        return await catalog.list_tools()


async def load_shim_source(config: Config, package: str) -> str:
    """Return the source of one upstream's generated module."""
    async with open_tools(config) as catalog:
        return (await catalog.load_shim(package))["source"]
