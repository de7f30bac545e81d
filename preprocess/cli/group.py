"""Parse the command line, and report every error as one line and an exit status."""

from __future__ import annotations

import difflib
import os
import sys
from typing import Any, NoReturn

import click

from preprocess.cli.interrupts import explain, signals_as_exceptions
from preprocess.console import paint
from preprocess.errors import FolioError, explain_os_error, hide_credentials, one_line, shorten

MAX_EXTRA_ARGUMENT_CHARS = 120
RENAMED_COMMANDS = {"sample": "estimate"}
RENAMED_OPTIONS = {"--num-samples": "-n", "--samples": "-n"}
COMMON_OPTIONS = ("--quiet", "--json")  # of every command, but not of a group
CONTEXT_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    # --max_documents means --max-documents, because the settings of train/ are written with
    # underscores. Click applies the function to names of options and to the values of
    # `click.Choice`, but not to other values.
    "token_normalize_func": lambda name: name.replace("_", "-"),
}


class Group(click.Group):
    """A group of commands that prints its help if it is called without arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None:
            close = (
                [RENAMED_COMMANDS[name]]
                if name in RENAMED_COMMANDS
                else difflib.get_close_matches(name[:100], self.commands, n=1)
            )
            hint = f"; the closest is `{ctx.command_path} {close[0]}`" if close else ""
            raise click.UsageError(f"no command '{shorten(name)}'{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as e:
            # Click's error for an option without its value has no context.
            if e.ctx is None and ctx.invoked_subcommand is not None:
                command = self.get_command(ctx, ctx.invoked_subcommand)
                assert command is not None
                e.ctx = click.Context(command, parent=ctx, info_name=ctx.invoked_subcommand)
            raise


class CommandLine(Group):
    """The outermost group, which prints every error as one line and sets the exit status."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # escape characters that the terminal's encoding does not have
                stream.reconfigure(errors="backslashreplace")
        try:
            with signals_as_exceptions():
                status = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.exit(status if isinstance(status, int) else 0)
        except click.UsageError as e:
            help_command = f"{e.ctx.command_path if e.ctx else 'preprocess'} --help"
            _fail(f"{_explain_usage(e)}; `{help_command}` lists the options", e.exit_code)
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
        except click.Abort as e:  # click raises it from a KeyboardInterrupt
            _fail(*explain(e.__cause__ if isinstance(e.__cause__, KeyboardInterrupt) else KeyboardInterrupt()))
        except KeyboardInterrupt as e:
            _fail(*explain(e))


def _explain_usage(error: click.UsageError) -> str:
    """Return click's message on one line, with advice for common mistakes."""
    message = _shorten(error.format_message())
    if not isinstance(error, click.NoSuchOption):
        return message
    name = error.option_name.replace("_", "-")
    if name in COMMON_OPTIONS and isinstance(error.ctx and error.ctx.command, click.Group):
        return f"{name} comes after the command, as in `preprocess list {name}`"
    if name in RENAMED_OPTIONS:
        return f"no option {name}; it is called {RENAMED_OPTIONS[name]}"
    return message


def _shorten(message: str) -> str:
    """Return click's message on one line. The list of files of an unquoted glob is cut."""
    message = " ".join(message.split()).rstrip(".")
    if "unexpected extra argument" in message:
        ellipsis = "…" if len(message) > MAX_EXTRA_ARGUMENT_CHARS else ""
        return f"{message[:MAX_EXTRA_ARGUMENT_CHARS]}{ellipsis}: pass files with --input, and quote globs"
    return message


def _fail(message: str, status: int) -> NoReturn:
    label = paint("error:", "red", sys.stderr)
    click.echo(f"{label} {one_line(hide_credentials(message))}", err=True)
    sys.exit(status)
