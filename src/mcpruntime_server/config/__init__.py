"""The settings: what they are, where they come from, and what is said when one is wrong."""

from __future__ import annotations

from .client_import import import_client_json
from .display import render_config
from .loader import load_config
from .models import (
    BudgetLimits,
    Config,
    KnowledgeSettings,
    LlmSettings,
    PolicySettings,
    SandboxSettings,
    ServerSettings,
    UpstreamSettings,
    Verdict,
)

__all__ = [
    "BudgetLimits",
    "Config",
    "KnowledgeSettings",
    "LlmSettings",
    "PolicySettings",
    "SandboxSettings",
    "ServerSettings",
    "UpstreamSettings",
    "Verdict",
    "import_client_json",
    "load_config",
    "render_config",
]
