"""The settings: what they are, where they come from, and what is said when one is wrong."""

from __future__ import annotations

from .clients import import_client_json
from .load import APP, load
from .models import (
    Config,
    Limits,
    LlmSettings,
    PolicySettings,
    ProviderSettings,
    SandboxSettings,
    ServerSettings,
    UpstreamSettings,
    Verdict,
)
from .show import describe

__all__ = [
    "APP",
    "Config",
    "Limits",
    "LlmSettings",
    "PolicySettings",
    "ProviderSettings",
    "SandboxSettings",
    "ServerSettings",
    "UpstreamSettings",
    "Verdict",
    "describe",
    "import_client_json",
    "load",
]
