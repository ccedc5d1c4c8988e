"""What runs are given to work on: where it comes from, how it is kept, and how it is put before a sandbox."""
