"""Examine the metadata of Parquet files in a child process, before this process opens them.

The problem: the metadata of a damaged or hostile file can end the process inside Arrow, or make it
allocate any amount of memory, and no Python code can prevent that.

The idea: a child process does with every file first what the reader will do: it parses the footer
and looks at the columns of every row group. Its memory and its time are limited. If it crashes,
the file that it was working on is reported in one line, and the files after it are not examined:
one such file ends a build. The child is a new interpreter, because a fork of this process could
inherit a lock that another thread holds.

The cost: about 0.1 s of CPU time for the child, once for a build, and 1 ms per file.
`start_examiner` starts the child early, so that it imports Arrow while this process does something
else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import preprocess
from preprocess.errors import FolioError, shorten

MAX_MEMORY_BYTES = 1 << 30  # of the child, of which Python and Arrow take a tenth
MAX_CPU_S = 10  # for one file
MAX_WAIT_S = 60  # for one file, which may be on a slow disk
# The child imports from the paths of this process. NumPy is hidden: importing it would double the time of the start.
CHILD_CODE = """import sys
sys.path[:] = sys.argv[1:]
sys.modules["numpy"] = None
from preprocess.readers.parquet_examiner import main
main()"""
READY, EXAMINED, NO_MEMORY = "ready", "examined", "no memory"  # lines that the child prints

_started: list[subprocess.Popen[bytes]] = []  # at most one child, which `examine_files` will use


def start_examiner() -> None:
    """Start the child process that the next call of `examine_files` uses."""
    if not _started:
        _started.append(_start_child())


def _start_child() -> subprocess.Popen[bytes]:
    root = Path(preprocess.__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", CHILD_CODE, str(root), *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Another allocator of Arrow, mimalloc, reserves 1 GB at once, which would exceed MAX_MEMORY_BYTES.
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )


def examine_files(paths: list[str], names: list[str]) -> list[str | None]:
    """Return for each of the Parquet files `paths` why this process must not open it, or None.

    `names` are the columns that will be read. The result ends with the first file that crashes the
    child. A damaged file for which Arrow raises an exception may be opened: the reader raises the
    exception again. Raises FolioError if no child can be started.
    """
    child = _started.pop() if _started else _start_child()
    output, errors = child.communicate(json.dumps([paths, names]).encode() + b"\n")
    start, *answers = output.decode().splitlines() or [""]
    if start != READY:
        last_line = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise FolioError(f"the process that examines Parquet files cannot start: {shorten(last_line)}")
    no_memory = f"its metadata needs more than {MAX_MEMORY_BYTES >> 30} GB of memory"
    reasons = [no_memory if answer == NO_MEMORY else None for answer in answers]
    return reasons if len(reasons) == len(paths) else [*reasons, _explain_end(child.returncode)]


def _explain_end(status: int) -> str:
    name = signal.Signals(-status).name if status < 0 else f"status {status}"
    if name in ("SIGXCPU", "SIGALRM"):
        return f"reading its metadata takes more than {MAX_CPU_S if name == 'SIGXCPU' else MAX_WAIT_S} s"
    return f"reading its metadata ends the process with {name}"


def main() -> None:
    """Examine the files named by a line of stdin, and print a line for each. Runs in the child process."""
    import preprocess.readers.parquet_metadata  # noqa: F401

    print(READY, flush=True)
    paths, names = json.loads(sys.stdin.readline())
    for path in paths:
        _limit_resources()
        print(_examine(path, set(names)), flush=True)


def _limit_resources() -> None:
    """Limit the memory of this process, and its time for the next file."""
    with suppress(ImportError):  # Windows has no limits
        import resource

        signal.alarm(MAX_WAIT_S)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        max_cpu_s = int(usage.ru_utime + usage.ru_stime) + MAX_CPU_S
        limits = ((resource.RLIMIT_DATA, MAX_MEMORY_BYTES), (resource.RLIMIT_CPU, max_cpu_s), (resource.RLIMIT_CORE, 0))
        for kind, value in limits:
            hard_limit = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (value if hard_limit < 0 else min(value, hard_limit), hard_limit))


def _examine(path: str, names: set[str]) -> str:
    """Do with the footer of a file what the readers will do. Return EXAMINED or NO_MEMORY."""
    from preprocess.readers.parquet_metadata import describe_chunks, find_chunk_indices, open_file

    try:
        with open_file(path) as file:
            file.schema_arrow  # noqa: B018
            indices = find_chunk_indices(file, names)
            for group in range(file.num_row_groups):
                describe_chunks(file, group, indices)
    except MemoryError:
        return NO_MEMORY
    except Exception:  # the reader raises it again
        pass
    return EXAMINED
