"""Ctrl-C and SIGTERM: the exit status, at most one line, and a cleanup that a second signal does not end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preprocess.cli import interrupts
from preprocess.cli.interrupts import Terminated, explain, signals_as_exceptions
from tests.conftest import ROOT

# Sends a signal to this process when a module is imported.
INTERRUPTED_IMPORT = """
import os, sys
class Interrupter:
    def find_spec(self, name, *_):
        if name == os.environ["MODULE"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
sys.meta_path.insert(0, Interrupter())
from preprocess.__main__ import main
main()
"""
ESTIMATE = ("estimate", "--corpus", "synthetic", "--num-pairs", "10", "--tokenizer", "gpt2")


@pytest.mark.parametrize(
    ("signal_", "line"),
    [
        (signal.SIGINT, "error: interrupted; run the same command again"),
        (signal.SIGTERM, "error: terminated; run the same command again"),
    ],
)
@pytest.mark.parametrize("module", ["click", "preprocess.cli.estimate", "pyarrow", "tiktoken"])
def test_signal_during_an_import_prints_one_line(module: str, signal_: signal.Signals, line: str) -> None:
    environment = {**os.environ, "MODULE": module, "SIGNAL": str(int(signal_))}
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, *ESTIMATE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 128 + signal_, done.stderr
    assert [text for text in done.stderr.splitlines() if text] == [line] and done.stdout == ""


def test_second_signal_is_ignored_during_the_cleanup_and_counts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_ends_at", 0.0)
    monkeypatch.setattr(interrupts, "REPEAT_S", 0.2)
    before = signal.getsignal(signal.SIGINT)
    with signals_as_exceptions():
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.25)
        with pytest.raises(KeyboardInterrupt) as caught:
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
    assert (explain(caught.value)[1], explain(Terminated())[1]) == (130, 143)


def test_ignored_signal_stays_ignored() -> None:
    """A shell starts background jobs with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_as_exceptions():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)  # would raise KeyboardInterrupt
            with pytest.raises(Terminated):  # the other signal is not ignored
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def start_build(folder: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "preprocess", "build", "--output", str(folder / "x"), *options]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.timeout(60)
def test_many_interruptions_of_all_processes_end_a_build_in_order(tmp_path: Path) -> None:
    """As if Ctrl-C were held down: the terminal sends it to the workers too."""
    (tmp_path / "a.txt").write_text("".join(f"Line {i} {'of many ' * 60}\n" for i in range(40_000)))
    options = ("--input", str(tmp_path / "a.txt"), "--document", "line", "--workers", "2")
    process = start_build(tmp_path, *options)
    while not list(tmp_path.glob(".x.work/*/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    for _ in range(20):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.005)
    stderr = process.communicate()[1]
    # A signal that arrives after the cleanup ends the process at once, with the same status in a shell.
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in stderr, stderr
    assert "error: interrupted; run the same command again" in stderr
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".x.work/*/*.partial"))


@pytest.mark.timeout(60)
def test_interruption_does_not_wait_until_a_large_file_is_hashed(tmp_path: Path) -> None:
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(1 << 38)  # a sparse file, which takes minutes to hash
    process = start_build(tmp_path, "--input", str(tmp_path / "a.txt"))
    assert process.stderr is not None and "reading the names and checksums" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_fork_server_and_workers_do_not_receive_interruptions(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from multiprocessing import forkserver\n"
        "from preprocess.build.engines.local import start_fork_server\n"
        "start_fork_server()\n"
        "print(open(f'/proc/{forkserver._forkserver._forkserver_pid}/status').read())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    [blocked] = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("SigBlk:")]
    assert int(blocked, 16) & 1 << (signal.SIGINT - 1)
