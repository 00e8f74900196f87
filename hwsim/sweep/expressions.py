"""Expressions over named values, such as `rows * cols <= 256 and dataflow in ['WS', 'IS']`.

A small part of Python's expressions with Python's meaning: numbers, texts, True and False; comparisons, also chained,
and `in` before a list; `and`, `or`, `not`; `+ - * / // % **`; `a if b else c`; the functions of `FUNCTIONS`. Stricter
than Python where that hides mistakes: arithmetic takes numbers, which truth values and texts are not, order compares
numbers or texts, conditions are truth values. Python's parser reads the text; nothing of it is ever run as Python.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hwsim.document import short
from models.unit import InputError, nearest, require

MAX_CHARS = 1000
MAX_NODES = 400
MAX_DEPTH = 60
MAX_NUMBER = 10**18
"""greatest magnitude of a number, written or computed"""
MAX_EXPONENT = 64

_NUMBERS = frozenset({int, float})
"""types of numbers: a truth value is none"""

Value = bool | int | float | str
Values = Mapping[str, Value]
Step = Callable[[Values], Any]
"""computes one node of the expression"""


@dataclass(frozen=True, kw_only=True)
class Expression:
    """An expression that was read and found admissible."""

    text: str
    names: frozenset[str]
    """what it needs a value for"""
    step: Step = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Expression:
        """InputError, one line, for anything but one expression of the admitted kind, within the limits above."""
        root = _read(text)
        _require_small(root, text)
        functions = {id(node.func) for node in ast.walk(root) if isinstance(node, ast.Call)}
        names = {node.id for node in ast.walk(root) if isinstance(node, ast.Name) and id(node) not in functions}
        try:
            return cls(text=text.strip(), names=frozenset(names), step=_built(root))
        except InputError as error:
            raise InputError(f"{short(text.strip())}: {error}") from None

    def evaluate(self, values: Values) -> Value:
        """Its value for those of its names.

        InputError with the expression and the names' values for a name without one, types that do not fit, division by
        zero, a number beyond `MAX_NUMBER`.
        """
        try:
            return self.step(values)
        except (InputError, ZeroDivisionError) as error:
            # Python's words for a division by zero are others in each version
            problem = str(error) if isinstance(error, InputError) else "division by zero"
            given = ", ".join(f"{name}={short(values[name])}" for name in sorted(self.names & values.keys()))
            raise InputError(f"{short(self.text)}{given and f' at {given}'}: {problem}") from None

    def holds(self, values: Values) -> bool:
        """`evaluate` of an expression that must give a truth value, InputError otherwise."""
        value = self.evaluate(values)
        require(isinstance(value, bool), f"{short(self.text)} gives {short(value)}; a condition is true or false")
        return bool(value)


# ---- reading


def _read(text: str) -> ast.expr:
    stripped = text.strip()
    require(len(text) <= MAX_CHARS, f"an expression of {len(text)} characters; {MAX_CHARS} at most")
    require(len(stripped.splitlines()) == 1, f"{short(stripped)} is no expression in one line, such as rows <= 16")
    try:
        # the tokenizer warns of what a later Python refuses
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            root = ast.parse(stripped, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        problem = error.msg if isinstance(error, SyntaxError) else "cannot be read"
        raise InputError(f"{short(stripped)} is no expression: {problem}; such as rows * cols <= 256") from None
    rest = stripped.encode()[root.end_col_offset :]
    require(b"#" not in rest, f"{short(stripped)}: an expression has no comment; leave out what follows #")
    return root


def _require_small(root: ast.expr, text: str) -> None:
    nodes = 0
    level: list[ast.AST] = [root]
    for depth in range(1, MAX_CHARS + 2):
        nodes += len(level)
        rule = f"{short(text.strip())} is too large: {MAX_DEPTH} levels and {MAX_NODES} parts at most"
        require(depth <= MAX_DEPTH and nodes <= MAX_NODES, f"{rule}; split it")
        level = [part for node in level for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        if not level:
            return


def _built(node: ast.AST) -> Step:
    build = _BUILDERS.get(type(node))
    require(build is not None, f"{_kind(node)} is not admitted; take comparisons, and, or, not, arithmetic")
    assert build is not None
    return build(node)


def _kind(node: ast.AST) -> str:
    words = {
        ast.Attribute: "a name with a dot",
        ast.Subscript: "an index in brackets",
        ast.List: "a list elsewhere than behind `in`",
        ast.Tuple: "a list elsewhere than behind `in`",
        ast.JoinedStr: "an f-string",
        ast.NamedExpr: "an assignment",
    }
    return words.get(type(node), f"{type(node).__name__} of Python")


def _name(node: ast.Name) -> Step:
    name = node.id

    def step(values: Values) -> Value:
        if name in values:
            return values[name]
        raise InputError(f"{name} has no value")

    return step


def _constant(node: ast.Constant) -> Step:
    value = node.value
    require(isinstance(value, bool | int | float | str), f"{short(value)} is not admitted; write a number or a text")
    if not isinstance(value, str):
        _bounded(value)
    return lambda _values: value


# ---- conditions


def _truth(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise InputError(f"{short(value)} is no truth value; compare it with something")


def _bool_op(node: ast.BoolOp) -> Step:
    parts = [_built(value) for value in node.values]
    fold = all if isinstance(node.op, ast.And) else any
    return lambda values: fold(_truth(part(values)) for part in parts)


def _if_exp(node: ast.IfExp) -> Step:
    test, then, other = _built(node.test), _built(node.body), _built(node.orelse)
    return lambda values: then(values) if _truth(test(values)) else other(values)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def ordered(a: Any, b: Any) -> bool:
        kinds = {type(a), type(b)}
        if kinds <= _NUMBERS or kinds == {str}:
            return compare(a, b)
        raise InputError(f"{short(a)} and {short(b)} have no order; compare numbers, or texts, or use == and !=")

    return ordered


_COMPARISONS: Mapping[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: _ordered(operator.lt),
    ast.LtE: _ordered(operator.le),
    ast.Gt: _ordered(operator.gt),
    ast.GtE: _ordered(operator.ge),
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


def _compare(node: ast.Compare) -> Step:
    for op in node.ops:
        require(type(op) in _COMPARISONS, "is is not admitted; use == or !=")
    require(not any(isinstance(op, ast.In | ast.NotIn) for op in node.ops[:-1]), "`in` ends a chain; use `and`")
    compares = [_COMPARISONS[type(op)] for op in node.ops]
    first, *rest = [_built(node.left), *map(_right, node.ops, node.comparators)]
    links = list(zip(compares, rest, strict=True))

    def step(values: Values) -> bool:
        left = first(values)
        for compare, part in links:
            right = part(values)
            if not compare(left, right):
                return False
            left = right
        return True

    return step


def _right(op: ast.cmpop, node: ast.expr) -> Step:
    if not isinstance(op, ast.In | ast.NotIn):
        return _built(node)
    require(isinstance(node, ast.List | ast.Tuple), "behind `in` stands a list such as ['WS', 'OS']")
    assert isinstance(node, ast.List | ast.Tuple)
    parts = [_built(element) for element in node.elts]
    return lambda values: [part(values) for part in parts]


# ---- arithmetic


def _require_numbers(*values: Any) -> None:
    for value in values:
        if type(value) not in _NUMBERS:
            raise InputError(f"{short(value)} is no number")


def _bounded(value: Any) -> Any:
    # written so that NaN fails
    if -MAX_NUMBER <= value <= MAX_NUMBER:
        return value
    raise InputError(f"a number beyond {MAX_NUMBER:.0e}")


def _power(a: Any, b: Any) -> Any:
    whole = isinstance(b, int) and -MAX_EXPONENT <= b <= MAX_EXPONENT
    require(whole, f"exponent {short(b)} is no whole number from -{MAX_EXPONENT} to {MAX_EXPONENT}")
    try:
        return a**b
    except OverflowError:
        return math.inf


_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def _bin_op(node: ast.BinOp) -> Step:
    require(type(node.op) in _OPERATORS, "operators on bits are not admitted; use and, or, not, arithmetic")
    compute, left, right = _OPERATORS[type(node.op)], _built(node.left), _built(node.right)

    def step(values: Values) -> Any:
        a, b = left(values), right(values)
        _require_numbers(a, b)
        return _bounded(compute(a, b))

    return step


def _unary_op(node: ast.UnaryOp) -> Step:
    part = _built(node.operand)
    if isinstance(node.op, ast.Not):
        return lambda values: not _truth(part(values))
    require(isinstance(node.op, ast.USub | ast.UAdd), "~ is not admitted; use not")
    sign = -1 if isinstance(node.op, ast.USub) else 1

    def step(values: Values) -> Any:
        value = part(values)
        _require_numbers(value)
        return sign * value

    return step


def _log2(value: Any) -> float:
    require(value > 0, f"log2 of {short(value)}; it takes numbers above 0")
    return math.log2(value)


def _power_of_two(value: Any) -> bool:
    require(isinstance(value, int), f"power_of_two of {short(value)}; it takes whole numbers")
    return value > 0 and value & (value - 1) == 0


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "log2": _log2,
    "max": max,
    "min": min,
    "power_of_two": _power_of_two,
}
"""of numbers: `min` and `max` of two or more, the others of one; `power_of_two` says whether a whole number is one"""


def _call(node: ast.Call) -> Step:
    require(isinstance(node.func, ast.Name), "only functions by their name are admitted")
    assert isinstance(node.func, ast.Name)
    name = node.func.id
    require(name in FUNCTIONS, f"no function {short(name)}; {nearest(name[:64], FUNCTIONS)}")
    require(not node.keywords, f"{name} takes no arguments by name")
    fits = len(node.args) >= 2 if name in ("min", "max") else len(node.args) == 1
    require(fits, f"{name} takes {'two or more numbers' if name in ('min', 'max') else 'one number'}")
    function, parts = FUNCTIONS[name], [_built(argument) for argument in node.args]

    def step(values: Values) -> Any:
        arguments = [part(values) for part in parts]
        _require_numbers(*arguments)
        return function(*arguments)

    return step


_BUILDERS: Mapping[type, Callable[[Any], Step]] = {
    ast.Name: _name,
    ast.Constant: _constant,
    ast.BoolOp: _bool_op,
    ast.IfExp: _if_exp,
    ast.Compare: _compare,
    ast.BinOp: _bin_op,
    ast.UnaryOp: _unary_op,
    ast.Call: _call,
}
