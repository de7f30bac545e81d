"""Examine Parquet and Arrow files in a child process, before this process opens them.

The problem: a damaged or hostile file can end the process inside Arrow, or make it allocate any
amount of memory, and no Python code can prevent that.

The idea: a child process does with every file first what the reader will do. For Parquet, it parses
the footer and looks at the columns of every row group; the reader checks the size of each page
before it decompresses it. For Arrow, it reads every record batch, which decompresses the required
columns. Its memory and its time are limited. If it crashes, the file that it was working on is
reported in one line, and the files after it are not examined: one such file ends a build.

The cost: about 0.1 s of CPU time for the child, once for a build, and 1 ms per file. A compressed
Arrow file is decompressed once more than otherwise, and a file that is not compressed is not read.
`start_examiner` starts the child early, so that it imports Arrow while this process does something
else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from preprocess.limited_child import (
    explain_end,
    explain_failed_start,
    limit_resources,
    name_status,
    start_child,
)

# Of the child, of which Python and Arrow take 100 MB. A worker will need the rest, too, and two workers at most 1 GB.
MAX_MEMORY_BYTES = 400_000_000
MAX_CPU_S = 10  # for one file, and as long again for every CPU_BYTES of it
MAX_WAIT_S = 60  # for one file, which may be on a slow disk, and as long again for every CPU_BYTES of it
CPU_BYTES = 256 << 20  # of a compressed file; decompressing them takes about a second
# What takes the time or memory, in messages.
WORK = {"parquet": "reading its metadata", "arrow": "reading its record batches"}
# The child imports from the paths of this process. NumPy is hidden: importing it would double the time of the start.
CHILD_CODE = """import sys
sys.path[:] = sys.argv[1:]
sys.modules["numpy"] = None
from preprocess.readers.examiner import main
main()"""
READY, EXAMINED, NO_MEMORY = "ready", "examined", "no memory"  # lines that the child prints

_started: list[subprocess.Popen[bytes]] = []  # at most one child, which `examine_files` will use


def start_examiner() -> None:
    """Start the child process that the next call of `examine_files` uses."""
    if not _started:
        _started.append(_start_child())


def _start_child() -> subprocess.Popen[bytes]:
    # Another allocator of Arrow, mimalloc, reserves 1 GB at once, which exceeds MAX_MEMORY_BYTES.
    return start_child(CHILD_CODE, {"ARROW_DEFAULT_MEMORY_POOL": "system"})


def examine_files(files: list[tuple[str, str]], names: list[str]) -> list[str | None]:
    """Return for each of `files` why this process must not open it, or None.

    `files` are pairs of a path and a format, "parquet" or "arrow". `names` are the columns that will
    be read. The result ends with the first file that crashes the child. A damaged file for which
    Arrow raises an exception may be opened: the reader raises the exception again. Raises FolioError
    if no child can be started.
    """
    child = _started.pop() if _started else _start_child()
    output, errors = child.communicate(json.dumps([files, names]).encode() + b"\n")
    start, *answers = output.decode().splitlines() or [""]
    if start != READY:
        raise explain_failed_start("examines Parquet and Arrow files", errors)
    no_memory = f"takes more than {MAX_MEMORY_BYTES // 1_000_000} MB of memory"
    reasons = [
        f"{WORK[format_]} {no_memory}" if answer == NO_MEMORY else None
        for answer, (_, format_) in zip(answers, files, strict=False)
    ]
    if len(reasons) == len(files):
        return reasons
    return [*reasons, _explain_end(child.returncode, *files[len(reasons)])]


def _explain_end(status: int, path: str, format_: str) -> str:
    reason = explain_end(status, *_get_time_limits(path)) or f"ends the process with {name_status(status)}"
    return f"{WORK[format_]} {reason}"


def _get_time_limits(path: str) -> tuple[int, int]:
    """Return how many seconds the child may compute, and how many it may take, for the file `path`."""
    try:
        factor = 1 + os.path.getsize(path) // CPU_BYTES
    except OSError:  # the reader reports it
        factor = 1
    return MAX_CPU_S * factor, MAX_WAIT_S * factor


def main() -> None:
    """Examine the files named by a line of stdin, and print a line for each. Runs in the child process."""
    import preprocess.readers.arrow_file
    import preprocess.readers.parquet_metadata  # noqa: F401

    print(READY, flush=True)
    files, names = json.loads(sys.stdin.readline())
    for path, format_ in files:
        limit_resources(MAX_MEMORY_BYTES, *_get_time_limits(path))
        print(_examine(path, format_, set(names)), flush=True)


def _examine(path: str, format_: str, names: set[str]) -> str:
    """Do with a file what the readers will do. Return EXAMINED or NO_MEMORY."""
    try:
        (_examine_arrow if format_ == "arrow" else _examine_parquet)(path, names)
    except MemoryError:
        return NO_MEMORY
    except Exception:  # the reader raises it again
        pass
    return EXAMINED


def _examine_parquet(path: str, names: set[str]) -> None:
    from preprocess.readers.parquet_metadata import describe_chunks, find_chunk_indices, open_file

    with open_file(path) as file:
        file.schema_arrow  # noqa: B018
        indices = find_chunk_indices(file, names)
        for group in range(file.num_row_groups):
            describe_chunks(file, group, indices)


def _examine_arrow(path: str, names: set[str]) -> None:
    from preprocess.readers.arrow_file import open_arrow

    with open_arrow(path, names) as file:
        for batch in file.iter_batches():
            del batch  # its memory is free when the next one is read
