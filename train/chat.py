"""Talk to a model that was trained on chats: `python train/chat.py RUN --system TEXT …`.

One line is one message. Ctrl-C during a reply ends the reply, and a second Ctrl-C, or Ctrl-D, ends the
program. If the input is not a terminal, each of its lines is answered by a reply, without a prompt.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: the folder train/ would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from train.__main__ import run_script

    run_script("chat")

import contextlib
import io
from collections.abc import Callable
from contextlib import closing
from typing import Any

from preprocess.console import Console
from preprocess.errors import MisuseError, one_line, printable
from train.core.arguments import Parser, make_path_parser
from train.core.cli import Terminated, warn
from train.model.conversation import Conversation
from train.model.sampler import load_text_tokenizer
from train.run.checkpoint import find_checkpoint
from train.run.sampling import add_sampling_options, open_trained_model, replace_settings

MAX_LINE_CHARACTERS = 1 << 20
PROMPT = "> "
RESET = "/reset"
HELP = f"{RESET} forgets the conversation, Ctrl-C ends a reply, Ctrl-D ends the program"


def main(arguments: list[str]) -> int:
    """Reply to the lines of the input. Return the exit status."""
    options = _parse(arguments)
    run, best, system, quiet = (options.pop(key) for key in ("run", "best", "system", "quiet"))
    with Console("stderr", quiet=quiet).activity("reading the checkpoint"):
        checkpoint = find_checkpoint(run, warn, best=best)
        trained = open_trained_model(checkpoint, replace_settings(checkpoint.info.config, options))
    conversation = Conversation(
        trained.model,
        load_text_tokenizer(trained.folder, trained.manifest),
        trained.manifest,
        config=trained.config,
        system=system,
    )
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a byte that is not text must not end the program
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  # lets `input` edit lines and recall earlier ones
        if not quiet:
            print(HELP, flush=True)
    chat(conversation, is_terminal=is_terminal)
    return 0


def chat(conversation: Conversation, *, is_terminal: bool) -> None:
    """Reply to each line of the input until it ends, or until a second Ctrl-C in a row."""
    is_interrupted = False  # by a Ctrl-C that no message has followed
    while True:
        try:
            line = _read_line(is_terminal)
            if line is None:
                break
            if line.strip():
                is_interrupted = False
                _answer(conversation, line.strip(), print_note=_print_note if is_terminal else lambda note: None)
        except Terminated:
            raise
        except KeyboardInterrupt:
            if not is_terminal:  # the next line would be read at once, and a second Ctrl-C could not come in time
                raise
            if is_interrupted:
                break
            is_interrupted = True
            print("\n(Ctrl-C again ends the program)", flush=True)
    if is_terminal:
        print(flush=True)


def _answer(conversation: Conversation, message: str, *, print_note: Callable[[str], None]) -> None:
    """Print the reply to `message`, or why the model did not reply.

    `print_note` receives what happened to the conversation, for a person who reads along.
    """
    if message == RESET:
        conversation.reset()
        print_note("the conversation is forgotten")
        return
    has_left_out = conversation.num_left_out > 0
    try:
        with closing(conversation.reply(message)) as texts:
            for text in texts:
                print(printable(text), end="", flush=True)
        print(flush=True)
        last = conversation.exchanges[-1]
        if not last.has_ended:
            print_note(f"the reply was cut after {len(last.reply):,} tokens")
        if conversation.num_left_out and not has_left_out:  # once, because all later messages leave some out, too
            print_note("the model's context is full: from now on, the oldest messages are left out")
    except MisuseError as e:  # about this message; the next one may be better
        print("error:", one_line(str(e)), file=sys.stderr, flush=True)


def _print_note(note: str) -> None:
    print(f"({note})", flush=True)


def _read_line(is_terminal: bool) -> str | None:
    """Return the next line of the input, or None at its end. Raises MisuseError for a line that is too long."""
    if is_terminal:
        try:
            return input(PROMPT)
        except EOFError:
            return None
    line = sys.stdin.readline(MAX_LINE_CHARACTERS)
    if len(line) == MAX_LINE_CHARACTERS and not line.endswith("\n"):
        raise MisuseError(f"a line of the input has more than {MAX_LINE_CHARACTERS:,} characters; shorten it")
    return line or None


def _parse(arguments: list[str]) -> dict[str, Any]:
    """Return the options by name: those that replace a setting have the setting's name."""
    parser = Parser(prog="python train/chat.py", description="Talk to a model that was trained on chats.")
    parser.add_argument("run", type=make_path_parser("RUN"), metavar="RUN", help="a run, or a checkpoint in it")
    parser.add_argument("--system", default="", metavar="TEXT", help="system message, which all replies follow [none]")
    add_sampling_options(parser)
    return vars(parser.parse_args(arguments))
