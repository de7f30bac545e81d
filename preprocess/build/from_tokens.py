"""Make a build of documents that are tokens already: those of another program, or of other builds.

The phase `prepare` of a build writes the ids of its documents to the work directory. Here they come
from files of tokens instead, and the phases that follow are those of every build: drop duplicates
and split, compute the shards, write them, publish.

The cost: every token is written twice, as in a build, and decoded once, because documents are
identified by the hash of their text and the statistics have its size. The memory is that of a few
million tokens or one document.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preprocess.build.build_log import BuildLog
from preprocess.build.dedup_and_split import dedup_and_split
from preprocess.build.engines.local import SerialEngine
from preprocess.build.metadata import BuildContents, write_metadata
from preprocess.build.plan import Plan
from preprocess.build.prepared_corpus import PreparedCorpus
from preprocess.build.publish import is_already_built, lock_build, publish
from preprocess.build.receipts import PartitionValues, PrepareReceipt
from preprocess.build.same_side import keep_texts_together
from preprocess.build.shard_layout import lay_out_shards
from preprocess.build.split_assignment import SplitAssignment
from preprocess.build.stats import list_warnings
from preprocess.build.work_dir import DOCUMENT_DTYPE, LENGTH_DTYPE, WorkDir, delete_work, open_work_dir
from preprocess.build.write_shards import ShardOutput, write_shards
from preprocess.errors import FolioError, format_quantity
from preprocess.inputs.input_files import InputFile
from preprocess.progress import Bar, Progress
from preprocess.recipes.schema import Recipe
from preprocess.shards.files import JsonObject, canonical_json, restore_replaced_directory, sha256_bytes
from preprocess.shards.format import MANIFEST, read_manifest, token_dtype
from preprocess.tokenizers.decode_build import MAX_TEXT_BYTES
from preprocess.tokenizers.vocabulary import Vocabulary

# Settings of the recipe in the manifest that are found in the documents.
FOUND_SETTINGS = ("bos", "chat_columns", "eot", "masks")
LEAK_ADVICE = "import only the training files: a random split keeps equal texts on one side"


@dataclass(frozen=True, kw_only=True)
class TokenRecipe(Recipe):
    """The settings of a build from tokens."""

    stored: JsonObject = field(default_factory=dict)  # the recipe in the manifest
    masks: bool = False  # whether the documents have loss masks
    keeps_texts_together: bool = False  # move equal texts to the side of the first one

    @property
    def has_masks(self) -> bool:
        return self.masks

    def resolved(self) -> JsonObject:
        """Return the recipe in the manifest."""
        return self.stored


@dataclass(frozen=True)
class PreparedTokens:
    """D complete documents with N tokens in total, and what the tables of a build say about them."""

    ids: np.ndarray  # (N,), all below the vocabulary's size
    ends: np.ndarray  # (D,) int64
    table: np.ndarray  # (D,) of DOCUMENT_DTYPE
    mask: np.ndarray | None  # (N,) bool


@dataclass
class Values:
    """The values that the tables of a partition refer to by their index, which are found while it is read."""

    languages: dict[str, int] = field(default_factory=dict)
    authors: dict[str, int] = field(default_factory=dict)
    cities: dict[str, int] = field(default_factory=dict)

    def as_partition_values(self) -> PartitionValues:
        return PartitionValues(author=[*self.authors], city=[*self.cities], lang=[*self.languages], alphabet=None)


@dataclass(frozen=True)
class TokenPart:
    """Documents that are read one after the other, in the same way."""

    name: str  # for messages
    num_bytes: int  # for the progress
    read: Callable[[Values], Iterator[PreparedTokens]]


@dataclass(frozen=True)
class TokenInputs:
    """Everything that decides the bytes of a build from tokens."""

    recipe: TokenRecipe
    files: list[InputFile]
    sources: list[JsonObject]  # of the manifest
    parts: Sequence[TokenPart]
    vocabulary: Vocabulary
    check: Callable[[], None]  # raises FolioError if the input has changed


@dataclass(frozen=True)
class TokenPlan(Plan):
    """A plan whose sources need not be files."""

    sources: list[JsonObject] = field(default_factory=list)

    def source_entries(self) -> list[JsonObject]:
        return self.sources


def build_from_tokens(inputs: TokenInputs, output_dir: Path, *, name: str, replace: bool, progress: Progress) -> bool:
    """Make the build in `output_dir`. Returns False if it is there already.

    `name` and `replace` are as in `build`. Raises MisuseError or FolioError if the build cannot be made;
    then a build that was in `output_dir` is unchanged, and no part of the new one remains.
    """
    output_dir = output_dir.resolve()
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with lock_build(output_dir):
        restore_replaced_directory(output_dir)
        expected = _add_found_settings(inputs.recipe.stored, output_dir, replace=replace)
        if is_already_built(output_dir, expected, inputs.sources, replace=replace):
            return False
        key = sha256_bytes(canonical_json([inputs.recipe.stored, inputs.sources]))[:16]
        try:
            _make(inputs, open_work_dir(output_dir, key), output_dir, name, progress)
        finally:
            delete_work(output_dir, progress)
    return True


def _add_found_settings(settings: JsonObject, output_dir: Path, *, replace: bool) -> JsonObject:
    """Return `settings` with those that an earlier build of the same documents has found in them."""
    if replace or not (output_dir / MANIFEST).is_file():
        return settings
    earlier = read_manifest(output_dir, advice="pass --replace to build it again").recipe
    kept = {key: value for key, value in settings.items() if key not in FOUND_SETTINGS}
    return kept | {key: earlier[key] for key in FOUND_SETTINGS if key in earlier}


def _make(inputs: TokenInputs, work_dir: WorkDir, output_dir: Path, name: str, progress: Progress) -> None:
    log, tokenizer = BuildLog(), inputs.vocabulary.tokenizer
    found = _Found(inputs.vocabulary)
    with log.phase("prepare"), progress.bar("read", total=sum(p.num_bytes for p in inputs.parts), unit="B") as bar:
        receipts = [_write_partition(work_dir, i, inputs, found, bar) for i in range(len(inputs.parts))]
    recipe = found.complete(inputs.recipe)
    num_documents = [receipt.num_documents for receipt in receipts]
    if not sum(num_documents):
        raise FolioError("the files have no documents; pass files with tokens")
    with log.phase("dedup_and_split"), progress.phase("dedup_and_split"):
        assignment = _assign(recipe, work_dir, num_documents)
    corpus = PreparedCorpus(recipe, work_dir, receipts, assignment, tokenizer, inputs.vocabulary.control_tokens)
    with log.phase("shard_layout"), progress.phase("shard_layout"):
        layout = lay_out_shards(corpus)
    staging_dir, engine = work_dir.path / "build", SerialEngine()
    staging_dir.mkdir(exist_ok=True)
    vocab_size = inputs.vocabulary.vocab_size
    output = ShardOutput(work_dir, staging_dir, vocab_size, token_dtype(vocab_size), has_bos=False)
    with log.phase("write_shards"):
        shards = write_shards(output, layout, engine, progress)
    with progress.phase("publish"):
        inputs.check()
        plan = TokenPlan(recipe, inputs.files, [], tokenizer.kind, tokenizer, 0, sources=inputs.sources)
        build_log = log.to_json(layout.counts.total("text_bytes"), engine.num_workers)
        write_metadata(staging_dir, BuildContents(name, plan, corpus, layout, shards), build_log)
        publish(staging_dir, output_dir)
    for line in (*found.list_warnings(), *list_warnings(corpus, inputs.files, layout.counts.num_u2581, LEAK_ADVICE)):
        progress.warn(line)


def _assign(recipe: TokenRecipe, work_dir: WorkDir, num_documents: list[int]) -> SplitAssignment:
    total = sum(num_documents)
    if recipe.split == "exact" and recipe.val_fraction and round(total * recipe.val_fraction) in (0, total):
        raise FolioError(
            f"{format_quantity(total, 'document')} cannot be split with val_fraction {recipe.val_fraction}: one side "
            "would be empty; choose another --val-fraction (0 for none), or pass --val with files of their own"
        )
    assignment = dedup_and_split(recipe, work_dir, num_documents)
    assignment.duplicate_pairs.clear()  # the sources of tokens are not files with numbered documents
    if recipe.keeps_texts_together and assignment.num_leaks:
        keep_texts_together(assignment, SerialEngine())
    return assignment


class _Found:
    """What the documents have in common."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = vocabulary.tokenizer
        self._num_documents = self._num_bos = self._num_eot = 0
        self.has_masks: bool | None = None  # None before the first document

    def add(self, documents: PreparedTokens) -> None:
        """Raises FolioError if some documents have loss masks and others do not."""
        begins = np.concatenate([[0], documents.ends[:-1]])
        is_empty = begins == documents.ends
        begins, ends = begins[~is_empty], documents.ends[~is_empty]
        self._num_documents += len(is_empty)
        self._num_bos += int(np.count_nonzero(documents.ids[begins] == self._tokenizer.bos_id))
        self._num_eot += int(np.count_nonzero(documents.ids[ends - 1] == self._tokenizer.eot_id))
        has_masks = documents.mask is not None
        if self.has_masks not in (None, has_masks):
            raise FolioError("some documents have loss masks and others do not; make two builds of them")
        self.has_masks = has_masks

    def complete(self, recipe: TokenRecipe) -> TokenRecipe:
        """Return the recipe with the settings that were found."""
        stored = {key: value for key, value in recipe.stored.items() if key not in FOUND_SETTINGS}
        stored["eot"] = "append" if self._num_eot == self._num_documents else "none"
        stored["bos"] = self._num_bos == self._num_documents
        if self.has_masks:
            stored["masks"] = True
            if "chat_columns" in recipe.stored:
                stored["chat_columns"] = recipe.stored["chat_columns"]
        columns, template = stored.get("chat_columns"), stored.get("chat_template")
        return dataclasses.replace(
            recipe, stored=stored, masks=bool(self.has_masks), chat_columns=columns, chat_template=template
        )

    def list_warnings(self) -> list[str]:
        num_other = self._num_documents - self._num_eot
        if not num_other or self._tokenizer.eot_id is None:
            return []
        return [
            f"{num_other:,} of {format_quantity(self._num_documents, 'document')} do not end with the tokenizer's "
            "end-of-text token"
        ]


