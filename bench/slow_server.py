"""The bare server behind a slow start: it reads nothing for the seconds that its argument says."""

from __future__ import annotations

import sys
import time

from bare_server import server

if __name__ == "__main__":
    time.sleep(float(sys.argv[1]))
    server.run()
