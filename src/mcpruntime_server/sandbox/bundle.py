"""The kernel as bytes: how its modules get into a sandbox, and the command and environment that take them in."""

from __future__ import annotations

import importlib.util
import marshal
import zlib
from functools import cache
from importlib import resources

from .. import kernel

PLAIN_MARSHAL = 2  # a version of the format that every Python reads, for text, bytes and tuples
MODULES = (  # of the kernel
    "wire",
    "present",
    "planned",
    "results",
    "guest",
    "skills",
    "typed",
    "llm",
    "providers",
    "input_bytes",
    "input_scan",
    "pieces",
    "inputs",
    "channel",
    "workspace",
    "processes",
    "observe",
    "forks",
    "kernel",
    "output",
    "checkpoints",
    "supervisor",
)

# The first bytes on stdin are the kernel's modules: a length, then compressed marshal data, a magic number and name to
# (source, code compiled for the Python of that number). They become the package `mcpruntime_kernel`, without a file, so
# that a read-only image without any of ours can run them, and need not compile them if its Python is the host's.
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
magic,modules=marshal.loads(zlib.decompress(read(int.from_bytes(read(4),'big'))))
class Kernel:
    @classmethod
    def find_spec(cls,name,path=None,target=None):
        package,_,module=name.partition('.')
        if package=='mcpruntime_kernel' and (not module or module in modules):
            spec=type(sys.__spec__)(name,cls,origin='<'+name+'>',is_package=not module)
            return spec
    @staticmethod
    def create_module(spec): return None
    @staticmethod
    def exec_module(module):
        name=module.__name__.partition('.')[2]
        if name:
            source,code=modules[name]
            code=marshal.loads(code) if magic==MAGIC_NUMBER else compile(source,'<mcpruntime_kernel.'+name+'>','exec')
            exec(code,module.__dict__)
sys.meta_path.insert(0,Kernel)
from mcpruntime_kernel.supervisor import main
main()
"""

KERNEL_ARGV = ("python3", "-s", "-u", "-c", BOOTSTRAP)
KERNEL_ENV = {
    "PYTHONHASHSEED": "0",  # sets print in the same order when a run is replayed
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "1",
    "OMP_NUM_THREADS": "1",  # threads of numeric libraries would not survive a fork
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # large blocks in huge pages: forks, and so checkpoints, cost far less
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": "/tmp/matplotlib",  # noqa: S108 - the sandbox's own /tmp
}


@cache
def bundle() -> bytes:
    """Return the kernel's modules as the bytes that `BOOTSTRAP` reads."""
    folder = resources.files(kernel)
    modules = {}
    for name in MODULES:
        source = folder.joinpath(f"{name}.py").read_text(encoding="utf-8")
        modules[name] = (source, marshal.dumps(compile(source, f"<mcpruntime_kernel.{name}>", "exec")))
    data = zlib.compress(marshal.dumps((importlib.util.MAGIC_NUMBER, modules), PLAIN_MARSHAL))
    return len(data).to_bytes(4, "big") + data
