"""Counts of the filters of a recipe: how many documents each has read and dropped, with examples.

The counts of a partition are stored in its receipt, and the sum of all partitions in stats.json.
The examples of a reason are the documents with the lowest (input file, position), so neither the
number of workers nor the partition size changes them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

MAX_EXAMPLES = 3  # of each reason
EXAMPLE_CHARACTERS = 200


@dataclass(frozen=True)
class Example:
    """A document that a filter dropped."""

    source: int  # number of the input file
    position: int  # of the document in the file; until `FilterCounts.add`, in the span that was read
    text: str  # its first EXAMPLE_CHARACTERS characters
    value: float | None  # the measured value
    detail: str

    @property
    def key(self) -> tuple[int, int]:
        return self.source, self.position


@dataclass(kw_only=True)
class FilterCounts:
    """The counts of one filter, in the order of the recipe. The field names are keys in a receipt."""

    documents: int = 0  # that the filter has read
    changed: int = 0  # of those that it kept: the documents whose texts it has edited
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    counts: dict[str, int] = field(default_factory=dict)  # as in Verdict
    examples: dict[str, list[Example]] = field(default_factory=dict)  # by reason, sorted by key

    def add_examples(self, reason: str, examples: Iterable[Example]) -> None:
        """Keep the examples with the lowest keys."""
        self.examples[reason] = heapq.nsmallest(
            MAX_EXAMPLES, [*self.examples.get(reason, ()), *examples], key=lambda example: example.key
        )

    def add(self, other: FilterCounts, move: Callable[[Example], Example]) -> None:
        """Add the counts of another partition. `move` returns an example with its position in its file."""
        self.documents += other.documents
        self.changed += other.changed
        self.dropped = dict(Counter(self.dropped) + Counter(other.dropped))
        self.counts = dict(Counter(self.counts) + Counter(other.counts))
        for reason, examples in other.examples.items():
            self.add_examples(reason, map(move, examples))
