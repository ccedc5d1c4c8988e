"""What code in a dry run gets for a call that is planned instead of made: something that must not be looked into.

It can be printed, put into a text and kept. Whatever would need to know what it is ends the run there: what follows
depends on a result that nobody has yet.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, NoReturn

TEXT = "<result of planned call {}>"
LOOKS = (
    *("bool", "len", "iter", "next", "contains", "getitem", "setitem", "delitem", "call", "await", "enter", "aenter"),
    *("eq", "ne", "lt", "le", "gt", "ge", "int", "float", "complex", "index", "bytes", "neg", "pos", "abs", "invert"),
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod"),
    *("pow", "rpow", "matmul", "rmatmul", "and", "rand", "or", "ror", "xor", "rxor", "lshift", "rshift", "round"),
    *("reduce_ex", "deepcopy", "copy", "setattr", "delattr", "aiter", "divmod", "rdivmod", "reversed"),
)


class PlanEnds(BaseException):
    """The code of a dry run needs a result that is not known before the call is made.

    No `Exception`, so that code which handles the failures of its calls does not take this for one.
    """

    __module__ = "tools"


class Planned:
    """Stands for the result of a call that was planned."""

    __slots__ = ("_call", "_tool")
    __module__ = "tools"
    any_made = False

    def __init__(self, tool: str, call: Any) -> None:
        object.__setattr__(self, "_tool", tool)
        object.__setattr__(self, "_call", call)
        Planned.any_made = True

    def __repr__(self) -> str:
        return TEXT.format(object.__getattribute__(self, "_call"))

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __hash__(self) -> int:
        return id(self)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # what Python itself looks for
            raise AttributeError(name)
        ends(self)


def ends(planned: Planned, *_: Any, **__: Any) -> NoReturn:
    """End the run where its code looks into a result that there is not."""
    tool, call = object.__getattribute__(planned, "_tool"), object.__getattribute__(planned, "_call")
    raise PlanEnds(
        f"The code needs the result of {tool} (planned call {call}), which is not known before the call is made. "
        "Commit what is planned; the rest is planned in another round."
    )


for _name in LOOKS:
    setattr(Planned, f"__{_name}__", ends)


def check_known(value: Any) -> None:
    """Raise `PlanEnds` if the result of a planned call is part of `value`, which is to be sent."""
    if isinstance(value, Planned):
        ends(value)
    elif isinstance(value, dict):
        for item in value.values():
            check_known(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_known(item)
