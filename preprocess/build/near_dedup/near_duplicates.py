"""Find the clusters of nearly equal documents among all documents of a build, and drop or group them.

The problem: two documents are nearly equal if their similarity is at least `near_dedup_threshold`,
but there are too many pairs to compare, and no task should need all documents.

The idea: only documents with an equal band (stages/near_dup.py) are compared, with all their
shingles, so no document is taken for a copy by chance. All steps but the third are tasks (shuffle.py):

1. Write the bands of the documents of each section to buckets. Documents with an equal band are a
   *run* in a sorted bucket. Go on with the documents of runs only (runs.py).
2. Find the components of documents that are connected by runs, each range of documents by itself,
3. and then together, range after range (components.py).
4. Send the runs of each component to one of the tasks that compare documents.
5. Compare them. Pairs that are similar enough join their clusters (compare.py).
6. Send the documents that are nearly equal to an earlier one back to their sections, to drop them or to
   join their groups (groups.py).

The result depends on the documents and their order only, not on partitions or workers.

The cost: 16 bytes of disk for each band of each document (320 bytes with 20 bands) until they are
sorted. Each document of a run then takes 24 bytes, and 16 and 32 more in step 4. The memory of a task
is that of one bucket, and of the shingles that are compared at once.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from preprocess.build.buckets import MAX_BUCKETS, count_buckets
from preprocess.build.drop_duplicates import drop_documents
from preprocess.build.duplicate_pairs import Pair, add_pairs
from preprocess.build.engines.interface import Engine
from preprocess.build.near_dedup.compare import MEMBER_DTYPE, ROW_DTYPE, compare_documents
from preprocess.build.near_dedup.components import LINK_DTYPE, find_components
from preprocess.build.near_dedup.groups import join_groups
from preprocess.build.near_dedup.runs import BAND_DTYPE, PIECE_BITS, RUN_DTYPE, RunCounts, write_bands, write_runs
from preprocess.build.near_dedup.shingles import locate_shingles
from preprocess.build.shuffle import Section, Shuffle, cut_sections, run_all
from preprocess.build.split_assignment import SplitAssignment
from preprocess.recipes.schema import Recipe
from preprocess.shards.permutation import mix64

MIN_SECTION_DOCUMENTS = 1 << 16  # fewer than in other sections: each document has many bands
ROWS_PER_TASK = 1 << 17  # of runs; each row is a document to compare


class NearDuplicates(NamedTuple):
    """The documents that are nearly equal to an earlier one."""

    links: Shuffle  # for each section, from each of these documents to the first of its cluster
    num_documents: int
    pairs: list[Pair]  # examples


def find_near_duplicates(recipe: Recipe, assignment: SplitAssignment, engine: Engine) -> NearDuplicates:
    """Find the documents that are nearly equal to an earlier one. Dropped documents are left out.

    Documents are numbered across partitions, in reading order.
    """
    assignment.publish()
    sections = _cut_sections(assignment)
    starts = _get_starts(sections)
    num_buckets = count_buckets(sum(assignment.num_documents) * recipe.near_dedup_bands)
    with Shuffle(assignment.work_dir, "runs", RUN_DTYPE, num_buckets, len(sections)) as runs:
        with Shuffle(assignment.work_dir, "bands", BAND_DTYPE, len(sections), num_buckets) as bands:
            arguments = [(bands, recipe.near_dedup_bands, section) for section in sections]
            num_shingles = run_all(engine, "the bands of section", write_bands, arguments)
            of_buckets = [(bands, runs, starts, bucket) for bucket in range(num_buckets)]
            counts = run_all(engine, "the bands of bucket", write_runs, of_buckets)
        num_tasks = min(max(-(-sum(each.num_rows for each in counts) // ROWS_PER_TASK), 1), MAX_BUCKETS)
        rows = Shuffle(assignment.work_dir, "compared", ROW_DTYPE, len(sections), num_tasks)
        members = Shuffle(assignment.work_dir, "members", MEMBER_DTYPE, len(sections), num_tasks)
        with rows, members:
            with find_components(runs, starts, engine) as components:
                places = _add_up(sections, num_shingles)
                of_sections = [(runs, components, rows, members, *each) for each in zip(sections, places, strict=True)]
                run_all(engine, "the runs of section", send_runs, of_sections)
            return _compare(rows, members, starts, _list_pieces(counts), recipe, engine)


def _compare(
    rows: Shuffle, members: Shuffle, starts: np.ndarray, pieces: np.ndarray, recipe: Recipe, engine: Engine
) -> NearDuplicates:
    links = Shuffle(rows.work_dir, "near", LINK_DTYPE, rows.num_readers, len(starts))
    arguments = [(rows, members, links, starts, pieces, recipe, number) for number in range(rows.num_readers)]
    found = run_all(engine, "the comparison", compare_documents, arguments)
    pairs = add_pairs([], [pair for each in found for pair in each.pairs])
    return NearDuplicates(links, sum(each.num_documents for each in found), pairs)


def _cut_sections(assignment: SplitAssignment) -> list[Section]:
    return cut_sections(assignment.num_documents, MIN_SECTION_DOCUMENTS)


def _get_starts(sections: list[Section]) -> np.ndarray:
    """Return the first document of each section: (S,) uint64."""
    return np.array([section.first_document for section in sections], np.uint64)


def _add_up(sections: list[Section], num_shingles: list[list[int]]) -> list[list[int]]:
    """Return where the shingles of each chunk of each section begin in the file of its partition."""
    ends: Counter[int] = Counter()  # of the chunks so far, by partition
    starts = []
    for section, of_chunks in zip(sections, num_shingles, strict=True):
        starts.append([ends[chunk.partition] for chunk in section.chunks])
        ends.update({chunk.partition: count for chunk, count in zip(section.chunks, of_chunks, strict=True)})
    return starts


def _list_pieces(counts: list[RunCounts]) -> np.ndarray:
    """Return the upper halves of the numbers of runs, (P,) uint64 in ascending order."""
    pieces = [bucket << PIECE_BITS | piece for bucket, each in enumerate(counts) for piece in range(each.num_pieces)]
    return np.array(pieces, np.uint64)


def send_runs(
    runs: Shuffle, components: Shuffle, rows: Shuffle, members: Shuffle, section: Section, starts: list[int]
) -> None:
    """Write the documents of runs in a section to the tasks that compare their components.

    `components`: a link from each document to the smallest one of its component. `starts`: of the shingles, as in
    `locate_shingles`.
    """
    first_document = np.uint64(section.first_document)
    component_of = np.arange(section.num_documents, dtype=np.uint64) + first_document
    for links in components.read(section.number):
        component_of[links["index"] - first_document] = links["first"]
    tasks = (mix64(component_of) % np.uint64(rows.num_readers)).astype(np.int64)
    is_member = np.zeros(section.num_documents, bool)
    with rows.open(section.number) as append:
        for piece in runs.read(section.number):
            documents = piece["index"] - first_document
            is_member[documents] = True
            of_piece = np.empty(len(piece), ROW_DTYPE)
            of_piece["index"], of_piece["run"] = piece["index"], piece["run"]
            append(of_piece, tasks[documents])
    found = np.empty(int(np.count_nonzero(is_member)), MEMBER_DTYPE)
    found["index"] = np.flatnonzero(is_member) + section.first_document
    found["component"] = component_of[is_member]
    found["place"] = locate_shingles(rows.work_dir, section, starts)[is_member]
    with members.open(section.number) as append:
        append(found, tasks[is_member])


def drop_near_duplicates(assignment: SplitAssignment, near: NearDuplicates, engine: Engine) -> None:
    """Drop every document that is not the first of its cluster."""
    with near.links:
        if near.num_documents:
            arguments = [(near.links, section) for section in _cut_sections(assignment)]
            run_all(engine, "the nearly equal documents of section", drop_linked, arguments)
    assignment.dropped["near_duplicates"] = near.num_documents
    assignment.duplicate_pairs["near_duplicates"] = near.pairs


def drop_linked(links: Shuffle, section: Section) -> None:
    """Drop the documents of a section that have a link."""
    drop_documents(links.work_dir, section, (piece["index"] for piece in links.read(section.number)))


def group_near_duplicates(assignment: SplitAssignment, near: NearDuplicates, engine: Engine) -> None:
    """Join the groups of all documents of each cluster, so that they are on one side of the split."""
    with near.links:
        sections = _cut_sections(assignment)
        assignment.near_groups = join_groups(near.links, sections, assignment.group_column, near.num_documents, engine)
    assignment.num_near_duplicates = near.num_documents
    assignment.duplicate_pairs["near_duplicates"] = near.pairs
