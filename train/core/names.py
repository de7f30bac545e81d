"""Short names of runs and builds for tables and legends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from preprocess.errors import MisuseError, one_line


def make_run_names(runs: Sequence[Path]) -> list[str]:
    """Return a name for each run: the shortest end of its path that no other run's path ends with.

    Raises MisuseError if two of `runs` are the same folder.
    """
    paths = [run.resolve() for run in runs]
    for path, count in Counter(paths).items():
        if count > 1:
            raise MisuseError(f"{runs[paths.index(path)]} is named {count} times; name each run once")
    return [_shortest_unique_end(path.parts, [other.parts for other in paths if other != path]) for path in paths]


def _shortest_unique_end(parts: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    lengths = range(1, len(parts) + 1)
    length = next((n for n in lengths if all(other[-n:] != parts[-n:] for other in others)), len(parts))
    return one_line("/".join(parts[-length:]))


def shorten_middle(name: str, max_length: int) -> str:
    """Return `name` in at most `max_length` characters, with an ellipsis in place of its middle."""
    if len(name) <= max_length:
        return name
    head = (max_length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (max_length - 1 - head) :]}"
