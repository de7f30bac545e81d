"""Read the text that is piped into a command.

The input is copied to a file first: a build needs its checksum before it begins, and worker
processes read it from several places.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import sys
import tempfile

from preprocess.errors import MisuseError

NAME = "-"  # of standard input, as one of `inputs`
COPY_BYTES = 8 << 20


@functools.cache
def save_standard_input() -> str:
    """Copy standard input to a temporary file and return its path. The file is removed at exit.

    Raises MisuseError if standard input is a terminal.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise MisuseError("--input - reads standard input, but nothing is piped into it; use for example `zcat a.gz |`")
    folder = tempfile.mkdtemp(prefix="folio-")  # TMPDIR chooses the disk
    process = os.getpid()  # workers are forks that must not remove the file

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    path = os.path.join(folder, "stdin")
    with open(path, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, COPY_BYTES)
    return path
