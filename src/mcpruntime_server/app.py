"""The composition root: builds all parts from the settings and connects them; no other logic."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    redirect_stdout,
)
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from mcp.server import MCPServer
from starlette.types import ASGIApp

from .capabilities.agent.sub_agents import SubAgents
from .capabilities.credential_keys import load_keys
from .capabilities.credential_store import CredentialStore
from .capabilities.file_exports import FileExporter, remove_old_drafts
from .capabilities.inputs.store import InputStore
from .capabilities.knowledge.resource_provider import (
    ListedResource,
    ResourceAccess,
    ResourceListing,
)
from .capabilities.knowledge.service import KnowledgeService, format_skipped, open_knowledge
from .capabilities.llm.model_process import open_model_process
from .capabilities.llm.model_service import ModelService, select_backend
from .capabilities.policy import Policy
from .capabilities.skills.descriptions import describe_skill
from .capabilities.skills.guides import GuideFolders
from .capabilities.skills.library import SkillLibrary, retire_unused_skills
from .capabilities.skills.model import Skill
from .capabilities.skills.saving import SkillSaver
from .capabilities.skills.store import SkillStore
from .capabilities.tools.catalog import Catalog, ReportChange, UpstreamReport, open_catalog
from .capabilities.tools.catalogue_cache import CatalogueCache
from .capabilities.tools.input_resources import UpstreamResources
from .capabilities.tools.principal_upstreams import CredentialVault, open_principal_upstreams
from .capabilities.tools.resource_listing import list_resources, read_text_resource, upstream_digest
from .capabilities.tools.upstream import open_upstreams
from .config import Config, ServerSettings, Verdict
from .config.file_modes import find_shared_folders, make_private
from .config.shell_commands import format_command
from .config.telemetry import sends_traces
from .errors import ConfigError, McpRuntimeError, Unavailable
from .journal import server_lease
from .journal.call_scope import act_for, current_call_scope
from .journal.quotas import JournalLimits
from .journal.retention import collect_garbage
from .journal.rows import LOCAL_PRINCIPAL
from .journal.server_lease import ServerLease
from .journal.store import Journal, open_journal
from .protocol.payloads import ToolListing
from .runtime.inspector import Inspector
from .runtime.observer import Observers, RuntimeObserver
from .runtime.package_changes import PackageChanges
from .runtime.process_memory import return_large_blocks
from .runtime.rates import Rate
from .runtime.reference_cycles import collect_cycles
from .runtime.router import Route, Router
from .runtime.runtime import Runtime, open_runtime
from .runtime.scratch_run import open_scratch_runner
from .sandbox import Backend, HealthCheck
from .sandbox.bundle import KERNEL_ARGV, KERNEL_ENV
from .sandbox.docker_backend import DockerBackend
from .sandbox.local_backend import LocalBackend
from .server.agent_runs import open_agent_run_session
from .server.delivery import DeliveryCursor, FindCursor
from .server.mcp_server import build_mcp_server
from .server.question_pages import max_question_chars
from .server.run_starter import RunStarter
from .server.stdio_transport import open_stdio_streams

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from .service.authentication import Authentication, TokenSource
    from .viewer.browser_logins import BrowserLogins

FILES_PREFIX = "files"  # of calls that export files
UPLOADS_PREFIX = "uploads"  # of calls that bring the content of such files
MB = 1024 * 1024
MAINTENANCE_DELAY_S = 60.0  # after the start of the server: none of it is urgent
MAINTENANCE_INTERVAL_S = 3600.0
MAX_NAMED_TOOLS = 40  # in one line of `doctor`
MAX_NAMED_SKILLS = 5  # in the instructions for clients
MAX_QUERY_CHARS = 100_000  # of a call that searches tools or knowledge
MAX_TASK_CHARS = 3_000_000  # of a call that starts an agent or submits its answer
TRACES_REMEDY = "Install `mcpruntime-server[otel]`."
UNUSED_RULE_REMEDY = "Rules use the Python names of servers: see `mcpruntime-server tools`."
INDEXING_TIMEOUT_S = 60.0  # for `doctor` to index all knowledge providers
FIRST_SWEEP_DELAY_S = 1.0  # after the start of the server, when a client is waiting
SWEEP_INTERVAL_S = 60.0  # what an engine did not remove at once may still use a processor

logger = logging.getLogger(__name__)


def acquire_lease(folder: Path) -> ServerLease:
    """Return the lock that shows other servers on the data folder that this one is alive.

    Raises `Unavailable`.
    """
    try:
        return ServerLease(folder)
    except OSError as exc:
        raise Unavailable(
            f"The data folder {folder} cannot be used: {exc.strerror}.",
            remedy="Make it writable, or name another with --data-dir.",
        ) from exc


def may_ask_for_packages(config: Config) -> bool:
    """Return whether code may ask for packages."""
    return config.sandbox.packages_on_demand != "off"


@asynccontextmanager
async def open_backend(config: Config, owner: str) -> AsyncIterator[Backend]:
    """Yield the configured backend; `auto` is Docker, the only one that isolates."""
    is_alive = partial(server_lease.is_server_alive, config.server.data_dir)
    if config.sandbox.backend == "local":
        root = config.server.data_dir / "sandboxes"
        yield LocalBackend(config.sandbox, root, KERNEL_ARGV, KERNEL_ENV, owner, is_alive)
        return
    docker = DockerBackend(
        config.sandbox,
        config.server.data_dir,
        KERNEL_ARGV,
        KERNEL_ENV,
        owner,
        is_alive,
        packages_folder=config.server.packages_dir if may_ask_for_packages(config) else None,
        has_web=bool(config.network.rules),
    )
    try:
        yield docker
    finally:
        docker.close()


@dataclass(frozen=True)
class App:
    """The parts of a running server."""

    config: Config
    journal: Journal
    catalog: Catalog
    find_saver: Callable[[str], SkillSaver]
    providers: KnowledgeService
    backend: Backend
    inputs: InputStore
    runtime: Runtime

    async def open_mcp_server(self, principal: str, find_cursor: FindCursor) -> MCPServer[Any]:
        """Return the MCP server through which a principal uses this one."""
        act_for(principal)
        saver = self.find_saver(principal)
        return build_mcp_server(
            self.config,
            self.runtime,
            saver.library,
            saver,
            self.providers,
            self.catalog.package_names(),
            self.inputs,
            find_cursor,
            principal=principal,
            is_isolated=self.backend.is_isolated,
            python=await self.runtime.name_python(),
            signatures=await self.catalog.describe_briefly(),
            skills_sentence=await skills_sentence(saver.library),
        )


@dataclass(frozen=True)
class Traces:
    """How traces are recorded: by default, not at all."""

    create_observers: Callable[[Catalog], Sequence[RuntimeObserver]] = lambda _: ()
    wrap_app: Callable[[ASGIApp], ASGIApp] = lambda app: app
    read_context: Callable[[MCPServer[Any]], None] = lambda _: None


@asynccontextmanager
async def open_tools(
    config: Config, on_change: ReportChange = lambda *_: None, credentials_url: str = ""
) -> AsyncIterator[Catalog]:
    """Yield the catalogue of the user's MCP servers, which start on first use.

    `on_change` is called with the name of a package whose tools have changed, and with the
    principal if it is its own. Below `credentials_url`, if there is one, people store credentials.
    """
    base = config.sources.file.parent if config.sources.file else Path.cwd()
    data_dir = config.server.data_dir
    log_dir = data_dir / "logs"
    cache = CatalogueCache(data_dir / "catalogues")
    vault = CredentialVault(
        CredentialStore(data_dir),
        partial(load_keys, config.credentials, data_dir),
        partial(format_command, config),
        credentials_url,
    )
    async with (
        open_upstreams(config.mcpServers, base, log_dir, cache) as upstreams,
        open_principal_upstreams(
            config.mcpServers, config.credentials, base, log_dir, vault, cache
        ) as own,
        open_catalog(
            upstreams,
            config.server.shims_dir,
            on_change,
            Policy(config.policy).declares_read,
            own,
        ) as catalog,
    ):
        yield catalog


@asynccontextmanager
async def open_app(
    config: Config,
    *,
    resume_runs: bool = True,
    create_observers: Callable[[Catalog], Sequence[RuntimeObserver]] = lambda _: (),
    credentials_url: str = "",
) -> AsyncIterator[App]:
    """Start all parts; leaving stops them in reverse order, sandboxes included.

    With `resume_runs`, the unfinished runs of dead servers continue here. Below `credentials_url`,
    if there is one, people store credentials.
    """
    make_private(config)
    folder = config.server.data_dir
    package_changes = PackageChanges()
    limits = JournalLimits(
        config.journal.run_mb * MB, config.journal.session_mb * MB, config.journal.principal_mb * MB
    )
    with acquire_lease(folder) as lease:
        async with (
            open_journal(folder, lease, config.journal.durability, limits) as journal,
            open_tools(config, package_changes.record_change, credentials_url) as catalog,
            open_knowledge_providers(config, catalog) as providers,
            open_model_process(config.llm) as model_process,
            AsyncExitStack() as optional,
        ):
            observers = Observers(create_observers(catalog))
            packages = None if config.sandbox.image else config.sandbox.packages
            policy = Policy(config.policy)
            resources = UpstreamResources(catalog.find_upstreams, policy.may_read_resources)
            inputs = InputStore(journal, config.server.context_roots, resources.read_resource)
            max_caller_chars = max_question_chars(config.server.result_chars)
            model_backend = select_backend(config.llm, model_process, max_caller_chars)
            models = ModelService(
                config.llm,
                journal,
                model_backend,
                inputs.resolve_data,
                lambda model, used, ms: observers.on_model_request(model, vars(used), ms),
            )
            exporter = FileExporter(
                config.server.export_dir, journal, config.sandbox.workspace_mb * MB
            )
            guides = GuideFolders(config.skills.folders)
            skill_store = SkillStore(config.skills.folder, config.skills.trusted_keys)

            @cache
            def find_library(principal: str) -> SkillLibrary:
                store = skill_store.of_principal(principal)
                return SkillLibrary(store, journal, catalog.schema_digest, guides)

            async def answer_skill_call(target: str, args: dict[str, Any]) -> Any:
                library = find_library(current_call_scope().principal)
                return await library.handle_call(target, args)

            describe = None
            if config.skills.describe == "model":
                describe = partial(describe_skill, models.ask_for_session, config.llm.model)
            router = Router(
                {
                    "tools": build_tools_route(catalog, policy),
                    "catalog": Route(
                        catalog.handle_call,
                        lambda _: "read",
                        is_listed=False,
                        max_args_chars=MAX_QUERY_CHARS,
                    ),
                    FILES_PREFIX: Route(
                        exporter.handle_call,
                        lambda _: "idempotent",
                        verdict_for=lambda target, _: policy.decide(
                            target, effect="idempotent", destructive=False
                        ),
                    ),
                    UPLOADS_PREFIX: Route(
                        exporter.handle_upload, lambda _: "read", is_listed=False
                    ),
                    "skills": Route(answer_skill_call, lambda _: "read", is_listed=False),
                    "llm": Route(models.handle_call, lambda _: "read", is_billed=True),
                    "knowledge": Route(
                        providers.handle_call,
                        lambda _: "read",
                        is_listed=False,
                        max_args_chars=MAX_QUERY_CHARS,
                        is_open_world=lambda _: True,
                    ),
                },
                observers,
            )
            if may_ask_for_packages(config):
                router.add_route("packages", await build_packages_route(config))
            if config.network.rules:
                await add_web_routes(config, journal, router, optional)
            async with (
                open_backend(config, lease.owner) as backend,
                anyio.create_task_group() as background,
            ):
                background.start_soon(to_thread.run_sync, return_large_blocks)
                background.start_soon(sweep_leftovers, backend, config.server.export_dir)
                retire_skills = partial(retire_unused_skills, skill_store, find_library)
                background.start_soon(maintain_stores, journal, retire_skills, config.server)
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
                    runs_per_minute=config.http.runs_per_minute,
                    approvals_command=format_command(config, "approvals"),
                    find_fetchers=catalog.find_fetchers,
                    web_rules=config.network.rules,
                    observers=observers,
                ) as runtime:

                    @cache
                    def find_saver(principal: str) -> SkillSaver:
                        open_trial = partial(open_scratch_runner, runtime, principal)
                        library = find_library(principal)
                        return SkillSaver(
                            library, journal, packages, open_trial, describe, config.skills.auto
                        )

                    open_session = partial(open_agent_run_session, runtime, config)
                    agents = SubAgents(models.open_agent_model, open_session, inputs)
                    router.add_route(
                        "agent",
                        Route(
                            agents.handle_call, agents.call_effect, max_args_chars=MAX_TASK_CHARS
                        ),
                    )
                    background.start_soon(collect_cycles, partial(is_quiet, runtime))
                    if resume_runs:
                        background.start_soon(resume_interrupted_runs, runtime)
                    yield App(
                        config=config,
                        journal=journal,
                        catalog=catalog,
                        find_saver=find_saver,
                        providers=providers,
                        backend=backend,
                        inputs=inputs,
                        runtime=runtime,
                    )
                background.cancel_scope.cancel()


def is_quiet(runtime: Runtime) -> bool:
    """Return whether no run is active."""
    return not any(runtime.count_active_runs().values())


def open_knowledge_providers(
    config: Config, catalog: Catalog
) -> AbstractAsyncContextManager[KnowledgeService]:
    """Return the configured providers, which read nothing before the first request."""

    def access_server(server: str) -> ResourceAccess:
        upstream = next(each for each in catalog.upstreams.values() if each.name == server)

        async def list_server() -> ResourceListing:
            listed = await list_resources(upstream)
            resources = [
                ListedResource(each.uri, each.mime_type, each.version) for each in listed.resources
            ]
            return ResourceListing(resources, listed.note)

        read = partial(read_text_resource, upstream)
        return ResourceAccess(upstream_digest(upstream), list_server, read)

    return open_knowledge(config.knowledge, config.server.data_dir, access_server)


def build_tools_route(catalog: Catalog, policy: Policy) -> Route:
    """Return the route to the user's MCP servers, with the verdicts of `policy`."""

    def decide(target: str, args: Mapping[str, Any]) -> Verdict:
        return policy.decide(
            target.removeprefix("tools."),
            effect=catalog.effect(target),
            destructive=catalog.is_destructive(target),
        )

    return Route(
        catalog.call_tool,
        catalog.effect,
        prepare=catalog.prepare_call,
        verdict_for=decide,
        is_open_world=catalog.is_open_world,
    )


