"""Read the documents of one share of a corpus from any position, and retry after read errors.

Shares. With R ranks and W workers in each, R·W readers divide the documents without communication.
Each reader numbers all documents of the epoch in the same order. Of R·W consecutive documents each
reader takes one, and a permutation keyed by the seed selects it. If each reader took every
(R·W)-th document instead, two readers of a file with alternating languages would each get only one
language. Every reader reads and cleans all of the text (a quarter of the work) and encodes only its
share.

Positions. Files are cut into spans of about 16 MB, as in a build; a compressed file or a CSV file
is one span. A `Cursor` is the epoch, the file, the span, and the row in the span. Resuming skips
files and spans without reading them, and reads the span of the cursor from its beginning. Rows
before the cursor are cleaned but not encoded.

Retries. Reading over a network fails sometimes. If reading a span fails, the span is read again
from its beginning, after a pause that doubles each time, and the documents that were already
yielded are skipped. So a temporary error neither loses nor repeats a document. Permanent errors,
such as a missing or malformed file, are raised at once.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice

import numpy as np
import pyarrow as pa

from preprocess.documents import HELD_OUT, TRAIN, VAL, count_text_bytes
from preprocess.errors import FolioError, explain_os_error, first_line
from preprocess.inputs.input_files import InputChanged, InputFile, Span
from preprocess.readers import check_input_file
from preprocess.readers.partitions import iter_spans
from preprocess.readers.records import WARNED_REASONS, Rejects, format_counts
from preprocess.shards.permutation import keyed_hash, permute
from preprocess.stages.dedup import hash_contents, hash_groups
from preprocess.stages.pipeline import SIDE_BY_NAME, read_documents
from preprocess.stages.split import is_below_threshold, key_groups
from preprocess.stream.corpus import Log, StreamCorpus

SIDE_OF_SPLIT = {"train": TRAIN, "val": VAL}
SHARE_KEY = 0x5A4E  # makes the shares independent of the shuffled order, which has the same seed
# Errors that a retry cannot repair.
PERMANENT_ERRORS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Cursor:
    """A position in a corpus: before token `offset` of a document.

    States contain the fields under these names.
    """

    epoch: int = 0
    source: int = 0  # the number of the input file
    span: int = 0  # the number of the span in the file
    row: int = 0  # documents of the span before this one, including those of the other split and other shares
    number: int = 0  # documents of the epoch before `row`; empty and held-out documents are not counted
    offset: int = 0


@dataclass(frozen=True)
class Share:
    """The part of the documents that worker `worker` of rank `rank` reads."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    @property
    def num_shares(self) -> int:
        return self.world_size * self.num_workers

    @property
    def index(self) -> int:
        return self.rank * self.num_workers + self.worker

    def contains(self, numbers: np.ndarray, seed: int) -> np.ndarray:
        """Return whether this share has each of the documents `numbers`, (D,) int64: (D,) bool."""
        if self.num_shares == 1:
            return np.ones(len(numbers), bool)
        cycle, index = np.divmod(numbers.astype(np.uint64), np.uint64(self.num_shares))
        is_in_share: np.ndarray = permute(index, self.num_shares, keyed_hash(seed ^ SHARE_KEY, cycle)) == self.index
        return is_in_share


@dataclass(frozen=True)
class Retries:
    """How many times reading is tried at one position, and the pause after a failure.

    The first pause is `backoff_s` seconds; each further one is twice as long.
    """

    tries: int = 5
    backoff_s: float = 0.5


@dataclass(frozen=True)
class SelectedDocuments:
    """Documents of a span that belong to the requested split and share, in order."""

    batch: pa.RecordBatch  # D documents
    hashes: np.ndarray  # (D, 16) uint8, content hashes
    span_start: Cursor
    rows: np.ndarray  # (D,) int64, `row` of the cursor of each document
    numbers: np.ndarray  # (D,) int64, `number` of the cursor of each document

    def cursor(self, document: int, offset: int) -> Cursor:
        """Return the position before token `offset` of a document, given by its index."""
        return replace(self.span_start, row=int(self.rows[document]), number=int(self.numbers[document]), offset=offset)


