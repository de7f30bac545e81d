"""The command `folio`: `folio train`, `folio sample`, … run the scripts of this package. Also
`python -m train`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import shutil
import sys
import textwrap
from typing import NoReturn

from preprocess.errors import MisuseError
from train.core.arguments import VERSION_LINE
from train.core.cli import run_command

# Name of each subcommand and what it does. A subcommand is a module of this package with a function
# `main`. It is imported when it is called, because torch takes seconds to load.
COMMANDS = {
    "train": "train a model, or continue an interrupted run",
    "sample": "print text that a trained model generates",
    "evaluate": "measure the loss of a run's checkpoints",
    "export": "write a trained model for other libraries",
    "plot": "draw the loss of one or several runs",
}


def dispatch(arguments: list[str]) -> int:
    """Run the subcommand that the first argument names. Returns its exit status."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        print(describe_commands())
        return 0
    if name == "--version":
        print(VERSION_LINE)
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        nearest = f"did you mean {close[0]!r}? " if close else ""
        raise MisuseError(f"folio has no command {name!r:.80}; {nearest}`folio --help` lists the commands")
    sys.argv[0] = f"folio {name}"  # the name of the program in help texts and messages
    return _run(name, rest)


def describe_commands() -> str:
    """Return the text of `folio --help`, wrapped to the terminal's width."""
    width = max(shutil.get_terminal_size().columns - 1, 1)
    indent = max(map(len, COMMANDS)) + 4
    commands = [f"  {name}".ljust(indent) + text for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: folio [-h] [--version] COMMAND ...",
            "",
            *textwrap.wrap("Train GPT models on the shards that `preprocess build` writes.", width),
            "",
            "commands:",
            *(line for each in commands for line in textwrap.wrap(each, width, subsequent_indent=" " * indent)),
            "",
            *textwrap.wrap("`folio COMMAND --help` describes a command.", width),
        ]
    )


def _run(name: str, arguments: list[str]) -> int:
    """Run the function `main` of a subcommand's module. Returns its exit status."""
    if name == "train":
        from train.command_line import is_help_request, print_help

        if is_help_request(arguments):  # without waiting for torch
            return print_help(arguments)
    status: int = importlib.import_module(f"train.{name}").main(arguments)
    return status


def main() -> int:
    """Run the command line of this process and return the exit status."""
    return run_command(dispatch, sys.argv[1:])


def run_script(name: str) -> NoReturn:
    """Run the subcommand `name`, whose script was started by its path, and end the process.

    The script calls this in its first lines: Ctrl-C then ends it without a traceback even while
    torch is imported, which takes seconds.
    """
    sys.exit(run_command(functools.partial(_run, name), sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
