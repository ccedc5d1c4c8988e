"""Makes a skill of recorded runs, by their syntax: the code is read and never executed.

The last statement of the last run is the result. What reaches it becomes the body of `run`; the literals in it that
came from the task become its parameters, with what they were as defaults; imports, and functions and classes that need
nothing else, stay beside it. A function that was written and called for the result is left as it is.

Rule 1: nothing is dropped that the result may need, see `slices`.
Rule 2: an absolute path becomes a parameter without a default: it is not there elsewhere.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from ...errors import SkillRefused
from ...journal.events import canonical_json
from ...journal.recording import RecordedCall
from .annotate import annotation_of
from .lint import (
    DEFINITIONS,
    MODELS,
    PROVIDED,
    FunctionNode,
    check_entry_signature,
    entry_of,
    is_harmless,
    parse_source,
    signature_of,
)
from .model import (
    ENTRY_FUNCTION,
    TOOL_PREFIX,
    ExtractedSkill,
    RecordedCase,
    RecordedStep,
    is_model_request,
)
from .parameters import Found, data_in, literal_value, literals_in
from .rewrite import found_replaced, with_free_entry
from .skill_names import choose_free_name
from .slicing import ASKING, GIVEN, Statement, names_of, slice_of, statements_of, writes_files

VAGUE = frozenset(
    {
        *(
            "result",
            "results",
            "res",
            "out",
            "output",
            "data",
            "value",
            "answer",
            "x",
            "y",
            "r",
            "ret",
            "final",
        ),
        *("rows", "items"),
    }
)
POSITIONAL = 3  # parameters that may be given without their names


@dataclass(frozen=True)
class Result:
    """The last statement of a run: `value` is what it comes to, `name` its variable, if it has one."""

    value: ast.expr
    name: str = ""
    is_printed: bool = False


def extract_skill(
    steps: Sequence[RecordedStep], fixed: frozenset[str] = frozenset()
) -> ExtractedSkill:
    """Return the skill that the last of `steps` is, those before it being what led there; raises `SkillRefused`.

    `fixed` names what is to stay a literal although it could be a parameter.
    """
    try:
        return _extract(steps, fixed)
    except RecursionError:
        raise SkillRefused("The code is nested too deeply.") from None


def _extract(steps: Sequence[RecordedStep], fixed: frozenset[str]) -> ExtractedSkill:
    statements = statements_of(steps)
    if not statements or statements[-1].step != len(steps) - 1:
        raise SkillRefused(
            "There is no code in this run that ended well.", remedy="Save a run whose status is ok."
        )
    kept = with_free_entry(sliced(statements, steps))
    check_scopes(kept)
    result = result_of(kept[-1])
    calls = calls_of(steps, kept)
    case = RecordedCase({}, calls, steps[-1].result, steps[-1].stdout, result.is_printed)
    if {each.step for each in kept} == {len(steps) - 1}:
        case = replace(case, seed=steps[-1].seed, clock_readings=steps[-1].clock_readings)
    return explicit(kept, result, case) or generated(kept, result, case, fixed)


def sliced(statements: Sequence[Statement], steps: Sequence[RecordedStep]) -> list[Statement]:
    """Return the statements that reach the result, and those beside them that have changed the world, or files.

    What changed the world in a step that has nothing to do with the result is another matter.
    """
    lines = {
        (step, call.line_number)
        for step, each in enumerate(steps)
        for call in each.calls
        if call.effect != "read"
    }
    writing = {
        number
        for number, each in enumerate(statements)
        if writes_files(each.node)
        or any((each.step, line) in lines for line in range(each.first, each.last + 1))
    }
    concerned = {len(steps) - 1}
    while True:
        kept = slice_of(
            statements,
            steps,
            {number for number in writing if statements[number].step in concerned},
        )
        found = concerned | {each.step for each in kept if not isinstance(each.node, DEFINITIONS)}
        if found == concerned:
            return kept
        concerned = found


def read_written_skill(code: str) -> ExtractedSkill:
    """Return the skill that somebody has written as one: `run`, or the only public function; raises `SkillRefused`."""
    try:
        return _read_skill(code)
    except RecursionError:
        raise SkillRefused("The code is nested too deeply.") from None


def _read_skill(code: str) -> ExtractedSkill:
    tree = parse_source(code)
    functions = [node for node in tree.body if isinstance(node, FunctionNode)]
    public = [node.name for node in functions if not node.name.startswith("_")]
    if (
        len(public) == 1
        and public[0] != ENTRY_FUNCTION
        and not any(isinstance(node, ast.Assign) for node in tree.body)
    ):
        code = f"{code.rstrip()}\n\n\n{ENTRY_FUNCTION} = {public[0]}\n"
        tree = parse_source(code)
    entry = entry_of(tree)
    code = with_imports(code, tree)
    return ExtractedSkill(
        choose_free_name(entry.name, ()),
        summary_of(entry),
        code,
        check_entry_signature(tree),
        is_hand_written=True,
    )


def with_imports(code: str, tree: ast.Module) -> str:
    """Return code with imports of what it uses that is a name in sandboxes only.

    They take the place of an empty line, or the last one, so that all others are where their author has them.
    """
    named = [names_of(node) for node in tree.body]
    bound = {name for binds, _ in named for name in binds}
    missing = imports_of_given({name for _, reads in named for name in reads} - bound)
    if not missing:
        return code
    text = "; ".join(map(ast.unparse, missing))
    lines = code.rstrip().split("\n")
    at = max((node.end_lineno or 0 for node in tree.body if is_opening(node)), default=0)
    if at < len(lines) and not lines[at].strip():
        lines[at] = text
    else:
        lines += ["", "", text]
    return "\n".join(lines) + "\n"


def is_opening(node: ast.stmt) -> bool:
    """Return whether a statement stands before the imports of a module."""
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_text or (isinstance(node, ast.ImportFrom) and node.module == "__future__")


def result_of(statement: Statement) -> Result:
    """Return what a run's last statement comes to; raises `SkillRefused` if that is nothing."""
    node = statement.node
    if isinstance(node, ast.Expr):
        call = node.value
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Name)
            and call.func.id == "print"
        ):
            if (
                len(call.args) == 1
                and not call.keywords
                and not isinstance(call.args[0], ast.Starred)
            ):
                return Result(call.args[0], is_printed=True)
        elif not isinstance(call, ast.Constant) or call.value is not None:
            return Result(call)
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
        target = node.targets[-1] if isinstance(node, ast.Assign) else node.target
        return Result(
            node.value, target.id if isinstance(target, ast.Name) else ast.unparse(target)
        )
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        return Result(ast.Name(node.target.id, ast.Load()), node.target.id)
    raise SkillRefused(
        f"Line {statement.first}: the code has no result.",
        remedy="End it with an expression, and save that run.",
    )


