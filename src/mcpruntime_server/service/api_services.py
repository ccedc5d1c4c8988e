"""What the handlers of the HTTP API work with."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import anyio

from ..config import Config
from ..runtime.inspector import Inspector
from ..runtime.run import Run
from ..runtime.runtime import Runtime
from ..server.run_starter import RunStarter
from .event_stream import MAX_STREAMS, OpenResponses


@dataclass(frozen=True)
class ApiServices:
    """What the handlers work with; `is_stopping` is set when the server stops."""

    config: Config
    runtime: Runtime
    inspector: Inspector
    starter: RunStarter
    keep_as_skill: Callable[[Run, str], None]  # the run of a principal, once it has finished
    package_names: Callable[[], Collection[str]]  # of the servers that code can call
    is_stopping: anyio.Event
    streams: OpenResponses = field(  # of all routes that stream
        default_factory=lambda: OpenResponses("streams", MAX_STREAMS)
    )
