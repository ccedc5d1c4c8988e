"""Feeds mutated input to the readers of what strangers send; `make fuzz` does it for minutes."""
