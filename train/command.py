"""How each script of this folder ends: an exit status, and where something is wrong one line that says what."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from preprocess.errors import FolioError, MisuseError, explain_os_error, one_line


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
        return _fail(explain_os_error(e), 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def warn(line: str) -> None:
    """One line on stderr about what goes on all the same."""
    print("warning:", one_line(line), file=sys.stderr, flush=True)


def _fail(message: str, status: int) -> int:
    print("error:", one_line(message), file=sys.stderr)
    return status
