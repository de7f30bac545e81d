"""A config file's assignments: parsed, never executed, so that one from a stranger runs nothing."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from preprocess.errors import MisuseError

# More than any setting can mean, and little enough that no arithmetic in a config file takes time or memory.
LARGEST_NUMBER = 1e18
LONGEST_LIST = 100


def read_assignments(path: Path) -> dict[str, tuple[Any, int]]:
    """What the file assigns: name → value and line.

    Allowed are literals, arithmetic on numbers, names assigned earlier in the file, and lists of these, but not of lists.
    Raises MisuseError that names the file, and the line where there is one.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"), filename=str(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        what = "is a folder" if path.is_dir() else "is not there"
        raise MisuseError(
            f"the config file {path} {what}; wanted a Python file of assignments such as configs/small.py"
        ) from e
    except UnicodeDecodeError as e:
        raise MisuseError(f"the config file {path} is not UTF-8 text (byte {e.start}); save it as UTF-8") from e
    except SyntaxError as e:
        raise MisuseError(f"{path}, line {e.lineno or 1}: {e.msg}; wanted assignments such as max_steps = 100") from e
    except (ValueError, RecursionError, MemoryError) as e:
        raise MisuseError(
            f"{path} cannot be read as assignments ({e or type(e).__name__}); wanted lines such as max_steps = 100"
        ) from e
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for statement in tree.body:
        where = f"{path}, line {statement.lineno}"
        if not (
            isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
        ):
            raise MisuseError(
                f"{where}: only assignments of a setting, such as max_steps = 100, are read; take the rest out"
            )
        key = statement.targets[0].id
        lines[key] = statement.lineno
        try:
            values[key] = _evaluate(statement.value, values)
        except (_Refused, RecursionError) as e:
            raise MisuseError(
                f"{where}: {e}; write a literal, arithmetic on numbers, a list of them, or a setting assigned above"
            ) from e
    return {key: (value, lines[key]) for key, value in values.items()}


class _Refused(Exception):
    """An expression that a config file may not hold; the message says which."""


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def _evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=bool() | float() | str() | None):
            return node.value
        case ast.Constant(value=int() as number):
            if number > LARGEST_NUMBER:
                raise _Refused(f"a number is beyond {LARGEST_NUMBER:.0e}")
            return number
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.List(elts=elements):
            if len(elements) > LONGEST_LIST:
                raise _Refused(f"a list has {len(elements):,} elements, at most {LONGEST_LIST} are read")
            return [_evaluate_element(element, names) for element in elements]
        case ast.UnaryOp() if type(node.op) in _OPERATORS:
            return _calculate(node.op, _evaluate(node.operand, names))
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _calculate(node.op, _evaluate(node.left, names), _evaluate(node.right, names))
    raise _Refused(f"cannot read {ast.unparse(node)[:80]!r}")


def _evaluate_element(node: ast.expr, names: Mapping[str, Any]) -> Any:
    value = _evaluate(node, names)
    if isinstance(value, list):
        raise _Refused("a list holds a list")
    return value


def _calculate(operation: ast.operator | ast.unaryop, *operands: Any) -> Any:
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in operands):
        raise _Refused(f"arithmetic is on numbers, got {', '.join(repr(x)[:40] for x in operands)}")
    try:
        # A power is tried on floats first: 9 ** 9 ** 9 as an int would take all memory.
        for numbers in [[float(x) for x in operands], operands] if isinstance(operation, ast.Pow) else [operands]:
            value = _OPERATORS[type(operation)](*numbers)
            if isinstance(value, complex) or not abs(value) <= LARGEST_NUMBER:
                raise _Refused(f"a result is beyond {LARGEST_NUMBER:.0e}")
    except OverflowError as e:
        raise _Refused(f"a result is beyond {LARGEST_NUMBER:.0e}") from e
    except ZeroDivisionError as e:
        raise _Refused(str(e)) from e
    return value
