"""Config files: assignments that are parsed and never executed.

A config file from a stranger can therefore run no code. A config file looks like nanoGPT's: Python
assignments such as `max_steps = 100`. Literals, arithmetic on numbers, lists, and the names of
earlier assignments are allowed. `base = "small.py"` as the first line reads another config first,
relative to the file; its assignments can be overridden and used like earlier lines.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.errors import MisuseError

# Larger than any setting needs to be, and small enough that arithmetic in a config file takes no
# time and no memory.
MAX_NUMBER = 1e18
MAX_LIST_LENGTH = 100
MAX_BASES = 10  # configs that one config is based on, directly or not
BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The value of a setting, and the file and line that assigned it."""

    value: Any
    path: Path
    line: int

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.line}"


def read_assignments(path: Path, *, num_bases: int = 0) -> dict[str, Assignment]:
    """Return the assignments of a config file and of its bases by name.

    If a name is assigned several times, the last assignment counts. Raises MisuseError, with the
    file and if possible the line, for anything else in the file.
    """
    assignments: dict[str, Assignment] = {}
    for number, statement in enumerate(_parse(path)):
        where = f"{path}, line {statement.lineno}"
        if not (
            isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
        ):
            raise MisuseError(f"{where}: expected an assignment of a setting, such as max_steps = 100; remove the rest")
        name = statement.targets[0].id
        names = {key: assignment.value for key, assignment in assignments.items()}
        try:
            value = _evaluate(statement.value, names)
        except (_Rejected, RecursionError) as e:
            raise MisuseError(
                f"{where}: {e}; write a literal, arithmetic on numbers, a list of them, or a setting assigned above"
            ) from e
        if name == BASE:
            if number > 0:
                raise MisuseError(f"{where}: base must be the first assignment; move it to the top")
            assignments = _read_base(value, path=path, where=where, num_bases=num_bases)
        else:
            assignments.pop(name, None)  # keep them in the order of their last assignment
            assignments[name] = Assignment(value=value, path=path, line=statement.lineno)
    return assignments


def _read_base(value: Any, *, path: Path, where: str, num_bases: int) -> dict[str, Assignment]:
    """Return the assignments of the config that `base = value` in the file `path` names."""
    if not isinstance(value, str) or not value:
        raise MisuseError(f"{where}: base must be the path of a config file in quotes, got {value!r:.80}")
    if num_bases >= MAX_BASES:
        raise MisuseError(f"{where}: more than {MAX_BASES} configs are based on each other; remove a base")
    base = path.parent / value
    if not base.is_file():
        raise MisuseError(
            f"{where}: base {value!r:.80} does not exist beside {path.name}; give its path from that folder"
        )
    return read_assignments(base, num_bases=num_bases + 1)


def _parse(path: Path) -> list[ast.stmt]:
    """Return the statements of a config file. Raises MisuseError if it cannot be read or parsed."""
    example = "assignments such as max_steps = 100"
    try:
        return ast.parse(path.read_text(encoding="utf-8-sig"), filename=str(path)).body
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise MisuseError(f"the config file {path} {problem}; name a file of {example}, as in configs/small.py") from e
    except UnicodeDecodeError as e:
        raise MisuseError(f"the config file {path} is not UTF-8 text (byte {e.start}); save it as UTF-8") from e
    except SyntaxError as e:
        raise MisuseError(f"{path}, line {e.lineno or 1}: {e.msg}; expected {example}") from e
    except (ValueError, RecursionError, MemoryError) as e:
        raise MisuseError(f"{path} cannot be parsed ({e or type(e).__name__}); expected {example}") from e


class _Rejected(Exception):
    """An expression that a config file must not contain."""


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
    ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def _evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=bool() | float() | str() | None):
            return node.value
        case ast.Constant(value=int() as number):
            if number > MAX_NUMBER:
                raise _Rejected(f"a number is larger than {MAX_NUMBER:.0e}")
            return number
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.List(elts=elements):
            if len(elements) > MAX_LIST_LENGTH:
                raise _Rejected(f"a list must have at most {MAX_LIST_LENGTH} elements, got {len(elements):,}")
            return [_evaluate_element(element, names) for element in elements]
        case ast.UnaryOp() if type(node.op) in _OPERATORS:
            return _calculate(node.op, _evaluate(node.operand, names))
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _calculate(node.op, _evaluate(node.left, names), _evaluate(node.right, names))
    raise _Rejected(f"cannot read {ast.unparse(node)[:80]!r}")


def _evaluate_element(node: ast.expr, names: Mapping[str, Any]) -> Any:
    value = _evaluate(node, names)
    if isinstance(value, list):
        raise _Rejected("a list must not contain a list")
    return value


def _calculate(operation: ast.operator | ast.unaryop, *operands: Any) -> Any:
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in operands):
        raise _Rejected(f"arithmetic needs numbers, got {', '.join(repr(x)[:40] for x in operands)}")
    try:
        # Compute a power with floats first: 9 ** 9 ** 9 as an int would take all memory.
        for numbers in [[float(x) for x in operands], operands] if isinstance(operation, ast.Pow) else [operands]:
            value = _OPERATORS[type(operation)](*numbers)
            if isinstance(value, complex) or not abs(value) <= MAX_NUMBER:
                raise _Rejected(f"a result is larger than {MAX_NUMBER:.0e}")
    except OverflowError as e:
        raise _Rejected(f"a result is larger than {MAX_NUMBER:.0e}") from e
    except ZeroDivisionError as e:
        raise _Rejected(str(e)) from e
    return value
