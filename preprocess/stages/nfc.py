"""Normalize text to NFC in linear time.

The problem: NFC sorts the combining marks that follow a character by their combining class.
`unicodedata` uses insertion sort, which is fastest for the two or three marks of ordinary text, but
takes minutes for a run of a million marks.

The idea: only the first few marks of each class can be combined with the character before the run,
because a mark that is not combined blocks all later marks of the same class. Therefore, only these
first marks are passed to `unicodedata`, after the text before the run. The other marks are then
inserted after those of their class, in their original order. The result is the same as that of
`unicodedata`.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

LONG_RUN = 64  # marks; unicodedata sorts shorter runs
# Marks of each class that may be combined with the character before a run. No character is
# decomposed into more than three marks.
COMBINED_MARKS = 8
PART_CHARACTERS = 1 << 20  # of a run that are processed at once
FIRST_MARK, LAST_MARK = 0x300, 0x1FFFF  # all marks are between these code points


class _Marks(NamedTuple):
    """The combining class by code point, (LAST_MARK + 1,) uint8, and what marks are decomposed into."""

    classes: np.ndarray
    decompositions: dict[int, str]


def normalize_nfc(text: str) -> str:
    """Return `unicodedata.normalize("NFC", text)`."""
    if unicodedata.is_normalized("NFC", text):
        return text
    normalized: list[str] = []
    start = 0
    for run_start, run_end in _find_long_runs(text):
        normalized.append(_normalize_run(text[start:run_start], text[run_start:run_end]))
        start = run_end
    # A character after a run cannot be combined with one before it, since marks are between them.
    normalized.append(unicodedata.normalize("NFC", text[start:]))
    return "".join(normalized)


def _find_long_runs(text: str) -> list[tuple[int, int]]:
    """Return the start and the end of every run of at least LONG_RUN marks."""
    if len(text) < LONG_RUN:
        return []
    is_mark = np.concatenate([_get_classes(_to_code_points(part)) > 0 for part in _iter_parts(text)])
    edges = np.flatnonzero(np.diff(is_mark, prepend=False, append=False)).reshape(-1, 2)
    runs: list[tuple[int, int]] = edges[edges[:, 1] - edges[:, 0] >= LONG_RUN].tolist()
    return runs


def _normalize_run(before: str, run: str) -> str:
    """Return the NFC of `before` and a long run of marks after it."""
    parts_by_class = defaultdict[int, list[str]](list)
    for part in _iter_parts(run):
        for class_, marks in _group_by_class(part.translate(_list_marks().decompositions)).items():
            parts_by_class[class_].append(marks)
    by_class = {class_: "".join(parts) for class_, parts in sorted(parts_by_class.items())}
    parts_by_class.clear()
    head = unicodedata.normalize("NFC", before + "".join(marks[:COMBINED_MARKS] for marks in by_class.values()))
    # The marks at the end of `head`: at most those that were added, and a few of the character before.
    tail = head[-(COMBINED_MARKS * (len(by_class) + 1)) :]
    num_uncombined = int(np.argmin(np.append(_get_classes(_to_code_points(tail))[::-1], 0) > 0))
    uncombined = _group_by_class(tail[len(tail) - num_uncombined :])
    classes = sorted({*by_class, *uncombined})
    of_classes = [(uncombined.get(c, ""), by_class.get(c, "")[COMBINED_MARKS:]) for c in classes]
    return "".join([head[: len(head) - num_uncombined], *itertools.chain(*of_classes)])


def _iter_parts(text: str) -> Iterator[str]:
    return (text[start : start + PART_CHARACTERS] for start in range(0, len(text), PART_CHARACTERS))


def _group_by_class(marks: str) -> dict[int, str]:
    """Return the marks of each combining class in their order, in ascending order of the classes."""
    code_points = _to_code_points(marks)
    classes = _get_classes(code_points)
    return {c: _to_text(code_points[classes == c]) for c in np.flatnonzero(np.bincount(classes)).tolist()}


def _get_classes(code_points: np.ndarray) -> np.ndarray:
    """Return the combining class of each code point, (C,) uint8; 0 if it is not a mark."""
    classes: np.ndarray = _list_marks().classes[np.minimum(code_points, LAST_MARK)]
    return classes


@functools.cache
def _list_marks() -> _Marks:
    classes = np.zeros(LAST_MARK + 1, np.uint8)
    decompositions: dict[int, str] = {}
    for code_point in range(FIRST_MARK, LAST_MARK + 1):
        character = chr(code_point)
        if unicodedata.combining(character) or unicodedata.decomposition(character):
            decomposed = unicodedata.normalize("NFD", character)
            # The class of U+0F73 is 0, but it is decomposed into marks.
            classes[code_point] = unicodedata.combining(decomposed[0])
            if classes[code_point] and decomposed != character:
                decompositions[code_point] = decomposed
    return _Marks(classes, decompositions)


def _to_code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _to_text(code_points: np.ndarray) -> str:
    return code_points.astype("<u4").tobytes().decode("utf-32-le")
