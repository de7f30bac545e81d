"""What all commands share: printing, exit statuses, and errors as one line instead of a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from preprocess.console import discard_unwritten_messages, hidden_live_line, paint
from preprocess.errors import BLOCKING_PATHS, FolioError, explain_os_error, format_quantity, hide_credentials, one_line

MAX_WARNINGS = 5  # about things that are skipped, of which there may be thousands


def print_result(result: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print `result` as JSON on stdout if `as_json` is true, else `lines`."""
    if as_json:
        is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        lines = [json.dumps(result, ensure_ascii=not is_utf8, indent=2)]
    else:
        lines = map(one_line, lines)
    for line in lines:
        print(line, flush=True)


def warn(line: str) -> None:
    """Print one line on stderr about a problem that does not end the command."""
    with hidden_live_line():
        print(paint("warning:", "yellow", sys.stderr), one_line(hide_credentials(line)), file=sys.stderr, flush=True)


@contextmanager
def few_warnings(warn: Callable[[str], None], noun: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that gives a line to `warn`, and that only counts the lines after MAX_WARNINGS.

    At the end of the block, `warn` gets a line about the counted ones, such as "1 more file skipped" for the
    noun "file".
    """
    num_lines = 0

    def add(line: str) -> None:
        nonlocal num_lines
        num_lines += 1
        if num_lines <= MAX_WARNINGS:
            warn(line)

    try:
        yield add
    finally:
        if num_lines > MAX_WARNINGS:
            warn(f"{format_quantity(num_lines - MAX_WARNINGS, f'more {noun}')} skipped")


def run_command(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Call `main(arguments)` and return its exit status.

    A FolioError, OSError or MemoryError is printed on stderr as one line. Other exceptions are bugs
    and are not caught. Unless the process ignores them, Ctrl-C and SIGTERM raise an exception in
    `main`, so that temporary files are deleted; the status is then 128 + the signal's number.
    """
    # A stream that the parent process closed is None: discard what is printed to it.
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a character that cannot be printed must not end a run
    previous = {signum: signal.getsignal(signum) for signum in HANDLERS}
    for signum, handler in HANDLERS.items():
        if previous[signum] != signal.SIG_IGN:
            signal.signal(signum, handler)
    try:
        return _run(main, arguments)
    finally:
        discard_unwritten_messages()
        for signum, before in previous.items():
            signal.signal(signum, before)


def _run(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    status = 0
    try:
        status = main(arguments)
        sys.stdout.flush()
        return status
    except FolioError as e:
        return _fail(str(e), e.exit_status)
    except BrokenPipeError:
        _discard_output()
        return status or 1  # a run that Ctrl-C ended keeps its status, although `tee` ended, too
    except MemoryError:
        return _fail("out of memory; use a smaller model, batch_size or block_size", 1)
    except OSError as e:
        _discard_output()
        return _fail(explain_os_error(e), 1)
    except Terminated:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


class Terminated(KeyboardInterrupt):
    """The exception that SIGTERM raises. Like Ctrl-C's, it lets a command delete temporary files."""


def _terminate(*_: object) -> NoReturn:
    raise Terminated


# The signal handlers while a command runs.
HANDLERS: dict[signal.Signals, Callable[..., Any]] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: _terminate,
}


@contextmanager
def log_when_stopped(line: str) -> Iterator[None]:
    """Print `line` on stderr if Ctrl-C or SIGTERM ends the block."""
    try:
        yield
    except KeyboardInterrupt:
        print(one_line(line), file=sys.stderr, flush=True)
        raise


def _discard_output() -> None:
    """Discard buffered output that cannot be written; else Python reports the error again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Set `path` as the file name of an OSError that is raised inside the block.

    The error of a write has no file name, and the error of a rename has the temporary file's.
    """
    try:
        yield
    except OSError as e:
        if e.errno is None:
            raise
        raise OSError(e.errno, e.strerror, str(path)) from e


def describe_os_error(error: OSError) -> str:
    """Return what failed and on which path, in one line."""
    if error.errno in BLOCKING_PATHS and error.filename:
        return f"{BLOCKING_PATHS[error.errno]} is in the way at {error.filename}"
    return f"{error.strerror} ({error.filename})" if error.strerror and error.filename else str(error)


def _fail(message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # if stderr cannot be written, the status still reports the failure
        print(paint("error:", "red", sys.stderr), one_line(hide_credentials(message)), file=sys.stderr)
    return status
