"""Make a skill of recorded steps by their syntax; no code is executed.

The last statement of the last step is the result. The statements that it needs become the body of
`run`, and literals that came from the task become its parameters, with their values as defaults.
Imports, and definitions that need nothing else, stand beside `run`. A function of the code that is
called for the result is kept as it is.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from ...errors import SkillRefused
from ...journal.events import canonical_json
from ...journal.recording import RecordedCall
from ...protocol.library_names import MODELS_MODULE
from ..python_parsing import parse_expression, parse_module
from .lint import find_missing_modules
from .model import CONTEXT_NAME, RecordedCase, RecordedStep, Skill
from .parameters import FoundParameter, find_parameters, replace_literals
from .skill_names import choose_free_name
from .skill_packages import add_packages, select_packages
from .slicing import (
    HOST_FUNCTIONS,
    PREDEFINED_NAMES,
    Statement,
    find_input,
    find_names,
    read_statements,
    select_statements,
)
from .source import (
    DEFINITIONS,
    ENTRY_FUNCTION,
    INDENT,
    PROVIDED_PACKAGES,
    TOO_DEEP,
    FunctionNode,
    ImportNode,
    annotation_of,
    defaults_of,
    dotted_name,
    entry_of,
    find_imports,
    is_literal,
    join_imports,
    literal_value,
    parse_source,
    render_module,
    walk_own_nodes,
)

VAGUE_NAMES = frozenset(
    {
        *("answer", "data", "final", "items", "out", "output", "r", "res", "result", "results"),
        *("ret", "rows", "value", "x", "y"),
    }
)
VERBS = frozenset(
    """
    add ask build check compare compute convert count create draw export fetch find format get
    group list load make measure merge parse print rank read render return search send show sort
    split store sum summarize total translate update write
    """.split()  # noqa: SIM905
)
PREPOSITIONS = frozenset(
    {"above", "at", "below", "by", "for", "from", "in", "of", "on", "over", "per"}
)
CONSTANT_MAKERS = frozenset({"re.compile", "frozenset", "Decimal", "timedelta"})
SKILL_MODULE = re.compile(r"skills\.(?P<name>[a-z0-9_]+?)(?:\.v(?P<version>[0-9]+))?")
MAX_POSITIONAL = 3  # with more parameters, all but the first are given by name
MAX_NAMED_TOOLS = 4  # in a summary
INPUT_TEXT = "an input, as `context` of run_code gives it; pass CONTEXT"
NESTED_RUN = (
    "Line {line}: the function `run` uses what other statements make, "
    "or is called with computed values."
)


@dataclass(frozen=True)
class Result:
    """The expression with the result of a run, and the statements of a function that returns it."""

    expression: ast.expr
    statements: list[ast.stmt]
    variable: str = ""  # that it is assigned to
    is_printed: bool = False


def extract_skill(
    steps: Sequence[RecordedStep],
    fixed: Collection[str] = frozenset(),
    *,
    name: str = "",
    packages: Collection[str] = (),
) -> Skill:
    """Return the skill that the last of `steps` makes, with what it needs of the others.

    `fixed` are names of parameters that are to stay literals. `name` is that of the skill, if it
    has one. What it imports beside the `packages` of sandboxes is listed in its source.

    Raises `SkillRefused`.
    """
    try:
        statements = read_statements(steps)
        if not statements or statements[-1].step != len(steps) - 1:
            raise SkillRefused(
                "This run has no code that succeeded.", remedy="Save a run whose status is ok."
            )
        kept = select_statements(statements, steps)
        _check_globals(kept)
        result = find_result(kept[-1].node)
        last = steps[-1]
        case = replace(
            last.case, calls=collect_calls(steps, kept), compares_stdout=result.is_printed
        )
        if any(each.step != len(steps) - 1 for each in kept):
            case = replace(case, seed="", clock_readings={})
        skill = keep_called_function(kept, result, case, name) or generate_function(
            kept, result, case, fixed, find_input(kept, steps)
        )
        source = list_needed_packages(skill.source, steps, packages)
        return replace(skill, origin=last.run_id, source=source)
    except RecursionError:
        raise SkillRefused(TOO_DEEP) from None


def list_needed_packages(
    source: str, steps: Sequence[RecordedStep], packages: Collection[str]
) -> str:
    """Return source that lists those of the packages of a session that it may need."""
    missing = {module for module, *_ in find_missing_modules(parse_source(source), packages)}
    if not missing:
        return source
    calls = (call for step in steps for call in step.case.calls if call.error is None)
    return add_packages(source, select_packages(calls, missing))


def find_left_out(steps: Sequence[RecordedStep]) -> list[tuple[int, int, str]]:
    """Return what `extract_skill` leaves out: number of the step, line and source of statements.

    Raises `SkillRefused`.
    """
    statements = read_statements(steps)
    kept = {id(each.node) for each in select_statements(statements, steps)}
    left_out = [each for each in statements if id(each.node) not in kept]
    return [
        (step, line, ast.unparse(node))
        for (step, line), found in groupby(left_out, lambda each: (each.step, each.lines[0]))
        for node in join_imports(each.node for each in found)
    ]


def find_result(statement: ast.stmt) -> Result:
    """Return what a run's last statement evaluates to; raises `SkillRefused` if that is nothing."""
    match statement:
        case ast.Expr(ast.Call(ast.Name("print"), arguments, keywords)):
            if len(arguments) == 1 and not keywords and not isinstance(arguments[0], ast.Starred):
                returned = ast.Return(arguments[0])
                return Result(arguments[0], [returned], is_printed=True)
        case ast.Expr(ast.Constant(None)):
            pass
        case ast.Expr(value):
            return Result(value, [ast.Return(value)])
        case ast.Assign([*_, target], value) | ast.AnnAssign(target, value=ast.expr() as value):
            variable = ast.unparse(target)
            return Result(value, [statement, ast.Return(parse_expression(variable).body)], variable)
        case ast.AugAssign(ast.Name(name)):
            value = ast.Name(name, ast.Load())
            return Result(value, [statement, ast.Return(value)], name)
    raise SkillRefused(
        f"Line {statement.lineno}: the code has no result.",
        remedy="End it with an expression, and save that run.",
    )