def calls_of(steps: Sequence[RecordedStep], kept: Sequence[Statement]) -> tuple[RecordedCall, ...]:
    """Return the recorded calls that the kept statements made, numbered as those of one run."""
    lines = {(each.step, line) for each in kept for line in range(each.first, each.last + 1)}
    found: list[RecordedCall] = []
    seen: Counter[tuple[str, str]] = Counter()
    offset = 0
    for number, step in enumerate(steps):
        last = 0
        for call in step.calls:
            last = max(last, call.started_sequence, call.finished_sequence or 0)
            if call.in_ledger and (call.line_number is None or (number, call.line_number) in lines):
                key = call.target, call.args
                finished = (
                    None if call.finished_sequence is None else call.finished_sequence + offset
                )
                found.append(
                    replace(
                        call,
                        call_id=len(found) + 1,
                        nth=seen[key],
                        started_sequence=call.started_sequence + offset,
                        finished_sequence=finished,
                    )
                )
                seen[key] += 1
        offset += last
    return tuple(found)


# a function that was written for it ---------------------------------------------------------------


def explicit(
    kept: Sequence[Statement], result: Result, case: RecordedCase
) -> ExtractedSkill | None:
    """Return the skill that a function is which was called for the result; None if there is no such function."""
    call = result.value.value if isinstance(result.value, ast.Await) else result.value
    beside, inside = parted(kept, with_constants=True)
    functions = {each.name: each for each in beside if isinstance(each, FunctionNode)}
    if (
        not isinstance(call, ast.Call)
        or not isinstance(call.func, ast.Name)
        or call.func.id not in functions
    ):
        return None
    entry = functions[call.func.id]
    bound = {each.targets[0].id: each.value for each in inside[:-1] if is_literal_assignment(each)}  # type: ignore[attr-defined]
    if (
        len(bound) != len(inside) - 1
        or entry.name.startswith("_")
        or entry.args.vararg
        or entry.args.kwarg
    ):
        return None
    try:
        inputs = {
            name: literal_value(bound.get(each.id, each) if isinstance(each, ast.Name) else each)
            for name, each in arguments_of(call, entry).items()
        }
    except ValueError:
        return None
    body = [ast.unparse(each) for each in beside]
    alias = [f"{ENTRY_FUNCTION} = {entry.name}"] if entry.name != ENTRY_FUNCTION else []
    summary = summary_of(entry)
    source = module(summary, body, alias, uses_any=False)
    inputs = json.loads(canonical_json(inputs))
    case = replace(case, inputs=inputs)
    return ExtractedSkill(
        choose_free_name(entry.name, ()),
        summary,
        source,
        signature_of(entry),
        case,
        is_hand_written=True,
    )


