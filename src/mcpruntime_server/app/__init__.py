"""The server as a whole: its parts put together, served, maintained and checked."""
