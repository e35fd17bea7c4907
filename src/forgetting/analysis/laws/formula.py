"""A user's formula as an expression tree: parsed from text with a whitelist, never executed as Python.

Values and derivatives come from one walk over the tree with dual numbers (forward mode), on whole arrays; numbers may
be complex. Constants are floats, so that `9**9**9` overflows immediately instead of computing an integer.
"""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from forgetting.analysis.laws.base import Array
from forgetting.errors import UsageError, did_you_mean

MAX_LENGTH = 2_000
MAX_DEPTH = 60
_NAME = re.compile(r"[^\W\d]\w*")


def _sqrt(v: Array) -> Array:
    return np.asarray(np.sqrt(v))


FUNCTIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "exp": (np.exp, np.exp),
    "expm1": (np.expm1, np.exp),
    "log": (np.log, lambda v: 1 / v),
    "log1p": (np.log1p, lambda v: 1 / (1 + v)),
    "sqrt": (_sqrt, lambda v: 0.5 / np.sqrt(v)),
    "tanh": (np.tanh, lambda v: 1 - np.tanh(v) ** 2),
    "sin": (np.sin, np.cos),
    "cos": (np.cos, lambda v: -np.sin(v)),
    "arctan": (np.arctan, lambda v: 1 / (1 + v * v)),
}
CONSTANTS = {"pi": float(np.pi)}
OPERATORS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}


@dataclass(frozen=True)
class Node:
    """One node: `kind` is `number`, `name`, `neg`, a binary operator, or a function's name."""

    kind: str
    children: tuple[Node, ...] = ()
    name: str = ""
    number: float = 0.0


@dataclass(frozen=True)
class Formula:
    """A parsed formula.

    Attributes:
        text: as written.
        output: the name before `=`, or an empty string.
        tree: the expression.
        names: names in it in order of appearance, except constants.
        constants: names of constants in it.
    """

    text: str
    output: str
    tree: Node
    names: tuple[str, ...]
    constants: tuple[str, ...] = ()


