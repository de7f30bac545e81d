"""Shows what a command is doing: permanent lines, and below them one live line if the stream is a terminal.

All commands of `preprocess` and of `train` use this module. A command names each long part of its
work by `Console.activity`, or by `Console.show` if it counts what is done. A thread draws the live line four times per
second, so the work itself never draws, and the line shows that time passes even if nothing is
counted for a while. If the stream is not a terminal, the thread writes a plain line instead, after
FIRST_LINE_S seconds and then whenever LINE_INTERVAL_S seconds have passed without a line.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, TextIO

from preprocess.errors import one_line, printable

REFRESH_S = 0.25
FIRST_LINE_S = 1.0
LINE_INTERVAL_S = 10.0
MIN_BAR_WIDTH, MAX_BAR_WIDTH = 4, 30
DEFAULT_WIDTH = 80
CLEAR_LINE = "\r\x1b[K"


COLOURS = {"bold": "1", "red": "31", "yellow": "33", "cyan": "36"}


def has_colours(stream: TextIO | None) -> bool:
    """Return whether `stream` is a terminal that may show colours: NO_COLOR switches them off (no-color.org)."""
    return not os.environ.get("NO_COLOR") and is_live(stream)


def paint(text: str, colour: str, stream: TextIO | None) -> str:
    """Return `text` in one of COLOURS if `stream` has colours."""
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if has_colours(stream) else text


class Activity:
    """A part of the work: its name, and how much of it is done.

    `total` is the amount in `unit`; None if it is not known. Without `unit`, the label is the unit,
    such as "step". `details` returns what follows the amount, the most important first, because a
    narrow terminal shows only the first ones.
    """

    def __init__(
        self,
        label: str,
        *,
        total: int | None = None,
        unit: str = "",
        done: int = 0,
        details: Callable[[], list[str]] = list,
    ) -> None:
        self.label, self.total, self.unit, self.done, self.details = label, total, unit, done, details
        self._first, self._began = done, time.monotonic()

    def count(self, amount: int) -> None:
        """Add `amount` to what is done."""
        self.done += amount

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """The amount done per second since the beginning."""
        return (self.done - self._first) / max(self.elapsed_s, 1e-3)

    @property
    def seconds_left(self) -> float | None:
        """The expected time until everything is done; None if it cannot be estimated."""
        return (self.total - self.done) / self.rate if self.total is not None and self.rate > 0 else None

    def describe(self) -> str:
        """Return a plain line about the progress."""
        if self.total is None:
            return ", ".join([f"{self.label}: {self.elapsed_s:.0f} s", *self.details()])
        amount = f"{self.done:,} of {self.total:,}"
        head = f"{self.label}: {amount} {self.unit}" if self.unit else f"{self.label} {amount}"
        return ", ".join([head, f"{self.elapsed_s:.1f} s", *self.details(), *_describe_left(self)])

    def format_live(self, width: int, *, is_ascii: bool) -> str:
        """Return at most `width` characters for the live line, with a bar if there is room for it."""
        from tqdm import tqdm

        size = tqdm.format_sizeof
        if self.total is None:
            head, parts = self.label, [format_duration(self.elapsed_s), *self.details()]
        elif self.unit == "B":
            head, parts = f"{self.label} {size(self.done)}B/{size(self.total)}B", self.details()
        else:
            head, parts = f"{self.label} {self.done:,}/{self.total:,}", self.details()
        if self.total is not None:
            parts = [*parts[:1], *(_describe_left(self) or [format_duration(self.elapsed_s)]), *parts[1:]]
        bar_room = MIN_BAR_WIDTH + len(" ||  ") if self.total else 0
        while len(text := "  ".join([head, ", ".join(parts)]).rstrip()) > width - bar_room * (len(parts) > 3) and parts:
            parts.pop()  # the first three are more important than a bar
        bar_width = min(width - len(text) - len(" ||"), MAX_BAR_WIDTH)
        if not self.total or bar_width < MIN_BAR_WIDTH:
            return text[:width]
        bar = tqdm.format_meter(
            min(self.done, self.total), self.total, self.elapsed_s, ascii=is_ascii, bar_format=f"{{bar:{bar_width}}}"
        )
        return f"{head} |{bar}|  {', '.join(parts)}".rstrip()


class Console:
    """Prints lines on stdout or stderr and shows the newest activity below them.

    The methods may be called from several threads. With `quiet`, nothing is printed.
    """

    def __init__(self, stream: Literal["stdout", "stderr"] = "stdout", *, quiet: bool = False) -> None:
        self._name, self.quiet = stream, quiet
        self._lock = threading.RLock()
        self._activities: list[Activity] = []
        self._stop = threading.Event()
        # A console that follows another one in this process also waits for its next line.
        self._last_line = max(*_last_lines, time.monotonic() - LINE_INTERVAL_S + FIRST_LINE_S, 0.0)
        self._is_drawn = False

    def line(self, text: str, *, colour: str | None = None) -> None:
        """Print `text`, one or more lines, above the live line. On a terminal it has the `colour`, if it is given."""
        if not self.quiet:
            shown = printable(text)
            with self.hidden():
                self._write((shown if colour is None else paint(shown, colour, self._stream)) + "\n")

    def activity(self, label: str, *, announce: bool = False) -> AbstractContextManager[Activity]:
        """Show work that cannot be counted during the block. `announce` is as in `show`."""
        return self.show(Activity(label), announce=announce)

    @contextmanager
    def show(self, activity: Activity, *, announce: bool = False) -> Iterator[Activity]:
        """Show an activity during the block.

        An activity that begins inside the block is shown instead, until it ends. With `announce`, a
        stream that is not a terminal gets a line at once, for work during which no thread can run.
        """
        try:
            self._start(activity)
            if announce and not is_live(self._stream):
                self.line(activity.label)
            yield activity
        finally:
            self._end(activity)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Hide the live line during the block, in which something else is printed."""
        with self._lock:
            self._clear()
            _last_lines[:] = [time.monotonic()]
            self._last_line = _last_lines[0]
            try:
                yield
            finally:
                self._draw()

    def clear_at_once(self) -> bool:
        """Clear the live line without waiting for a lock. Return whether there was one."""
        if self._is_drawn and (stream := self._stream) is not None:
            with contextlib.suppress(OSError, ValueError):
                os.write(stream.fileno(), CLEAR_LINE.encode())
        return self._is_drawn

    @property
    def _stream(self) -> TextIO | None:
        stream: TextIO | None = getattr(sys, self._name)  # it may be replaced while a command runs
        return stream

    def _start(self, activity: Activity) -> None:
        with self._lock:
            self._activities.append(activity)
            if len(self._activities) == 1 and not self.quiet:
                _live_consoles.append(self)
                self._stop = threading.Event()
                threading.Thread(target=self._show_progress, args=(self._stop,), name="progress", daemon=True).start()
            self._draw()

    def _end(self, activity: Activity) -> None:
        with self._lock:
            self._activities = [each for each in self._activities if each is not activity]
            if self._activities:
                self._draw()
            else:
                self._clear()
                self._stop.set()
                _live_consoles[:] = [each for each in _live_consoles if each is not self]

    def _show_progress(self, stop: threading.Event) -> None:
        while not stop.wait(REFRESH_S):
            with self._lock:
                if not self._activities:
                    return
                if is_live(self._stream):
                    self._draw()
                elif time.monotonic() - self._last_line >= LINE_INTERVAL_S:
                    self.line(self._activities[-1].describe())

    def _draw(self) -> None:
        stream = self._stream
        if self.quiet or not self._activities or stream is None or not is_live(stream):
            return
        is_ascii = "utf" not in (stream.encoding or "").lower()
        # One less than the width: a line that wraps cannot be rewritten.
        text = self._activities[-1].format_live(_get_width(stream) - 1, is_ascii=is_ascii)
        self._is_drawn = True  # before it is, because a signal may come in between
        self._write(f"\r{_paint_bar(one_line(text), stream)}\x1b[K")

    def _clear(self) -> None:
        if self._is_drawn:
            self._write(CLEAR_LINE)
            self._is_drawn = False

    def _write(self, text: str) -> None:
        # A closed terminal or pipe must not stop the work. Ctrl-C, for example, also ends `| tee`.
        with contextlib.suppress(OSError):
            if (stream := self._stream) is not None:
                stream.write(text)
                stream.flush()


