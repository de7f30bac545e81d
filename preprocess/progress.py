"""Shows what a command is doing: log lines, and a progress bar if stderr is a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from preprocess.errors import format_quantity, hide_credentials, one_line

LOG_INTERVAL_S = 10.0


class Bar(Protocol):
    """The progress of one phase."""

    def update(self, amount: int, num_documents: int | None = None) -> None:
        """Add `amount` in the unit of the bar. `num_documents`: the total so far, if known."""


class Progress:
    """Writes log lines, warnings and progress to stderr; stdout is for the result of a command."""

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet`: write warnings only."""
        self._quiet = quiet

    def log(self, line: str) -> None:
        """Write one line, unless quiet."""
        if not self._quiet:
            self._write(line)

    def warn(self, line: str) -> None:
        """Write one line as a warning, even if quiet."""
        self._write(f"warning: {line}")

    def _write(self, line: str) -> None:
        # A closed terminal or pipe must not stop the work.
        with contextlib.suppress(OSError):
            if sys.stderr is not None:
                print(one_line(hide_credentials(line)), file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, label: str, *, total: int, unit: str) -> Iterator[Bar]:
        """Show the progress of a phase that counts to `total` in `unit`.

        On a terminal this is a live bar, otherwise a log line every LOG_INTERVAL_S seconds and one
        at the end.
        """
        if self._quiet or sys.stderr is None:
            yield _SilentBar()
        elif sys.stderr.isatty():
            from tqdm import tqdm

            with tqdm(desc=label, total=total, unit=unit, unit_scale=True, leave=False, dynamic_ncols=True) as bar:
                yield _TerminalBar(bar)
        else:
            lines = _LogLines(self.log, label, total, unit)
            yield lines
            lines.log_progress()


class _SilentBar:
    def update(self, amount: int, num_documents: int | None = None) -> None:
        pass


class _TerminalBar:
    """A tqdm bar with the amount, the rate and the remaining time."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def update(self, amount: int, num_documents: int | None = None) -> None:
        if num_documents is not None:
            self._bar.set_postfix_str(format_quantity(num_documents, "document"), refresh=False)
        self._bar.update(amount)


class _LogLines:
    """A bar that writes log lines, for a stderr that is a file or a pipe."""

    def __init__(self, log: Callable[[str], None], label: str, total: int, unit: str) -> None:
        self._log, self._label, self._total, self._unit = log, label, total, unit
        self._begin = self._last_logged = time.monotonic()
        self._amount = 0
        self._num_documents: int | None = None

    def update(self, amount: int, num_documents: int | None = None) -> None:
        self._amount += amount
        self._num_documents = num_documents if num_documents is not None else self._num_documents
        if time.monotonic() - self._last_logged > LOG_INTERVAL_S:
            self.log_progress()

    def log_progress(self) -> None:
        self._last_logged = time.monotonic()
        elapsed_s = max(self._last_logged - self._begin, 1e-3)
        documents = f", {format_quantity(self._num_documents, 'document')}" if self._num_documents is not None else ""
        done = f"{self._amount:,} of {self._total:,} {self._unit}{documents}"
        remaining_s = elapsed_s * (self._total - self._amount) / self._amount if self._amount else 0.0
        remaining = f", {remaining_s:.0f} s left" if self._amount < self._total else ""
        rate = f"{self._amount / elapsed_s / 1e6:.1f} M{self._unit}/s"
        self._log(f"{self._label}: {done}, {elapsed_s:.1f} s, {rate}{remaining}")