@dataclass
class DocumentReader:
    """Reads one split and one share of a corpus."""

    corpus: StreamCorpus
    split: str
    share: Share
    seed: int
    epochs: int | None  # passes over the corpus, unlimited if unset
    retries: Retries
    side_of_file: dict[int, int] = field(init=False)  # file number -> side, if the names of the files give the split
    is_test_for_training: bool = field(init=False)  # train on the test split, as the names give no training split

    def __post_init__(self) -> None:
        self.side_of_file = self._find_sides_by_name()
        self.is_test_for_training = bool(self.side_of_file) and TRAIN not in self.side_of_file.values()

    def read(self, start: Cursor) -> Iterator[SelectedDocuments]:
        """Yield the documents from `start` on, epoch after epoch.

        Raises FolioError if an epoch has no document for this split and share.
        """
        for epoch in count(start.epoch):
            if epoch == self.epochs:
                return
            epoch_start = start if epoch == start.epoch else Cursor(epoch)
            is_empty = True
            for selected in self._read_epoch(epoch_start):
                is_empty = False
                yield selected
            if is_empty and epoch_start == Cursor(epoch):
                raise FolioError(self._explain_no_document())

    def _explain_no_document(self) -> str:
        share = self.share
        is_shared = share.num_shares > 1
        part = f"share {share.index} of {share.num_shares} of " if is_shared else ""
        return (
            f"no document is left for {part}the {self.split} split of {self.corpus.name}; check its files, columns, "
            f"conditions, cleaning rules and val_fraction{', or use fewer processes and workers' if is_shared else ''}"
        )

    def _read_epoch(self, start: Cursor) -> Iterator[SelectedDocuments]:
        max_documents, number = self.corpus.recipe.max_documents, start.number
        for file in self.corpus.input_files[start.source :]:
            if self._can_skip(file):
                continue
            is_first_file = file.number == start.source
            reject_counts = Counter[str]()
            for index, span in self._iter_spans(file, start.span if is_first_file else 0):
                span_start = Cursor(start.epoch, file.number, index)
                num_skipped = start.row if is_first_file and index == start.span else 0
                for row, batch, sides in self._read_span(file, span, num_skipped, reject_counts):
                    selected, number = self._select(batch, sides, span_start, row, number)
                    if len(selected.rows):
                        yield selected
                    if max_documents is not None and number >= max_documents:
                        return
            self._log_rejects(file, reject_counts)

    def _log_rejects(self, file: InputFile, reject_counts: Counter[str]) -> None:
        counts = {reason: reject_counts[reason] for reason in WARNED_REASONS if reject_counts[reason]}
        if counts:
            self.corpus.log(f"{file.path}: some documents were dropped or changed: {', '.join(format_counts(counts))}")

    def _find_sides_by_name(self) -> dict[int, int]:
        """Return the side of each file, if the split is given by the names of the files."""
        if self.corpus.recipe.split != "given" or self.corpus.recipe.split_column is not None:
            return {}
        sides = {file.number: SIDE_BY_NAME.get(str(file.metadata.get("split", ""))) for file in self.corpus.input_files}
        return {number: side for number, side in sides.items() if side is not None}

    def _can_skip(self, file: InputFile) -> bool:
        """Return whether a file is known to have no document of this split.

        With max_documents no file is skipped, because the documents of both splits are counted.
        """
        side = self.side_of_file.get(file.number)
        if side is None or self.corpus.recipe.max_documents is not None:
            return False
        side = TRAIN if side == HELD_OUT and self.is_test_for_training else side
        return side != SIDE_OF_SPLIT[self.split]

    def _iter_spans(self, file: InputFile, first: int) -> Iterator[tuple[int, Span]]:
        """Yield (number, span) for the spans of a file, from number `first` on."""
        index, num_failures = first, 0
        while True:
            try:
                check_input_file(file, self.corpus.recipe)
                for span in islice(iter_spans(file, self.corpus.recipe), index, None):
                    yield index, span
                    index, num_failures = index + 1, 0
                return
            except (OSError, FolioError) as e:
                num_failures += 1
                wait_before_retry(file, e, num_failures, self.retries, self.corpus.log)

    def _read_span(
        self, file: InputFile, span: Span, num_skipped: int, reject_counts: Counter[str]
    ) -> Iterator[tuple[int, pa.RecordBatch, np.ndarray]]:
        """Yield (row, batch, sides) for the documents of `span` after the first `num_skipped`.

        `row` is the row of the batch's first document in the span.
        """
        num_read, num_failures = num_skipped, 0
        while True:
            rejects, row = Rejects(None), 0
            try:
                for batch, sides in read_documents([(file, span)], self.corpus.recipe, rejects, Counter()):
                    end = row + batch.num_rows
                    if end > num_read:
                        skip = max(num_read - row, 0)  # read before the failure, or before the cursor
                        yield row + skip, batch.slice(skip), sides[skip:]
                        num_read, num_failures = end, 0
                    row = end
                reject_counts.update(rejects.counts)
                return
            except (OSError, FolioError) as e:
                num_failures += 1
                wait_before_retry(file, e, num_failures, self.retries, self.corpus.log)

    def _select(
        self, batch: pa.RecordBatch, sides: np.ndarray, span_start: Cursor, row: int, number: int
    ) -> tuple[SelectedDocuments, int]:
        """Return the documents of a batch that belong to this split and share.

        `row` and `number` are those of the batch's first document. Also returns the number of the
        first document after the batch.
        """
        recipe = self.corpus.recipe
        hashes = hash_contents(batch.column("text"))
        if recipe.split == "threshold":
            keys = key_groups(hash_groups(batch, hashes, recipe), recipe.seed)["h"]
            sides = np.where(is_below_threshold(keys, recipe.val_fraction), VAL, TRAIN)
        elif self.is_test_for_training:
            sides = np.where(sides == HELD_OUT, TRAIN, sides)
        is_counted = (count_text_bytes(batch.column("text")) > 0) & (sides != HELD_OUT)  # (D,)
        next_numbers = number + np.cumsum(is_counted, dtype=np.int64)  # (D,)
        numbers = next_numbers - is_counted  # (D,)
        keep = is_counted & (sides == SIDE_OF_SPLIT[self.split]) & self.share.contains(numbers, self.seed)
        if recipe.max_documents is not None:
            keep &= numbers < recipe.max_documents
        rows = np.flatnonzero(keep)
        kept = batch if keep.all() else batch.filter(pa.array(keep))
        selected = SelectedDocuments(kept, hashes[rows], span_start, rows + row, numbers[rows])
        return selected, int(next_numbers[-1]) if len(next_numbers) else number


def wait_before_retry(
    file: InputFile, error: OSError | FolioError, num_failures: int, retries: Retries, log: Log
) -> None:
    """Log a failure that may be temporary, and pause before the next try.

    Raises FolioError for a permanent failure, or after the last try. Readers convert the errors of
    libraries to FolioError, so the cause decides: an OSError may be temporary, any other error
    means that the file is damaged.
    """
    if isinstance(error, InputChanged):
        raise FolioError(
            f"{error.reason}; restore the file and continue from the last state or checkpoint, or start again"
        ) from error
    cause = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(cause, OSError) or cause.errno in PERMANENT_ERRORS:
        if isinstance(error, FolioError):
            raise error
        raise FolioError(explain_os_error(error)) from error
    if num_failures >= retries.tries:
        if isinstance(error, FolioError):
            raise error
        raise FolioError(
            f"{file.path} could not be read in {num_failures} tries ({first_line(cause)}); check its disk or network "
            "and continue from the last state"
        ) from error
    seconds = retries.backoff_s * 2 ** (num_failures - 1)
    log(
        f"{file.path} could not be read ({first_line(cause)}); "
        f"try {num_failures + 1} of {retries.tries} in {seconds:g} s"
    )
    time.sleep(seconds)
