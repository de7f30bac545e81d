"""Log lines, warnings and progress of the command `preprocess`, on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from preprocess.console import Activity, Console, hidden_live_line, is_live, paint
from preprocess.errors import format_quantity, hide_credentials, one_line


class Bar(Protocol):
    """The progress of one phase."""

    def update(self, amount: int, num_documents: int | None = None) -> None:
        """Add `amount` in the unit of the bar. `num_documents`: the total so far, if known."""


class Progress:
    """Writes log lines, warnings and progress to stderr; stdout is for the result of a command."""

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet`: write warnings only."""
        self._console = Console("stderr", quiet=quiet)

    def log(self, line: str) -> None:
        """Write one line, unless quiet."""
        self._console.line(one_line(hide_credentials(line)))

    def warn(self, line: str) -> None:
        """Write one line as a warning, even if quiet."""
        with hidden_live_line(), contextlib.suppress(OSError):
            if sys.stderr is not None:
                label = paint("warning:", "yellow", sys.stderr)
                print(label, one_line(hide_credentials(line)), file=sys.stderr, flush=True)

    @contextmanager
    def phase(self, label: str) -> Iterator[None]:
        """Show that the command does what `label` says, for work that cannot be counted."""
        with self._console.activity(label):
            yield

    @contextmanager
    def bar(self, label: str, *, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        """Show the progress of a phase that counts from `done` to `total` in `unit`.

        If stderr is not a terminal, a line at the end says how long the phase took.
        """
        with self._console.show(Activity(label, total=total, unit=unit, done=done)) as activity:
            yield _ActivityBar(activity)
        if not is_live(sys.stderr):
            self.log(activity.describe())


class _ActivityBar:
    """A Bar that counts an activity, whose details are the rate and the number of documents."""

    def __init__(self, activity: Activity) -> None:
        self._activity, self._num_documents = activity, -1
        activity.details = self._describe

    def update(self, amount: int, num_documents: int | None = None) -> None:
        self._activity.count(amount)
        self._num_documents = num_documents if num_documents is not None else self._num_documents

    def _describe(self) -> list[str]:
        documents = [] if self._num_documents < 0 else [format_quantity(self._num_documents, "document")]
        rate = self._activity.rate
        return [*([f"{rate / 1e6:.1f} M{self._activity.unit}/s"] if rate else []), *documents]
