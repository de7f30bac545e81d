"""Say in what the words that two tokenizers find in a text differ."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

KINDS = {
    "code": "a word with symbols between letters is kept whole, such as np.float64(x) or snake_case",
    "abbreviation": "a word keeps the symbols around it, such as e.g. or @-@",
    "script": "letters of a script without spaces between words are kept together",
    "symbols": "equal symbols are separated, such as == or emoji",
    "contraction": "a contraction is divided, such as do n't or can not",
    "divided": "a word is divided in another way, such as 5 km",
    "other": "the words have other edges",
}
SPACES = re.compile(r"\s+")


def iter_different_runs(theirs: list[str], ours: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the shortest runs of words that consist of the same characters, where the words are not equal.

    Both lists are words of one text, in order. Characters that only one of them has end the comparison
    with a run of all words that are left.
    """
    first = [0, 0]
    last = [0, 0]
    lengths = [0, 0]
    sides = [[SPACES.sub("", word) for word in words] for words in (theirs, ours)]
    while last[0] < len(sides[0]) or last[1] < len(sides[1]):
        side = 0 if (lengths[0] <= lengths[1] and last[0] < len(sides[0])) or last[1] == len(sides[1]) else 1
        lengths[side] += len(sides[side][last[side]])
        last[side] += 1
        if lengths[0] != lengths[1]:
            continue
        runs = [words[begin:end] for words, begin, end in zip(sides, first, last, strict=True)]
        if "".join(runs[0]) != "".join(runs[1]):
            yield theirs[first[0] :], ours[first[1] :]
            return
        if runs[0] != runs[1]:
            yield runs[0], runs[1]
        first = list(last)
    if first[0] < len(sides[0]) or first[1] < len(sides[1]):
        yield theirs[first[0] :], ours[first[1] :]


def name_kind(theirs: list[str], ours: list[str]) -> str:
    """Return the key of KINDS that describes a run of different words, seen from `theirs`."""
    if len(theirs) > len(ours):
        if all(len(set(word)) == 1 for word in ours):
            return "symbols"
        is_contraction = any("'" in word or "’" in word for word in ours) or theirs[-1] in ("not", "na", "ta")
        return "contraction" if is_contraction else "divided"
    if len(theirs) < len(ours):
        letters = [word for word in ours if any(character.isalnum() for character in word)]
        if any(not character.isascii() and character.isalpha() for word in letters for character in word):
            return "script"
        return "code" if len(letters) > 1 else "abbreviation"
    return "other"


def count_kinds(theirs: list[str], ours: list[str]) -> Counter[str]:
    """Return how many runs of words differ, by kind."""
    return Counter(name_kind(*runs) for runs in iter_different_runs(theirs, ours))
