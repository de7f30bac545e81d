"""The command `folio`, also `python -m train`: `folio train`, `folio sample`, … run this package.

The imports take seconds. If Ctrl-C raised an exception in the middle of one, the library could
print a traceback, raise another exception or abort the process. So a command first lets signals end
the process at once, and only then imports everything else.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys

from train.core.clock import record_start

# Name of each subcommand and what it does. The function `main` of the module of this name runs it.
# The module is imported when it is needed, because torch takes seconds to import.
COMMANDS = {
    "train": "train a model, or continue an interrupted run",
    "sample": "print text that a trained model generates",
    "chat": "talk to a model that was trained on chats",
    "evaluate": "measure the loss of a run's checkpoints",
    "export": "write a trained model for other libraries",
    "plot": "draw the loss of one or several runs",
}


def dispatch(arguments: list[str]) -> int:
    """Run the subcommand that the first argument names, and return its exit status.

    Raises MisuseError if there is no such subcommand, and the errors of the subcommand.
    """
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        print(describe_commands())
        return 0
    if name == "--version":
        from train.core.arguments import VERSION_LINE

        print(VERSION_LINE)
        return 0
    if name not in COMMANDS:
        import difflib

        from preprocess.errors import MisuseError

        close = difflib.get_close_matches(name, COMMANDS, n=1)
        nearest = f"did you mean {close[0]!r}? " if close else ""
        raise MisuseError(f"folio has no command {name!r:.80}; {nearest}`folio --help` lists the commands")
    sys.argv[0] = f"folio {name}"  # the name of the program in help texts and messages
    return _run(name, rest)


def describe_commands() -> str:
    """Return the text of `folio --help`, wrapped to the terminal's width."""
    import shutil
    import textwrap

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
    """Run the function `main` of a subcommand's module, and return its exit status."""
    record_start()
    if name == "train":
        from train.command_line import is_help_request, print_help

        if is_help_request(arguments):  # print it without importing torch
            return print_help(arguments)
    previous = _exit_on_signals()
    try:
        module = importlib.import_module(f"train.{name}")
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    status: int = module.main(arguments)
    return status


def _exit_on_signals() -> dict[signal.Signals, signal._HANDLER]:
    """Let Ctrl-C and SIGTERM end the process at once. Return their previous handlers by signal."""
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    handlers = {signum: handler for signum, handler in handlers.items() if handler != signal.SIG_IGN}
    for signum in handlers:
        signal.signal(signum, lambda number, _: os._exit(128 + number))
    return handlers


def main() -> int:
    """Run the command line of this process and return the exit status."""
    _exit_on_signals()
    from train.core.cli import run_command

    return run_command(dispatch, sys.argv[1:])


def run_script(name: str) -> None:
    """Run the subcommand `name`, whose script was started by its path, and end the process.

    The script calls this in its first lines.
    """
    _exit_on_signals()
    from train.core.cli import run_command

    sys.exit(run_command(lambda arguments: _run(name, arguments), sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
