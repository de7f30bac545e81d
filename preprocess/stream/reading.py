"""Read the documents of one share of a corpus from any position.

Shares. With R ranks and W workers in each, R·W readers divide the documents without communication.
Each reader numbers all documents of the epoch in the same order. Of R·W consecutive documents each
reader takes one, and a permutation keyed by the seed selects it. If each reader took every
(R·W)-th document instead, two readers of a file with alternating languages would each get only one
language. Every reader reads and cleans all of the text (a quarter of the work for one reader) and
encodes only its share.

Positions. Files are cut into spans of about 16 MB, as in a build; a compressed file or a CSV file
is one span. A `Cursor` is the epoch, the file, the span, and the row in the span. Resuming skips
files and spans without reading them, and reads the span of the cursor from its beginning. Rows
before the cursor are cleaned but not encoded.

Small files. A batch costs about 1 ms to clean, hash and encode, however small it is. So consecutive
small files form a *run*, which is read like one file. The runs depend on where the stream begins,
but the documents and their cursors do not depend on the runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice

import numpy as np
import pyarrow as pa

from preprocess.documents import HELD_OUT, TRAIN, VAL, count_text_bytes
from preprocess.errors import FolioError
from preprocess.inputs import input_files
from preprocess.inputs.input_files import InputFile, Span
from preprocess.inputs.remote.on_demand import CopyingOpener
from preprocess.inputs.remote.remote_file import Unreachable
from preprocess.readers.input_checks import InputChecker
from preprocess.readers.locate import Locator
from preprocess.readers.partitions import is_one_document, iter_spans
from preprocess.readers.records import Rejects, format_counts
from preprocess.readers.reject_messages import describe_rejects
from preprocess.readers.reject_reasons import explain_reasons
from preprocess.recipes.schema import is_grouped_by_content
from preprocess.shards.permutation import keyed_hash, permute
from preprocess.stages.decontaminate import CONTAMINATED
from preprocess.stages.dedup import hash_contents, hash_groups
from preprocess.stages.pipeline import SIDE_BY_NAME, count_dropped, decontaminate, read_documents
from preprocess.stages.split import is_below_threshold, key_groups
from preprocess.stream.corpus import StreamCorpus
from preprocess.stream.retries import Retries, wait_before_retry

SIDE_OF_SPLIT = {"train": TRAIN, "val": VAL}
SMALL_FILE_BYTES = 1 << 16
MAX_RUN_FILES = 64
SHARE_KEY = 0x5A4E  # makes the shares independent of the shuffled order, which has the same seed


@dataclass(frozen=True)
class Cursor:
    """A position in a corpus: before token `offset` of a document.

    The fields are also the keys of `cursor` in a state.
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
class _Run:
    """The spans that are read together: one span of a file, or the only spans of consecutive small files."""

    spans: list[tuple[InputFile, Span]]
    index: int = 0  # the number of the span in its file


@dataclass(frozen=True)
class SelectedDocuments:
    """D documents of a run that belong to the requested split and share, in order."""

    batch: pa.RecordBatch  # D documents
    hashes: np.ndarray  # (D, 16) uint8, content hashes
    run_start: Cursor  # before the first document of the run
    rows: np.ndarray  # (D,) int64, `row` of the cursor of each document
    numbers: np.ndarray  # (D,) int64, `number` of the cursor of each document

    def cursor(self, document: int, offset: int) -> Cursor:
        """Return the position before token `offset` of a document, given by its index."""
        source, row, number = self.batch.column("source")[document].as_py(), self.rows[document], self.numbers[document]
        return replace(self.run_start, source=source, row=int(row), number=int(number), offset=offset)


