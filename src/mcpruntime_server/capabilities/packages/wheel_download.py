"""Download one file: a program that the server starts, so that no index is answered in its process.

It uses the standard library only, follows the proxy and certificate settings of the environment,
and exits with a sentence if it fails. Its parent limits what it may write, and for how long.
"""

from __future__ import annotations

import shutil
import sys
import urllib.request
from urllib.parse import urlsplit

SCHEMES = ("https", "http", "file")
READ_TIMEOUT_S = 60.0
COPY_BYTES = 1 << 20


def download_file(url: str, path: str) -> None:
    """Write what `url` names to a new file; raises `OSError` or `ValueError`."""
    if urlsplit(url).scheme not in SCHEMES:
        raise ValueError(f"{url!r:.200} is not the address of a package")
    answer = urllib.request.urlopen(url, timeout=READ_TIMEOUT_S)  # noqa: S310 - checked above
    with answer, open(path, "xb") as file:
        shutil.copyfileobj(answer, file, COPY_BYTES)


if __name__ == "__main__":
    try:
        download_file(*sys.argv[1:])
    except (OSError, ValueError) as exc:
        sys.exit(f"{sys.argv[1]:.300}: {exc}")
