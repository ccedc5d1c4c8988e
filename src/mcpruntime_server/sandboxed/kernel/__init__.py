"""The processes of a sandbox: a supervisor, a worker that runs user code, and parked forks of it."""
