"""Join groups of documents that contain nearly equal documents, so that all are on one side of the split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.build.buckets import count_buckets
from preprocess.build.engines.interface import Engine
from preprocess.build.near_dedup.components import LINK_DTYPE, find_components, locate, resolve
from preprocess.build.shuffle import Section, Shuffle, run_all
from preprocess.build.work_dir import WorkDir
from preprocess.shards.files import open_atomic
from preprocess.stages.dedup import to_uint64_halves

KEY_DTYPE = np.dtype("<u8")
KEYED_DTYPE = np.dtype([("index", "<u8"), ("key", "<u8")])  # a document, and the group of another one


@dataclass(frozen=True)
class NearGroups:
    """The groups that are joined with others, and what identifies the joined group of each.

    A group is known by the upper half of its hash. Two different groups with the same upper half
    would only be kept on one side together. The table is in a file, which tasks map: as a part of
    each task, millions of groups would be sent to every worker again and again.
    """

    keys: Path  # (G,) uint64: of G groups, ascending
    joined: Path  # (G,) uint64: the smallest key of the joined group of each
    num_groups: int

    def apply(self, hashes: np.ndarray) -> np.ndarray:
        """Return the hashes of groups, (D, 16) uint8, with those of joined groups replaced."""
        if not self.num_groups:
            return hashes
        known, joined = (np.asarray(np.memmap(path, KEY_DTYPE, "r")) for path in (self.keys, self.joined))
        keys, _ = to_uint64_halves(hashes)
        positions = np.minimum(np.searchsorted(known, keys), self.num_groups - 1)
        rows = np.flatnonzero(known[positions] == keys)
        replaced = hashes.copy()
        halves = joined[positions[rows]].astype(">u8")
        replaced[rows] = np.stack([halves, halves], axis=1).view(np.uint8)
        return replaced


def join_groups(
    near_duplicates: Shuffle, sections: list[Section], group_column: str, num_links: int, engine: Engine
) -> NearGroups:
    """Write the connected components of the groups of nearly equal documents.

    `near_duplicates`: links between documents, of LINK_DTYPE, for each section. There are `num_links`. A task per
    section adds the group of the one document, and another task that of the other document.
    """
    work_dir, num_sections = near_duplicates.work_dir, len(sections)
    document_starts = np.array([section.first_document for section in sections], np.uint64)
    key_starts = _cut_keys(count_buckets(2 * num_links))
    with Shuffle(work_dir, "group_keys", KEYED_DTYPE, num_sections, num_sections) as keyed:
        arguments = [(near_duplicates, keyed, document_starts, group_column, section) for section in sections]
        run_all(engine, "the groups of section", write_keys, arguments)
        links = Shuffle(work_dir, "group_links", LINK_DTYPE, num_sections, len(key_starts))
        of_sections = [(keyed, links, key_starts, group_column, section) for section in sections]
        run_all(engine, "the groups of section", write_links, of_sections)
    with links, find_components(links, key_starts, engine) as components:
        return _write_groups(links, components)


def _cut_keys(num_ranges: int) -> np.ndarray:
    """Return the first key of each of `num_ranges` equal ranges: (num_ranges,) uint64."""
    return np.arange(num_ranges, dtype=np.uint64) * np.uint64((1 << 64) // num_ranges if num_ranges > 1 else 0)


def write_keys(links: Shuffle, keyed: Shuffle, starts: np.ndarray, group_column: str, section: Section) -> None:
    """Write the group of each document of a section that is linked, to the section of the other document.

    `starts`: the first document of each section, (S,) uint64.
    """
    with keyed.open(section.number) as append:
        for piece in links.read(section.number):
            rows = np.empty(len(piece), KEYED_DTYPE)
            rows["key"] = _read_keys(links.work_dir, section, piece["index"], group_column)
            rows["index"] = piece["first"]
            append(rows, locate(starts, rows["index"]))


def write_links(keyed: Shuffle, links: Shuffle, starts: np.ndarray, group_column: str, section: Section) -> None:
    """Write a link between the groups of each pair of documents, and one from the smaller group to itself.

    `starts`: the first key of each range of groups, (R,) uint64.
    """
    with links.open(section.number) as append:
        for piece in keyed.read(section.number):
            keys = _read_keys(keyed.work_dir, section, piece["index"], group_column)
            rows = np.empty(2 * len(piece), LINK_DTYPE)
            rows["first"] = np.tile(np.minimum(keys, piece["key"]), 2)
            rows["index"] = np.concatenate([np.maximum(keys, piece["key"]), rows["first"][: len(piece)]])
            append(rows, locate(starts, rows["index"]))


def _read_keys(work_dir: WorkDir, section: Section, documents: np.ndarray, group_column: str) -> np.ndarray:
    """Return the upper half of the group hash of each of (K,) documents of a section: (K,) uint64."""
    keys, order = np.empty(len(documents), np.uint64), np.argsort(documents)
    ordered = documents[order]
    for first_document, chunk in section.iter_chunks():
        start, stop = np.searchsorted(ordered, (first_document, first_document + chunk.num_documents))
        if start < stop:
            rows = ordered[start:stop] - np.uint64(first_document)
            keys[order[start:stop]], _ = to_uint64_halves(work_dir.map_documents(chunk)[group_column][rows])
    return keys


def _write_groups(links: Shuffle, components: Shuffle) -> NearGroups:
    """Write the table of the groups that have links."""
    keys_path, joined_path = (links.work_dir.path / f"near_groups.{name}" for name in ("keys", "joined"))
    num_groups = 0
    with open_atomic(keys_path) as keys_file, open_atomic(joined_path) as joined_file:
        for number in range(links.num_readers):
            keys = np.unique(np.concatenate([np.empty(0, KEY_DTYPE), *map(_get_keys, links.read(number))]))
            keys_file.write(keys.astype(KEY_DTYPE).data)
            joined_file.write(resolve(components.read_all(number), keys).astype(KEY_DTYPE).data)
            num_groups += len(keys)
    return NearGroups(keys_path, joined_path, num_groups)


def _get_keys(piece: np.ndarray) -> np.ndarray:
    """Return the distinct groups of the rows of a range."""
    return np.unique(piece["index"])
