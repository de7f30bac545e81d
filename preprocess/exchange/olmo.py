"""Export a build to the token arrays of OLMo and OLMo-core: `.npy` with the tokens, `.csv.gz` with the documents.

In spite of its name, an `.npy` file is no NumPy file: it has no header, and the dtype is a setting of
OLMo's configuration. Each line of `.csv.gz` has the begin and the exclusive end of a document in
tokens, an id, the name of the source, and the document's number in it.

Layout: dolma, python/dolma/tokenizer/memmap_writer.py, and OLMo-core, olmo_core/data/utils.py.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from preprocess.exchange.output import check_no_leftovers, check_output, write_together
from preprocess.exchange.tokens import iter_records, name_sources, write_array
from preprocess.shards.format import SPLITS, Build
from preprocess.shards.manifest import ShardEntry


def export_olmo(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write each shard of a build to files such as `train/part-00000.npy` and `.csv.gz`, and return their paths.

    A token takes 2 bytes (`dtype: uint16` in OLMo's configuration), or 4 if the vocabulary has more than
    65,536 ids. Raises MisuseError like `check_output`, and FolioError if the build is damaged.
    """
    shards = {
        output / split / f"part-{number:05}.npy": entry
        for split in SPLITS
        for number, entry in enumerate(build.manifest.splits[split].shards)
    }
    paths = [file for path in shards for file in (path, path.with_suffix(".csv.gz"))]
    for split in SPLITS:
        check_no_leftovers(output / split, paths, ["*.npy", "*.csv.gz"])
    check_output(output, paths, replace=replace)
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    with write_together() as new, build.reading():
        for path, entry in shards.items():
            with new.open(path) as file:
                write_array(file, build.map_shard(entry).tokens)
            with new.open(path.with_suffix(".csv.gz")) as file:
                _write_documents(file, build, entry)
    return paths


def _write_documents(file: BinaryIO, build: Build, entry: ShardEntry) -> None:
    # Without a name and a time in its header, the file depends on the build only.
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as compressed,
        io.TextIOWrapper(compressed, encoding="utf-8", errors="backslashreplace", newline="") as text,
    ):
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows(_iter_rows(build, entry))


def _iter_rows(build: Build, entry: ShardEntry) -> Iterator[tuple[int, int, str, str, int]]:
    """Yield begin, end, id, source and position of each document of a shard. The id is the content hash."""
    begin = 0
    for docs, ends in iter_records(build, entry):
        names = name_sources(build, docs)
        hashes = np.ascontiguousarray(docs["hash"])
        for end, digest, name, position in zip(ends.tolist(), hashes, names, docs["position"].tolist(), strict=True):
            yield begin, end, digest.tobytes().hex(), name, position
            begin = end
