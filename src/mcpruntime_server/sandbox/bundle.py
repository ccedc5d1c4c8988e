"""The sandbox's own code as bytes, and the command and the environment that load it.

The code is shipped as source over stdin when a sandbox starts, so that any image with Python 3.9 or
newer will do. The packages `protocol` and `sandboxed` become the package `mcpruntime_sandbox`, with
the same layout, so that their relative imports work there. The host reads `sandboxed` as text and
never imports it.
"""

from __future__ import annotations

import importlib.util
import marshal
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SHIPPED_PACKAGES = ("protocol", "sandboxed")
PACKAGE_ROOT = Path(__file__).parent.parent
SANDBOX_PACKAGE = "mcpruntime_sandbox"
MARSHAL_VERSION = 2  # a format that every Python reads, for text, bytes and tuples

# stdin starts with a length and that many bytes of marshal data: a magic number, the names of
# packages, and two mappings from the names of modules: to their sources, and to their code that was
# compiled by the Python with that magic number. A Python equal to the host's need not compile
# anything. Each module is compressed by itself: one that is never imported takes little memory. No
# file is written, so a read-only image can run it. The data is sent before the container starts.
BOOTSTRAP = """\
import sys,os,marshal,zlib
from _frozen_importlib_external import MAGIC_NUMBER
def read(n):
    b=b''
    while len(b)<n:
        c=os.read(0,n-len(b))
        if not c: os._exit(0)
        b+=c
    return b
magic,packages,modules,compiled=marshal.loads(read(int.from_bytes(read(4),'big')))
is_compiled=magic==MAGIC_NUMBER
if is_compiled: modules=compiled
del compiled
class Importer:
    @classmethod
    def find_spec(cls,name,path=None,target=None):
        root,_,module=name.partition('.')
        if root=='mcpruntime_sandbox' and (module in packages or module in modules):
            return type(sys.__spec__)(name,cls,origin='<'+name+'>',is_package=module in packages)
    @staticmethod
    def create_module(spec): return None
    @staticmethod
    def exec_module(module):
        name=module.__name__.partition('.')[2]
        if name in modules:
            code=zlib.decompress(modules[name])
            if is_compiled: code=marshal.loads(code)
            else: code=compile(code,'<'+module.__name__+'>','exec')
            exec(code,module.__dict__)
sys.meta_path.insert(0,Importer)
from mcpruntime_sandbox.sandboxed.kernel.supervisor import main
main()
"""

KERNEL_ARGV = ("python3", "-s", "-u", "-c", BOOTSTRAP)
KERNEL_ENV = {
    "PYTHONHASHSEED": "0",  # sets print in the same order when a run is replayed
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "1",
    "OMP_NUM_THREADS": "1",  # threads of numeric libraries do not survive a fork
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # huge pages make forks cheaper
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": "/tmp/matplotlib",  # noqa: S108 - the sandbox's own /tmp
}


@cache
def build_bundle() -> bytes:
    """Return the shipped modules as the bytes that `BOOTSTRAP` reads."""
    packages = [""]
    sources, compiled = {}, {}
    for name, path in _find_modules():
        if path.name == "__init__.py":
            packages.append(name)  # its docstring is for readers on the host
            continue
        source = path.read_bytes()
        code = compile(source, f"<{SANDBOX_PACKAGE}.{name}>", "exec")
        sources[name] = zlib.compress(source)
        compiled[name] = zlib.compress(marshal.dumps(code))
    content = (importlib.util.MAGIC_NUMBER, tuple(packages), sources, compiled)
    data = marshal.dumps(content, MARSHAL_VERSION)
    return len(data).to_bytes(4, "big") + data


def _find_modules() -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the file of each module; that of a package is its `__init__`."""
    for package in SHIPPED_PACKAGES:
        for path in sorted((PACKAGE_ROOT / package).rglob("*.py")):
            parts = path.relative_to(PACKAGE_ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path
