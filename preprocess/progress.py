"""What a person sees while work goes on: lines, and a live bar where there is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from preprocess.errors import one_line


class Bar(Protocol):
    def update(self, n: float | None = 1) -> object: ...


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
    def bar(self, label: str, *, total: int | None, unit: str) -> Iterator[Bar]:
        """A bar that counts to `total` (unknown: None); on anything but a terminal it stays away."""
        from tqdm import tqdm

        # disable=None: tqdm's way to say "only on a terminal".
        hidden = True if self._quiet or sys.stderr is None else None
        with tqdm(desc=label, total=total, unit=unit, unit_scale=True, leave=False, disable=hidden, dynamic_ncols=True) as bar:
            yield bar
