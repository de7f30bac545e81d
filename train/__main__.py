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
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from train.core.clock import record_start

# Name of each subcommand and what it does. The function `main` of the module of this name runs it.
# The module is imported when it is needed, because torch takes seconds to import.
COMMANDS = {
    "train": "train a model, or continue an interrupted run",
    "sample": "print text that a trained model generates",
    "chat": "talk to a model that was trained on chats",
    "evaluate": "measure the loss of a run's checkpoints",
    "serve": "answer requests over HTTP with a trained model",
    "export": "write a trained model for other libraries",
    "plot": "draw the loss of one or several runs",
    "report": "write one HTML page about one or several runs",
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
        from train.core.threads import choose_spin_count

        if is_help_request(arguments):  # print it without importing torch
            return print_help(arguments)
        choose_spin_count()
    with exit_on_signals(), _show_import(name, arguments):
        module = importlib.import_module(f"train.{name}")
    status: int = module.main(arguments)
    return status


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the process at once inside the block, which imports libraries."""
    previous = _exit_on_signals()
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _show_import(name: str, arguments: list[str]) -> AbstractContextManager[object]:
    """Return a context that shows that the modules of a subcommand are imported, which takes seconds.

    Training prints on stdout. The stdout of other commands is for their result, so this is shown on stderr.
    """
    from preprocess.console import Console

    is_quiet = not {"--quiet", "--json", "--help", "-h", "--version"}.isdisjoint(arguments)
    is_main = os.environ.get("RANK", "0") == "0"  # torchrun numbers the processes
    console = Console("stdout" if name == "train" else "stderr", quiet=is_quiet or not is_main or name == "plot")
    return console.activity("importing PyTorch", announce=True)


def _exit_on_signals() -> dict[signal.Signals, signal._HANDLER]:
    """Let Ctrl-C and SIGTERM end the process at once. Return their previous handlers by signal."""
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    handlers = {signum: handler for signum, handler in handlers.items() if handler != signal.SIG_IGN}
    for signum in handlers:
        signal.signal(signum, _exit)
    return handlers


def _exit(signum: int, _: object) -> None:
    console = sys.modules.get("preprocess.console")
    if console is not None:
        console.clear_live_line()
    os._exit(128 + signum)


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
