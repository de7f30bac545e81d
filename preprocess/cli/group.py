"""Parse the command line, and turn every error into one line and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

import click

from preprocess.errors import FolioError, explain_os_error, one_line

INTERRUPTED_STATUS = 130  # 128 + SIGINT, as in shells
MAX_EXTRA_ARGUMENT_CHARS = 120
CONTEXT_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    # The settings of train/ are written with underscores, so that --max_documents means
    # --max-documents. Click applies this to the names of options and to fixed choices, never to
    # other values.
    "token_normalize_func": lambda name: name.replace("_", "-"),
}


class Group(click.Group):
    """A group of commands that prints its help if it is called without arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])


class CommandLine(Group):
    """The outermost group, which prints every error as one line and sets the exit status."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character must not end a command
                stream.reconfigure(errors="backslashreplace")
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.exit(status if isinstance(status, int) else 0)
        except click.UsageError as e:
            help_command = f"{e.ctx.command_path if e.ctx else 'preprocess'} --help"
            _fail(f"{_shorten(e.format_message())}; `{help_command}` lists the options", e.exit_code)
        except FolioError as e:
            _fail(str(e), e.exit_status)
        except BrokenPipeError:
            # Without this, Python reports the closed pipe again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(1)
        except OSError as e:
            _fail(explain_os_error(e), 1)
        except MemoryError:
            _fail("out of memory; use fewer --workers, or a machine with more memory", 1)
        except (KeyboardInterrupt, click.Abort):
            _fail("interrupted; run the same command again to continue", INTERRUPTED_STATUS)


def interrupt_on_sigterm() -> None:
    """Make SIGTERM end the command as Ctrl-C does, so that a build cleans up before it exits."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _shorten(message: str) -> str:
    """Return click's message on one line, without the thousands of names of an unquoted glob."""
    message = " ".join(message.split()).rstrip(".")
    if "unexpected extra argument" in message:
        ellipsis = "…" if len(message) > MAX_EXTRA_ARGUMENT_CHARS else ""
        return f"{message[:MAX_EXTRA_ARGUMENT_CHARS]}{ellipsis}: pass files with --input, and quote globs"
    return message


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"error: {one_line(message)}", err=True)
    sys.exit(status)
