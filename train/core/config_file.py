"""Config files: assignments that are parsed and never executed.

A config file looks like nanoGPT's: Python assignments such as `max_steps = 100`. A value can be a
literal, arithmetic on numbers, a list, or the name of an earlier assignment. A file of unknown
origin is safe to read, because no code in it is run.

If the first assignment is `base = "small.py"`, that config is read first. Its path is relative to
the folder of this file, and its assignments count as earlier ones, which later ones can override.
"""

from __future__ import annotations

import ast
import difflib
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import read_small_file
from train.core.paths import parse_path

MAX_CONFIG_BYTES = 1 << 16  # a hundred times what a config needs; Python parses some texts in quadratic time
# Larger than any setting needs to be, and small enough that arithmetic takes little time and memory.
MAX_NUMBER = 1e18
MAX_LIST_LENGTH = 100
MAX_BASES = 10  # configs that one config is based on, directly or not
BASE = "base"
TOO_DEEP = "an expression is nested too deeply"
SYNTAX_ERRORS = {
    "Exceeds the limit": f"a number is larger than {MAX_NUMBER:.0e}",
    "unicode error": "a text has a backslash that does not begin an escape sequence; write \\\\ for a backslash",
    "null byte": "the file contains a NUL character",
    "too many": TOO_DEEP,
}


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The value of a setting, and the file and line that assigned it."""

    value: Any
    path: Path
    line: int

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.line}"


def read_assignments(
    path: Path, *, rename: Callable[[str], str] = str, based: tuple[Path, ...] = ()
) -> dict[str, Assignment]:
    """Return the assignments of a config file and of its bases, by name.

    If a name is assigned several times, the last assignment counts. `rename` converts each name, so
    that a setting's name in an earlier version of Folio still means that setting. `based` lists the
    configs whose bases led to this one, beginning with the one that was read first. Raises
    MisuseError, with the file and if possible the line, if the file cannot be read or contains
    anything but such assignments.
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
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                node.id = rename(node.id)
        name = statement.targets[0].id
        value = _read_value(statement.value, assignments, where)
        if name == BASE:
            if number > 0:
                raise MisuseError(f"{where}: base must be the first assignment; move it to the top")
            base = _find_base(value, where=where, based=(*based, path))
            assignments = read_assignments(base, rename=rename, based=(*based, path))
        else:
            assignments.pop(name, None)  # a repeated assignment moves to the end
            assignments[name] = Assignment(value=value, path=path, line=statement.lineno)
    return assignments


def _read_value(node: ast.expr, assignments: Mapping[str, Assignment], where: str) -> Any:
    """Return the value of an expression, which can use the names in `assignments`.

    Raises MisuseError if the expression is not allowed.
    """
    advice = "write a literal, arithmetic on numbers, a list of them, or a setting assigned above"
    try:
        return _evaluate(node, assignments)
    except _Rejected as e:
        raise MisuseError(f"{where}: {e}; {advice}") from e
    except RecursionError as e:
        raise MisuseError(f"{where}: {TOO_DEEP}; {advice}") from e


def _find_base(value: Any, *, where: str, based: tuple[Path, ...]) -> Path:
    """Return the path of the config that `base = value` names in the file `based[-1]`.

    Raises MisuseError if there is no such file or if it is based on itself.
    """
    if not isinstance(value, str) or not value:
        raise MisuseError(f"{where}: base must be the path of a config file in quotes, got {value!r:.80}")
    folder = based[-1].parent
    base = folder / parse_path(value, f"{where}: base")
    if not base.exists():
        raise MisuseError(
            f"{where}: base {value!r:.80} does not exist in the folder {folder}; give its path from there"
        )
    if not base.is_file():
        raise MisuseError(f"{where}: base {value!r:.80} is not a file; name a config file")
    resolved = [path.resolve() for path in based]
    if base.resolve() in resolved:
        cycle = " → ".join(path.name for path in (*based[resolved.index(base.resolve()) :], base))
        raise MisuseError(f"{where}: the config would be based on itself ({cycle:.200}); remove a base")
    if len(based) > MAX_BASES:
        raise MisuseError(f"{where}: more than {MAX_BASES} configs are based on each other; remove a base")
    return base


def _parse(path: Path) -> list[ast.stmt]:
    """Return the statements of a config file. Raises MisuseError if it cannot be read or parsed."""
    example = "assignments such as max_steps = 100"
    try:
        text = read_small_file(path, MAX_CONFIG_BYTES).decode("utf-8-sig")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown escape sequences
            return ast.parse(text).body
    except (FileNotFoundError, NotADirectoryError) as e:
        nearest = difflib.get_close_matches(path.stem, sorted(file.stem for file in path.parent.glob("*.py")), n=1)
        hint = f"did you mean {path.with_name(nearest[0] + '.py')}? " if nearest else ""
        raise MisuseError(
            f"the config file {path} does not exist; {hint}name a file of {example}, as in configs/small.py"
        ) from e
    except FolioError as e:
        raise MisuseError(f"the config file {e}") from e
    except UnicodeDecodeError as e:
        raise MisuseError(f"the config file {path} is not UTF-8 text (byte {e.start:,}); save it as UTF-8") from e
    except SyntaxError as e:
        raise MisuseError(f"{path}, line {e.lineno or 1}: {_describe_syntax_error(e)}; expected {example}") from e
    except ValueError as e:
        raise MisuseError(f"{path} contains a NUL character; expected {example}") from e
    except (RecursionError, MemoryError) as e:
        raise MisuseError(f"{path} cannot be read, because {TOO_DEEP}; expected {example}") from e


def _describe_syntax_error(error: SyntaxError) -> str:
    """Return Python's message, or a plainer one where Python describes its own limits."""
    for python, plain in SYNTAX_ERRORS.items():
        if python in error.msg:
            return plain
    return error.msg


class _Rejected(Exception):
    """Raised for an expression that a config file must not contain."""


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
    ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def _evaluate(node: ast.expr, assignments: Mapping[str, Assignment]) -> Any:
    match node:
        case ast.Constant(value=bool() | float() | str() | None):
            return node.value
        case ast.Constant(value=int() as number):
            if number > MAX_NUMBER:
                raise _Rejected(f"a number is larger than {MAX_NUMBER:.0e}")
            return number
        case ast.Name(id=name) if name in assignments:
            return assignments[name].value
        case ast.List(elts=elements):
            if len(elements) > MAX_LIST_LENGTH:
                raise _Rejected(f"a list must have at most {MAX_LIST_LENGTH} elements, got {len(elements):,}")
            return [_evaluate_element(element, assignments) for element in elements]
        case ast.UnaryOp() if type(node.op) in _OPERATORS:
            return _calculate(node.op, _evaluate(node.operand, assignments))
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _calculate(node.op, _evaluate(node.left, assignments), _evaluate(node.right, assignments))
    raise _Rejected(f"cannot read {_show(node)}")


def _show(node: ast.expr) -> str:
    """Return the beginning of an expression for a message."""
    try:
        return repr(ast.unparse(node)[:80])
    except ValueError:  # Python does not format an int of more than 4,300 digits
        return "an expression with a huge number"


def _evaluate_element(node: ast.expr, assignments: Mapping[str, Assignment]) -> Any:
    value = _evaluate(node, assignments)
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
                raise _Rejected(f"a result is not a real number or is larger than {MAX_NUMBER:.0e}")
    except OverflowError as e:
        raise _Rejected(f"a result is larger than {MAX_NUMBER:.0e}") from e
    except ZeroDivisionError as e:
        raise _Rejected("a division by zero") from e
    return value
