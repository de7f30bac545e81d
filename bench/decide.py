"""Measure how the phase that compares all documents grows: CPU seconds, memory and disk of `dedup_and_split`.

The phase reads tables of documents and no text, so the tables are made directly. Every tenth document
has the content of a random earlier one; with --near-dedup it has all but one of its shingles and 5 of
its bands instead. CPU seconds are those of the process that runs the phase and of its workers, so
other programs change them little.

    python bench/decide.py
    python bench/decide.py --documents 10000000 20000000 40000000 --near-dedup drop
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
import json
import threading
import time
from collections.abc import Iterator

import numpy as np

from bench.lib.measure import fresh_folder, measure
from bench.lib.options import add_scratch_option, parse_positive
from bench.lib.report import print_table
from preprocess.build.dedup_and_split import dedup_and_split
from preprocess.build.engines.local import ProcessEngine, SerialEngine
from preprocess.build.work_dir import DOCUMENT_DTYPE, NUM_SHINGLES_DTYPE, WorkDir
from preprocess.recipes.schema import Recipe
from preprocess.shards.permutation import keyed_hash

PARTITION_DOCUMENTS = 200_000  # 16 MB of documents of 83 bytes
NUM_SHINGLES, NUM_EQUAL_BANDS = 10, 5
NUM_BANDS = Recipe(corpus="x").near_dedup_bands
SAMPLE_INTERVAL_S = 0.5
JOB, RESULT = "job.json", "result.json"


def write_tables(work_dir: WorkDir, count: int, *, near_dedup: bool) -> list[int]:
    """Write the tables of `count` documents, and return the number of documents in each partition."""
    starts = range(0, count, PARTITION_DOCUMENTS)
    for partition, start in enumerate(starts):
        numbers = np.arange(start, min(start + PARTITION_DOCUMENTS, count), dtype=np.uint64)
        originals = numbers.copy()
        is_copy = numbers % np.uint64(10) == 9
        originals[is_copy] = keyed_hash(1, numbers[is_copy]) % numbers[is_copy]
        table = np.zeros(len(numbers), DOCUMENT_DTYPE)
        contents = numbers if near_dedup else originals
        hashes = np.stack([keyed_hash(2, contents), keyed_hash(3, contents)], axis=1)
        table["hash"] = table["group"] = hashes.view(np.uint8).reshape(-1, 16)
        table.tofile(work_dir.file(partition, "docs"))
        if near_dedup:
            write_shingles(work_dir, partition, numbers, originals)
    return [min(PARTITION_DOCUMENTS, count - start) for start in starts]


def write_shingles(work_dir: WorkDir, partition: int, numbers: np.ndarray, originals: np.ndarray) -> None:
    shingles = np.empty((len(numbers), NUM_SHINGLES), np.uint32)
    for i in range(NUM_SHINGLES):
        shingles[:, i] = keyed_hash(10 + i, originals if i else numbers) >> np.uint64(32)
    bands = np.empty((len(numbers), NUM_BANDS), np.uint64)
    for i in range(NUM_BANDS):
        bands[:, i] = keyed_hash(50 + i, originals if i < NUM_EQUAL_BANDS else numbers)
    shingles.tofile(work_dir.file(partition, "shingles"))
    np.full(len(numbers), NUM_SHINGLES, NUM_SHINGLES_DTYPE).tofile(work_dir.file(partition, "num_shingles"))
    bands.tofile(work_dir.file(partition, "bands"))


def run_phase(folder: Path) -> None:
    """Run the phase with the tables in `folder`, and write what it took to the file RESULT there."""
    job = json.loads((folder / JOB).read_text())
    recipe = Recipe(corpus="x", near_dedup=job["near_dedup"])
    with ProcessEngine(job["workers"]) if job["workers"] > 1 else SerialEngine() as engine:
        begin = time.perf_counter()
        assignment = dedup_and_split(recipe, WorkDir(folder), job["num_documents"], engine)
        elapsed_s = time.perf_counter() - begin
    (folder / RESULT).write_text(json.dumps({"elapsed_s": elapsed_s, "dropped": sum(assignment.dropped.values())}))


@contextlib.contextmanager
def sampled_disk(folder: Path) -> Iterator[list[int]]:
    """Yield a list whose element is the most bytes that were added to `folder` during the block."""
    before_bytes, most, done = count_bytes(folder), [0], threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_INTERVAL_S):
            most[0] = max(most[0], count_bytes(folder) - before_bytes)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def count_bytes(folder: Path) -> int:
    """Return the bytes on the disk of the files in `folder`, some of which may be deleted meanwhile."""
    total = 0
    for path in folder.iterdir():
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def measure_phase(count: int, arguments: argparse.Namespace) -> list[str]:
    """Return the row of the table for `count` documents."""
    with fresh_folder(arguments.scratch) as folder:
        num_documents = write_tables(WorkDir(folder), count, near_dedup=arguments.near_dedup is not None)
        job = {"num_documents": num_documents, "near_dedup": arguments.near_dedup, "workers": arguments.workers}
        (folder / JOB).write_text(json.dumps(job))
        with sampled_disk(folder) as most_bytes:
            command = [sys.executable, __file__, "--phase", str(folder)]
            measured = measure(command, folder / "log.txt", with_memory=True)
        result = json.loads((folder / RESULT).read_text())
    return [
        f"{count:,}", f"{result['dropped']:,}", f"{result['elapsed_s']:.1f}", f"{measured.cpu_s:.1f}",
        f"{measured.cpu_s / count * 1e6:.2f}", f"{most_bytes[0] / count:.0f}", f"{measured.peak_bytes / 1e6:,.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--documents",
        type=parse_positive,
        nargs="+",
        default=[10_000_000, 20_000_000, 40_000_000],
        help="(default: 10, 20 and 40 million)",
    )
    parser.add_argument("--near-dedup", choices=["drop", "group"], help="also find nearly equal documents")
    parser.add_argument("--workers", type=parse_positive, default=2, help="(default: 2)")
    parser.add_argument("--phase", type=Path, help=argparse.SUPPRESS)  # the folder of a process that is measured
    add_scratch_option(parser)
    arguments = parser.parse_args()
    if arguments.phase is not None:
        run_phase(arguments.phase)
        return
    rows = [["documents", "dropped", "seconds", "CPU s", "CPU µs per document", "disk, bytes per document", "peak MB"]]
    for count in sorted(arguments.documents):
        rows.append(measure_phase(count, arguments))
        print(f"  {count:,}: {rows[-1][2]} s", file=sys.stderr, flush=True)
    print_table(rows)


if __name__ == "__main__":
    main()
