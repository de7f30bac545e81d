"""Run a reader on many damaged files, in a child process that may crash, hang or take all memory.

A reader passes if it accepts a damaged file or refuses it with one line. It fails if it raises any
other exception, ends the process, needs more than TIMEOUT_S, or more than MAX_MEMORY_BYTES.

A run is bounded by a number of files and by time: the environment variables FUZZ_MUTATIONS and
FUZZ_SECONDS raise both, for example `FUZZ_MUTATIONS=2000 FUZZ_SECONDS=600`.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from preprocess.build.build_log import get_peak_memory_bytes
from preprocess.errors import FolioError

NUM_MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "2000"))
MAX_SECONDS = float(os.environ.get("FUZZ_SECONDS", "8"))
MIN_MUTATIONS = 20  # also on a machine that is too busy to read them in MAX_SECONDS
TIMEOUT_S = 10.0
MAX_MEMORY_BYTES = 1_500_000_000
SAFETY_LIMIT_BYTES = 6_000_000_000  # of a child's private memory, so that a bomb does not stop the machine
MAX_LINE_CHARACTERS = 2_000
MAX_FAILURES = 5

Mutation = Callable[[bytes, random.Random], bytes]
Reader = Callable[[Path], None]  # reads the damaged file at this path


@dataclass
class Outcome:
    """How many damaged files were accepted and refused, and what went wrong with the others."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class _Child:
    """A process that calls the reader for one path after the other."""

    def __init__(self, reader: Reader, setup: Callable[[], None] | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, child_end = context.Pipe()
        self.process = context.Process(target=_run_child, args=(child_end, reader, setup), daemon=True)
        self.process.start()
        child_end.close()
        assert self.pipe.poll(120) and self.pipe.recv() == "ready"

    def read(self, path: Path) -> tuple[str, str]:
        """Return the kind of outcome for the file at `path`, and what went wrong."""
        self.pipe.send(path)
        if not self.pipe.poll(TIMEOUT_S):
            self.stop()
            return "hang", f"no answer after {TIMEOUT_S:.0f} s"
        try:
            kind, text, memory_bytes = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return "died", f"the process ended with status {self.process.exitcode}"
        if memory_bytes > MAX_MEMORY_BYTES:
            self.stop()
            return "memory", f"{memory_bytes:,} bytes"
        return kind, text

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def _run_child(pipe: Connection, reader: Reader, setup: Callable[[], None] | None) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (SAFETY_LIMIT_BYTES, SAFETY_LIMIT_BYTES))
    if setup is not None:
        setup()
    pipe.send("ready")
    while True:
        try:
            path = pipe.recv()
        except EOFError:
            return
        kind, text = _call(reader, path)
        sys.stdout.flush()
        pipe.send((kind, text, get_peak_memory_bytes()))


def _call(reader: Reader, path: Path) -> tuple[str, str]:
    try:
        reader(path)
    except (FolioError, OSError) as e:
        message = str(e)
        # Commands escape control characters when they print a message.
        is_one_line = message and "\n" not in message and len(message) <= MAX_LINE_CHARACTERS
        return ("refused", message) if is_one_line else ("not one line", repr(message)[:3000])
    except BaseException:  # whatever it is, the parent reports it
        return "traceback", traceback.format_exc()
    return "accepted", ""


def fuzz(
    reader: Reader,
    path: Path,
    originals: list[bytes],
    mutate: Mutation,
    *,
    setup: Callable[[], None] | None = None,
) -> Outcome:
    """Write damaged versions of `originals` to `path`, one after the other, and read each.

    `reader` and `setup` (which the child calls once) are sent to the child, so they must be defined
    in a module. Stops after NUM_MUTATIONS files, after MAX_SECONDS and MIN_MUTATIONS files, or
    after MAX_FAILURES failures. A file that fails is kept beside `path`.
    """
    outcome = Outcome()
    child = _Child(reader, setup)
    for original in originals:
        path.write_bytes(original)
        kind, text = child.read(path)
        assert kind == "accepted", f"the undamaged file is not accepted: {text}"
    end = time.monotonic() + MAX_SECONDS  # without the start of the child, which imports libraries
    for number in range(NUM_MUTATIONS):
        if (time.monotonic() > end and number >= MIN_MUTATIONS) or len(outcome.failures) >= MAX_FAILURES:
            break
        random_ = random.Random(number)
        path.write_bytes(mutate(random_.choice(originals), random_))
        kind, text = child.read(path)
        outcome.counts[kind] += 1
        if kind not in ("accepted", "refused"):
            kept = path.with_name(f"failure-{number}-{path.name}")
            os.replace(path, kept)
            outcome.failures.append(f"mutation {number} ({kept}): {kind}: {text}")
            if not child.process.is_alive():
                child = _Child(reader, setup)
    child.stop()
    return outcome


def run_all(steps: Sequence[Callable[[], object]]) -> None:
    """Call every step, and raise the first error that a command would print after all of them."""
    errors = []
    for step in steps:
        try:
            step()
        except (FolioError, OSError) as e:
            errors.append(e)
    if errors:
        raise errors[0]


def assert_no_failure(
    outcome: Outcome, record_property: Callable[[str, Any], None], *, must_refuse: bool = True
) -> None:
    """Fail with the first failures, and otherwise print the counts.

    With `must_refuse` it is a failure if no damaged file was refused.
    """
    record_property("counts", dict(outcome.counts))
    print(dict(outcome.counts))
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.counts["refused"] or not must_refuse, (
        "no damaged file was refused: the reader does not reach the file"
    )
