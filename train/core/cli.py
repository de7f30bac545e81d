"""What the commands of this package share: how arguments are read, and how a command ends.

Every command accepts the same forms of an option: `--top_k=5`, `--top-k=5`, `--top_k 5` and
`--top-k 5` mean the same. Names are converted to underscores, as settings are written; values are
never changed.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from preprocess import __version__
from preprocess.errors import FolioError, MisuseError, explain_os_error, one_line

VERSION_LINE = f"folio, version {__version__}"
LONG_OPTION = re.compile(r"--([A-Za-z0-9][A-Za-z0-9_-]*)(=.*)?", re.DOTALL)
# A wheel has the configs of the repository inside this package; in a checkout they are beside it.
CONFIG_FOLDERS = (Path(__file__).resolve().parents[1] / "configs", Path(__file__).resolve().parents[2] / "configs")
BLOCKING_PATHS = {errno.EISDIR: "a folder", errno.EEXIST: "a file"}  # errors of creating a file or a folder


class Parser(argparse.ArgumentParser):
    """An argparse parser with --version and --quiet, whose errors are MisuseErrors of one line.

    `prog`: how the script is started by its path, such as "python train/sample.py". `json`: add
    --json as well. The parsed options have the attributes `quiet` and, if asked for, `json`.
    """

    def __init__(self, *, prog: str, description: str, json: bool = False) -> None:
        super().__init__(prog=program_name(prog), description=description)
        self.add_argument("--version", action="version", version=VERSION_LINE, help="print the version and exit")
        self.add_argument("--quiet", action="store_true", help="print only the result and warnings")
        if json:
            self.add_argument("--json", action="store_true", help="print the result as JSON")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        return super().parse_known_args(normalize_options(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        raise MisuseError(f"{message}; `{self.prog} --help` lists the options")


def program_name(script: str) -> str:
    """Return `folio sample` or the like if the command `folio` started this process, else `script`."""
    return sys.argv[0] if sys.argv[0].startswith("folio ") else script


def normalize_option(argument: str) -> str:
    """Return `argument` with underscores in its option name: `--top-k=a-b` -> `--top_k=a-b`.

    An argument that is not a long option is returned unchanged.
    """
    match = LONG_OPTION.fullmatch(argument)
    return argument if match is None else f"--{match[1].replace('-', '_')}{match[2] or ''}"


def normalize_options(arguments: Sequence[str]) -> list[str]:
    """Apply `normalize_option` to the arguments before `--`. Those after it are positional."""
    num_options = arguments.index("--") if "--" in arguments else len(arguments)
    return [*map(normalize_option, arguments[:num_options]), *arguments[num_options:]]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A command line of settings, as `split_arguments` returns it."""

    positionals: list[str]
    settings: dict[str, str]  # name, with underscores: value; the last value if a setting is repeated
    flags: set[str]


def split_arguments(arguments: Sequence[str], *, flags: Collection[str]) -> Arguments:
    """Divide a command line into positional arguments, settings and flags.

    `--key=value` and `--key value` set `key`. `flags` are the options that take no value, such as
    "--help" and "-h". A value that begins with `--` must be written as `--key=value`. The arguments
    after `--` are positional. Raises MisuseError if a setting has no value, a flag has one, or an
    option cannot be read.
    """
    positionals: list[str] = []
    settings: dict[str, str] = {}
    found_flags: set[str] = set()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        option = normalize_option(argument)
        name, equals, value = option.partition("=")
        if argument == "--":
            positionals += rest
            break
        if not argument.startswith("-"):
            positionals.append(argument)
        elif option in flags:
            found_flags.add(option)
        elif name in flags:
            raise MisuseError(f"cannot read {argument!r}: {name} takes no value; write {name} alone")
        elif not LONG_OPTION.fullmatch(option):
            raise MisuseError(f"cannot read {argument!r}; expected --key=value such as --max_steps=100")
        elif equals:
            settings[name.removeprefix("--")] = value
        elif not rest or rest[0].startswith("--") or rest[0] in flags:
            raise MisuseError(f"{argument} has no value; write {name}=VALUE")
        else:
            settings[name.removeprefix("--")] = rest.pop(0)
    return Arguments(positionals=positionals, settings=settings, flags=found_flags)


def find_config(name: str) -> Path:
    """Return the path of the config file `name`.

    A path to an existing file is returned as it is. Otherwise a bare name such as `demo` or
    `demo.py` means the config of this name that Folio comes with. If Folio has no such config, the result is
    the path that does not exist.
    """
    path = Path(name)
    if not path.is_file() and name == path.name:
        shipped = (folder / f"{name.removesuffix('.py')}.py" for folder in CONFIG_FOLDERS)
        return next((candidate for candidate in shipped if candidate.is_file()), path)
    return path


def print_result(result: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print `result` as JSON if `as_json` is set, else `lines`."""
    if as_json:
        is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        lines = [json.dumps(result, ensure_ascii=not is_utf8, indent=2)]
    else:
        lines = map(one_line, lines)
    for line in lines:
        print(line, flush=True)


def warn(line: str) -> None:
    """Print one line on stderr about a problem that does not end the command."""
    print("warning:", one_line(line), file=sys.stderr, flush=True)


def run_command(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Return the exit status of `main(arguments)`.

    Errors of the user and of the system are printed to stderr as one line. Other exceptions, which
    are bugs, are not caught.
    """
    # A stream that the parent process closed is None: discard what is printed to it.
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
        # Without this, Python reports the closed pipe again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _fail("out of memory; use a smaller model, batch_size or block_size", 1)
    except OSError as e:
        return _fail(_explain(e), 1)
    except Terminated:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived inside `log_when_stopped`."""


@contextmanager
def log_when_stopped(line: str) -> Iterator[None]:
    """Print `line` on stderr if Ctrl-C or SIGTERM ends the block."""

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:
        print(one_line(line), file=sys.stderr, flush=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Make system errors inside the block name `path`.

    The error of a write names no file, and the error of a rename names the temporary file.
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


def _explain(error: OSError) -> str:
    """Return what failed and, if it is known, what to do about it."""
    if error.errno in BLOCKING_PATHS and error.filename:
        return f"{describe_os_error(error)}; move it elsewhere, and run the same command again"
    return explain_os_error(error)


def _fail(message: str, status: int) -> int:
    print("error:", one_line(message), file=sys.stderr)
    return status
