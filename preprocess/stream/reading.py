"""The documents of one share of a corpus, from any place on: files opened as they come, reread where reading fails."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice

import numpy as np
import pyarrow as pa

from preprocess.documents import HELD_OUT, TRAIN, VAL, text_bytes
from preprocess.errors import FolioError, explain_os_error, first_line
from preprocess.inputs.input_files import InputChanged, InputFile, Span
from preprocess.readers import check_input_file
from preprocess.readers.partitions import iter_spans
from preprocess.readers.records import UNMEANT, Rejects, format_counts
from preprocess.shards.permutation import keyed_hash, permute
from preprocess.stages.dedup import content_hashes, groups_of
from preprocess.stages.pipeline import SIDES, documents_of
from preprocess.stages.split import is_below, keyed_groups
from preprocess.stream.corpus import StreamCorpus, Tell

SIDE_OF_SPLIT = {"train": TRAIN, "val": VAL}
SHARE_KEY = 0x5A4E  # so that who reads a document does not follow from where the shuffle puts it
# Trying again mends none of these.
FINAL = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Cursor:
    """A place in a corpus: in front of token `offset` of a document."""

    epoch: int = 0
    source: int = 0
    span: int = 0  # of the source, as partitions.py cuts it
    row: int = 0  # how many documents of the span come before, those of other sides and shares among them
    number: int = 0  # how many documents of the epoch come before `row` that hold text and are not held out
    offset: int = 0


@dataclass(frozen=True)
class Share:
    """Which part of the documents is read: that of worker `worker` of rank `rank`."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    def takes(self, numbers: np.ndarray, seed: int) -> np.ndarray:
        """Which of the documents `numbers`, (D,) int64, are of this share: (D,) bool.

        Of as many consecutive documents as there are shares each takes one, which one by a permutation keyed by `seed`: documents that
        alternate, as translations do, do not all go one way.
        """
        num_shares = self.world_size * self.num_workers
        if num_shares == 1:
            return np.ones(len(numbers), bool)
        cycle, place = np.divmod(numbers.astype(np.uint64), np.uint64(num_shares))
        taken: np.ndarray = (
            permute(place, num_shares, keyed_hash(seed ^ SHARE_KEY, cycle))
            == self.rank * self.num_workers + self.worker
        )
        return taken


@dataclass(frozen=True)
class Retries:
    """How often a file is tried at one place, and how long is waited: `backoff_s`, and twice as long each time."""

    tries: int = 5
    backoff_s: float = 0.5


@dataclass(frozen=True)
class Selected:
    """Consecutive documents of a span that are of the wanted side and share."""

    batch: pa.RecordBatch
    hashes: np.ndarray  # (D, 16) uint8, of the contents
    place: Cursor  # of the span; `row` and `number` are below
    rows: np.ndarray  # (D,) each document's `row`
    numbers: np.ndarray  # (D,) and `number`

    def cursor(self, document: int, offset: int) -> Cursor:
        return replace(self.place, row=int(self.rows[document]), number=int(self.numbers[document]), offset=offset)


