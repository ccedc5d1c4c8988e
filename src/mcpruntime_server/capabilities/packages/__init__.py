"""Packages that code asks for: resolved and downloaded on the host, imported in the sandbox."""