async def build_packages_route(config: Config) -> Route:
    """Return the route by which code asks for packages."""
    from .capabilities.packages.package_installer import PackageInstaller
    from .capabilities.packages.wheel_cache import WheelCache

    settings = config.sandbox
    cache = WheelCache(config.server.packages_dir, settings.package_mb * MB)
    await to_thread.run_sync(cache.create)
    mode: Verdict = "ask" if settings.packages_on_demand == "ask" else "allow"
    installer = PackageInstaller(cache, mode, settings.allowed_packages)
    return Route(installer.handle_call, lambda _: "read", verdict_for=installer.decide)


async def add_web_routes(
    config: Config, journal: Journal, router: Router, exit_stack: AsyncExitStack
) -> None:
    """Let code make web requests, for as long as `exit_stack` is open."""
    from .capabilities.web.web_requests import open_web_requests  # slow, and seldom needed

    rate = Rate(config.network.requests_per_minute)
    web = await exit_stack.enter_async_context(
        open_web_requests(config.network, journal, rate.count)
    )
    router.add_route(
        "web",
        Route(
            web.handle_request,
            web.effect_of,
            verdict_for=web.decide,
            is_open_world=lambda _: True,
        ),
    )
    router.add_route(
        "downloads",
        Route(web.handle_download, lambda _: "read", is_listed=False, is_open_world=lambda _: True),
    )


