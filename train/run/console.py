"""The console of a run: permanent lines, one live line on a terminal, and the format of numbers."""

from __future__ import annotations

import contextlib
import shutil
from typing import TextIO

from preprocess.errors import printable

MAX_PLAIN_PERPLEXITY = 1e7  # larger ones are printed with an exponent
CLEAR_LINE = "\r\x1b[K"


class Console:
    """Prints lines, and on a terminal one live line below them that is rewritten in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._is_terminal, self._is_live = stream, stream.isatty(), False

    def line(self, text: str) -> None:
        """Print `text`, one or more lines, above the live line."""
        self._write((CLEAR_LINE if self._is_live else "") + printable(text) + "\n", is_live=False)

    def live(self, text: str) -> None:
        """Print the latest progress: in place on a terminal, otherwise as a new line."""
        if not self._is_terminal:
            return self.line(text)
        # Cut to the width: a line that wraps cannot be rewritten.
        width = shutil.get_terminal_size().columns - 1
        self._write(CLEAR_LINE + printable(text)[:width], is_live=True)

    def close(self) -> None:
        """End the live line, so that later output starts on a new line."""
        if self._is_live:
            self._write("\n", is_live=False)

    def _write(self, text: str, *, is_live: bool) -> None:
        self._is_live = is_live
        # The run continues if the program that reads its output ends: Ctrl-C, which stops the run
        # after a checkpoint, also ends `| tee`.
        with contextlib.suppress(BrokenPipeError):
            self._stream.write(text)
            self._stream.flush()


def format_speed(speed: dict[str, float | None]) -> list[str]:
    """Return the values of `StepCost.speed` as the console prints them."""
    tokens_per_s, mfu, memory_bytes = (speed[key] for key in ("tokens_per_s", "mfu", "peak_memory_bytes"))
    parts = [f"{tokens_per_s:,.0f} tokens/s"]
    parts += [] if mfu is None else [f"MFU {mfu:.1%}"]
    return parts if memory_bytes is None else [*parts, f"{memory_bytes / 1e9:.1f} GB"]


def format_perplexity(value: float | None) -> str:
    """Return a perplexity such as 25.79 or, if it is very large, 1.1e+26; "n/a" for None."""
    return "n/a" if value is None else f"{value:,.2f}" if value < MAX_PLAIN_PERPLEXITY else f"{value:.1e}"


def format_rate(value: float) -> str:
    """Return a learning rate such as 1.0e-3."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def format_duration(seconds: float) -> str:
    """Return a duration such as 45s, 1m 20s or 2h 05m."""
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours:,}h {minutes % 60:02d}m"
    return f"{minutes}m {whole % 60:02d}s" if minutes else f"{whole}s"
