"""The network service, with real clients over HTTP."""