def start_imported_upstreams(
    catalog: Catalog, background: TaskGroup, code: str, principal: str
) -> None:
    """Start the upstreams that `code` will import, while it is sent to the sandbox.

    What is stored of all upstreams is prepared, too, for searches.
    """
    if "tools" in code:
        background.start_soon(prepare_stored_tools, catalog, code, principal)
    if names := catalog.find_idle_packages(code):
        background.start_soon(start_upstreams, catalog, names, principal)


async def prepare_stored_tools(catalog: Catalog, code: str, principal: str) -> None:
    """Prepare stored tools before they are used; a failure is reported by what needs them."""
    act_for(principal)
    try:
        await catalog.prepare_stored(code)
    except Exception:  # an optional preparation must not end the server
        logger.exception("could not prepare the stored tools")


async def start_upstreams(catalog: Catalog, names: Sequence[str], principal: str) -> None:
    """Start upstreams before they are used; code that imports them gets their failures."""
    act_for(principal)
    try:
        await catalog.start_upstreams(names)
    except Exception:  # an optional early start must not end the server
        logger.exception("could not start the upstreams %s early", ", ".join(names))


async def resume_interrupted_runs(runtime: Runtime) -> None:
    """Continue the unfinished runs of dead servers; a failure is reported to their clients."""
    try:
        await runtime.resume_interrupted_runs()
    except McpRuntimeError as exc:
        logger.error("could not resume the runs of dead servers: %s", exc)


