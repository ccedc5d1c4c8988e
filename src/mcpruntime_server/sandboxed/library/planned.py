"""What code in a dry run gets for a call that is planned instead of made: something that must not be looked into.

It can be printed, put into a text and kept. Whatever would need to know what it is ends the run there: what follows
depends on a result that nobody has yet.
Rule: a run that has come to its `PlanEnded` ends with it (`cause`), whatever the code makes of it. A plan whose end was
swallowed would be taken for the whole of what the code does.
"""

from __future__ import annotations

from ...protocol.library_names import PLANNED_RESULT_TEXT

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, NoReturn, Optional

INSPECTING_METHODS = (
    *(
        "bool",
        "len",
        "iter",
        "next",
        "contains",
        "getitem",
        "setitem",
        "delitem",
        "call",
        "await",
        "fspath",
    ),
    *(
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "int",
        "float",
        "complex",
        "index",
        "bytes",
        "neg",
        "pos",
        "abs",
        "invert",
    ),
    *(
        "add",
        "radd",
        "sub",
        "rsub",
        "mul",
        "rmul",
        "truediv",
        "rtruediv",
        "floordiv",
        "rfloordiv",
        "mod",
        "rmod",
    ),
    *(
        "pow",
        "rpow",
        "matmul",
        "rmatmul",
        "and",
        "rand",
        "or",
        "ror",
        "xor",
        "rxor",
        "lshift",
        "rshift",
        "round",
    ),
    *(
        "reduce_ex",
        "deepcopy",
        "copy",
        "setattr",
        "delattr",
        "divmod",
        "rdivmod",
        "reversed",
        "trunc",
    ),
    *("enter", "exit", "aenter", "aexit", "aiter", "anext"),
)


class PlanEnded(BaseException):
    """The code of a dry run needs a result that is not known before the call is made.

    No `Exception`, so that code which handles the failures of its calls does not take this for one.
    """

    __module__ = "tools"


class PlannedResult:
    """Stands for the result of a call that was planned."""

    __slots__ = ("_call", "_tool")
    __module__ = "tools"
    any_created = False
    first_end: Optional[PlanEnded] = None  # the first of the run

    def __init__(self, tool: str, call: Any) -> None:
        object.__setattr__(self, "_tool", tool)
        object.__setattr__(self, "_call", call)
        PlannedResult.any_created = True

    def __repr__(self) -> str:
        return PLANNED_RESULT_TEXT.format(object.__getattribute__(self, "_call"))

    def __format__(self, spec: str) -> str:
        try:
            return format(repr(self), spec)
        except ValueError:  # a format for numbers, which the result may be
            return repr(self)

    def __hash__(self) -> int:
        return id(self)

    def __getattribute__(self, name: str) -> Any:
        if not (
            name.startswith("__") and name.endswith("__")
        ):  # those are what Python itself looks for
            end_plan(self)
        return object.__getattribute__(self, name)


def end_plan(planned: PlannedResult, *_: Any, **__: Any) -> NoReturn:
    """End the run where its code looks into a result that there is not."""
    tool, call = (
        object.__getattribute__(planned, "_tool"),
        object.__getattribute__(planned, "_call"),
    )
    end = PlanEnded(
        f"The code needs the result of {tool} (planned call {call}), which is not known before the call is made. "
        "Commit what is planned; the rest is planned in another round."
    )
    PlannedResult.first_end = PlannedResult.first_end or end
    raise end


for _name in INSPECTING_METHODS:
    setattr(PlannedResult, f"__{_name}__", end_plan)


def find_cause(failure: BaseException) -> BaseException:
    """Return what ended a run that failed with `failure`: code, asyncio or a thread may have put that in its place."""
    return failure if isinstance(failure, PlanEnded) else PlannedResult.first_end or failure


def check_no_planned_result(value: Any) -> None:
    """Raise `PlanEnded` if the result of a planned call is part of `value`, which is to be sent."""
    if isinstance(value, PlannedResult):
        end_plan(value)
    elif isinstance(value, dict):
        for item in (*value, *value.values()):
            check_no_planned_result(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_no_planned_result(item)
