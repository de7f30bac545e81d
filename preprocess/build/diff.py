"""Compare two builds: their documents, by the hashes of their texts, and their settings.

The problem: the hashes of two large builds do not fit into memory.

The idea: the hashes of all documents of both builds, with a bit for the build and the split, are
distributed to buckets on the disk (shuffle.py). In each bucket, equal hashes are joined, and the
bits say in which splits of which build the text is.

The cost: one pass over the `.docs` files, 32 bytes per document on the disk of the folder for
temporary files, and the memory of one bucket, about 150 MB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preprocess.build.buckets import choose_buckets, count_buckets, sort_distinct
from preprocess.build.shuffle import Shuffle
from preprocess.build.work_dir import WorkDir
from preprocess.shards.files import JsonObject
from preprocess.shards.format import SPLITS, Build
from preprocess.stages.dedup import to_uint64_halves

# h, low: the halves of a content hash. sides: bits, one for each build and split. index: of the first document with
# this text, among all documents of the first build that has it.
TEXT_DTYPE = np.dtype([("h", "<u8"), ("low", "<u8"), ("sides", "<u8"), ("index", "<u8")])
MAX_EXAMPLES = 5
CHUNK_DOCUMENTS = 1 << 17
IN_A, IN_B = 0b0011, 0b1100  # train and val of the first build are the bits 0 and 1, those of the second 2 and 3


@dataclass(frozen=True)
class Place:
    """A document of one of the two builds."""

    build: int  # 0 or 1
    split: str
    document: int  # its number in the split


@dataclass
class Texts:
    """Distinct texts, and the places of some of them."""

    num_texts: int = 0
    examples: list[Place] = field(default_factory=list)


@dataclass(frozen=True)
class Difference:
    """The differences between two builds."""

    only_in_a: Texts
    only_in_b: Texts
    in_other_split: Texts
    settings: dict[str, tuple[object, object]]  # key -> values in the first and in the second build

    @property
    def is_empty(self) -> bool:
        """Whether the builds have the same texts in the same splits and the same settings."""
        return not (
            self.settings or self.only_in_a.num_texts or self.only_in_b.num_texts or self.in_other_split.num_texts
        )


def compare_builds(a: Build, b: Build) -> Difference:
    """Return the differences between two builds. Raises FolioError if a build is replaced in the meantime."""
    kinds = {"only_in_a": Texts(), "only_in_b": Texts(), "in_other_split": Texts()}
    num_documents = sum(entry.documents for build in (a, b) for entry in build.manifest.splits.values())
    with (
        tempfile.TemporaryDirectory() as folder,
        a.reading(),
        b.reading(),
        Shuffle(WorkDir(Path(folder)), "texts", TEXT_DTYPE, 1, count_buckets(num_documents)) as buckets,
    ):
        with buckets.open(0) as append:
            for rows in _iter_texts((a, b)):
                append(rows, choose_buckets(rows["h"], buckets.num_readers))
        for bucket in range(buckets.num_readers):
            _add_texts(kinds, _join(buckets.read(bucket)), (a, b))
    return Difference(**kinds, settings=_compare_settings(a, b))


def _iter_texts(builds: tuple[Build, Build]) -> Iterator[np.ndarray]:
    """Yield the texts of all documents: (D,) of TEXT_DTYPE."""
    for number, build in enumerate(builds):
        index = 0
        for side, split in enumerate(SPLITS):
            for entry in build.manifest.splits[split].shards:
                for docs in build.iter_docs(entry, CHUNK_DOCUMENTS):
                    rows = np.empty(len(docs), TEXT_DTYPE)
                    rows["h"], rows["low"] = to_uint64_halves(docs["hash"])
                    rows["sides"] = 1 << (2 * number + side)
                    rows["index"] = index + np.arange(len(docs))
                    index += len(docs)
                    yield rows


def _join(pieces: Iterator[np.ndarray]) -> np.ndarray:
    """Return one row for each text of a bucket, with the bits of all of its documents."""
    texts = np.empty(0, TEXT_DTYPE)
    for piece in pieces:
        rows = np.concatenate([texts, piece])
        order, starts = sort_distinct(rows, ("low",))
        texts = rows[order[starts]]  # the first document, because equal rows keep their order
        texts["sides"] = np.bitwise_or.reduceat(rows["sides"][order], starts)
    return texts


def _add_texts(kinds: dict[str, Texts], texts: np.ndarray, builds: tuple[Build, Build]) -> None:
    in_a, in_b = texts["sides"] & IN_A, (texts["sides"] & IN_B) >> 2
    chosen = {
        "only_in_a": in_b == 0,
        "only_in_b": in_a == 0,
        "in_other_split": (in_a != in_b) & (in_a != 0) & (in_b != 0),
    }
    for name, is_chosen in chosen.items():
        kinds[name].num_texts += int(np.count_nonzero(is_chosen))
        number = int(name == "only_in_b")
        for index in texts["index"][is_chosen][: MAX_EXAMPLES - len(kinds[name].examples)].tolist():
            kinds[name].examples.append(_locate(builds[number], number, index))


def _locate(build: Build, number: int, index: int) -> Place:
    num_train = build.manifest.splits[SPLITS[0]].documents
    return Place(number, SPLITS[0], index) if index < num_train else Place(number, SPLITS[1], index - num_train)


def _compare_settings(a: Build, b: Build) -> dict[str, tuple[object, object]]:
    """Return what is different in the manifests: tokenizer, vocabulary, recipe, counts and bytes of the shards."""
    first, second = (_list_settings(build) for build in (a, b))
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def _list_settings(build: Build) -> JsonObject:
    manifest = build.manifest
    settings: JsonObject = {
        "tokenizer": manifest.tokenizer.kind,
        "tokenizer files": dict(sorted(manifest.tokenizer.files.items())),
        "vocab_size": manifest.vocab_size,
        "control tokens": dict(sorted(manifest.special_tokens.items())),
        "dtype": manifest.dtype,
        "languages": manifest.languages,
    }
    settings |= {f"recipe.{key}": value for key, value in sorted(manifest.recipe.items())}
    for split, entry in manifest.splits.items():
        settings |= {f"{split}.{key}": getattr(entry, key) for key in ("documents", "tokens", "text_bytes")}
        settings[f"{split} shards"] = [shard.hashes() for shard in entry.shards]
    settings["sources"] = manifest.sources
    return settings
