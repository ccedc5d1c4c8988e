"""Web requests of sandboxed code: rules, addresses, credentials, and the client that sends them."""