async def maintain_stores(
    journal: Journal,
    retire_skills: Callable[[], Awaitable[list[Skill]]],
    settings: ServerSettings,
) -> None:
    """Keep the journal within its limits of age and size, and retire unused skills."""
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
            logger.warning("could not remove old sessions from the journal: %s", exc)
        try:
            for skill in await retire_skills():
                logger.info("retired the skill %s: %s", skill.id, " ".join(skill.reasons))
        except McpRuntimeError as exc:
            logger.warning("could not retire unused skills: %s", exc)
        await anyio.sleep(MAINTENANCE_INTERVAL_S)


async def sweep_leftovers(backend: Backend, export_dir: Path) -> None:
    """Remove what was left behind, soon after the start of the server and then periodically."""
    await anyio.sleep(FIRST_SWEEP_DELAY_S)
    while True:
        try:
            if count := await backend.remove_orphans():
                logger.info("removed %d sandboxes that were left behind", count)
        except McpRuntimeError as exc:
            logger.warning("could not remove the sandboxes that were left behind: %s", exc)
        if count := await to_thread.run_sync(remove_old_drafts, export_dir):
            logger.info("removed %d half-written exports that were left behind", count)
        await anyio.sleep(SWEEP_INTERVAL_S)


async def serve_stdio(config: Config, is_stopping: anyio.Event) -> None:
    """Serve MCP on stdin and stdout until stdin ends or `is_stopping` is set."""
    act_for(LOCAL_PRINCIPAL)
    async with (
        open_traces(config) as traces,
        open_app(config, create_observers=traces.create_observers) as app,
    ):
        cursor = DeliveryCursor()  # over stdio there is one client
        server = await app.open_mcp_server(LOCAL_PRINCIPAL, lambda _: cursor)
        traces.read_context(server)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_when_set, is_stopping, tasks.cancel_scope)
            tasks.start_soon(app.catalog.refresh)
            async with open_stdio_streams(cursor.record_timed_out) as (incoming, outgoing):
                # The SDK has no public method that runs a server on given streams.
                lowlevel = server._lowlevel_server
                await lowlevel.run(incoming, outgoing, lowlevel.create_initialization_options())
            tasks.cancel_scope.cancel()


