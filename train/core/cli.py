"""How each script of this folder ends: an exit status, and where something is wrong one line that says what."""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from preprocess.errors import FolioError, MisuseError, explain_os_error, one_line

IN_THE_WAY = {errno.EISDIR: "a folder", errno.EEXIST: "a file"}  # of what was to be made


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, like every other."""

    def error(self, message: str) -> NoReturn:
        raise MisuseError(f"{message}; `{self.prog} --help` shows how")


def run_command(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """The exit status of `main(arguments)`; an error of the user's or the system's is one line on stderr."""
    # A closed stream is None: what would be said there is said to nobody.
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter must not end a run
    try:
        status = main(arguments)
        sys.stdout.flush()
        return status
    except FolioError as e:
        return _fail(str(e), e.exit_status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again while it exits
        return 1
    except MemoryError:
        return _fail("out of memory; take a smaller model, batch_size or block_size", 1)
    except OSError as e:
        return _fail(explain(e), 1)
    except Terminated:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


class Terminated(KeyboardInterrupt):
    """An order to end, inside `log_when_stopped`."""


@contextmanager
def log_when_stopped(line: str) -> Iterator[None]:
    """Where Ctrl-C or an order to terminate ends what is inside, `line` on stderr."""

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:
        print(one_line(line), file=sys.stderr, flush=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """The system's errors inside name `path`: of a write it tells no name, of a file put in place another."""
    try:
        yield
    except OSError as e:
        if e.errno is None:
            raise
        raise OSError(e.errno, e.strerror, str(path)) from e


def explain(error: OSError) -> str:
    """One line for what the system refused, and what to do where that is known."""
    if error.errno in IN_THE_WAY and error.filename:
        return f"{reason(error)}; move it elsewhere, and run the same command again"
    return explain_os_error(error)


def reason(error: OSError) -> str:
    """What the system refused, and where."""
    if error.errno in IN_THE_WAY and error.filename:
        return f"{IN_THE_WAY[error.errno]} is in the way at {error.filename}"
    return f"{error.strerror} ({error.filename})" if error.strerror and error.filename else str(error)


def warn(line: str) -> None:
    """One line on stderr about what goes on all the same."""
    print("warning:", one_line(line), file=sys.stderr, flush=True)


def _fail(message: str, status: int) -> int:
    print("error:", one_line(message), file=sys.stderr)
    return status
