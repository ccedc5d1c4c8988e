"""Cloudflare's codemode: its executor in workerd, which loads a new isolate for each program."""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from .measure import Programs, Rival, serve

START_TIMEOUT_S = 30.0
HERE = Path(__file__).parent
CALLS = """async () => {
  for (let n = 0; n < COUNT; n++) await codemode.noop({ n });
  return "done";
}"""


class Codemode(Rival):
    """A worker behind HTTP on this machine; a connection is kept."""

    programs = Programs(
        value="async () => 1 + 1",
        output="async () => {{ console.log('line {n}'); }}",
        set_variable="async () => { globalThis.kept = 41; }",
        get_variable="async () => globalThis.kept + 1",
        calls=CALLS,
    )

    async def open(self) -> None:
        """Start workerd."""
        modules = Path(self.request["folder"]) / "node_modules"
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        folder = Path(self._folder.name)
        shutil.copy(HERE / "codemode.js", folder)
        names = []
        for file in (modules / "@cloudflare" / "codemode" / "dist").glob("*.js"):
            shutil.copy(file, folder)
            names.append(file.name)
        shutil.copy(modules / "acorn" / "dist" / "acorn.mjs", folder / "acorn")
        needed = find_imports(folder, "index.js")
        lines = [f'    (name = "{name}", esModule = embed "{name}"),' for name in needed]
        port = find_free_port()
        config = (HERE / "codemode.capnp").read_text("utf-8")
        config = config.replace("PORT", str(port)).replace("MODULES", "\n".join(lines))
        (folder / "config.capnp").write_text(config, "utf-8")
        binary = str(modules / ".bin" / "workerd")
        command = [binary, "serve", "--experimental", str(folder / "config.capnp")]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE)  # noqa: ASYNC220
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._connect()

    def _connect(self) -> None:
        """Wait until workerd listens."""
        ends = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return self._connection.connect()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > ends:
                    assert self._process.stderr is not None
                    self._process.kill()
                    text = self._process.stderr.read().decode("utf-8", "replace")
                    raise RuntimeError(f"workerd does not listen: {text[-500:]}") from None
                time.sleep(0.01)

    async def run(self, code: str) -> str:
        """Return the JSON of the result, with value and output."""
        self._connection.request("POST", "/", code.encode())
        # workerd sends head and body apart, and the kernel would hold the second for 40 ms.
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        response = self._connection.getresponse()
        text = response.read().decode("utf-8")
        if response.status != 200 or '"error"' in text:
            raise RuntimeError(text[:300])
        return text

    async def close(self) -> None:
        """Stop workerd."""
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def find_imports(folder: Path, name: str) -> list[str]:
    """Return a module and all that it imports, as far as they are files of the folder."""
    found: list[str] = []
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module in found or not (folder / module).exists():
            continue
        found.append(module)
        text = (folder / module).read_text("utf-8")
        waiting += re.findall(r'^import [^;]*? from "(?:\./)?([\w./-]+)"', text, re.MULTILINE)
    return found


def find_free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


if __name__ == "__main__":
    serve(Codemode)
