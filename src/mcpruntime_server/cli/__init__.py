"""The command line: one function per command; everything it does is also available in Python."""

from .command_line import main

__all__ = ["main"]