def collect_calls(
    steps: Sequence[RecordedStep], kept: Sequence[Statement]
) -> tuple[RecordedCall, ...]:
    """Return the recorded calls of the kept statements, numbered as those of one run."""
    lines = {(each.step, line) for each in kept for line in each.lines}
    found: list[RecordedCall] = []
    occurrences: Counter[tuple[str, str]] = Counter()
    offset = 0
    for number, step in enumerate(steps):
        last = 0
        for call in step.case.calls:
            last = max(last, call.started_sequence, call.finished_sequence or 0)
            if call.in_ledger and (call.line_number is None or (number, call.line_number) in lines):
                key = call.target, call.args
                finished = call.finished_sequence
                found.append(
                    replace(
                        call,
                        call_id=len(found) + 1,
                        nth=occurrences[key],
                        started_sequence=call.started_sequence + offset,
                        finished_sequence=None if finished is None else finished + offset,
                    )
                )
                occurrences[key] += 1
        offset += last
    return tuple(found)


def _check_globals(kept: Sequence[Statement]) -> None:
    """Raise `SkillRefused` if a function assigns to a global variable."""
    for part in (part for each in kept for part in ast.walk(each.node)):
        if isinstance(part, ast.Global):
            raise SkillRefused(
                f"Line {part.lineno}: a skill cannot have global variables "
                f"such as {part.names[0]}.",
                remedy="Pass it to the function and return it, and save that run.",
            )


# a run that only calls a skill: another case of that skill, not a new skill -----------------------


def find_skill_call(step: RecordedStep) -> tuple[str, RecordedCase] | None:
    """Return the skill that a run only calls ("weather_report@2"), with that use as a case of it.

    Return None if it does more, or if it gives positional arguments: these would need the skill's
    signature, which is not known here.
    """
    try:
        statements = read_statements([step])
        *others, last = (each.node for each in statements)
        result = find_result(last)
        call = result.expression
        if isinstance(call, ast.Await):
            call = call.value
        if result.is_printed or not all(isinstance(each, ImportNode) for each in others):
            return None
        if not isinstance(call, ast.Call) or call.args:
            return None
        if any(each.arg is None for each in call.keywords):
            return None
        inputs = {str(each.arg): _read_argument(each.value, step) for each in call.keywords}
    except (SkillRefused, ValueError, RecursionError):
        return None
    origins = {name: origin for node in others for name, origin, _ in find_imports(node)}
    root, dot, rest = dotted_name(call.func).partition(".")
    function = f"{origins.get(root, root)}{dot}{rest}"
    module = SKILL_MODULE.fullmatch(function.removesuffix(f".{ENTRY_FUNCTION}"))
    if module is None:
        return None
    version = f"@{module['version']}" if module["version"] else ""
    calls = collect_calls([step], statements)
    case = replace(step.case, inputs=json.loads(canonical_json(inputs)), calls=calls)
    return module["name"] + version, case


