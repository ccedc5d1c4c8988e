"""The configurations of MCP clients: where they are, what they mean, and careful changes to them.

Rule 1: these files belong to other programs and to their users. A change touches only the text of
the entries that it is about; comments, order, unknown keys and spacing stay.
Rule 2: a file that cannot be read completely is never written.
Rule 3: credentials are read here and moved by name; no message contains one.
"""
