"""How a command prints and ends: lines or JSON, exit statuses, signals, errors as one line."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from preprocess.errors import FolioError, MisuseError
from tests.conftest import ROOT
from train.core.cli import describe_os_error, log_when_stopped, print_result, run_command


def test_print_result_prints_lines_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_result({"имя": 1}, ["a\x1b", "b"], as_json=False)
    assert capsys.readouterr().out == "a\\x1b\nb\n"
    print_result({"имя": 1}, ["a"], as_json=True)
    assert json.loads(capsys.readouterr().out) == {"имя": 1}


def run(error: BaseException) -> tuple[int, str]:
    def main(_: list[str]) -> int:
        raise error

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run_command(main, [])
    assert out.getvalue() == ""
    return status, err.getvalue()


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (FolioError("a\nb"), 1, "error: a\\nb\n"),
        (MisuseError("a"), 2, "error: a\n"),
        (MemoryError(), 1, "error: out of memory; use a smaller model, batch_size or block_size\n"),
        (KeyboardInterrupt(), 130, ""),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), 1, "error: a folder is in the way at x; move it"),
        (FileExistsError(errno.EEXIST, "File exists", "x"), 1, "error: a file is in the way at x; move it"),
    ],
)
def test_run_command_turns_errors_into_a_line_and_a_status(error: BaseException, status: int, expected: str) -> None:
    found, text = run(error)
    assert found == status and text.startswith(expected) and text.count("\n") <= 1


def test_run_command_lets_bugs_through() -> None:
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError())


def test_describe_os_error_names_the_path() -> None:
    assert describe_os_error(PermissionError(errno.EACCES, "Permission denied", "x")) == "Permission denied (x)"
    assert describe_os_error(OSError("odd")) == "odd"


def test_sigterm_ends_a_command_with_143_after_its_cleanup(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def main(_: list[str]) -> int:
        try:
            with log_when_stopped("stopped"):
                os.kill(os.getpid(), signal.SIGTERM)
                signal.pause()
        finally:
            cleaned.append(1)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert run_command(main, []) == 143 and cleaned == [1] and capsys.readouterr().err == "stopped\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_that_the_parent_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert run_command(lambda _: os.kill(os.getpid(), signal.SIGTERM) or 7, []) == 7
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "train", "--help"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("error: no space left on the disk"), done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_messages_that_cannot_be_written_do_not_change_the_status() -> None:
    program = "import sys; from preprocess.console import Console; from train.core.cli import run_command; "
    program += "sys.exit(run_command(lambda _: Console('stderr').line('a message') or 0, []))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=full, timeout=60)
    assert done.returncode == 0