def _write_partition(work_dir: WorkDir, number: int, inputs: TokenInputs, found: _Found, bar: Bar) -> PrepareReceipt:
    """Write the documents of a part to the work directory, as `prepare_partition` does."""
    part, values = inputs.parts[number], Values()
    dtype = token_dtype(inputs.vocabulary.vocab_size)
    num_documents = text_bytes = num_done = 0
    with work_dir.create_files(number, "values", "docs", "ids", "lengths", "mask") as files:
        for documents in part.read(values):
            found.add(documents)
            files["ids"].write(documents.ids.astype(dtype, copy=False))
            files["lengths"].write(np.diff(documents.ends, prepend=0).astype(LENGTH_DTYPE))
            files["docs"].write(documents.table)
            if documents.mask is not None:
                files["mask"].write(documents.mask)
            num_documents += len(documents.ends)
            text_bytes += int(documents.table["text_bytes"].sum(dtype=np.int64))
            done = min(2 * len(documents.ids), part.num_bytes - num_done)
            num_done += done
            bar.update(done, num_documents)
        files["values"].write(canonical_json(dataclasses.asdict(values.as_partition_values())))
        checksums = {suffix: file.checksum for suffix, file in files.items()}
    bar.update(part.num_bytes - num_done, num_documents)
    return PrepareReceipt(
        files=checksums,
        num_documents=num_documents,
        text_bytes=text_bytes,
        # Positions are final: nothing is added to those of any file.
        num_positions=[(0, 0), (len(inputs.sources) - 1, 0)],
        dropped={},
        cleaned={},
        encoding=None,
    )


def make_table(hashes: np.ndarray, text_bytes: np.ndarray, side: int) -> np.ndarray:
    """Return the table of D documents without an author, city, year or language: (D,) of DOCUMENT_DTYPE.

    `hashes`: (D, 16) uint8. `text_bytes`: (D,). Raises FolioError if a text has more than MAX_TEXT_BYTES.
    """
    if len(text_bytes) and int(text_bytes.max()) > MAX_TEXT_BYTES:
        raise FolioError(
            f"a document has {int(text_bytes.max()):,} bytes of text, expected at most {MAX_TEXT_BYTES:,}; divide it"
        )
    table = np.zeros(len(hashes), DOCUMENT_DTYPE)
    table["hash"] = table["group"] = hashes
    table["text_bytes"], table["side"] = text_bytes, side
    for name in ("author", "city", "year", "lang"):
        table[name] = -1
    return table
