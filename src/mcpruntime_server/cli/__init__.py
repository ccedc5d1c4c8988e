"""The command line. Each command is one function, and everything it does can be had without it."""

from .command_line import main

__all__ = ["main"]
