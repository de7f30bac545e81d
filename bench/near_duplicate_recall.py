"""Measure which pairs of nearly equal documents are found, beside an exhaustive comparison and datasketch.

The text has 200,000 random documents; every fifth has one to three copies in which 1 to 15 % of the words
are replaced. All pairs of documents with a common sequence of five words are compared exactly. The
table has, by similarity, the fraction of these pairs that are in one cluster of Folio, and the
fraction that datasketch's MinHashLSH finds with the same parameters: 20 bands of 5 values. A cluster is
false if it joins documents that no chain of pairs with a similarity of at least 0.8 connects.

    python bench/near_duplicate_recall.py
    python bench/near_duplicate_recall.py --documents 5000 --no-datasketch

The exit status is 1 if a cluster is false, or if fewer than 99 % of the pairs with a similarity of at
least 0.85 are found.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bench.lib.options import add_scratch_option, parse_positive
from preprocess.build.engines.local import SerialEngine
from preprocess.build.near_dedup.forest import Forest
from preprocess.build.near_dedup.near_duplicates import find_near_duplicates
from preprocess.build.split_assignment import SplitAssignment
from preprocess.build.work_dir import WorkDir
from preprocess.recipes.schema import Recipe
from preprocess.stages.near_dup import hash_bands, hash_shingles

NUM_WORDS = 7_000  # whose fifth power is below 2**64, so that five words have a number of their own
SHINGLE_WORDS = 5
EDITED_FRACTIONS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.15)
EDGES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)  # of the rows of the table
RECIPE = Recipe(corpus="recall", near_dedup="drop")
BATCH_DOCUMENTS = 10_000
NUM_PARTS = 8


@dataclass(frozen=True)
class Documents:
    """N documents as numbers of words."""

    words: np.ndarray  # (W,) uint16, of all documents
    ends: np.ndarray  # (N,) int64

    def iter_texts(self, vocabulary: np.ndarray) -> Iterator[str]:
        """Yield the texts of the documents."""
        for of_document in np.split(self.words, self.ends[:-1]):
            yield " ".join(vocabulary[of_document])

    def number_shingles(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the shingles as numbers, (S,) uint64, and the document of each, (S,) uint32."""
        of_words = np.repeat(np.arange(len(self.ends), dtype=np.uint32), np.diff(self.ends, prepend=0))
        num_starts = len(self.words) - SHINGLE_WORDS + 1
        numbers = np.zeros(num_starts, np.uint64)
        for i in range(SHINGLE_WORDS):
            numbers *= np.uint64(NUM_WORDS)
            numbers += self.words[i : i + num_starts]
        is_shingle = of_words[:num_starts] == of_words[SHINGLE_WORDS - 1 :]
        return numbers[is_shingle], of_words[:num_starts][is_shingle]


def make_documents(count: int, rng: np.random.Generator) -> Documents:
    """Return `count` random documents and copies of every fifth, in random order."""
    texts = []
    for number in range(count):
        document = rng.integers(0, NUM_WORDS, rng.integers(60, 240), np.uint16)
        texts.append(document)
        for _ in range(int(rng.integers(1, 4)) if number % 5 == 0 else 0):
            copy = document.copy()
            edited = rng.integers(0, len(copy), max(1, int(len(copy) * rng.choice(EDITED_FRACTIONS))))
            copy[edited] = rng.integers(0, NUM_WORDS, len(edited))
            texts.append(copy)
    order = rng.permutation(len(texts))
    shuffled = [texts[i] for i in order.tolist()]
    return Documents(np.concatenate(shuffled), np.cumsum([len(text) for text in shuffled]))


