"""Find the connected components of numbers that are linked in pairs, with bounded memory.

The problem: the numbers, of documents or of groups, are too many for the memory of one machine, and a
chain of links may lead through all of them.

The idea: divide the numbers into ranges. A task per range joins the numbers of its links, and keeps for
each number a link to the smallest of its component so far. Such a number may be in an earlier range. So
the ranges are then read from the last to the first: those of a later range that are linked to the same
number of an earlier one are known to be connected, and if they are linked to several, these are linked
with each other in their own ranges. After this pass every number has one link, to an earlier number, and
the numbers with none are the first of their components. A second pass from the first range to the last
replaces each link by one to the first number of the component.

The cost: both passes are made in the calling process. They read and write each number that has a link a
few times, and open a file for each two of the R ranges, 2 R² times in all; R is at most MAX_SECTIONS. The
memory is that of one range and its links.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from preprocess.build.engines.interface import Engine
from preprocess.build.near_dedup.forest import Forest
from preprocess.build.shuffle import Shuffle, run_all

LINK_DTYPE = np.dtype([("index", "<u8"), ("first", "<u8")])  # two connected numbers; first <= index


def locate(starts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the range of each of (N,) uint64: (N,) int64. `starts`: the first number of each range, ascending."""
    ranges: np.ndarray = np.searchsorted(starts, numbers, "right") - 1
    return ranges


def find_components(links: Shuffle, starts: np.ndarray, engine: Engine) -> Shuffle:
    """Return links from each number to the first one of its component, if that is another one.

    `links`: its readers are the ranges, and a row is for the range of its index. It has the fields of LINK_DTYPE.
    `starts`, (R,) uint64: the first number of each range. Each number in the result is for the reader of its range.
    """
    num_ranges = len(starts)

    def make(name: str) -> Shuffle:
        return Shuffle(links.work_dir, f"{links.name}-{name}", LINK_DTYPE, num_ranges, num_ranges)

    resolved = make("resolved")
    with make("reduced") as reduced, make("forwarded") as forwarded, make("children") as children:
        run_all(engine, "the links of range", reduce_links, [(links, reduced, starts, i) for i in range(num_ranges)])
        for number in reversed(range(num_ranges)):
            _forward_links(reduced, forwarded, children, starts, number)
        for number in range(num_ranges):
            _resolve_links(children, resolved, starts, number)
    return resolved


def reduce_links(links: Shuffle, reduced: Shuffle, starts: np.ndarray, number: int) -> None:
    """Write a link for each number that the links of a range connect to a smaller number, to the smallest one."""
    joined = _join_pieces(piece[piece["index"] != piece["first"]] for piece in links.read(number))
    with reduced.open(number) as append:
        append(joined, locate(starts, joined["index"]))


def _join_pieces(pieces: Iterable[np.ndarray]) -> np.ndarray:
    """Return what `_join` returns for the links of all pieces, of which one is in memory at a time."""
    joined = np.empty(0, LINK_DTYPE)
    for piece in pieces:
        joined = _join(
            np.concatenate([joined["index"], piece["index"]]), np.concatenate([joined["first"], piece["first"]])
        )
    return joined


def _join(index: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return a link to the smallest number of its component for each other number: (L,) of LINK_DTYPE, ascending.

    `index`, `first`: (N,) uint64, pairs of connected numbers.
    """
    numbers, rows = np.unique(np.concatenate([index, first]), return_inverse=True)
    forest = Forest(np.arange(len(numbers)))
    forest.join(rows[: len(index)], rows[len(index) :])
    smallest = forest.find_first(np.arange(len(numbers)))
    is_linked = smallest != np.arange(len(numbers))
    links = np.empty(int(np.count_nonzero(is_linked)), LINK_DTYPE)
    links["index"], links["first"] = numbers[is_linked], numbers[smallest[is_linked]]
    return links


def _forward_links(reduced: Shuffle, forwarded: Shuffle, children: Shuffle, starts: np.ndarray, number: int) -> None:
    """Write the link of each number of a range to the range of the other number, and links between earlier numbers."""
    # A range links its own numbers and earlier ones only, so the files of earlier ranges have no row for this one.
    own, later = range(number, reduced.num_writers), range(number + 1, forwarded.num_writers)
    links = _join_pieces(itertools.chain(reduced.read(number, own), forwarded.read(number, later)))
    is_earlier = links["index"] < starts[number]
    with forwarded.open(number) as append:
        append(links[is_earlier], locate(starts, links["index"][is_earlier]))
    with children.open(number) as append:
        append(links[~is_earlier], locate(starts, links["first"][~is_earlier]))


def _resolve_links(children: Shuffle, resolved: Shuffle, starts: np.ndarray, number: int) -> None:
    """Write the first number of the component for each number that is linked to a number of a range."""
    links = children.read_all(number, range(number, children.num_writers))
    is_inside = locate(starts, links["index"]) == number
    known = np.concatenate([resolved.read_all(number, range(number)), links[is_inside]])
    links["first"] = resolve(known, links["first"])
    with resolved.open(number) as append:
        append(links, locate(starts, links["index"]))


def resolve(links: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the first number of the component of each of (N,) uint64, as `links` say: (N,) uint64.

    `links`: those of the range of the numbers. A number without a link is the first one of its component.
    """
    if not len(links):
        return numbers
    links = links[np.argsort(links["index"])]
    rows = np.minimum(np.searchsorted(links["index"], numbers), len(links) - 1)
    return np.where(links["index"][rows] == numbers, links["first"][rows], numbers)
