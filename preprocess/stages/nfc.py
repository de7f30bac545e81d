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
import unicodedata
from typing import NamedTuple

import numpy as np

LONG_RUN = 64  # marks; unicodedata sorts shorter runs
# Marks of each class that may be combined with the character before a run. No character is
# decomposed into more than three marks.
COMBINED_MARKS = 8
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
    is_mark = _get_classes(_to_code_points(text)) > 0
    edges = np.flatnonzero(np.diff(is_mark, prepend=False, append=False)).reshape(-1, 2)
    runs: list[tuple[int, int]] = edges[edges[:, 1] - edges[:, 0] >= LONG_RUN].tolist()
    return runs


def _normalize_run(before: str, run: str) -> str:
    """Return the NFC of `before` and a long run of marks after it."""
    marks = _to_code_points(run.translate(_list_marks().decompositions))
    by_class = _group_by_class(marks)
    first_marks = np.concatenate([of_class[:COMBINED_MARKS] for of_class in by_class.values()])
    head = _to_code_points(unicodedata.normalize("NFC", before + _to_text(first_marks)))
    num_uncombined = int(np.argmin(np.append(_get_classes(head)[::-1], 0) > 0))  # marks at the end of `head`
    base, uncombined = head[: len(head) - num_uncombined], head[len(head) - num_uncombined :]
    rest = [of_class[COMBINED_MARKS:] for of_class in by_class.values()]
    return _to_text(np.concatenate([base, *_group_by_class(np.concatenate([uncombined, *rest])).values()]))


def _group_by_class(marks: np.ndarray) -> dict[int, np.ndarray]:
    """Return the code points of each combining class, in ascending order of the classes."""
    classes = _get_classes(marks)
    return {c: marks[classes == c] for c in np.flatnonzero(np.bincount(classes)).tolist()}


def _get_classes(code_points: np.ndarray) -> np.ndarray:
    """Return the combining class of each code point, (C,) uint8; 0 if it is not a mark."""
    classes = _list_marks().classes[np.minimum(code_points, LAST_MARK)]
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
