"""`folio chat`: replies to lines of the input, Ctrl-C, and runs that cannot chat."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.chats import (
    ASSISTANT_END,
    ASSISTANT_START,
    REPLIES,
    USER_END,
    USER_START,
    make_chat_build,
    train_chat_run,
)
from tests.helpers.runs import encode, invoke, make_command, make_environment, run_script, write_config
from train.chat import chat as chat_loop
from train.model.conversation import Conversation
from train.model.sampler import load_text_tokenizer
from train.run.checkpoint import find_checkpoint
from train.run.sampling import open_trained_model, replace_settings

GREEDY = ("--temperature", 0, "--tokens", 20)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt REPLIES."""
    return train_chat_run(tmp_path_factory.mktemp("chat"))


def chat(run: Path, text: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> subprocess.CompletedProcess[str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return invoke("chat.py", run, *arguments)


def test_each_line_of_the_input_gets_the_reply_that_was_learnt(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = "what jumps\n/reset\n\nwho is lazy\n"
    result = chat(run, messages, *GREEDY, monkeypatch=monkeypatch)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "".join(f"{reply}\n" for reply in REPLIES.values())


def test_message_that_cannot_be_encoded_is_reported_and_the_next_one_answered(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = chat(run, "WHAT?\nwhat jumps", *GREEDY, monkeypatch=monkeypatch)
    assert result.returncode == 0 and result.stdout == "the fox\n"
    assert result.stderr.startswith("error: the message 'WHAT?' cannot be encoded: ")
    assert result.stderr.count("\n") == 1


def test_line_that_is_too_long_is_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.chat.MAX_LINE_CHARACTERS", 100)
    result = chat(run, "a" * 101, monkeypatch=monkeypatch)
    assert result.returncode == 2
    assert result.stderr == "error: a line of the input has more than 100 characters; shorten it\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--top_k", 3, "--temperature", 0), "--top_k has no effect because temperature is 0"),
        (("--tokens", 0), "--tokens must be at least 1"),
        (("--system", "A"), "the message 'A\\n\\n' cannot be encoded"),
    ],
    ids=str,
)
def test_wrong_options_are_one_line(run: Path, arguments: tuple[object, ...], message: str) -> None:
    result = invoke("chat.py", run, *arguments)
    assert result.returncode == 2 and result.stderr.startswith(f"error: {message}"), result.stderr
    assert result.stderr.count("\n") == 1


def test_run_without_chat_template_is_rejected_in_one_line(tmp_path: Path) -> None:
    build = make_chat_build(tmp_path / "books", template=None, repeats=10)
    assert invoke("train.py", write_config(tmp_path / "run.py", build, max_steps=1, warmup_steps=0)).returncode == 0
    result = invoke("chat.py", tmp_path / "run")
    assert result.returncode == 2
    assert result.stderr == (
        "error: the run was trained on books, which has no chat template, so the model knows no turns; train it "
        "further on chats (docs/chats.md), or use `folio sample`\n"
    )


def test_piped_input_is_read_as_utf8_text_and_damaged_bytes_are_replaced(run: Path) -> None:
    command = make_command("chat.py", run, "--quiet", *GREEDY)
    result = subprocess.run(
        command, input=b"\xff\nwhat jumps\n", capture_output=True, env=make_environment(), timeout=120
    )
    assert result.returncode == 0 and result.stdout == b"the fox\n"
    assert result.stderr.startswith(b"error: the message ")


