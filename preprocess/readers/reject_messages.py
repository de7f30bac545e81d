"""Messages about records that were rejected, the same for every command that reads documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from preprocess.inputs.input_files import InputFile
from preprocess.readers.locate import Locator
from preprocess.readers.records import WARNED_REASONS, format_counts
from preprocess.readers.reject_reasons import RejectReason, explain_reasons


def explain_no_document(corpus: str, counts: str, reasons: list[RejectReason], input_files: Sequence[InputFile]) -> str:
    """Return the error message if no document of `corpus` is left. `counts`: of the records, as text."""
    explanation = explain_reasons(reasons, Locator(input_files))
    parts = [f"no document is left of {corpus}: {counts}", explanation, "check its files, columns, conditions, "]
    return "; ".join(filter(None, parts)) + "cleaning rules and filters"


def describe_rejects(
    counts: Mapping[str, int], reasons: list[RejectReason], input_files: Sequence[InputFile]
) -> str | None:
    """Return a line about records that could not be read or were changed, or None if there are none.

    `counts`: of all records that were dropped or changed, by kind.
    """
    warned = {kind: counts[kind] for kind in WARNED_REASONS if counts.get(kind)}
    if not warned:
        return None
    explanation = explain_reasons([reason for reason in reasons if reason.kind in warned], Locator(input_files))
    line = f"some documents were dropped or repaired: {', '.join(format_counts(warned))}"
    return f"{line}; {explanation}" if explanation else line
