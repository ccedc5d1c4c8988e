"""The result of a call that a dry run has planned instead of made.

It can be printed, put into a text and stored. Any operation that needs the real result ends the dry
run there, because what follows depends on a result that does not exist yet.
Rule: a run that has reached a `PlanEnded` ends with it (`find_cause`), even if the code catches it.
Otherwise a plan whose end was swallowed would look like everything that the code does.
"""

from __future__ import annotations

from ...protocol.library_names import PLANNED_RESULT_TEXT

TYPE_CHECKING = False  # importing `typing` would slow down every start of a sandbox
if TYPE_CHECKING:
    from typing import Any, NoReturn, Optional

# the special methods whose use needs the real result
INSPECTING_METHODS = """
    bool len iter next contains getitem setitem delitem call await fspath
    eq ne lt le gt ge int float complex index bytes neg pos abs invert
    add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod
    pow rpow matmul rmatmul and rand or ror xor rxor lshift rshift round
    reduce_ex deepcopy copy setattr delattr divmod rdivmod reversed trunc
    enter exit aenter aexit aiter anext
""".split()  # noqa: SIM905 - a list would take ninety lines


class PlanEnded(BaseException):
    """The code of a dry run needs the result of a call that has not been made.

    It is no `Exception`, so that code which handles failed calls does not catch it.
    """

    __module__ = "tools"


class PlannedResult:
    """Stands for the result of a planned call."""

    __slots__ = ("_call", "_tool")
    __module__ = "tools"
    any_created = False
    first_end: Optional[PlanEnded] = None  # of the current run

    def __init__(self, tool: str, call: Any) -> None:
        object.__setattr__(self, "_tool", tool)
        object.__setattr__(self, "_call", call)
        PlannedResult.any_created = True

    def __repr__(self) -> str:
        return PLANNED_RESULT_TEXT.format(object.__getattribute__(self, "_call"))

    def __format__(self, spec: str) -> str:
        try:
            return format(repr(self), spec)
        except ValueError:  # the format of a number, which the real result may be
            return repr(self)

    def __hash__(self) -> int:
        return id(self)

    def __getattribute__(self, name: str) -> Any:
        is_special = name.startswith("__") and name.endswith("__")  # Python itself looks these up
        if not is_special:
            end_plan(self)
        return object.__getattribute__(self, name)


def end_plan(planned: PlannedResult, *_: Any, **__: Any) -> NoReturn:
    """End the dry run because its code needs the result of a planned call."""
    tool = object.__getattribute__(planned, "_tool")
    call = object.__getattribute__(planned, "_call")
    end = PlanEnded(
        f"The code needs the result of {tool} (planned call {call}), "
        "which is not known before the call is made. "
        "Commit the planned calls; the rest is planned in another round."
    )
    PlannedResult.first_end = PlannedResult.first_end or end
    raise end


for _name in INSPECTING_METHODS:
    setattr(PlannedResult, f"__{_name}__", end_plan)


def find_cause(failure: BaseException) -> BaseException:
    """Return what ended a run that failed with `failure`.

    Code, asyncio or a thread may have replaced the `PlanEnded` by another exception.
    """
    if isinstance(failure, PlanEnded):
        return failure
    return PlannedResult.first_end or failure


def check_no_planned_result(value: Any) -> None:
    """Raise `PlanEnded` if `value`, which will be sent, contains the result of a planned call."""
    if PlannedResult.any_created:
        _search_planned_result(value)


def _search_planned_result(value: Any) -> None:
    if isinstance(value, PlannedResult):
        end_plan(value)
    elif isinstance(value, dict):
        for item in (*value, *value.values()):
            _search_planned_result(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _search_planned_result(item)
