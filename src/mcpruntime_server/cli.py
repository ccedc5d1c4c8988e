"""The command line: one function a verb, and nothing that cannot be had without it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio

from . import __version__
from .errors import McpRuntimeError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` names; return the exit code."""
    options = parser().parse_args(argv)
    try:
        return int(options.verb(options) or 0)
    except McpRuntimeError as exc:
        print(f"mcpruntime-server: {exc}", file=sys.stderr)
        return exc.exit_code