def discard_unwritten_messages() -> None:
    """Discard messages that stderr did not accept, for example because they are written to a full disk.

    Otherwise Python writes them again at exit, and ends a command that succeeded with the status 120.
    """
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


_live_consoles: list[Console] = []  # those with an activity
_last_lines: list[float] = []  # the time of the last line of any console, if there was one


@contextmanager
def hidden_live_line() -> Iterator[None]:
    """Hide the live line of every console during the block, in which something else is printed."""
    with contextlib.ExitStack() as stack:
        for console in list(_live_consoles):
            stack.enter_context(console.hidden())
        yield


def clear_live_line() -> bool:
    """Clear the live line, for a signal handler, which must not wait for a lock. Return whether there was one."""
    was_live = False
    for console in list(_live_consoles):
        was_live |= console.clear_at_once()
    return was_live


def is_live(stream: TextIO | None) -> bool:
    """Return whether lines on `stream` can be rewritten: a terminal, except for TERM=dumb and under CI."""
    if stream is None or os.environ.get("TERM") == "dumb" or os.environ.get("CI", "false") not in ("", "0", "false"):
        return False
    return stream.isatty()


def format_duration(seconds: float) -> str:
    """Return a duration such as 45s, 1m 20s or 2h 05m."""
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours:,}h {minutes % 60:02d}m"
    return f"{minutes}m {whole % 60:02d}s" if minutes else f"{whole}s"


def _paint_bar(line: str, stream: TextIO) -> str:
    """Return a live line with its bar, if it has one, in colour."""
    before, _, rest = line.partition(" |")
    bar, end, after = rest.partition("|  ")
    return f"{before} |{paint(bar, 'cyan', stream)}{end}{after}" if end else line


def _describe_left(activity: Activity) -> list[str]:
    seconds = activity.seconds_left
    return [] if seconds is None or activity.done == activity.total else [f"{format_duration(seconds)} left"]


def _get_width(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_WIDTH
    except (OSError, ValueError):  # not a terminal of the system
        return DEFAULT_WIDTH