def find_pairs(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of documents that have a shingle in common, (P, 2) int64, and their similarities, (P,)."""
    numbers, owners = documents.number_shingles()
    sizes = np.zeros(len(documents.ends), np.int64)  # distinct shingles
    common = []
    for part in range(NUM_PARTS):  # all at once would take several gigabytes
        is_in_part = numbers % np.uint64(NUM_PARTS) == part
        of_part, owners_of_part = numbers[is_in_part], owners[is_in_part]
        order = np.lexsort((owners_of_part, of_part))
        of_part, owners_of_part = of_part[order], owners_of_part[order].astype(np.int64)
        is_new = np.ones(len(of_part), bool)  # a document may repeat a shingle
        is_new[1:] = (of_part[1:] != of_part[:-1]) | (owners_of_part[1:] != owners_of_part[:-1])
        of_part, owners_of_part = of_part[is_new], owners_of_part[is_new]
        sizes += np.bincount(owners_of_part, minlength=len(sizes))
        distance = 1
        while (rows := np.flatnonzero(of_part[distance:] == of_part[:-distance])).size:
            common.append(owners_of_part[rows] * len(sizes) + owners_of_part[rows + distance])
            distance += 1
    keys, num_common = np.unique(np.concatenate(common), return_counts=True)
    pairs = np.stack(np.divmod(keys, len(sizes)), axis=1)
    return pairs, num_common / (sizes[pairs].sum(axis=1) - num_common)


def find_folio_clusters(texts: list[str], folder: Path) -> Forest:
    """Return the clusters that a build finds: the functions of the phases prepare and dedup_and_split."""
    work_dir = WorkDir(folder)
    shingles, counts, bands = [], [], []
    for start in range(0, len(texts), BATCH_DOCUMENTS):
        batch = pa.array(texts[start : start + BATCH_DOCUMENTS], pa.large_string())
        of_batch, num_shingles = hash_shingles(batch, RECIPE.near_dedup_words)
        shingles.append(of_batch)
        counts.append(num_shingles)
        bands.append(hash_bands(of_batch, num_shingles, RECIPE.near_dedup_bands, RECIPE.near_dedup_rows))
    for suffix, arrays in (("shingles", shingles), ("num_shingles", counts), ("bands", bands)):
        np.concatenate(arrays).tofile(work_dir.file(0, suffix))
    near = find_near_duplicates(RECIPE, SplitAssignment(work_dir, [len(texts)]), SerialEngine())
    clusters = Forest(np.arange(len(texts)))
    for section in range(near.links.num_readers):
        links = near.links.read_all(section).astype([("index", np.int64), ("first", np.int64)])
        clusters.join(links["index"], links["first"])
    return clusters


def find_datasketch_pairs(texts: Iterable[str]) -> set[tuple[int, int]]:
    """Return the pairs of documents (i, j), i < j, that have a band in common according to datasketch."""
    from datasketch import MinHash, MinHashLSH

    num_values = RECIPE.near_dedup_bands * RECIPE.near_dedup_rows
    index = MinHashLSH(num_perm=num_values, params=(RECIPE.near_dedup_bands, RECIPE.near_dedup_rows))
    pairs = set()
    for number, text in enumerate(texts):
        words = text.split()
        signature = MinHash(num_perm=num_values)
        signature.update_batch([" ".join(words[i : i + 5]).encode() for i in range(max(len(words) - 4, 1))])
        pairs.update((other, number) for other in index.query(signature))
        index.insert(number, signature, check_duplication=False)
    return pairs


def count_false_clusters(clusters: Forest, pairs: np.ndarray, similarities: np.ndarray, num_documents: int) -> int:
    """Return how many documents are in a cluster with a document that no chain of similar pairs leads to."""
    exact = Forest(np.arange(num_documents))
    exact.join(*pairs[similarities >= RECIPE.near_dedup_threshold].T)
    documents = np.arange(num_documents)
    return int((exact.find_first(clusters.find_first(documents)) != exact.find_first(documents)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--documents", type=parse_positive, default=200_000, help="without the copies (default: 200000)"
    )
    parser.add_argument(
        "--no-datasketch", action="store_true", help="leave datasketch out, which takes minutes and several gigabytes"
    )
    add_scratch_option(parser)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    documents = make_documents(arguments.documents, rng)
    vocabulary = np.array([f"{chr(97 + i % 26)}{i:x}" for i in range(NUM_WORDS)], object)
    pairs, similarities = find_pairs(documents)
    texts = list(documents.iter_texts(vocabulary))
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        clusters = find_folio_clusters(texts, Path(folder))
        is_found = clusters.find_first(pairs[:, 0]) == clusters.find_first(pairs[:, 1])
        num_false = count_false_clusters(clusters, pairs, similarities, len(texts))
    columns, comparison = [is_found], ""
    if not arguments.no_datasketch:
        of_datasketch = find_datasketch_pairs(texts)
        columns.append(np.array([(a, b) in of_datasketch for a, b in pairs.tolist()]))
        a, b = (column[similarities >= RECIPE.near_dedup_threshold] for column in columns)
        comparison = (
            f"pairs with a similarity of at least {RECIPE.near_dedup_threshold}: {(a & b).sum():,} found by both, "
            f"{(a & ~b).sum():,} only by Folio, {(~a & b).sum():,} only by datasketch, {(~a & ~b).sum():,} by none"
        )
    print(f"{len(texts):,} documents, {len(pairs):,} pairs with a common sequence of {SHINGLE_WORDS} words")
    print("| similarity | pairs | expected with these bands | Folio |" + " datasketch |" * (len(columns) - 1))
    print("|---|---|---|---|" + "---|" * (len(columns) - 1))
    for low, high in itertools.pairwise(EDGES):
        is_in_row = (similarities >= low) & ((similarities < high) | (high == 1))
        if is_in_row.any():
            expected = 1 - (1 - similarities[is_in_row] ** RECIPE.near_dedup_rows) ** RECIPE.near_dedup_bands
            shown = " | ".join(f"{value:.4f}" for value in (expected.mean(), *(c[is_in_row].mean() for c in columns)))
            print(f"| {low} to {high} | {is_in_row.sum():,} | {shown} |")
    if comparison:
        print(comparison)
    recall = is_found[similarities >= 0.85].mean()
    print(
        f"recall of pairs with a similarity of at least 0.85: {recall:.4f}; documents in false clusters: {num_false:,}"
    )
    if num_false or recall < 0.99:
        sys.exit(1)


if __name__ == "__main__":
    main()
