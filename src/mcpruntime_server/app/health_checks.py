"""The checks of `doctor`: everything that a server with some settings needs."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import (
    contextmanager,
    redirect_stdout,
)
from pathlib import Path
from typing import TYPE_CHECKING

from anyio import to_thread

from .. import APP_NAME
from ..capabilities.credential_keys import load_keys
from ..capabilities.credential_store import CredentialStore
from ..capabilities.knowledge.service import format_skipped
from ..capabilities.policy import Policy
from ..capabilities.tools.catalog import Catalog, UpstreamReport
from ..client_files.client_kinds import CLIENTS, UserPlaces
from ..client_files.registration import find_own_entries
from ..client_files.server_entries import read_command
from ..config import Config
from ..config.file_modes import find_shared_folders, make_private
from ..errors import ConfigError, McpRuntimeError, Unavailable
from ..sandbox import HealthCheck

if TYPE_CHECKING:
    pass

from .composition import (
    FILES_PREFIX,
    acquire_lease,
    open_backend,
    open_knowledge_providers,
    open_tools,
)

MAX_NAMED_TOOLS = 40  # in one line of `doctor`
UNUSED_RULE_REMEDY = "Rules use the Python names of servers: see `mcpruntime-server tools`."
INDEXING_TIMEOUT_S = 60.0  # for `doctor` to index all knowledge providers


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
    checks += await to_thread.run_sync(check_packages, config)
    checks += await to_thread.run_sync(check_credentials, config)
    return checks + await to_thread.run_sync(check_clients, UserPlaces.find())


def check_clients(places: UserPlaces) -> list[HealthCheck]:
    """Check the clients of this user that start this server: is the program still there?"""
    checks = []
    for kind in CLIENTS.values():
        path = kind.locate(places)
        name = f"client {kind.name}"
        try:
            entries = find_own_entries(kind, path)
        except ConfigError as exc:
            remedy = exc.remedy or "Correct the file."
            checks.append(HealthCheck(name, True, exc.message, remedy, is_warning=True))
            continue
        for entry in entries.values():
            program, *_ = read_command(entry)
            is_there = shutil.which(program) is not None
            detail = f"starts {program}" if is_there else f"{path} names {program}, which is gone"
            remedy = f"Register the present one: {APP_NAME} install {kind.name}"
            checks.append(HealthCheck(name, True, detail, remedy, is_warning=not is_there))
    return checks


def check_packages(config: Config) -> list[HealthCheck]:
    """Check the packages that code has asked for, and what finds new ones."""
    from ..capabilities.packages.resolver import choose_source
    from ..capabilities.packages.wheel_cache import BYTES_PER_MB, WheelCache

    settings = config.sandbox
    if settings.packages_on_demand == "off":
        return []
    max_bytes = settings.package_mb * BYTES_PER_MB
    wheels = WheelCache(config.server.packages_dir, max_bytes).list_wheels()
    size_mb = sum(wheel.size for wheel in wheels) // BYTES_PER_MB
    source = choose_source(settings.package_tool, max_bytes)
    if problem := source.find_problem():
        remedy = "Install it for the server, or choose another: [sandbox] package_tool."
        return [HealthCheck("packages", False, problem, remedy)]
    detail = f"{len(wheels)} cached, {size_mb} MB; {source.name} finds others"
    return [HealthCheck("packages", True, detail)]


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
