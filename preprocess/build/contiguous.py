"""Tell the parts of a divided text where the contiguous split cuts it.

The problem: the split is at a fraction of the characters of a whole text, after cleaning, but the
parts of a long text are prepared by several tasks at once (partitions.py).

The idea: tasks count the characters of the parts first. The sums then give the split's offset in
every part. The cost: a long text is read and cleaned twice, by all workers together.
"""

from __future__ import annotations

from collections import defaultdict

from preprocess.readers.partitions import Partition
from preprocess.stages.split import compute_contiguous_cut


def set_boundaries(
    partitions: list[Partition], num_characters: list[list[int | None]], val_fraction: float
) -> list[Partition]:
    """Return the partitions with the boundary of each part of a divided text.

    `num_characters`: for each partition, the number of characters of each span, or None if the span
    is a whole file.
    """
    totals: defaultdict[int, int] = defaultdict(int)  # by file
    for partition, counts in zip(partitions, num_characters, strict=True):
        for span, count in zip(partition.spans, counts, strict=True):
            totals[span.file_number] += count or 0
    boundaries = {number: compute_contiguous_cut(total, val_fraction) for number, total in totals.items()}
    result = []
    for partition, counts in zip(partitions, num_characters, strict=True):
        spans = []
        for span, count in zip(partition.spans, counts, strict=True):
            boundary = None if count is None else boundaries[span.file_number]
            spans.append(span._replace(boundary=boundary))
            boundaries[span.file_number] -= count or 0
        result.append(Partition(partition.number, tuple(spans)))
    return result
