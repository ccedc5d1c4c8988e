"""The settings: what can be set, where the values come from, and what is wrong with them.

The text form is in `display`.
"""

from __future__ import annotations

from .loader import load_config
from .models import (
    BudgetLimits,
    Config,
    CredentialSettings,
    HttpSettings,
    KnowledgeSettings,
    LlmSettings,
    NetworkSettings,
    OAuthSettings,
    PolicySettings,
    SandboxSettings,
    ServerSettings,
    SettingSources,
    UpstreamSettings,
    Verdict,
)
from .validation import SecretText

__all__ = [
    "BudgetLimits",
    "Config",
    "CredentialSettings",
    "HttpSettings",
    "KnowledgeSettings",
    "LlmSettings",
    "NetworkSettings",
    "OAuthSettings",
    "PolicySettings",
    "SandboxSettings",
    "SecretText",
    "ServerSettings",
    "SettingSources",
    "UpstreamSettings",
    "Verdict",
    "load_config",
]
