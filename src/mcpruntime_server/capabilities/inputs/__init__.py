"""The inputs of runs: where they come from, how they are kept, how they get into a sandbox."""
