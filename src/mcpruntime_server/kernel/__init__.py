"""What runs inside a sandbox: standard library only, Python >= 3.9, shipped there as source text."""