def test_ctrl_c_during_a_reply_keeps_the_program_and_the_reply_so_far(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = find_checkpoint(run, print)
    trained = open_trained_model(checkpoint, replace_settings(checkpoint.info.config, {"temperature": 0}))
    tokenizer = load_text_tokenizer(trained.folder, trained.manifest)
    talk = Conversation(trained.model, tokenizer, trained.manifest, config=trained.config, system="")
    lines = iter(["what jumps", "who is lazy"])
    prompts: list[list[int]] = []

    def generate_until_ctrl_c(model: object, ids: list[int], **_: object) -> Iterator[int]:
        prompts.append(ids)
        yield from encode("the")
        raise KeyboardInterrupt

    def read_line(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("train.model.conversation.generate", generate_until_ctrl_c)
    monkeypatch.setattr("builtins.input", read_line)
    chat_loop(talk, is_terminal=True)
    assert capsys.readouterr().out == 2 * "the\n(Ctrl-C again ends the program)\n" + "\n"
    before = [USER_START, *encode("what jumps"), USER_END, ASSISTANT_START]
    assert prompts[1][: len(before) + 4] == [*before, *encode("the"), ASSISTANT_END]


def test_notes_on_a_terminal_say_what_was_left_out_and_what_was_cut(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = find_checkpoint(run, print)
    config = replace_settings(checkpoint.info.config, {"temperature": 0.0, "completion_tokens": 4})
    trained = open_trained_model(checkpoint, config)
    tokenizer = load_text_tokenizer(trained.folder, trained.manifest)
    lines = ["what jumps"] * 4 + ["/reset", "what jumps"]

    def talk(*, is_terminal: bool) -> str:
        conversation = Conversation(trained.model, tokenizer, trained.manifest, config=trained.config, system="")
        script = list(lines)
        monkeypatch.setattr("train.chat._read_line", lambda _: script.pop(0) if script else None)
        chat_loop(conversation, is_terminal=is_terminal)
        return capsys.readouterr().out

    cut = "(the reply was cut after 4 tokens)"
    left_out = "(the model's context is full: from now on, the oldest messages are left out)"
    printed = talk(is_terminal=True).splitlines()
    assert printed.count(cut) == 5 and printed.count(left_out) == 1 and printed.index(left_out) > 4
    assert printed[-4:] == ["(the conversation is forgotten)", printed[-3], cut, ""]
    assert "(" not in talk(is_terminal=False)


class Terminal:
    """A process of chat.py with a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self._terminal, end = pty.openpty()
        environment = make_environment() | {"TERM": "dumb"}
        self.process = subprocess.Popen(
            make_command("chat.py", *arguments),
            stdin=end,
            stdout=end,
            stderr=end,
            env=environment,
            start_new_session=True,
        )
        os.close(end)
        self._text = ""

    def wait_for(self, text: str) -> None:
        """Read until `text` is printed, and forget everything before its end."""
        deadline = time.monotonic() + 100
        while text not in self._text:
            assert time.monotonic() < deadline and select.select([self._terminal], [], [], 60)[0], repr(self._text)
            self._text += os.read(self._terminal, 1000).decode()
        self._text = self._text.split(text, 1)[1]

    def write(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def interrupt(self) -> None:
        # After the prompt is printed, readline takes a moment until a signal can wake it up.
        time.sleep(1)
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_ctrl_c_ends_a_reply_and_a_second_one_the_program(run: Path) -> None:
    # High temperatures make a reply that does not end.
    terminal = Terminal(run, "--temperature", 1000, "--tokens", 40)
    try:
        terminal.wait_for("Ctrl-D ends the program")
        terminal.wait_for("> ")
        terminal.interrupt()
        terminal.wait_for("(Ctrl-C again ends the program)")
        terminal.wait_for("> ")
        terminal.write("what jumps\n")  # another message: the next Ctrl-C is a first one again
        terminal.wait_for("\n")
        terminal.wait_for("> ")
        terminal.interrupt()
        terminal.wait_for("(Ctrl-C again ends the program)")
        terminal.wait_for("> ")
        terminal.interrupt()
        assert terminal.process.wait(timeout=60) == 0
    finally:
        terminal.close()


def test_help_and_end_of_input(run: Path) -> None:
    result = run_script("chat.py", "--help")
    assert result.returncode == 0 and "--system TEXT" in result.stdout
