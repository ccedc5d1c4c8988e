"""Other runtimes for code, measured on the same programs as this one.

Each runs in its own environment below `.venvs/rivals`, used as its documents say. `versions.toml`
has all names and versions; `make rivals` installs them.
"""
