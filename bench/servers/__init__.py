"""The MCP servers that the tasks of the bench use; each is started with `-m bench.servers.NAME`.

Rule: all state is in the folder `BENCH_STATE` of the host, which no sandbox sees. The bench writes
it before a task and reads it afterwards. A server keeps nothing in memory between calls.
"""
