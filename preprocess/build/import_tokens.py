"""Make a build of files of tokens that another program wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from preprocess.build.from_tokens import PreparedTokens, TokenInputs, TokenPart, TokenRecipe, Values, make_table
from preprocess.documents import TRAIN, VAL
from preprocess.errors import FolioError
from preprocess.inputs.token_files import TokenBatch, TokenFile, TokenIds, TokenReader
from preprocess.recipes.schema import Recipe
from preprocess.shards.files import JsonObject
from preprocess.tokenizers.vocabulary import TextHasher, Vocabulary

MAX_LANGUAGES = 1 << 16


@dataclass(frozen=True)
class ImportSettings:
    """The settings of an import."""

    format: str
    val_fraction: float = Recipe.val_fraction  # if there are no validation files
    seed: int = Recipe.seed
    shard_tokens: int = Recipe.shard_tokens


@dataclass(frozen=True)
class ImportFiles:
    """The files of an import. Without validation files, the documents are split at random."""

    train: list[TokenFile]
    val: list[TokenFile]
    read: TokenReader


def plan_import(settings: ImportSettings, files: ImportFiles, vocabulary: Vocabulary) -> TokenInputs:
    """Return the input of `build_from_tokens`. Raises MisuseError if a setting is invalid."""
    split: JsonObject = {"split": "given", "split_column": "split"} if files.val else {"split": "exact"}
    chosen: JsonObject = {"shard_tokens": settings.shard_tokens, "dedup": False}
    if not files.val:
        chosen |= {"val_fraction": settings.val_fraction, "seed": settings.seed}
    stored = {"corpus": "own", "format": settings.format, "split": split["split"], **chosen, **vocabulary.settings}
    recipe = TokenRecipe(corpus="own", authors=False, stored=stored, **split, **chosen)
    hasher, ids = TextHasher(vocabulary), TokenIds(vocabulary.vocab_size, vocabulary.tokenizer.eot_id)
    parts = [
        _make_part(name, chosen_files, _Preparer(hasher, ids, side), files.read)
        for name, chosen_files, side in (("train", files.train, TRAIN), ("val", files.val, VAL))
        if chosen_files
    ]
    described = [each for file in (*files.train, *files.val) for each in (file.tokens, *file.companions.values())]

    def check() -> None:
        for file in described:
            file.check_unchanged()

    sources = [file.manifest_entry() for file in described]
    return TokenInputs(recipe, described, sources, parts, vocabulary, check)


def _make_part(name: str, files: list[TokenFile], preparer: _Preparer, read: TokenReader) -> TokenPart:
    def read_part(values: Values) -> Iterator[PreparedTokens]:
        for batch in read(files, preparer.ids):
            yield preparer.prepare(batch, files, values)

    return TokenPart(name, sum(file.tokens.size_bytes for file in files), read_part)


class _Preparer:
    """Checks the documents of a split, and makes their tables."""

    def __init__(self, hasher: TextHasher, ids: TokenIds, side: int) -> None:
        self.ids, self._hasher, self._side = ids, hasher, side
        self._num_in_file: dict[int, int] = {}  # documents, by the number of the file

    def prepare(self, batch: TokenBatch, files: list[TokenFile], values: Values) -> PreparedTokens:
        self._check_ids(batch, files)
        table = make_table(*self._hasher.hash(batch.ids, batch.ends), self._side)
        table["source"] = batch.files
        for number in np.unique(batch.files).tolist():
            rows = np.flatnonzero(batch.files == number)
            first = self._num_in_file.get(number, 0)
            table["position"][rows] = first + np.arange(len(rows))
            self._num_in_file[number] = first + len(rows)
        if batch.languages is not None:
            table["lang"] = _number_languages(batch.languages, values.languages)
        return PreparedTokens(batch.ids, batch.ends, table, batch.mask)

    def _check_ids(self, batch: TokenBatch, files: list[TokenFile]) -> None:
        if not len(batch.ids):
            return
        smallest, largest = int(batch.ids.min()), int(batch.ids.max())
        if smallest >= 0 and largest < self.ids.vocab_size:
            return
        wrong = largest if largest >= self.ids.vocab_size else smallest
        row = int(np.searchsorted(batch.ends, int(np.flatnonzero(batch.ids == wrong)[0]), side="right"))
        path = next(file.path for file in files if file.number == int(batch.files[row]))
        raise FolioError(
            f"{path} has the id {wrong}, but the vocabulary of --tokenizer has {self.ids.vocab_size:,} ids; choose the "
            "tokenizer with which the file was written (the folder of a build if it has control tokens of authors or "
            "chats), or check --format"
        )


def _number_languages(languages: list[str | None], numbers: dict[str, int]) -> np.ndarray:
    """Return the number of each language, -1 for None: (D,) int32. New languages are added to `numbers`."""
    for language in dict.fromkeys(languages):
        if language is not None and language not in numbers:
            if len(numbers) == MAX_LANGUAGES:
                raise FolioError(f"there are more than {MAX_LANGUAGES:,} languages; remove the column of languages")
            numbers[language] = len(numbers)
    return np.array([-1 if language is None else numbers[language] for language in languages], np.int32)