@dataclass
class DocumentReader:
    """Reads one side and one share of a corpus."""

    corpus: StreamCorpus
    split: str
    share: Share
    seed: int
    epochs: int | None
    retries: Retries
    sides: dict[int, int] = field(init=False)  # of whole files, by number, where their names tell
    test_trains: bool = field(init=False)

    def __post_init__(self) -> None:
        self.sides = self._sides_by_name()
        self.test_trains = bool(self.sides) and TRAIN not in self.sides.values()

    def read(self, start: Cursor) -> Iterator[Selected]:
        """The documents from `start` on, epoch after epoch. Raises FolioError where a pass over the corpus gives none."""
        for epoch in count(start.epoch):
            if epoch == self.epochs:
                return
            begin = start if epoch == start.epoch else Cursor(epoch)
            num_found = 0
            for found in self._epoch(begin):
                num_found += 1
                yield found
            if not num_found and begin == Cursor(epoch):
                raise FolioError(self._explain_nothing())

    def _explain_nothing(self) -> str:
        share = self.share
        num_shares = share.world_size * share.num_workers
        where = f"share {share.rank * share.num_workers + share.worker} of {num_shares} of " if num_shares > 1 else ""
        return (
            f"no document is left for {where}the {self.split} side of {self.corpus.name}; check its files, columns, conditions, cleaning "
            f"rules and val_fraction{', or share it among fewer' if where else ''}"
        )

    def _epoch(self, start: Cursor) -> Iterator[Selected]:
        most, number = self.corpus.recipe.max_documents, start.number
        for source in self.corpus.sources[start.source :]:
            if self._is_of_other_side(source):
                continue
            is_first = source.number == start.source
            lost = Counter[str]()
            for index, span in self._pieces(source, start.span if is_first else 0):
                place = Cursor(start.epoch, source.number, index)
                skip = start.row if is_first and index == start.span else 0
                for row, batch, sides in self._documents(source, span, skip, lost):
                    selected, number = self._select(batch, sides, place, row, number)
                    if len(selected.rows):
                        yield selected
                    if most is not None and number >= most:
                        return
            if any(lost[reason] for reason in UNMEANT):
                counted = ", ".join(format_counts({reason: lost[reason] for reason in UNMEANT if lost[reason]}))
                self.corpus.tell(f"{source.path}: some documents were not taken as they are: {counted}")

    def _sides_by_name(self) -> dict[int, int]:
        """The side of every source, where the files' names give it and nothing else does."""
        if self.corpus.recipe.split != "given" or self.corpus.recipe.split_column is not None:
            return {}
        named = {source.number: SIDES.get(source.metadata.get("split", "")) for source in self.corpus.sources}
        return {number: side for number, side in named.items() if side is not None}

    def _is_of_other_side(self, source: InputFile) -> bool:
        """Whether a file need not be opened. Under a cap it must: the cap counts both sides' documents."""
        side = self.sides.get(source.number)
        if side is None or self.corpus.recipe.max_documents is not None:
            return False
        side = TRAIN if side == HELD_OUT and self.test_trains else side
        return side != SIDE_OF_SPLIT[self.split]

    def _pieces(self, source: InputFile, first: int) -> Iterator[tuple[int, Span]]:
        """The spans of a file from number `first` on, with their numbers."""
        index, failures = first, 0
        while True:
            try:
                check_input_file(source, self.corpus.recipe)
                for span in islice(iter_spans(source, self.corpus.recipe), index, None):
                    yield index, span
                    index, failures = index + 1, 0
                return
            except (OSError, FolioError) as e:
                failures += 1
                wait(source, e, failures, self.retries, self.corpus.tell)

    def _select(
        self, batch: pa.RecordBatch, sides: np.ndarray, place: Cursor, row: int, number: int
    ) -> tuple[Selected, int]:
        """Of a batch whose first document is `row` of the span and would be `number` of the epoch, what is wanted; and the next number."""
        recipe = self.corpus.recipe
        hashes = content_hashes(batch.column("text"))
        if recipe.split == "threshold":
            keys = keyed_groups(groups_of(batch, hashes, recipe), recipe.seed)["h"]
            sides = np.where(is_below(keys, recipe.val_fraction), VAL, TRAIN)
        elif self.test_trains:
            sides = np.where(sides == HELD_OUT, TRAIN, sides)
        is_counted = (text_bytes(batch.column("text")) > 0) & (sides != HELD_OUT)
        after = number + np.cumsum(is_counted, dtype=np.int64)
        numbers = after - is_counted
        keep = is_counted & (sides == SIDE_OF_SPLIT[self.split]) & self.share.takes(numbers, self.seed)
        if recipe.max_documents is not None:
            keep &= numbers < recipe.max_documents
        rows = np.flatnonzero(keep)
        kept = batch if keep.all() else batch.filter(pa.array(keep))
        return Selected(kept, hashes[rows], place, rows + row, numbers[rows]), int(after[-1]) if len(after) else number

    def _documents(
        self, source: InputFile, span: Span, skip: int, lost: Counter[str]
    ) -> Iterator[tuple[int, pa.RecordBatch, np.ndarray]]:
        """The documents of `span` behind the first `skip`, each batch with the row that it begins at.

        Where reading fails, the span is read again and what was given out already passed over.
        """
        taken, failures = skip, 0
        while True:
            rejects, row = Rejects(None), 0
            try:
                for batch, sides in documents_of(source, span, self.corpus.recipe, rejects, Counter()):
                    end = row + batch.num_rows
                    if end > taken:
                        passed_over = max(taken - row, 0)
                        yield row + passed_over, batch.slice(passed_over), sides[passed_over:]
                        taken, failures = end, 0
                    row = end
                lost.update(rejects.counts)
                return
            except (OSError, FolioError) as e:
                failures += 1
                wait(source, e, failures, self.retries, self.corpus.tell)


def wait(source: InputFile, error: OSError | FolioError, failures: int, retries: Retries, tell: Tell) -> None:
    """Tell of a failure that may pass, and wait a while. Raises FolioError for any other, and when there were as many as may be.

    Readers make a FolioError of what a library says of a damaged file; whether the file or the way to it is bad, only its cause hints at.
    """
    if isinstance(error, InputChanged):
        raise FolioError(
            f"{error.what}; put it back as it was and go on from the last state or checkpoint, or begin anew"
        ) from error
    cause = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(cause, OSError) or cause.errno in FINAL:
        if isinstance(error, FolioError):
            raise error
        raise FolioError(explain_os_error(error)) from error
    if failures >= retries.tries:
        if isinstance(error, FolioError):
            raise error
        raise FolioError(
            f"{source.path} could not be read in {failures} tries ({first_line(cause)}); see to its disk or network and go on from the "
            "last state"
        ) from error
    seconds = retries.backoff_s * 2 ** (failures - 1)
    tell(
        f"{source.path} could not be read ({first_line(cause)}); try {failures + 1} of {retries.tries} in {seconds:g} s"
    )
    time.sleep(seconds)
