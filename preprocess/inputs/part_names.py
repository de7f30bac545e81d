"""What the names of input files say about the data set that they belong to, and warnings if something is missing.

A file of a data set that was downloaded in part, or two versions of it in one folder, cannot be noticed in the
files themselves. But their names often have the number of the file and the number of files, as in
`train-00000-of-00005.parquet`, or the name of a split.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Set

from preprocess.errors import format_quantity, shorten

PART = re.compile(r"(?P<number>\d+)-of-(?P<total>\d+)(?:-[0-9a-f]{16})?")  # the hub once put a hash after it
NUMBERED = re.compile(r"(.*?)(\d{2,})(\D*)", re.DOTALL)
MAX_PARTS = 1_000_000
SPLIT_OF_WORD = {
    "train": "train", "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip


def find_missing_parts(names: Iterable[str], is_wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Return a warning for each set of files whose names say `NUMBER-of-TOTAL`, if some of them are missing.

    A second warning says if there are sets with the same name and another TOTAL. `is_wanted`: whether the user asks
    for a file of this name, if it existed.
    """
    numbers: dict[tuple[str, str], dict[str, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    for name in names:
        if "-of-" in name and (match := PART.search(name)):
            by_total = numbers[name[: match.start()], name[match.end() :]]
            by_total[match["total"]][int(match["number"])] = len(match["number"])
    warnings = []
    for (prefix, suffix), by_total in numbers.items():
        for total, found in by_total.items():
            shown = shorten(f"{prefix}*-of-{total}{suffix}")
            width = max(found.values())
            missing = [
                number
                for number in _find_missing(found.keys(), int(total))
                if is_wanted(f"{prefix}{number:0{width}}-of-{total}{suffix}")
            ]
            if missing and (num_missing := int(total) - len(found)) > 0:
                warnings.append(
                    f"{num_missing:,} of the {int(total):,} files {shown} {'is' if num_missing == 1 else 'are'} "
                    f"missing, such as number {min(missing)}; the other files are read"
                )
        if len(by_total) > 1:
            totals = " and ".join(sorted(by_total))
            warnings.append(
                f"there are files {shorten(f'{prefix}*{suffix}')} of a set of {totals} files, perhaps of two versions; "
                "all are read"
            )
    return warnings


def _find_missing(found: Set[int], total: int) -> set[int]:
    """Return the missing numbers that follow or precede those in `found`. Numbers begin with 0, or with 1.

    They are enough to find a missing one, and fewer than all if a few of a million files are there.
    """
    if total > MAX_PARTS:
        return set()
    first = 1 if total in found else 0
    beside = {beside for number in found for beside in (number - 1, number + 1)}
    return {number for number in beside - found if first <= number < first + total}


def find_gaps(names: Iterable[str]) -> list[str]:
    """Return a warning for each set of files that are numbered from 0 or 1, such as `a_00.bin`, if one is missing."""
    numbers: dict[tuple[str, int, str], set[int]] = defaultdict(set)
    for name in names:
        folder, base = posixpath.split(name)
        if not PART.search(base) and (match := NUMBERED.fullmatch(base)):
            numbers[posixpath.join(folder, match[1]), len(match[2]), match[3]].add(int(match[2]))
    warnings = []
    for (prefix, width, suffix), found in numbers.items():
        first, last = min(found), max(found)
        if first <= 1 and last - first >= len(found):
            missing = next(number for number in range(first, last) if number not in found)
            warnings.append(
                f"{shorten(f'{prefix}{missing:0{width}}{suffix}')} is missing between the numbered files beside it; "
                "copy it, if it belongs to them"
            )
    return warnings


def find_mixed_splits(names: Sequence[str]) -> list[str]:
    """Return a warning if the name of every file says a split, and the files of several splits are read together.

    A file that is for a test would be trained on.
    """
    words: set[str] = set()
    for name in _remove_common_folder(names):
        found = _find_split_words(name)
        if len({SPLIT_OF_WORD[word] for word in found}) != 1:
            return []
        words |= found
    splits = {SPLIT_OF_WORD[word] for word in words}
    if "train" not in splits or len(splits) < 2:
        return []
    *others, last = (split for split in ("train", "validation", "test") if split in splits)
    pattern = _find_pattern(names, words) if "validation" in splits else None  # a build needs validation files
    keep = f"pass --split given --name-pattern '{pattern}' to keep the splits, or " if pattern else ""
    return [
        f"the names of the {format_quantity(len(names), 'file')} say {', '.join(others)} and {last}, but all are "
        f"read as one corpus and split again; {keep}name the files of one split"
    ]


def _find_pattern(names: Sequence[str], words: set[str]) -> str | None:
    """Return a `name_pattern` that finds the split of each of `names`, which have these words, or None.

    The words alone would find a test file in `latest-train.txt`. No pattern changes letters to lower case.
    """
    group = f"(?P<split>{'|'.join(sorted(words, key=lambda word: (-len(word), word)))})"
    for pattern in (group, f"(?:^|[^a-z]){group}(?:[^a-z]|$)"):
        matches = (re.search(pattern, name) for name in names)
        if all(match and match["split"] in _find_split_words(match.string) for match in matches):
            return pattern
    return None


def _remove_common_folder(names: Sequence[str]) -> Iterator[str]:
    folder = posixpath.commonpath([posixpath.dirname(name) for name in names])
    return (name.removeprefix(folder) for name in names)


def _find_split_words(name: str) -> set[str]:
    return SPLIT_OF_WORD.keys() & set(re.split(r"[^a-z]+", name.lower()))
