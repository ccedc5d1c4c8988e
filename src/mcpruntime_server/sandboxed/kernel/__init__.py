"""The processes of a sandbox: a supervisor, a worker that runs user code, and its parked forks."""
