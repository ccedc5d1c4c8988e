"""Check the installation: the same as `mcpruntime-server doctor`."""

import sys

from mcpruntime_server.cli import main

sys.exit(main(["doctor", *sys.argv[1:]]))
