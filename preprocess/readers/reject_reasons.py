"""Why records were rejected or changed: how many for each reason, and where the first of them is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from preprocess.errors import one_line, shorten

MAX_REASONS = 100  # of one partition; further ones are counted together
MAX_REASON_CHARACTERS = 200
OTHER = "other reasons"
NUMBER = re.compile(r"[0-9][0-9,]*")


@dataclass(frozen=True)
class RejectReason:
    """A reason, such as `text must be text, got number`, with the number of its records and the first of them."""

    kind: str  # the reason in the statistics, such as "malformed"
    reason: str
    num_records: int
    source: str  # the name of the input file
    place: str  # in the file, such as "byte 120" or "row 7"


class ReasonCounts:
    """Counts records by reason. Reasons that differ only in their numbers are the same."""

    def __init__(self) -> None:
        self._reasons: dict[tuple[str, str], RejectReason] = {}

    def add(self, found: RejectReason) -> None:
        """Count the records of `found`, which come after all others."""
        key = found.kind, NUMBER.sub("0", found.reason)
        if key not in self._reasons and len(self._reasons) >= MAX_REASONS:
            key = found.kind, OTHER
        before = self._reasons.get(key)
        if before is None:
            reason = OTHER if key[1] == OTHER else found.reason[:MAX_REASON_CHARACTERS]
            first, num_before = RejectReason(found.kind, reason, 0, found.source, found.place), 0
        else:
            first, num_before = before, before.num_records
        num_records = num_before + found.num_records
        self._reasons[key] = RejectReason(first.kind, first.reason, num_records, first.source, first.place)

    def as_list(self) -> list[RejectReason]:
        """Return the reasons in the order in which they were first found."""
        return list(self._reasons.values())


def sum_reasons(of_partitions: Iterable[Iterable[RejectReason]]) -> list[RejectReason]:
    """Return the reasons of several partitions, in reading order, each once."""
    counts = ReasonCounts()
    for reasons in of_partitions:
        for reason in reasons:
            counts.add(reason)
    return counts.as_list()


def explain_reasons(reasons: list[RejectReason], locate: Callable[[str, str], str]) -> str:
    """Return the most frequent of `reasons` and its first record, for a message; empty if there are none.

    `locate(source, place)` returns the place for a person.
    """
    if not reasons:
        return ""
    most_frequent = max(reasons, key=lambda reason: reason.num_records)  # the first of equal ones
    total = sum(reason.num_records for reason in reasons)
    if len(reasons) == 1:
        share = "the reason" if total == 1 else f"the reason of all {total:,}"
    else:
        share = f"the most frequent reason, of {most_frequent.num_records:,}"
    where = f"{shorten(most_frequent.source)}, {locate(most_frequent.source, most_frequent.place)}"
    at = f"at {where}" if total == 1 else f"first at {where}"
    return f"{share}: {one_line(most_frequent.reason)} ({at})"
