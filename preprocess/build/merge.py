"""Merge two or more builds with the same tokenizer into one."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from preprocess.build.from_tokens import PreparedTokens, TokenInputs, TokenPart, TokenRecipe, Values, make_table
from preprocess.documents import TRAIN, VAL
from preprocess.errors import FolioError, MisuseError, shorten
from preprocess.inputs.token_files import MAX_DOCUMENT_TOKENS
from preprocess.recipes.schema import Recipe
from preprocess.shards.control_tokens import MAX_CONTROL_TOKENS
from preprocess.shards.files import JsonObject
from preprocess.shards.format import CONTROL_FIELDS, SPLITS, Build
from preprocess.shards.loss_mask import unpack_mask
from preprocess.shards.manifest import ShardEntry
from preprocess.shards.verify import check_files, check_known
from preprocess.tokenizers.vocabulary import TextHasher, Vocabulary, read_vocabulary

# Settings of a tokenizer that follow from its files. The others say how a build trained it.
TOKENIZER_SETTINGS = ("encoding", "pattern", "model", "num_pieces")
CHUNK_DOCUMENTS = 1 << 16
BATCH_TOKENS = 1 << 20
SIDES = dict(zip(SPLITS, (TRAIN, VAL), strict=True))


def plan_merge(builds: Sequence[Build], *, dedup: bool) -> TokenInputs:
    """Return the input of `build_from_tokens` for the documents of `builds`, one build after the other.

    Each document stays in its split. With `dedup`, a document is dropped if an earlier one has the same
    text; otherwise it goes to the split of the earlier one. Raises MisuseError if the builds do not have
    the same tokenizer, loss masks or chat template.
    """
    _check_equal(builds)
    vocabularies = [read_vocabulary(build) for build in builds]
    vocabulary = _join_vocabularies(vocabularies)
    keys = ("eot", "bos", "tokenizer", "tokenizer_sha256", "chat_template", "chat_columns")
    first = builds[0].manifest.recipe
    shard_tokens = first.get("shard_tokens", Recipe.shard_tokens)
    stored: JsonObject = {
        **{key: first[key] for key in keys if key in first},
        **{"corpus": "own", "format": "builds", "split": "given", "dedup": dedup, "shard_tokens": shard_tokens},
        "merged": [build.build_id for build in builds],
    }
    has_val = any(build.manifest.splits["val"].documents for build in builds)
    split: JsonObject = {"split": "given", "split_column": "split"} if has_val else {"val_fraction": 0.0}
    recipe = TokenRecipe(
        corpus="own", dedup=dedup, authors=False, shard_tokens=shard_tokens, stored=stored, keeps_texts_together=True,
        **split,
    )  # fmt: skip
    are_decoded = [_has_decoded_hashes(build) for build in builds]
    if any(are_decoded):
        stored["decoded_hashes"] = True
    hasher, parts, num_sources = TextHasher(vocabulary), [], 0
    for build, own in zip(builds, vocabularies, strict=True):
        ids = _map_ids(own, vocabulary)
        reader = _Reader(build, ids, hasher, num_sources, keeps_hashes=len(set(are_decoded)) == 1)
        parts += [reader.make_part(split) for split in SPLITS]
        num_sources += len(build.manifest.sources)

    def check() -> None:
        for build in builds:
            build.check_unreplaced()

    sources = [entry for build in builds for entry in build.manifest.sources]
    return TokenInputs(recipe, [], sources, parts, vocabulary, check)


def _check_equal(builds: Sequence[Build]) -> None:
    a = builds[0]
    for b in builds[1:]:
        if _identify_tokenizer(a) != _identify_tokenizer(b) or a.manifest.eot_id != b.manifest.eot_id:
            raise MisuseError(
                f"{a.name} has the tokenizer {a.manifest.tokenizer.kind}, and {b.name} another one "
                f"({b.manifest.tokenizer.kind}); build one of the two again with the tokenizer of the other: "
                f"--tokenizer {shorten(str(a.folder / 'tokenizer'))}"
            )
        for key in ("chat_template", "eot", "bos"):
            values = [build.manifest.recipe.get(key) or None for build in (a, b)]
            if values[0] != values[1]:
                raise MisuseError(
                    f"{a.name} has {key} {shorten(str(values[0]))}, and {b.name} has {shorten(str(values[1]))}; build "
                    "one of the two again"
                )
        if a.has_masks != b.has_masks:
            raise MisuseError(f"only one of {a.name} and {b.name} has loss masks; build the other one again with chats")


def _has_decoded_hashes(build: Build) -> bool:
    """Return whether the content hashes of a build are those of decoded tokens, and not of the texts that were read."""
    recipe = build.manifest.recipe
    is_import = "clean" not in recipe and "merged" not in recipe
    return is_import or bool(recipe.get("decoded_hashes", False))


def _identify_tokenizer(build: Build) -> tuple[object, ...]:
    entry = build.manifest.tokenizer
    return entry.kind, entry.files, [entry.settings.get(key) for key in TOKENIZER_SETTINGS]


def _join_vocabularies(vocabularies: Sequence[Vocabulary]) -> Vocabulary:
    """Return the vocabulary with the control tokens of all builds, those of the first build first."""
    first = vocabularies[0]
    tokens: dict[str, int] = {}
    in_nfc: dict[str, str] = {}
    for vocabulary in vocabularies:
        for token in sorted(vocabulary.control_tokens, key=vocabulary.control_tokens.__getitem__):
            if in_nfc.setdefault(unicodedata.normalize("NFC", token), token) != token:
                raise FolioError(
                    f"two control tokens would be written {shorten(token)!r} in two Unicode forms; rename one of the "
                    "two in its input, and build it again"
                )
            tokens.setdefault(token, first.tokenizer.vocab_size + len(tokens))
    if len(tokens) > MAX_CONTROL_TOKENS:
        raise FolioError(
            f"the builds have {len(tokens):,} control tokens, expected at most {MAX_CONTROL_TOKENS:,}; build them "
            "again with --no-authors"
        )
    return Vocabulary(first.tokenizer, tokens, first.settings)


def _map_ids(own: Vocabulary, joined: Vocabulary) -> np.ndarray:
    """Return the new id of each id of a build: (V,) uint32."""
    ids = np.arange(own.vocab_size, dtype=np.uint32)
    for token, token_id in own.control_tokens.items():
        ids[token_id] = joined.control_tokens[token]
    return ids


class _Reader:
    """Reads the documents of one of the builds."""

    def __init__(
        self, build: Build, new_ids: np.ndarray, hasher: TextHasher, first_source: int, *, keeps_hashes: bool
    ) -> None:
        """`first_source`: the number of sources of the builds before it.

        `keeps_hashes`: whether the content hashes of all builds are of one kind. Otherwise they are computed
        from the tokens: the hash of a chat, or of a text that its tokens do not give back, is not that of its import.
        """
        self._build, self._new_ids, self._hasher, self._first_source = build, new_ids, hasher, first_source
        self._keeps_hashes = keeps_hashes
        self._authors: dict[str, np.ndarray] = {}
        self._languages: dict[int, int] = {}  # number in the build -> index in the values of the part

    def make_part(self, split: str) -> TokenPart:
        """Return the documents of a split."""
        num_bytes = sum(entry.bytes for entry in self._build.manifest.splits[split].shards)

        def read(values: Values) -> Iterator[PreparedTokens]:
            self._languages = {0: -1} | {
                int(number): values.languages.setdefault(tag, len(values.languages))
                for number, tag in self._build.manifest.languages.items()
            }
            self._authors = self._number_authors(values)
            with self._build.reading():
                for entry in self._build.manifest.splits[split].shards:
                    check_files(self._build, [entry])
                    yield from self._read_shard(entry, split)
            self._languages, self._authors = {}, {}  # the reader is kept, and a build may have 200,000 languages

        return TokenPart(f"{split} of {self._build.name}", num_bytes, read)

    def _read_shard(self, entry: ShardEntry, split: str) -> Iterator[PreparedTokens]:
        shard, first, begin = self._build.map_shard(entry), 0, 0
        for docs in self._build.iter_docs(entry, CHUNK_DOCUMENTS):
            ends = shard.ends[first : first + len(docs)].astype(np.int64)
            first += len(docs)
            row = 0
            while row < len(docs):
                stop = max(int(np.searchsorted(ends, begin + BATCH_TOKENS, side="right")), row + 1)
                end = int(ends[stop - 1])
                self._check(np.diff(ends[row:stop], prepend=begin), end, len(shard.tokens))
                ids = self._new_ids[self._build.check_ids(np.array(shard.tokens[begin:end]))]
                mask = None if shard.mask is None else unpack_mask(shard.mask, begin, end)
                table = self._make_table(docs[row:stop], ids, ends[row:stop] - begin, split)
                yield PreparedTokens(ids, ends[row:stop] - begin, table, mask)
                row, begin = stop, end

    def _number_authors(self, values: Values) -> dict[str, np.ndarray]:
        """Return for each field the number in `values` of the value that each new id stands for, -1 for others."""
        size = int(self._new_ids.max(initial=0)) + 1
        numbers = {field: np.full(size, -1, np.int32) for field in CONTROL_FIELDS}
        for token, token_id in self._build.manifest.special_tokens.items():
            field, _, value = token.removeprefix("<").removesuffix(">").partition("_")
            new_id = int(self._new_ids[token_id])
            if field == "author":
                numbers[field][new_id] = values.authors.setdefault(value, len(values.authors))
            elif field == "city":
                numbers[field][new_id] = values.cities.setdefault(value, len(values.cities))
            elif field == "year" and value.isascii() and value.isdigit() and len(value) == 4:
                numbers[field][new_id] = int(value)
        return numbers

    def _check(self, lengths: np.ndarray, end: int, num_tokens: int) -> None:
        if int(lengths.min()) < 0 or int(lengths.max()) > MAX_DOCUMENT_TOKENS or end > num_tokens:
            raise FolioError(
                f"{self._build.folder} has a document of more than {MAX_DOCUMENT_TOKENS:,} tokens, or ends of "
                "documents that do not ascend; check it with `preprocess verify`"
            )

    def _make_table(self, docs: np.ndarray, ids: np.ndarray, ends: np.ndarray, split: str) -> np.ndarray:
        hashes, text_bytes = self._hasher.hash(ids, ends)
        table = make_table(docs["hash"] if self._keeps_hashes else hashes, text_bytes, SIDES[split])
        # No table of all sources is made for each shard: there may be 20,000 shards and a million sources.
        table["lang"] = self._map_languages(docs["lang"])
        sources = range(len(self._build.manifest.sources))
        check_known(self._build, "source", set(np.unique(docs["source"]).tolist()), sources)
        table["source"] = self._first_source + docs["source"].astype(np.int64)
        table["position"] = docs["position"]
        begins = np.concatenate([[0], ends[:-1]])
        for depth in range(len(CONTROL_FIELDS) + 1):  # after a begin-of-text token, if there is one
            is_inside = begins + depth < ends
            row_ids = ids[(begins + depth)[is_inside]]
            for field, numbers in self._authors.items():
                found = numbers[row_ids]
                table[field][np.flatnonzero(is_inside)[found >= 0]] = found[found >= 0]
        return table

    def _map_languages(self, numbers: np.ndarray) -> np.ndarray:
        """Return the index of each of (D,) languages in the values of the part, -1 for none: (D,) int64."""
        distinct, inverse = np.unique(numbers, return_inverse=True)
        check_known(self._build, "language", set(distinct.tolist()), self._languages)
        return np.array([self._languages[number] for number in distinct.tolist()], np.int64)[inverse]