def _read_argument(node: ast.expr, step: RecordedStep) -> Any:
    """Return a literal argument, or the input of the step; raises `ValueError` for others."""
    if isinstance(node, ast.Name) and node.id == CONTEXT_NAME and step.input is not None:
        return dict(step.input)
    return literal_value(node)


# code that was written as a skill -----------------------------------------------------------------


def read_written_skill(code: str, name: str = "") -> Skill:
    """Return the skill in code that defines `run`, or a single public function.

    Raises `SkillRefused`.
    """
    try:
        tree = parse_source(code)
        functions = [node for node in tree.body if isinstance(node, FunctionNode)]
        public = [node.name for node in functions if not node.name.startswith("_")]
        has_alias = any(isinstance(node, ast.Assign) for node in tree.body)
        if len(public) == 1 and public[0] != ENTRY_FUNCTION and not has_alias:
            code = f"{code.rstrip()}\n\n\n{ENTRY_FUNCTION} = {public[0]}\n"
            tree = parse_source(code)
        entry = entry_of(tree)
        names = [find_names(node) for node in tree.body]
        bound = {name for binds, _ in names for name in binds}
        missing = import_predefined({name for _, reads in names for name in reads} - bound)
        if missing:
            code = _insert_imports(code, tree, missing)
        return Skill(
            choose_free_name(entry.name, ()),
            summarize_function(entry, name or entry.name),
            code,
            origin="code",
            is_hand_written=True,
        )
    except RecursionError:
        raise SkillRefused(TOO_DEEP) from None


def _insert_imports(code: str, tree: ast.Module, imports: Sequence[ast.stmt]) -> str:
    """Return code with imports after its docstring and `__future__` imports."""
    first_line = 0
    for node in tree.body:
        match node:
            case ast.Expr(ast.Constant()) | ast.ImportFrom(module="__future__"):
                first_line = node.end_lineno or node.lineno
    lines = code.split("\n")
    lines[first_line:first_line] = map(ast.unparse, imports)
    return "\n".join(lines)


def import_predefined(names: Collection[str]) -> list[ast.stmt]:
    """Return the imports for those of `names` that sandboxed code has without one."""
    packages = sorted(PROVIDED_PACKAGES.intersection(names))
    imports: list[ast.stmt] = [ast.Import([ast.alias(package)]) for package in packages]
    if functions := sorted(HOST_FUNCTIONS.intersection(names)):
        aliases = [ast.alias(function) for function in functions]
        imports.append(ast.ImportFrom(MODELS_MODULE, aliases, 0))
    return imports


# a function that the code calls for its result ----------------------------------------------------


def keep_called_function(
    kept: Sequence[Statement], result: Result, case: RecordedCase, name: str = ""
) -> Skill | None:
    """Return the skill of a function whose call with plain values is the result, if any."""
    call = result.expression
    if isinstance(call, ast.Await):
        call = call.value
    beside, inside = split_statements(kept, may_have_constants=True)
    functions = {each.name: each for each in beside if isinstance(each, FunctionNode)}
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        return None
    entry = functions.get(call.func.id)
    if entry is None or entry.name.startswith("_") or entry.args.vararg or entry.args.kwarg:
        return None
    constants: dict[str, ast.expr] = {}
    try:
        for node in inside[:-1]:
            match node:
                case ast.Assign([ast.Name(variable)], value):
                    literal_value(value)  # a call here may be needed for what it does
                    constants[variable] = value
                case _:
                    return None
        arguments = find_arguments(call, entry)
        inputs = {
            parameter: literal_value(
                constants.get(node.id, node) if isinstance(node, ast.Name) else node
            )
            for parameter, node in arguments.items()
        }
    except ValueError:
        return None
    inputs = json.loads(canonical_json(inputs))
    add_types(entry, inputs, case)
    if entry.name != ENTRY_FUNCTION:
        beside += parse_module(f"{ENTRY_FUNCTION} = {entry.name}").body
    summary = summarize_function(entry, name or entry.name)
    return Skill(
        choose_free_name(entry.name, ()),
        summary,
        render_module(summary, beside),
        (replace(case, inputs=inputs),),
        is_hand_written=True,
    )


