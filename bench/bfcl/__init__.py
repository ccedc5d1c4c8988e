"""The multi-turn categories of the Berkeley Function-Calling Leaderboard as programs."""
