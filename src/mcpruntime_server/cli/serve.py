"""Serving MCP: the option `--stdio`, and where the server logs to."""

from __future__ import annotations

import gc
import logging
import logging.handlers
import sys

from ..config import Config
from ..errors import ConfigError
from .signals import serve_until_signal
from .terminal_text import EscapingFormatter

MAX_LOG_BYTES = 5_000_000  # of one log file; one older file is kept


def serve_stdio(config: Config) -> int:
    """Serve MCP on stdin and stdout until the client closes stdin or a signal comes; return 0."""
    # The imported objects stay alive. Examining them again and again takes a tenth of the start.
    gc.disable()
    from ..app import serve_stdio as serve

    gc.freeze()
    gc.enable()
    configure_logging(config)
    serve_until_signal(serve, config)
    return 0


def configure_logging(config: Config) -> None:
    """Log to stderr and to a file in the data folder; stdout belongs to the protocol."""
    folder = config.server.data_dir / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        to_file = logging.handlers.RotatingFileHandler(
            folder / "server.log", maxBytes=MAX_LOG_BYTES, backupCount=1
        )
    except OSError as exc:
        raise ConfigError(
            f"The log cannot be written to {folder}: {exc.strerror}.",
            remedy="Make the folder writable, or name another data folder with --data-dir.",
        ) from exc
    to_stderr = logging.StreamHandler(sys.stderr)
    for handler in (to_file, to_stderr):
        handler.setFormatter(EscapingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("mcpruntime_server")
    logger.addHandler(to_file)
    logger.setLevel(config.server.log_level.upper())
    # The SDK would give the root logger a handler that writes control characters as they are.
    logging.getLogger().addHandler(to_stderr)
    logging.captureWarnings(capture=True)