@dataclass
class DocumentReader:
    """A reader of one split and one share of a corpus."""

    corpus: StreamCorpus
    split: str
    share: Share
    seed: int
    epochs: int | None  # passes over the corpus, unlimited if unset
    retries: Retries
    side_of_file: dict[int, int] = field(init=False)  # file number -> side, if the names of the files give the split
    is_test_for_training: bool = field(init=False)  # train on the test split, as no file name gives a training split
    splits_parts: bool = field(init=False)  # split the parts of the only document, as a build does
    files: list[InputFile] = field(init=False)  # remote ones as they are on the disk, if they have been opened
    opener: CopyingOpener = field(init=False)
    checker: InputChecker = field(init=False)
    epoch_rejects: Rejects = field(default_factory=lambda: Rejects(None), init=False)

    def __post_init__(self) -> None:
        self.side_of_file = self._find_sides_by_name()
        self.is_test_for_training = bool(self.side_of_file) and TRAIN not in self.side_of_file.values()
        files, recipe = list(self.corpus.input_files), self.corpus.recipe
        self.splits_parts = len(files) == 1 and is_one_document(files[0], recipe) and is_grouped_by_content(recipe)
        read_files = [file for file in files if not self._can_skip(file)]
        self.files, self.opener = files, CopyingOpener(read_files, self.corpus.on_demand, self.corpus.log)
        self.checker = InputChecker(files, recipe)

    def read(self, start: Cursor) -> Iterator[SelectedDocuments]:
        """Yield the documents from `start` on, epoch after epoch.

        Raises FolioError if an epoch has no document for this split and share, or if reading fails
        permanently.
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
        files, share = self.files, self.share
        if all(not file.size_bytes or file.path in self.checker.empty_files for file in files):
            if len(files) == 1:
                return f"the input file {files[0].path} is empty; name another"
            return f"all {len(files):,} input files of {self.corpus.name} are empty; name others"
        is_shared = share.num_shares > 1
        part = f"share {share.index} of {share.num_shares} of " if is_shared else ""
        counts = "; ".join(format_counts(self.epoch_rejects.counts))
        explanation = explain_reasons(self.epoch_rejects.reasons.as_list(), Locator(files))
        return (
            f"no document is left for {part}the {self.split} split of {self.corpus.name}"
            f"{f': {counts}; {explanation}' if explanation else ''}; check its files, columns, conditions, cleaning "
            f"rules, filters and val_fraction{', or use fewer processes and workers' if is_shared else ''}"
        )

    def _read_epoch(self, start: Cursor) -> Iterator[SelectedDocuments]:
        max_documents, number = self.corpus.recipe.max_documents, start.number
        files: list[InputFile] = []  # those whose rejects are not logged yet
        rejects = Rejects(None)  # of `files`
        self.epoch_rejects = Rejects(None)
        for run in self._iter_runs(start):
            first_file = run.spans[0][0]
            if files and files[-1] is not first_file:
                self._log_rejects(files, rejects)
                files, rejects = [], Rejects(None)
            files += [file for file, _ in run.spans]
            run_start = Cursor(start.epoch, first_file.number, run.index)
            num_skipped = start.row if (first_file.number, run.index) == (start.source, start.span) else 0
            first_rows = {first_file.number: 0}
            for row, batch, sides in self._read_run(run, num_skipped, rejects):
                rows = _number_rows(batch, row, first_rows)
                selected, number = self._select(batch, sides, run_start, rows, number)
                if len(selected.rows):
                    yield selected
                if max_documents is not None and number >= max_documents:
                    return
        self._log_rejects(files, rejects)

    def _iter_runs(self, start: Cursor) -> Iterator[_Run]:
        """Yield the spans from `start` on that can contain documents of this split."""
        small: list[tuple[InputFile, Span]] = []
        for file in self.corpus.input_files[start.source :]:
            if self._can_skip(file):
                continue
            # A small file has one span, with number 0. A Parquet file waits for its turn, as it must be opened to list
            # its spans.
            max_bytes = min(SMALL_FILE_BYTES, input_files.PARTITION_BYTES)
            is_small = file.size_bytes <= max_bytes and file.format != "parquet"
            if small and (not is_small or len(small) == MAX_RUN_FILES):
                yield _Run(small)
                small = []
            for index, span in self._iter_spans(file, start.span if file.number == start.source else 0):
                if is_small:
                    small.append((self.files[file.number], span))
                else:
                    yield _Run([(self.files[file.number], span)], index)
        if small:
            yield _Run(small)

    def _log_rejects(self, files: list[InputFile], rejects: Rejects) -> None:
        self.epoch_rejects.merge(rejects)
        if line := describe_rejects(rejects.counts, rejects.reasons.as_list(), files):
            others = f" to {files[-1].path}" if files[-1] is not files[0] else ""
            self.corpus.log(f"{files[0].path}{others}: {line}")

    def _find_sides_by_name(self) -> dict[int, int]:
        """Return the side of each file by its number, if the names of the files give the split."""
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
        """Yield (number, span) for the spans of a file, from number `first` on. Reading errors are retried."""
        index, num_failures = first, 0
        while True:
            try:
                file = self._open(file)
                self.checker.check(file)
                for span in islice(iter_spans(file, self.corpus.recipe), index, None):
                    yield index, span
                    index, num_failures = index + 1, 0
                return
            except (OSError, FolioError) as e:
                num_failures += 1
                self._wait_before_retry(file, e, num_failures)

    def _read_run(
        self, run: _Run, num_skipped: int, total_rejects: Rejects
    ) -> Iterator[tuple[int, pa.RecordBatch, np.ndarray]]:
        """Yield (row, batch, sides) for the documents of `run` after the first `num_skipped`.

        `row` is the row of the batch's first document in the run.
        """
        num_read, num_failures = num_skipped, 0
        while True:
            rejects, row = Rejects(None), 0
            try:
                spans = [(self._open(file), span) for file, span in run.spans]
                documents = read_documents(spans, self.corpus.recipe, rejects, Counter())
                names = {file.number: file.name for file, _ in run.spans}
                count_contaminated = partial(count_dropped, rejects, CONTAMINATED, names=names)
                for batch, sides in decontaminate(
                    documents, self.corpus.decontaminator, self.corpus.recipe, count_contaminated
                ):
                    end = row + batch.num_rows
                    if end > num_read:
                        skip = max(num_read - row, 0)  # read before the failure, or before the cursor
                        yield row + skip, batch.slice(skip), sides[skip:]
                        num_read, num_failures = end, 0
                    row = end
                total_rejects.merge(rejects)
                return
            except (OSError, FolioError) as e:
                num_failures += 1
                failed, _ = run.spans[min(len(rejects.finished_spans), len(run.spans) - 1)]
                self._wait_before_retry(self.files[failed.number], e, num_failures)

    def _open(self, file: InputFile) -> InputFile:
        """Return a file as it is on the disk. A remote file is copied if necessary."""
        self.files[file.number] = opened = self.opener.open(file)
        return opened

    def _wait_before_retry(self, file: InputFile, error: OSError | FolioError, num_failures: int) -> None:
        """Pause before the next try, except if another stream has deleted a copy: it is copied again at once."""
        was_deleted = self.opener.was_deleted(file) and not isinstance(error, Unreachable)
        if not was_deleted or num_failures >= self.retries.tries:
            wait_before_retry(file, error, num_failures, self.retries, self.corpus.log)

    def _select(
        self, batch: pa.RecordBatch, sides: np.ndarray, run_start: Cursor, rows: np.ndarray, number: int
    ) -> tuple[SelectedDocuments, int]:
        """Return the documents of a batch that belong to this split and share.

        `rows`, (D,) int64, and `number` are fields of Cursor: `row` of each document, and `number`
        of the first one. Also returns the number of the first document after the batch.
        """
        recipe = self.corpus.recipe
        hashes = hash_contents(batch.column("text"))
        if recipe.split == "threshold":
            groups = hashes if self.splits_parts else hash_groups(batch, hashes, recipe)
            keys = key_groups(groups, recipe.seed)["h"]
            sides = np.where(is_below_threshold(keys, recipe.val_fraction), VAL, TRAIN)
        elif self.is_test_for_training:
            sides = np.where(sides == HELD_OUT, TRAIN, sides)
        is_counted = (count_text_bytes(batch.column("text")) > 0) & (sides != HELD_OUT)  # (D,)
        next_numbers = number + np.cumsum(is_counted, dtype=np.int64)  # (D,)
        numbers = next_numbers - is_counted  # (D,)
        keep = is_counted & (sides == SIDE_OF_SPLIT[self.split]) & self.share.contains(numbers, self.seed)
        if recipe.max_documents is not None:
            keep &= numbers < recipe.max_documents
        kept = batch if keep.all() else batch.filter(pa.array(keep))
        selected = SelectedDocuments(kept, hashes[keep], run_start, rows[keep], numbers[keep])
        return selected, int(next_numbers[-1]) if len(next_numbers) else number


def _number_rows(batch: pa.RecordBatch, row: int, first_rows: dict[int, int]) -> np.ndarray:
    """Return the row of each document of a batch in its span, (D,) int64.

    `row` is the row of the batch's first document in the run. `first_rows` maps each source to the
    row of its first document in the run; the sources of the batch are added to it.
    """
    sources, firsts, inverse = np.unique(batch.column("source").to_numpy(), return_index=True, return_inverse=True)
    for source, first in zip(sources.tolist(), firsts.tolist(), strict=True):
        first_rows.setdefault(source, row + first)
    starts = np.array([first_rows[source] for source in sources.tolist()], np.int64)
    rows: np.ndarray = row + np.arange(batch.num_rows) - starts[inverse]
    return rows