async def serve_http(
    config: Config,
    is_stopping: anyio.Event,
    listener: socket.socket,
    tokens: TokenSource | None,
    logins: BrowserLogins | None = None,
    *,
    resume_runs: bool = True,
) -> None:
    """Serve MCP, the HTTP API and the viewer until `is_stopping` is set.

    Without `tokens`, everybody is served. `logins` are the browsers that are logged in.
    """
    from .service.api_services import ApiServices  # which stdio does not need
    from .service.credential_pages import find_page_url
    from .service.http_service import serve_http as serve
    from .service.metrics import RuntimeMetrics, create_registry
    from .service.operations import Operations
    from .viewer.browser_logins import BrowserLogins
    from .viewer.page_routes import build_page_routes

    registry = create_registry()
    logins = logins or BrowserLogins()

    def create_observers(catalog: Catalog) -> Sequence[RuntimeObserver]:
        metrics = RuntimeMetrics(registry, catalog.name_target)
        return [metrics, *traces.create_observers(catalog)]

    async def open_mcp_server(principal: str, find_cursor: FindCursor) -> MCPServer[Any]:
        server = await app.open_mcp_server(principal, find_cursor)
        traces.read_context(server)
        return server

    async with (
        open_traces(config) as traces,
        open_app(
            config,
            resume_runs=resume_runs,
            create_observers=create_observers,
            credentials_url=find_page_url(config.http, listener),
        ) as app,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(app.catalog.refresh)
        tasks.start_soon(release_when_set, is_stopping, app.runtime)
        operations = Operations(
            registry,
            app.runtime,
            app.journal,
            app.backend.run_checks,
            lambda: [each.status.state for each in app.catalog.upstreams.values()],
            config.http.metrics_token.get_secret_value(),
            traces.wrap_app,
        )
        starter = RunStarter(config.sandbox, app.runtime, app.inputs)
        api = ApiServices(
            config,
            app.runtime,
            Inspector(app.runtime),
            starter,
            app.catalog.package_names,
            is_stopping,
        )

        def build_pages(authentication: Authentication) -> Sequence[BaseRoute]:
            def find_library(principal: str) -> SkillLibrary:
                return app.find_saver(principal).library

            has_tokens = tokens is not None
            return build_page_routes(
                api, find_library, logins, authentication, needs_token=has_tokens
            )

        await serve(
            open_mcp_server,
            api,
            config.http,
            listener,
            tokens,
            operations,
            is_stopping,
            build_pages,
        )
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def open_traces(config: Config) -> AsyncIterator[Traces]:
    """Yield what records traces, which does nothing unless a collector is configured.

    Raises `ConfigError` if the settings name one and the packages for it are not installed.
    """
    if not sends_traces(config.telemetry):
        yield Traces()
        return
    try:
        from .service.tracing import RequestContext, RuntimeTraces, open_tracer
    except ImportError as exc:
        if config.telemetry.traces_url:
            raise ConfigError(f"No traces can be sent: {exc}.", remedy=TRACES_REMEDY) from exc
        logger.warning("no traces are sent: %s. %s", exc, TRACES_REMEDY)
        yield Traces()
        return
    models = frozenset(filter(None, (config.llm.model, *config.llm.models)))
    context = RequestContext()
    async with open_tracer(config.telemetry.traces_url) as tracer:
        yield Traces(
            lambda catalog: [RuntimeTraces(tracer, catalog.name_target, models)],
            context.wrap_app,
            lambda server: server._lowlevel_server.middleware.append(context.handle_mcp_request),
        )


async def cancel_when_set(event: anyio.Event, scope: anyio.CancelScope) -> None:
    """Cancel `scope` when `event` is set."""
    await event.wait()
    scope.cancel()


async def release_when_set(event: anyio.Event, runtime: Runtime) -> None:
    """Let requests return what there is of their runs when `event` is set."""
    await event.wait()
    runtime.release_requests()


async def skills_sentence(library: SkillLibrary) -> str:
    """Return a sentence about the skills that exist, with the names of the best ones."""
    try:
        found, count = await library.search("", MAX_NAMED_SKILLS)
        best = [skill.name for skill in found]
    except McpRuntimeError as exc:
        logger.warning("could not read the skills: %s", exc)
        return ""
    if not best:
        return "There are none yet: save_skill keeps a run."
    if count == 1:
        return f"There is one: {best[0]}."
    return f"There are {count}; the best: {', '.join(best)}."


# for the command line ---------------------------------------------------------------------------


async def run_checks(config: Config) -> list[HealthCheck]:
    """Check everything that a server with these settings needs."""
    checks = [check_data_folder(config.server.data_dir)]
    if not checks[0].is_ok:
        return checks
    make_private(config)
    checks += [
        HealthCheck(
            "file modes",
            True,
            f"Other users of this machine may enter {path}.",
            f"If they should not: {shlex.join(['chmod', '700', str(path)])}",
            is_warning=True,
        )
        for path in find_shared_folders(config)
    ]
    with acquire_lease(config.server.data_dir) as held:
        async with open_backend(config, held.owner) as backend:
            checks += await backend.run_checks()
    async with open_tools(config) as catalog:
        checks += [
            HealthCheck("upstreams", False, problem, "Rename one of them.")
            for problem in catalog.problems
        ]
        packages = [*catalog.package_names(), FILES_PREFIX]
        unused = Policy(config.policy).unused_rules(packages)
        checks += [
            HealthCheck(
                "policy",
                True,
                f"The rule {name} matches no server.",
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
            if report.undeclared:
                checks.append(check_declared_effects(report))
        with redirect_stdout_to_stderr():
            checks += await check_knowledge(config, catalog)
    return checks + await to_thread.run_sync(check_credentials, config)


def check_credentials(config: Config) -> list[HealthCheck]:
    """Check the credentials of principals for the upstreams that need them."""
    servers = [
        name
        for name, entry in config.mcpServers.items()
        if entry.is_per_principal and not entry.disabled
    ]
    if not servers:
        return []
    try:
        keys = load_keys(config.credentials, config.server.data_dir)
        rows = CredentialStore(config.server.data_dir).list_credentials()
        for row in rows:
            row.decrypt(keys)
    except McpRuntimeError as exc:
        return [HealthCheck("credentials", False, exc.message, exc.remedy)]
    counts = Counter(upstream for upstream, _ in {(row.upstream, row.principal) for row in rows})
    return [
        HealthCheck(f"upstream {name}", True, f"principals with credentials: {counts[name]}")
        for name in servers
    ]


def check_declared_effects(report: UpstreamReport) -> HealthCheck:
    """Report the tools of an upstream that neither annotations nor the settings describe."""
    names = report.undeclared
    listed = ", ".join(names[:MAX_NAMED_TOOLS])
    if len(names) > MAX_NAMED_TOOLS:
        listed += f" and {len(names) - MAX_NAMED_TOOLS} more"
    return HealthCheck(
        f"upstream {report.upstream}",
        True,
        f"{len(names)} of {report.tools} tools have no annotations on effects "
        f"and count as writing: {listed}",
        f'Name those that only read: [policy] reads = ["{report.server}.{names[0]}", ...].',
        is_warning=True,
    )


@contextmanager
def redirect_stdout_to_stderr() -> Iterator[None]:
    """Send the output of user-written providers, and of programs they start, to stderr.

    The stdout of `doctor` may be parsed by other programs.
    """
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


async def check_knowledge(config: Config, catalog: Catalog) -> list[HealthCheck]:
    """Index every provider as far as time allows, and report its state."""
    checks = []
    async with open_knowledge_providers(config, catalog) as providers:
        for each in await providers.check_providers(INDEXING_TIMEOUT_S):
            name, problem = f"knowledge {each['name']}", each["problem"]
            if each["is_failed"]:
                checks.append(HealthCheck(name, False, problem, problem, is_warning=bool(problem)))
                continue
            detail = f"{each['documents']:,} documents, {each['passages']:,} passages"
            if skipped := format_skipped(each):
                detail += f"; skipped: {skipped}"
            checks.append(HealthCheck(name, True, detail, problem, is_warning=bool(problem)))
    return checks


def check_data_folder(folder: Path) -> HealthCheck:
    """Check whether the journal can be stored in `folder`."""
    try:
        with acquire_lease(folder):
            return HealthCheck("data folder", True, str(folder))
    except Unavailable as exc:
        return HealthCheck("data folder", False, exc.message, exc.remedy)


async def list_tools(config: Config) -> ToolListing:
    """Start all upstreams and return their tools, as the local user has them."""
    act_for(LOCAL_PRINCIPAL)
    async with open_tools(config) as catalog:
        return await catalog.list_live_tools()


async def load_shim_source(config: Config, package: str) -> str:
    """Return the source of one upstream's generated module, as the local user has it."""
    act_for(LOCAL_PRINCIPAL)
    async with open_tools(config) as catalog:
        return (await catalog.load_live_shim(package))["source"]
