"""The composition root: builds all parts from the settings and connects them; no other logic."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread
from mcp.server import MCPServer

from ..capabilities.agent.sub_agents import SubAgents
from ..capabilities.credential_keys import load_keys
from ..capabilities.credential_store import CredentialStore
from ..capabilities.file_exports import FileExporter
from ..capabilities.inputs.store import InputStore
from ..capabilities.knowledge.resource_provider import (
    ListedResource,
    ResourceAccess,
    ResourceListing,
)
from ..capabilities.knowledge.service import KnowledgeService, open_knowledge
from ..capabilities.large_calls import open_large_calls
from ..capabilities.large_json import LargeJson, open_large_json
from ..capabilities.llm.model_process import open_model_process
from ..capabilities.llm.model_service import ModelService, select_backend
from ..capabilities.own_credentials import OwnCredentials
from ..capabilities.policy import Policy
from ..capabilities.skills.descriptions import describe_skill
from ..capabilities.skills.guides import GuideFolders
from ..capabilities.skills.library import SkillLibrary, retire_unused_skills
from ..capabilities.skills.saving import SkillSaver
from ..capabilities.skills.store import SkillStore
from ..capabilities.tools.catalog import Catalog, open_catalog
from ..capabilities.tools.catalog_servers import ReportChange
from ..capabilities.tools.catalogue_cache import CatalogueCache
from ..capabilities.tools.input_resources import UpstreamResources
from ..capabilities.tools.principal_upstreams import open_principal_upstreams
from ..capabilities.tools.resource_listing import (
    list_resources,
    read_text_resource,
    upstream_digest,
)
from ..capabilities.tools.upstream import open_upstreams
from ..capabilities.uploads import Uploads, list_pieces
from ..config import Config, Verdict
from ..config.file_modes import make_private
from ..config.shell_commands import format_command
from ..errors import McpRuntimeError, Unavailable
from ..fair_turns import FairTurns
from ..journal import server_lease
from ..journal.call_scope import act_for, current_call_scope
from ..journal.quotas import JournalLimits
from ..journal.server_lease import ServerLease
from ..journal.store import Journal, open_journal
from ..runtime.observer import Observers, RuntimeObserver
from ..runtime.package_changes import PackageChanges
from ..runtime.process_memory import return_free_memory
from ..runtime.rates import Rate
from ..runtime.reference_cycles import collect_cycles
from ..runtime.router import HandleCall, Route, Router, allow_always
from ..runtime.run import Run
from ..runtime.runtime import Runtime, open_runtime
from ..runtime.scratch_run import open_scratch_runner
from ..sandbox import Backend
from ..sandbox.bundle import KERNEL_ARGV, KERNEL_ENV
from ..sandbox.docker_backend import DockerBackend
from ..sandbox.local_backend import LocalBackend
from ..server.agent_runs import open_agent_run_session
from ..server.delivery import FindCursor
from ..server.mcp_server import build_mcp_server
from ..server.question_pages import max_question_chars
from ..server.skill_tools import keep_as_skill
from ..server.state_key import load_state_key

if TYPE_CHECKING:
    pass

from ..protocol.payloads import JsonObject
from .background_work import (
    maintain_stores,
    resume_interrupted_runs,
    start_imported_upstreams,
    sweep_leftovers,
)

FILES_PREFIX = "files"  # of calls that export files
UPLOADS_PREFIX = "uploads"  # of calls that bring such files, and large bodies of web requests
MB = 1024 * 1024
MAX_NAMED_SKILLS = 5  # in the instructions for clients
MAX_QUERY_CHARS = 100_000  # of a call that searches tools or knowledge
MAX_TASK_CHARS = 3_000_000  # of a call that starts an agent or submits its answer

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
    large_json: LargeJson
    result_turns: FairTurns = field(default_factory=FairTurns)

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
            self.result_turns,
            principal=principal,
            is_isolated=self.backend.is_isolated,
            python=await self.runtime.name_python(),
            state_key=await to_thread.run_sync(
                load_state_key, self.config.server.data_dir, principal
            ),
            signatures=await self.catalog.describe_briefly(),
            skills_sentence=await skills_sentence(saver.library),
        )

    async def keep_when_finished(self, run: Run, principal: str) -> None:
        """Save a run as a skill when it has finished, if that is enabled and worth it."""
        await run.wait_until_finished()
        await run.wait_until_recorded()
        try:
            await keep_as_skill(self.find_saver(principal), self.journal, run)
        except McpRuntimeError as exc:  # the run itself is fine
            logger.warning("run %s could not be considered as a skill: %s", run.id, exc)


def make_vault(config: Config, credentials_url: str) -> OwnCredentials:
    """Return the credentials that principals have stored."""
    data_dir = config.server.data_dir
    return OwnCredentials(
        CredentialStore(data_dir),
        partial(load_keys, config.credentials, data_dir),
        partial(format_command, config),
        credentials_url,
    )


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
    vault = make_vault(config, credentials_url)
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
        run_bytes=config.journal.run_mb * MB,
        session_bytes=config.journal.session_mb * MB,
        principal_bytes=config.journal.principal_mb * MB,
        download_bytes=config.network.download_mb * MB,
    )
    with acquire_lease(folder) as lease:
        async with (
            open_journal(folder, lease, config.journal.durability, limits) as journal,
            open_tools(config, package_changes.record_change, credentials_url) as catalog,
            open_knowledge_providers(config, catalog) as providers,
            open_model_process(config.llm) as model_process,
            open_large_calls() as large_calls,
            open_large_json() as large_json,
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
            uploads = Uploads(journal, config.sandbox.workspace_mb * MB)
            exporter = FileExporter(config.server.export_dir, journal.blobs, uploads)
            guides = GuideFolders(config.skills.folders)
            skill_store = SkillStore(config.skills.folder, config.skills.trusted_keys)

            @cache
            def find_library(principal: str) -> SkillLibrary:
                store = skill_store.of_principal(principal)
                return SkillLibrary(store, journal, catalog.schema_digest, guides)

            async def answer_skill_call(target: str, args: JsonObject) -> Any:
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
                        uploads.handle_call,
                        lambda _: "read",
                        is_listed=False,
                        blobs_of=list_pieces,
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
                large_json.decode,
            )
            if may_ask_for_packages(config):
                await add_package_routes(config, journal, router, answer_skill_call)
            if config.network.rules:
                vault = make_vault(config, credentials_url)
                await add_web_routes(config, journal, uploads, vault, router, optional)
            async with (
                open_backend(config, lease.owner) as backend,
                anyio.create_task_group() as background,
            ):
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
                    read_large_call=large_calls.read,
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
                    background.start_soon(collect_cycles, runtime.is_quiet)
                    background.start_soon(return_free_memory, runtime.is_quiet)
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
                        large_json=large_json,
                    )
                background.cancel_scope.cancel()


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
        takes_encoded=True,
        prepare=catalog.prepare_call,
        verdict_for=decide,
        is_open_world=catalog.is_open_world,
    )


async def add_web_routes(
    config: Config,
    journal: Journal,
    uploads: Uploads,
    vault: OwnCredentials,
    router: Router,
    exit_stack: AsyncExitStack,
) -> None:
    """Let code make web requests, for as long as `exit_stack` is open."""
    from ..capabilities.web.response_bodies import list_body_blobs  # slow, and seldom needed
    from ..capabilities.web.web_requests import open_web_requests

    rate = Rate(config.network.requests_per_minute)
    web = await exit_stack.enter_async_context(
        open_web_requests(config.network, journal, uploads, vault, rate.count)
    )
    router.add_route(
        "web",
        Route(
            web.handle_request,
            web.effect_of,
            verdict_for=web.decide,
            is_open_world=lambda _: True,
            blobs_of=list_body_blobs,
            load_data=web.load_body,
        ),
    )
    router.add_route(
        "downloads",
        Route(
            web.handle_download,
            lambda _: "read",
            is_listed=False,
            is_open_world=lambda _: True,
            blobs_of=list_body_blobs,
            load_data=web.load_body,
            runs_ahead=True,
        ),
    )


def may_ask_for_packages(config: Config) -> bool:
    """Return whether code may ask for packages."""
    return config.sandbox.packages_on_demand != "off"


async def add_package_routes(
    config: Config, journal: Journal, router: Router, answer_skill_call: HandleCall
) -> None:
    """Let code ask for packages, and skills bring theirs."""
    from ..capabilities.packages.package_installer import PackageInstaller, list_digests
    from ..capabilities.packages.resolver import choose_source
    from ..capabilities.packages.wheel_cache import WheelCache

    settings = config.sandbox
    cache = WheelCache(config.server.packages_dir, settings.package_mb * MB)
    await to_thread.run_sync(cache.create)
    source = await to_thread.run_sync(
        choose_source, settings.package_tool, settings.package_mb * MB
    )
    mode: Verdict = "ask" if settings.packages_on_demand == "ask" else "allow"
    installer = PackageInstaller(cache, journal.blobs, source, mode, settings.allowed_packages)
    install = Route(
        installer.handle_call,
        lambda _: "read",
        verdict_for=installer.decide,
        blobs_of=list_digests,
        supply=installer.supply,
    )
    router.add_route("packages", install)
    skills = replace(install, handle=answer_skill_call, is_listed=False, verdict_for=allow_always)
    router.add_route("skills", skills)


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