def find_arguments(call: ast.Call, function: FunctionNode) -> dict[str, ast.expr]:
    """Return the expressions that a call gives a function's parameters.

    Raises `ValueError` for `*` and `**`.
    """
    args = function.args
    positional = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    is_starred = any(isinstance(each, ast.Starred) for each in call.args)
    if len(call.args) > len(positional) or is_starred:
        raise ValueError("too many arguments")
    found = defaults_of(args) | dict(zip(positional, call.args, strict=False))
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("arguments from a mapping")
        found[keyword.arg] = keyword.value
    return found


def add_types(function: FunctionNode, inputs: Mapping[str, object], case: RecordedCase) -> None:
    """Annotate a function with the types of recorded values, where its author has not."""
    args = function.args
    for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs):
        annotation = annotation_of(inputs.get(arg.arg))
        if arg.annotation is None and annotation not in ("None", "Any"):
            arg.annotation = parse_expression(annotation).body
    if function.returns is None and (annotation := case.result_annotation):
        function.returns = parse_expression(annotation).body


# a function that is made of statements ------------------------------------------------------------


def generate_function(
    kept: Sequence[Statement],
    result: Result,
    case: RecordedCase,
    fixed: Collection[str],
    context: Mapping[str, object] | None = None,
) -> Skill:
    """Return the skill whose `run` has the kept statements as its body.

    If they read CONTEXT, which was `context`, the input is a parameter.
    """
    for each in kept:
        if each.is_definition and ENTRY_FUNCTION in each.binds:
            raise SkillRefused(
                NESTED_RUN.format(line=each.node.lineno),
                remedy="Move that into `run`, end with a call with plain values, and save it.",
            )
    found = find_parameters(kept, case.calls, fixed, context)
    literals = {id(node) for each in found for node in each.nodes}
    beside, inside = split_statements(kept, literals=literals)
    words = _describe_result(kept, result, case.tools, found)
    summary = _summarize_result(words, case)
    statements = list(replace_literals([*inside[:-1], *result.statements], found))
    if any(each.needs_copy for each in found):
        beside.insert(0, *parse_module("from copy import deepcopy").body)
    is_async = any(_awaits(node) for node in statements)
    function = make_run(found, statements, summary, case.result_annotation, is_async=is_async)
    source = render_module(summary, [*beside, function])
    inputs = json.loads(canonical_json({each.name: each.value for each in found}))
    return Skill(
        choose_free_name(words.replace(" ", "_")[:40], ()),
        summary,
        source,
        (replace(case, inputs=inputs),),
    )


