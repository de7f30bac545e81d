"""Pass the exceptions of tasks from a worker to the main process."""

from __future__ import annotations

import importlib
import traceback
from typing import Any

DescribedException = tuple[str, str, tuple[Any, ...]]


def describe_exception(error: BaseException) -> DescribedException:
    """Return the module, class name and arguments from which the main process recreates `error`.

    An exception other than OSError, MemoryError and those of Folio becomes a RuntimeError with the
    traceback as its message, because it may be impossible to pickle it or to create it from its
    arguments.
    """
    if isinstance(error, OSError):
        arguments = (error.errno, error.strerror, error.filename) if error.errno is not None else (str(error),)
        return "builtins", "OSError", arguments
    if type(error).__module__.startswith("preprocess.") or isinstance(error, MemoryError):
        return type(error).__module__, type(error).__qualname__, tuple(map(str, error.args))
    return "builtins", "RuntimeError", ("".join(traceback.format_exception(error)),)


def import_exception(module: str, name: str, arguments: tuple[Any, ...]) -> BaseException:
    """Return the exception that `describe_exception` has described."""
    error: BaseException = getattr(importlib.import_module(module), name)(*arguments)
    return error
