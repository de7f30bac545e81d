"""What a person sees while work goes on: lines, and a live bar where there is a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from preprocess.errors import one_line

LINE_INTERVAL_S = 10.0


class Bar(Protocol):
    """What a phase tells of how far it is: `update` by what has come, in the bar's unit, and so many documents in all."""

    def update(self, amount: int, num_documents: int | None = None) -> None: ...


class Progress:
    """Writes to stderr, so that what a command prints on stdout is its result alone."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    def say(self, line: str) -> None:
        """One line about what happens."""
        if not self._quiet:
            self._write(line)

    def warn(self, line: str) -> None:
        """One line that must be seen even where progress is not wanted."""
        self._write(f"warning: {line}")

    def _write(self, line: str) -> None:
        # Nobody listening is no reason to lose the work that is told about.
        with contextlib.suppress(OSError):
            if sys.stderr is not None:
                print(one_line(line), file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, label: str, *, total: int, unit: str) -> Iterator[Bar]:
        """A phase that counts to `total` of `unit`: a live bar on a terminal, a line now and then where there is none."""
        if self._quiet or sys.stderr is None:
            yield _Silent()
        elif sys.stderr.isatty():
            from tqdm import tqdm

            with tqdm(desc=label, total=total, unit=unit, unit_scale=True, leave=False, dynamic_ncols=True) as bar:
                yield _Live(bar)
        else:
            lines = _Lines(self.say, label, total, unit)
            yield lines
            lines.tell()


class _Silent:
    def update(self, amount: int, num_documents: int | None = None) -> None:
        pass


class _Live:
    """tqdm's: how far, how fast, how long still."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def update(self, amount: int, num_documents: int | None = None) -> None:
        if num_documents is not None:
            self._bar.set_postfix_str(f"{num_documents:,} documents", refresh=False)
        self._bar.update(amount)


class _Lines:
    """For files and pipes: a line every LINE_INTERVAL_S, and one at the end."""

    def __init__(self, say: Callable[[str], None], label: str, total: int, unit: str) -> None:
        self._say, self._label, self._total, self._unit = say, label, total, unit
        self._begin = self._told = time.monotonic()
        self._amount = 0
        self._num_documents: int | None = None

    def update(self, amount: int, num_documents: int | None = None) -> None:
        self._amount += amount
        self._num_documents = num_documents if num_documents is not None else self._num_documents
        if time.monotonic() - self._told > LINE_INTERVAL_S:
            self.tell()

    def tell(self) -> None:
        self._told = time.monotonic()
        elapsed_s = max(self._told - self._begin, 1e-3)
        documents = f", {self._num_documents:,} documents" if self._num_documents is not None else ""
        done = f"{self._amount:,} of {self._total:,} {self._unit}{documents}"
        rest_s = elapsed_s * (self._total - self._amount) / self._amount if self._amount else 0.0
        left = f", {rest_s:.0f} s left" if self._amount < self._total else ""
        self._say(
            f"{self._label}: {done}, {elapsed_s:.1f} s, {self._amount / elapsed_s / 1e6:.1f} M{self._unit}/s{left}"
        )
