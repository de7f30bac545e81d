"""Put documents with the same text on one side of the split, that of the first of them."""

from __future__ import annotations

import numpy as np

from preprocess.build.buckets import Buckets, sort_distinct
from preprocess.build.split_assignment import SplitAssignment
from preprocess.build.work_dir import DROPPED, iter_chunks
from preprocess.stages.dedup import to_uint64_halves

# h, low: the halves of a content hash; index: of the document among all documents; side: TRAIN or VAL.
ROW_DTYPE = np.dtype([("h", "<u8"), ("low", "<u8"), ("index", "<u8"), ("side", "<u8")])
MARKED_DOCUMENTS = 1 << 24  # whose sides are mapped at once


def keep_texts_together(assignment: SplitAssignment) -> None:
    """Move each document to the side of the first document with the same text.

    The hashes are sorted in buckets, so memory does not grow with the number of documents.
    """
    work_dir, num_documents = assignment.work_dir, assignment.num_documents
    ranges = list(iter_chunks(num_documents, MARKED_DOCUMENTS))
    starts = np.cumsum([0, *(chunk.num_documents for chunk in ranges)]).astype(np.uint64)
    with Buckets(work_dir.path, "sides", ROW_DTYPE, sum(num_documents)) as buckets:
        first_index = 0
        for chunk, sides in assignment.chunks():
            kept = np.flatnonzero(sides != DROPPED)
            rows = np.empty(len(kept), ROW_DTYPE)
            rows["h"], rows["low"] = to_uint64_halves(work_dir.map_documents(chunk)["hash"][kept])
            rows["index"], rows["side"] = kept + first_index, sides[kept]
            buckets.append(rows)
            first_index += chunk.num_documents
        for pieces in buckets:
            texts = np.empty(0, ROW_DTYPE)  # the first document of each text in the pieces so far
            for piece in pieces:
                rows = np.concatenate([texts, piece])
                order, firsts = sort_distinct(rows, ("low",))
                texts = rows[order[firsts]]
                sizes = np.diff(firsts, append=len(order))
                wanted = np.repeat(texts["side"], sizes)
                moved = np.flatnonzero(rows["side"][order] != wanted)
                by_index = np.argsort(rows["index"][order[moved]])
                indices, new = rows["index"][order[moved]][by_index], wanted[moved][by_index]
                edges = np.searchsorted(indices, starts)
                for i in np.flatnonzero(np.diff(edges)).tolist():
                    part = slice(edges[i], edges[i + 1])
                    work_dir.map_sides(ranges[i])[indices[part] - starts[i]] = new[part]
    assignment.num_leaks = 0