def arguments_of(call: ast.Call, function: FunctionNode) -> dict[str, ast.expr]:
    """Return the expressions that the parameters of a function get; raises `ValueError` where that is not plain."""
    args = function.args
    positional = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    if len(call.args) > len(positional) or any(isinstance(each, ast.Starred) for each in call.args):
        raise ValueError("too many arguments")
    found: dict[str, ast.expr] = dict(
        zip(positional[len(positional) - len(args.defaults) :], args.defaults, strict=True)
    )
    found |= {
        arg.arg: each
        for arg, each in zip(args.kwonlyargs, args.kw_defaults, strict=True)
        if each is not None
    }
    found |= dict(zip(positional, call.args, strict=False))
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("arguments of a mapping")
        found[keyword.arg] = keyword.value
    return found


def is_literal_assignment(node: ast.stmt) -> bool:
    """Return whether a statement gives a name to a literal."""
    if (
        not isinstance(node, ast.Assign)
        or len(node.targets) != 1
        or not isinstance(node.targets[0], ast.Name)
    ):
        return False
    try:
        literal_value(node.value)
    except ValueError:
        return False
    return True


# a function that is made for it -------------------------------------------------------------------


def generated(
    kept: Sequence[Statement], result: Result, case: RecordedCase, fixed: frozenset[str]
) -> ExtractedSkill:
    """Return the skill whose `run` has the kept statements as its body."""
    found = [each for each in literals_in(kept, case.calls) if each.name not in fixed]
    if not found and not case.calls:
        found = [each for each in data_in(kept) if each.name not in fixed]
    nodes = {id(node) for each in found for node in each.nodes}
    beside, inside = parted(
        kept, changed=lambda node: any(id(part) in nodes for part in ast.walk(node))
    )
    check_entry_is_free(inside)
    body = [ast.unparse(each) for each in found_replaced(inside[:-1], found)]
    last = found_replaced([inside[-1]], found)[0]
    if isinstance(last, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        body += [ast.unparse(last), f"return {result.name}"]
    else:
        assert isinstance(last, ast.Expr)
        value = (
            last.value.args[0]
            if result.is_printed and isinstance(last.value, ast.Call)
            else last.value
        )
        body.append(f"return {ast.unparse(value)}")
    imported = {
        name
        for each in kept
        if isinstance(each.node, (ast.Import, ast.ImportFrom))
        for name in each.binds
    }
    tools = sorted(
        {
            call.target.removeprefix(TOOL_PREFIX)
            for call in case.calls
            if call.target.startswith(TOOL_PREFIX)
        }
    )
    named = imported | {each.name for each in found}  # what is asked is no name for the answer
    words = result_words(result, tools, named) or f"result of {found[0].name if found else 'code'}"
    means = [
        *tools[:4],
        *(["a model"] if any(is_model_request(call.target) for call in case.calls) else []),
    ]
    summary = f"Return {words}" + (f", with {', '.join(means)}" if means else "") + "."
    name = choose_free_name(words.replace(" ", "_")[:40], ())
    head = header(found, case, is_async=any(awaits(each) for each in inside))
    more = described(found)
    docstring = [f'"""{summary}', *more, '"""'] if more else [f'"""{summary}"""']
    function = [
        head,
        *(
            f"    {line}" if line else ""
            for part in [*docstring, *body]
            for line in part.split("\n")
        ),
    ]
    source = module(
        summary,
        [ast.unparse(renamed(each)) for each in beside],
        ["\n".join(function)],
        uses_any="Any" in head,
    )
    inputs = json.loads(canonical_json({each.name: each.value for each in found}))
    return ExtractedSkill(
        name,
        summary,
        source,
        check_entry_signature(parse_source(source)),
        replace(case, inputs=inputs),
    )


def parted(
    kept: Sequence[Statement],
    *,
    with_constants: bool = False,
    changed: Callable[[ast.stmt], bool] = lambda _: False,
) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Return the statements that can stand beside `run`, and those that must be in it, as those that are `changed`."""
    statements = [each.node for each in kept]
    imports = [each for each in kept if isinstance(each.node, (ast.Import, ast.ImportFrom))]
    sources = {(name, ast.unparse(each.node)) for each in imports for name in each.binds}
    meanings = Counter(name for name, _ in sources)  # of a name that is imported from two places
    imports = [each for each in imports if all(meanings[name] == 1 for name in each.binds)]
    beside: set[ast.stmt] = {each.node for each in imports}
    allowed = GIVEN | {name for each in kept if each.node in beside for name in each.binds}
    count = Counter(name for each in kept for name in each.binds)
    touched = {name for each in kept for name in each.touches}
    left = [
        each
        for each in kept[:-1]
        if (
            isinstance(each.node, DEFINITIONS[:3])
            or is_constant(each.node, with_literals=with_constants)
        )
        and all(count[name] == 1 for name in each.binds)
        and not (each.binds & touched and not isinstance(each.node, DEFINITIONS[:3]))
        and not changed(each.node)
    ]
    while True:
        own = {name for each in left for name in each.binds}
        fits = [each for each in left if each.reads <= allowed | own]
        if len(fits) == len(left):
            break
        left = fits
    beside |= {each.node for each in left}
    provided = imports_of_given(
        {name for each in kept for name in each.reads - each.binds} - set(count)
    )
    distinct = {ast.unparse(each.node): each.node for each in imports}
    first = [node for node in distinct.values() if getattr(node, "module", "") != "__future__"]
    return [*provided, *first, *(each.node for each in left)], [
        node for node in statements if node not in beside
    ]


def imports_of_given(free: Collection[str]) -> list[ast.stmt]:
    """Return the imports that a module needs for those of `free` which code in sandboxes has without one."""
    found: list[ast.stmt] = [
        ast.Import([ast.alias(name)]) for name in sorted(PROVIDED.intersection(free))
    ]
    if asking := [ast.alias(name) for name in sorted(ASKING.intersection(free))]:
        found.append(ast.ImportFrom(MODELS, asking, 0))
    return found


def is_constant(node: ast.stmt, *, with_literals: bool) -> bool:
    """Return whether a statement names what never changes: a pattern, and, `with_literals`, a literal in capitals."""
    if (
        not isinstance(node, ast.Assign)
        or len(node.targets) != 1
        or not isinstance(node.targets[0], ast.Name)
    ):
        return False
    if isinstance(node.value, ast.Call):
        return is_harmless(node.value)
    return with_literals and node.targets[0].id.isupper() and is_literal_assignment(node)


def check_scopes(kept: Sequence[Statement]) -> None:
    """Raise `SkillRefused` if functions change variables of a session, which are the skill's own in a skill."""
    for each in kept:
        for part in ast.walk(each.node):
            if isinstance(part, ast.Global):
                raise SkillRefused(
                    f"Line {part.lineno}: a skill has no variables that are global, as {part.names[0]} is.",
                    remedy="Have the function take and return it, and save that run.",
                )


def check_entry_is_free(inside: Sequence[ast.stmt]) -> None:
    """Raise `SkillRefused` if code has a `run` of its own that cannot be the skill."""
    for node in inside:
        if isinstance(node, DEFINITIONS[:3]) and node.name == ENTRY_FUNCTION:
            raise SkillRefused(
                f"Line {node.lineno}: `{ENTRY_FUNCTION}` uses what other statements make, which would be done at import.",
                remedy="Move that into it, and save a run that ends with a call of it.",
            )


def renamed(node: ast.stmt) -> ast.stmt:
    """Return a definition in which nothing is called like the skill's own function."""
    if (
        isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and node.name == ENTRY_FUNCTION
    ):
        raise SkillRefused(
            f"Line {node.lineno}: `{ENTRY_FUNCTION}` is there, but what it is called with is computed.",
            remedy=f"End the code with a call of `{ENTRY_FUNCTION}` with plain values, and save that run.",
        )
    return node


def awaits(node: ast.stmt) -> bool:
    """Return whether a statement awaits something itself."""
    left: list[ast.AST] = [node]
    while left:
        part = left.pop()
        if isinstance(part, (ast.Await, ast.AsyncFor, ast.AsyncWith)) or getattr(
            part, "is_async", False
        ):
            return True
        if not isinstance(part, (*DEFINITIONS, ast.Lambda)):
            left += ast.iter_child_nodes(part)
    return False


def header(found: Sequence[Found], case: RecordedCase, *, is_async: bool) -> str:
    """Return the line that defines `run`."""
    ordered = sorted(found, key=lambda each: not each.is_required)
    parts = [
        f"{each.name}: {annotation_of(each.value)}"
        + ("" if each.is_required else f" = {each.value!r}")
        for each in ordered
    ]
    if len(parts) > POSITIONAL:
        parts.insert(1, "*")
    output, returns = case.result or {}, ""
    if output.get("kind") == "json" and not output.get("cut") and not case.compares_stdout:
        returns = f" -> {annotation_of(json.loads(output['text']))}"
    return f"{'async ' if is_async else ''}def {ENTRY_FUNCTION}({', '.join(parts)}){returns}:"


def described(found: Sequence[Found]) -> list[str]:
    """Return the lines of a docstring that show what the parameters were."""
    examples = ", ".join(f"{each.name}={each.shown}" for each in found if each.shown)
    return ["", f"Recorded with {examples}."] if examples else []


def module(summary: str, beside: Sequence[str], rest: Sequence[str], *, uses_any: bool) -> str:
    """Return the source of a skill's module."""
    imports = [part for part in beside if re.match(r"(?:import|from) ", part)]
    if uses_any and "from typing import Any" not in imports:
        imports.insert(0, "from typing import Any")
    definitions = [part for part in beside if not re.match(r"(?:import|from) ", part)]
    head = [
        f'"""{summary}"""',
        "",
        "from __future__ import annotations",
        *(["", *imports] if imports else []),
    ]
    return "\n".join(head) + "".join(f"\n\n\n{part}" for part in (*definitions, *rest)) + "\n"


def summary_of(function: FunctionNode) -> str:
    """Return one line about a function: its own, or its name in words."""
    text = (ast.get_docstring(function) or "").strip().partition("\n")[0] or function.name.replace(
        "_", " "
    ).strip().capitalize()
    return text.replace("\\", "/").replace('"', "'").rstrip(".") + "."


def result_words(result: Result, tools: Sequence[str], others: Collection[str]) -> str:
    """Return what to call a result: by its keys, its variable, what it is made of, or the tool that it came from.

    `others` are names that say something else.
    """
    value = result.value
    if isinstance(value, ast.Dict) and not result.name:
        keys = [each.value for each in value.keys if isinstance(each, ast.Constant)]
        words = [worded(each) for each in keys if isinstance(each, str) and is_telling(each)]
        if words:
            return " ".join(words[:2])
    parts = [each for each in ast.walk(value) if isinstance(each, ast.Name)]
    passing = {
        each.id for each in parts if isinstance(each.ctx, ast.Store)
    }  # of what it goes through
    names = [result.name] if result.name else [each.id for each in parts]
    for name in names:
        if name not in others and name not in passing and is_telling(name):
            return worded(name)
    if tools:
        return worded(tools[-1].partition(".")[2])
    done = [
        each.func.attr
        for each in ast.walk(value)
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute)
    ]
    return next((worded(each) for each in done if is_telling(each)), "")


def is_telling(name: str) -> bool:
    """Return whether a name says something about what it names."""
    return (
        name.isascii()
        and name.isidentifier()
        and name.lower() not in VAGUE
        and name not in GIVEN
        and len(name) > 2
    )


def worded(name: str) -> str:
    """Return a name as words."""
    return name.lower().strip("_").replace("_", " ")
