"""What helper processes of the server may use."""

from __future__ import annotations

import math
import sys
import time

MAX_MEMORY_BYTES = 1 << 30
MAX_REQUEST_S = 10.0  # of processor time; the server waits less
NICENESS = 5  # behind the server and the sandboxes

if sys.platform != "win32":
    import os
    import resource

    def limit_process() -> None:
        """Limit the memory of this process, and let others have the processor first."""
        os.nice(NICENESS)
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, most))

    def limit_processor_time() -> None:
        """Limit the processor time from now on."""
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        last_second = math.ceil(time.process_time() + MAX_REQUEST_S)
        resource.setrlimit(resource.RLIMIT_CPU, (last_second, most))

else:

    def limit_process() -> None:
        """Limit nothing: this system cannot."""

    def limit_processor_time() -> None:
        """Limit nothing: this system cannot."""
