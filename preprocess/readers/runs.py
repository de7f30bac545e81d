"""A file's bytes in runs of whole records, in bounded memory, whatever the length of a record.

A border is a place where a record can begin: behind a line feed, behind a blank line, behind a separator. Whether a place is a
border shows from the few bytes in front of it, so that a reader may start anywhere and find the same records.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from preprocess.errors import FolioError
from preprocess.readers.opening import blocks
from preprocess.readers.records import Losses
from preprocess.recipe import Recipe
from preprocess.sources import Source

NO_CUT_BYTES = 16 << 20  # so long a stretch without white space is no text
PROBE_BYTES = 1 << 16
WHITE_SPACE = b" \n\t\r"


@dataclass(frozen=True)
class Borders:
    """Where records begin: behind any of `marks`; with no marks, at the file's head alone."""

    marks: tuple[bytes, ...]

    @property
    def reach(self) -> int:
        """How many bytes in front of a place tell whether it is a border."""
        return max(map(len, self.marks), default=0)

    def last(self, data: bytes | bytearray) -> int:
        """The last border within `data`, its end included; 0 where there is none."""
        return max((found + len(mark) for mark in self.marks if (found := data.rfind(mark)) >= 0), default=0)

    def first(self, data: bytes | bytearray) -> int | None:
        """The first border within `data`, its end included, its beginning not."""
        return min((found + len(mark) for mark in self.marks if (found := data.find(mark)) >= 0), default=None)


LINES = Borders((b"\n",))
PARAGRAPHS = Borders((b"\n\n", b"\n\r\n"))
WHOLE = Borders(())


def borders_of(source: Source, recipe: Recipe) -> Borders:
    """What separates the records of `source`."""
    if source.format == "jsonl":
        return LINES
    by_document = {"line": LINES, "paragraph": PARAGRAPHS, "separator": Borders((recipe.separator.encode(),))}
    return by_document.get(recipe.document, WHOLE)


def next_border(source: Source, borders: Borders, place: int) -> int:
    """The first border at or behind byte `place` of an uncompressed file; its end where there is none."""
    start = max(place - borders.reach, 0)
    tail = b""
    with open(source.path, "rb") as file:
        file.seek(start)
        while block := file.read(PROBE_BYTES):
            data = tail + block
            begin = max(place - start - borders.reach, 0)
            found = borders.first(data[begin:])
            if found is not None:
                return start + begin + found
            keep = min(borders.reach, len(data))
            tail, start = data[len(data) - keep :], start + len(data) - keep
    return source.size_bytes


def runs(source: Source, start: int, stop: int | None, recipe: Recipe, losses: Losses) -> Iterator[tuple[int, bytes]]:
    """Runs of whole records, each with its byte offset in the decompressed file.

    A record longer than `max_document_bytes` is cut at white space, the rest of it going on as a record of its own. Raises
    FolioError for one that cannot be cut, unless the recipe skips it; `losses` counts these.
    """
    borders = borders_of(source, recipe)
    limit = longest_record(source, recipe)
    data, offset, is_skipping = bytearray(), start, False

    def take(end: int) -> tuple[int, bytes]:
        nonlocal offset
        run = offset, bytes(data[:end])
        del data[:end]
        offset += end
        return run

    for block in blocks(source, start, stop):
        data += block
        if is_skipping:
            border = borders.first(data)
            take(border or max(len(data) - borders.reach, 0))
            is_skipping = border is None
        if not is_skipping and (end := borders.last(data)):
            yield take(end)
        while len(data) > limit and not is_skipping:
            cut = place_to_cut(data, limit) if source.format != "jsonl" else 0  # half a JSON value is none
            if cut:
                yield take(cut)
            else:
                refuse_oversized(f"{source.path}: at byte {offset:,} begins", recipe)
                losses.counts["oversized"] += 1
                is_skipping = True
    if data and not is_skipping:
        yield take(len(data))


def longest_record(source: Source, recipe: Recipe) -> int:
    """The bytes that a record may have before it is cut; a line of JSON, which cannot be cut, may spell a document twice as long."""
    return recipe.max_document_bytes * (2 if source.format == "jsonl" else 1)


def refuse_oversized(where: str, recipe: Recipe) -> None:
    """Raise FolioError for a record that cannot be cut, unless the recipe skips it. `where`: what it is, for the message."""
    if recipe.oversized == "error":
        raise FolioError(
            f"{where} a record that is longer than max_document_bytes ({recipe.max_document_bytes:,}) and has no white space to cut it at; "
            "mend it, or pass --oversized skip to leave it out"
        )


def place_to_cut(data: bytes | bytearray, limit: int) -> int:
    """The last place within the first `limit` bytes where white space follows something else; 0 where the last 16 MB have none.

    In front of white space: there GPT-2's pre-tokenizer must cut anyway, so that no id changes.
    """
    floor = max(limit - NO_CUT_BYTES, 0)
    end = limit
    while (end := max(data.rfind(bytes([c]), floor, end) for c in WHITE_SPACE)) > floor:
        if data[end - 1] not in WHITE_SPACE:
            return end
    return 0