def split_statements(
    kept: Sequence[Statement],
    *,
    literals: Collection[int] = (),
    may_have_constants: bool = False,
) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Return the statements that can stand beside `run`, and those that have to be in it.

    A statement that holds one of `literals` (ids of nodes) is in it, and so is what imports another
    `run`.
    """
    origins = {
        (name, ast.unparse(each.node))
        for each in kept
        if isinstance(each.node, ImportNode)
        for name in each.binds
    }
    meanings = Counter(name for name, _ in origins)
    bindings = Counter(name for each in kept for name in each.binds)
    changed = {name for each in kept for name in each.changes}

    def is_import(each: Statement) -> bool:
        return isinstance(each.node, ImportNode) and all(
            meanings[name] == 1 and name != ENTRY_FUNCTION for name in each.binds
        )

    def is_candidate(each: Statement) -> bool:
        if any(bindings[name] > 1 for name in each.binds):
            return False
        is_constant = _is_constant(each.node, may_be_literal=may_have_constants)
        return (each.is_definition or (is_constant and not each.binds & changed)) and not any(
            id(part) in literals for part in ast.walk(each.node)
        )

    imports = [each for each in kept[:-1] if is_import(each)]
    imported = {name for each in imports for name in each.binds}
    candidates = [each for each in kept[:-1] if is_candidate(each)]
    while True:
        known = PREDEFINED_NAMES | imported | {name for each in candidates for name in each.binds}
        fitting = [each for each in candidates if each.reads <= known]
        if len(fitting) == len(candidates):
            break
        candidates = fitting
    free_names = {name for each in kept for name in each.reads - each.binds} - set(bindings)
    distinct = {ast.unparse(each.node): each.node for each in imports}
    beside = {id(each.node) for each in (*imports, *candidates)}
    return (
        [
            *import_predefined(free_names),
            *join_imports(
                node for node in distinct.values() if getattr(node, "module", "") != "__future__"
            ),
            *(each.node for each in candidates),
        ],
        [each.node for each in kept if id(each.node) not in beside],
    )


def _is_constant(node: ast.stmt, *, may_be_literal: bool) -> bool:
    """Return whether a statement names what never changes: a pattern, or a literal in capitals."""
    match node:
        case ast.Assign([ast.Name()], ast.Call(function, arguments, [])):
            is_known = dotted_name(function) in CONSTANT_MAKERS
            return is_known and all(isinstance(each, ast.Constant) for each in arguments)
        case ast.Assign([ast.Name(name)], value) if may_be_literal and name.isupper():
            return is_literal(value)
    return False


def make_run(
    found: Sequence[FoundParameter],
    statements: Sequence[ast.stmt],
    summary: str,
    annotation: str,
    *,
    is_async: bool,
) -> ast.stmt:
    """Return the definition of `run`."""
    parts = [each.declaration for each in sorted(found, key=lambda each: not each.is_required)]
    if len(parts) > MAX_POSITIONAL:
        parts.insert(1, "*")
    examples = ", ".join(f"{each.name}={each.example}" for each in found if each.example)
    lines = [f"{each.name}: {INPUT_TEXT}" for each in found if each.is_input]
    if examples:
        lines.append(f"Recorded with {examples}.")
    docstring = "\n".join([summary, "", *(f"{INDENT}{line}" for line in lines), INDENT])
    if not lines:
        docstring = summary
    returns = f" -> {annotation}" if annotation else ""
    keyword = "async def" if is_async else "def"
    header = f"{keyword} {ENTRY_FUNCTION}({', '.join(parts)}){returns}"
    function = parse_module(f"{header}: pass").body[0]
    assert isinstance(function, FunctionNode)
    function.body = [ast.Expr(ast.Constant(docstring)), *statements]
    return function


def _awaits(node: ast.stmt) -> bool:
    """Return whether a statement awaits something itself."""
    if isinstance(node, DEFINITIONS):
        return False
    return any(
        isinstance(part, (ast.Await, ast.AsyncFor, ast.AsyncWith)) or getattr(part, "is_async", 0)
        for part in (node, *walk_own_nodes(node))
    )


# words --------------------------------------------------------------------------------------------


def summarize_function(function: FunctionNode, name: str) -> str:
    """Return one line about a function: the first of its docstring, or what `name` says."""
    text = (ast.get_docstring(function) or "").strip().partition("\n")[0]
    if not text:
        words = name.strip("_").split("_")
        parameters = ", ".join(arg.arg.replace("_", " ") for arg in function.args.args)
        if words[0] not in VERBS:
            words.insert(0, "return")
        if parameters and words[-1] not in PREPOSITIONS:
            words.append("for")
        text = " ".join([*words, parameters]).strip()
        text = text[0].upper() + text[1:]
    return text.replace("\\", "/").replace('"', "'").rstrip(".") + "."


def _describe_result(
    kept: Sequence[Statement],
    result: Result,
    tools: Sequence[str],
    found: Sequence[FoundParameter],
) -> str:
    """Return what to call a result: its keys, its variable, its parts, or the tool that made it."""
    expression = result.expression
    if isinstance(expression, ast.Dict) and not result.variable:
        keys = [each.value for each in expression.keys if isinstance(each, ast.Constant)]
        words = [
            _to_words(each) for each in keys if isinstance(each, str) and _says_something(each)
        ]
        if words:
            return " ".join(words[:2])
    inputs = {each.name for each in found} | {
        each.variable for each in found
    }  # no names for a result
    inputs.add(CONTEXT_NAME)
    for each in kept:
        if isinstance(each.node, ImportNode):
            inputs |= each.binds
    parts = [each for each in ast.walk(expression) if isinstance(each, ast.Name)]
    loop_variables = {each.id for each in parts if isinstance(each.ctx, ast.Store)}
    for name in [result.variable] if result.variable else [each.id for each in parts]:
        if name not in inputs | loop_variables and _says_something(name):
            return _to_words(name)
    if tools:
        return _to_words(tools[-1].partition(".")[2])
    for part in ast.walk(expression):
        match part:
            case ast.Call(ast.Attribute(attr=method)) if _says_something(method):
                return _to_words(method)
    return f"result of {found[0].name if found else 'code'}"


def _summarize_result(words: str, case: RecordedCase) -> str:
    used = case.tools[:MAX_NAMED_TOOLS]
    if case.asks_model:
        used.append("a model")
    return f"Return {words}, with {', '.join(used)}." if used else f"Return {words}."


def _says_something(name: str) -> bool:
    is_name = name.isascii() and name.isidentifier() and len(name) > 2
    return is_name and name.lower() not in VAGUE_NAMES and name not in PREDEFINED_NAMES


def _to_words(name: str) -> str:
    return name.lower().strip("_").replace("_", " ")
