"""TODO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from preprocess.errors import MisuseError, one_line


def names_apart(runs: Sequence[Path]) -> list[str]:
    """A name for each run: as much of the end of its path as tells it from the others. Raises MisuseError for one that stands twice."""
    paths = [run.resolve() for run in runs]
    for path, count in Counter(paths).items():
        if count > 1:
            raise MisuseError(f"{runs[paths.index(path)]} is named {count} times; name each run once")
    return [_shortest_end(path.parts, [other.parts for other in paths if other != path]) for path in paths]


def _shortest_end(parts: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    lengths = range(1, len(parts) + 1)
    count = next((n for n in lengths if all(other[-n:] != parts[-n:] for other in others)), len(parts))
    return one_line("/".join(parts[-count:]))


def shorten(name: str, most: int) -> str:
    """`name` in at most `most` characters: what is too much is taken out of its middle."""
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"