def parse(text: str, own: Collection[str] = ()) -> Formula:
    """Parse `expression` or `output = expression`.

    Args:
        text: the formula.
        own: names that are not constants here, such as that of a column `pi`.

    Raises:
        UsageError: the text contains anything but numbers, names, + - * / **, parentheses and known functions.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(f"formula of {len(text)} characters; at most {MAX_LENGTH} are allowed")
    left, equals, right = text.partition("=")
    output, body = (left.strip(), right.strip()) if equals else ("", text.strip())
    if equals and not output.isidentifier():
        raise UsageError(f"formula '{text}': '{output}' before '=' is not a name")
    try:
        with warnings.catch_warnings():  # Python's warnings about texts that are not formulas anyway
            warnings.simplefilter("ignore")
            parsed = ast.parse(body, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if reserved := [word for word in _NAME.findall(body) if keyword.iskeyword(word)]:
            raise UsageError(
                f"formula '{text}': '{reserved[0]}' is a reserved word of Python and cannot name a parameter; write "
                f"{reserved[0]}_"
            ) from None
        raise UsageError(f"formula '{text}' cannot be read: {getattr(error, 'msg', error)}") from None
    names: dict[str, None] = {}
    constants = {name: value for name, value in CONSTANTS.items() if name not in own}
    tree = _build(parsed, text, names, 0)
    used = tuple(name for name in names if name in constants)
    return Formula(text, output, _with_constants(tree, constants), tuple(n for n in names if n not in used), used)


def _build(node: ast.expr, text: str, names: dict[str, None], depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise UsageError(f"formula '{text[:60]}...' is nested more than {MAX_DEPTH} deep")
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return _constant(node.value, text)
    if isinstance(node, ast.Name):
        names[node.id] = None
        return Node("name", name=node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _build(node.operand, text, names, depth + 1)
        return Node("neg", (inner,)) if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        pair = (_build(node.left, text, names, depth + 1), _build(node.right, text, names, depth + 1))
        return Node(OPERATORS[type(node.op)], pair)
    if isinstance(node, ast.Call):
        return _call(node, text, names, depth)
    hint = "; write ** for a power" if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor) else ""
    found = _written(node)
    raise UsageError(
        f"formula '{text}': '{found}' is not allowed{hint}; allowed are numbers, names, + - * / **, parentheses and "
        + ", ".join(FUNCTIONS)
    )


def _with_constants(node: Node, constants: Mapping[str, float]) -> Node:
    """The tree with each named constant replaced by its number."""
    if node.kind == "name":
        return Node("number", number=constants[node.name]) if node.name in constants else node
    return replace(node, children=tuple(_with_constants(child, constants) for child in node.children))


def _written(node: ast.expr) -> str:
    try:
        return ast.unparse(node)
    except RecursionError:
        return type(node).__name__


def _constant(value: float, text: str) -> Node:
    try:
        number = float(value)
    except OverflowError:
        number = np.inf
    if not np.isfinite(number):
        raise UsageError(f"formula '{text}': a constant is too large")
    return Node("number", number=number)


def _call(node: ast.Call, text: str, names: dict[str, None], depth: int) -> Node:
    called = node.func.id if isinstance(node.func, ast.Name) else _written(node.func)
    if called not in FUNCTIONS:
        raise UsageError(f"formula '{text}': unknown function '{called}'; {did_you_mean(called, FUNCTIONS)}")
    if len(node.args) != 1 or node.keywords:
        raise UsageError(f"formula '{text}': {called} takes one argument")
    return Node(called, (_build(node.args[0], text, names, depth + 1),))


Dual = tuple[Array, dict[str, Array]]


def evaluate(node: Node, values: Mapping[str, Array], wanted: frozenset[str]) -> Dual:
    """The value of a tree, and its derivatives by name, for the names in `wanted` that it depends on.

    Args:
        node: the tree.
        values: arrays that broadcast together, by name.
        wanted: names to differentiate with respect to; an empty set costs nothing.
    """
    if node.kind == "number":
        return np.asarray(node.number), {}
    if node.kind == "name":
        value = np.asarray(values[node.name])
        return value, {node.name: np.ones_like(value)} if node.name in wanted else {}
    if node.kind == "neg":
        value, by = evaluate(node.children[0], values, wanted)
        return -value, {k: -v for k, v in by.items()}
    if node.kind in FUNCTIONS:
        value, by = evaluate(node.children[0], values, wanted)
        function, derivative = FUNCTIONS[node.kind]
        slope = derivative(value) if by else value
        return function(value), {k: slope * v for k, v in by.items()}
    left = evaluate(node.children[0], values, wanted)
    right = evaluate(node.children[1], values, wanted)
    return _binary(node.kind, left, right)


def _binary(kind: str, left: Dual, right: Dual) -> Dual:
    (a, by_a), (b, by_b) = left, right
    if kind == "+":
        return a + b, _combine(by_a, None, by_b, None)
    if kind == "-":
        return a - b, _combine(by_a, None, by_b, np.asarray(-1.0))
    if kind == "*":
        return a * b, _combine(by_a, b, by_b, a)
    if kind == "/":
        return a / b, _combine(by_a, 1 / b, by_b, -a / (b * b))
    power = a**b
    by_base = b * a ** (b - 1) if by_a else None
    # at base 0 the power does not change with a positive exponent
    by_exponent = power * np.log(np.where(a == 0, 1.0, a)) if by_b else None
    return power, _combine(by_a, by_base, by_b, by_exponent)


def _combine(
    by_a: Mapping[str, Array], front_a: Array | None, by_b: Mapping[str, Array], front_b: Array | None
) -> dict[str, Array]:
    """front_a * da + front_b * db, where a front of None means 1."""
    out = {k: v if front_a is None else front_a * v for k, v in by_a.items()}
    for k, v in by_b.items():
        term = v if front_b is None else front_b * v
        out[k] = out[k] + term if k in out else term
    return out


def depends(node: Node, names: frozenset[str]) -> bool:
    """Whether a tree mentions any of the names."""
    return node.name in names or any(depends(child, names) for child in node.children)


def affine(node: Node, names: frozenset[str]) -> bool:
    """Whether a tree is jointly affine in the names, as far as its written form shows."""
    if not depends(node, names) or node.kind == "name":
        return True
    if node.kind in ("+", "-", "neg"):
        return all(affine(child, names) for child in node.children)
    if node.kind == "*":
        a, b = node.children
        return (affine(a, names) and not depends(b, names)) or (affine(b, names) and not depends(a, names))
    if node.kind == "/":
        return affine(node.children[0], names) and not depends(node.children[1], names)
    return False


def in_exponent(node: Node, name: str, inside: bool = False) -> bool:
    """Whether a name appears in the exponent of a power."""
    if node.kind == "name":
        return inside and node.name == name
    if node.kind == "**":
        base, exponent = node.children
        return in_exponent(base, name, inside) or in_exponent(exponent, name, True)
    return any(in_exponent(child, name, inside) for child in node.children)
