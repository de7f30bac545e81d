"""The live line on a terminal, and the plain lines elsewhere."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preprocess import console
from preprocess.console import Activity, Console, clear_live_line, format_duration, hidden_live_line
from preprocess.progress import Progress
from tests.conftest import ROOT
from tests.helpers.terminal import COLOURS, render, run_on_terminal, terminal_stream


@pytest.fixture(autouse=True)
def no_earlier_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_last_lines", [])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m 00s"), (80, "1m 20s"), (7500, "2h 05m"), (400_000, "111h 06m")]
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("width", range(5, 140, 5))
def test_live_line_fits_the_width_and_drops_the_last_details_first(width: int) -> None:
    activity = Activity("step", total=600, details=lambda: ["loss 6.2100", "6,542 tokens/s", "0.6 GB", "lr 6.6e-4"])
    activity._began -= 10
    activity.count(40)
    line = activity.format_live(width, is_ascii=False)
    assert len(line) <= width and line.startswith("step 40/600"[:width])
    parts = ["loss 6.2100", "2m 20s left", "6,542 tokens/s", "0.6 GB", "lr 6.6e-4"]
    shown = [part for part in parts if part in line]
    assert shown == parts[: len(shown)]
    if width >= 60:
        assert len(shown) >= 3
    if width >= 80:
        assert re.search(r"  ?\|[▎▌▋█]", line)


def test_live_line_is_ascii_if_the_terminal_is() -> None:
    activity = Activity("copy", total=2_000_000, unit="B")
    activity._began -= 10
    activity.count(1_000_000)
    assert activity.format_live(70, is_ascii=True) == "copy 1.00MB/2.00MB |" + "#" * 15 + " " * 15 + "|  10s left"


def test_activity_is_described_in_words() -> None:
    activity = Activity("evaluating", total=400, unit="windows", done=100)
    activity._began -= 10
    assert activity.describe() == "evaluating: 100 of 400 windows, 10.0 s"  # what was done before has no rate
    activity.count(100)
    assert activity.describe() == "evaluating: 200 of 400 windows, 10.0 s, 20s left"
    unknown = Activity("plan")
    unknown._began -= 10
    assert unknown.describe() == "plan: 10 s"


def test_console_redraws_the_live_line_while_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal_stream() as (stream, read):
        monkeypatch.setattr(sys, "stdout", stream)
        shown = Console("stdout")
        with shown.activity("outer"):
            with shown.show(Activity("inner", total=10)):
                time.sleep(0.8)
            shown.line("a permanent line")
        output = read()
    assert output.count("\rinner 0/10 ") >= 3 and not clear_live_line()
    assert render(output) == ["a permanent line", ""]


def test_other_output_hides_the_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal_stream() as (stream, read):
        monkeypatch.setattr(sys, "stdout", stream)
        with Console("stdout").activity("working"):
            assert clear_live_line()
            with hidden_live_line():
                print("from elsewhere", file=stream, flush=True)
            with Console("stdout", quiet=True).activity("quiet"):
                Console("stdout", quiet=True).line("quiet")
        output = read()
    assert render(output) == ["from elsewhere", ""] and "quiet" not in output


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("CI", "true")])
def test_terminal_that_cannot_rewrite_lines_gets_plain_ones(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(console, "FIRST_LINE_S", 0.1)
    with terminal_stream() as (stream, read):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress().bar("copy", total=5, unit="B") as bar:
            bar.update(5)
            time.sleep(0.6)
        output = read()
    first, last, end = output.split("\r\n")
    assert end == "" and "\r" not in first + last and "\x1b" not in output
    assert first.startswith("copy: 5 of 5 B, 0.") and last.startswith("copy: 5 of 5 B, 0.")


def test_plain_lines_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "FIRST_LINE_S", 0.3)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    shown = Console("stdout")
    with shown.activity("first"):
        time.sleep(0.9)
    with shown.activity("second"):
        time.sleep(0.6)
    assert re.fullmatch(r"first: \d s\n", stream.getvalue())
    monkeypatch.setattr(console, "LINE_INTERVAL_S", 0.3)
    with shown.activity("third"):
        time.sleep(0.9)
    assert stream.getvalue().count("third: ") in (1, 2, 3)


def test_second_console_of_a_process_waits_for_its_next_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "FIRST_LINE_S", 0.3)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Console("stderr").activity("importing", announce=True):
        pass
    with Console("stderr").activity("reading"):
        time.sleep(0.9)
    assert stream.getvalue() == "importing\n"


def test_closed_stream_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal_stream() as (stream, read):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(stream, "write", _raise_broken_pipe)
        with Progress().phase("plan"):
            Progress().log("a line")
            Progress().warn("a warning")
        assert read() == ""
    monkeypatch.setattr(sys, "stderr", None)
    with Progress().bar("copy", total=1, unit="B"):
        Progress().warn("a warning")


def _raise_broken_pipe(_: str) -> int:
    raise BrokenPipeError


BUILD = [sys.executable, "-m", "preprocess", "build", "--corpus", "synthetic", "--tokenizer", "byte"]


def test_build_on_a_narrow_terminal_leaves_no_progress_behind(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    status, output = run_on_terminal([*BUILD, "--num-pairs", "2000"], columns=40, env=env, cwd=tmp_path)
    assert status == 0 and "\rprepare 0.00B/" in output and "\rpublish" in output
    drawn = re.findall(r"\r([^\r\n]*)\x1b\[K", COLOURS.sub("", output))
    assert drawn and max(map(len, drawn)) < 40
    lines = render(output)
    assert lines[0] == "built shards/synthetic" and max(map(len, lines)) <= 40
    assert not [line for line in lines if "|" in line]  # no bar is left
    words = [line.split()[0] for line in lines[1:] if line.strip()]
    assert [word for word in words if word in ("build", "prepare", "train", "read", "kept")] == [
        "build", "train", "read", "kept"
    ]  # fmt: skip


@pytest.mark.parametrize("phase", ["plan", "prepare", "dedup_and_split", "write_shards"])
def test_interrupted_build_leaves_a_clean_line(tmp_path: Path, phase: str) -> None:
    def interrupt(process: subprocess.Popen[bytes], output: str) -> None:
        if f"\r{phase} " in output and process.poll() is None and not sent:
            sent.append(phase)
            process.send_signal(signal.SIGINT)

    sent: list[str] = []
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    arguments = ["--num-pairs", "6000", "--workers", "1"]
    status, output = run_on_terminal([*BUILD, *arguments], env=env, cwd=tmp_path, watch=interrupt)
    assert sent and status == 130, output
    *_, last, end = render(output)
    assert end == "" and last == "error: interrupted; run the same command again"
