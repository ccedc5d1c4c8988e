"""What the sessions of one server share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..journal.store import Journal
from .input_provider import InputProvider
from .observer import NO_OBSERVERS, Observers
from .package_changes import PackageChanges
from .rates import RunStarts
from .router import Router
from .run_scheduler import RunScheduler
from .run_spec import RunLimits
from .sandbox_pool import SandboxPool


@dataclass(frozen=True)
class SessionServices:
    """The collaborators of every session."""

    journal: Journal
    router: Router
    pool: SandboxPool
    limits: RunLimits
    scheduler: RunScheduler
    inputs: InputProvider
    package_changes: PackageChanges
    get_spending: Callable[[str], Mapping[str, float]]  # what a run has paid models, as its usage
    announce_code: Callable[[str, str], None]  # code and principal of every run before it starts
    run_starts: RunStarts
    find_fetchers: Callable[[], Sequence[str]]  # tools that fetch, for code that seeks a network
    observers: Observers = NO_OBSERVERS
    lost_states: dict[str, str] = field(default_factory=dict)  # run whose variables are lost -> why
