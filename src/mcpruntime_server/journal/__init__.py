"""The append-only record of everything that happens, and the only source of truth."""
