"""Retry after temporary read errors.

Reading over a network fails sometimes. If reading a span fails, the span is read again from its
beginning, after a pause that doubles each time, and the documents that were already yielded are
skipped. So a temporary error neither loses nor repeats a document. Permanent errors, such as a
missing or malformed file, are raised at once.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from numbers import Integral, Real

from preprocess.errors import FolioError, MisuseError, explain_os_error, first_line
from preprocess.inputs.disk_file import InputChanged
from preprocess.inputs.input_files import InputFile
from preprocess.inputs.remote.remote_file import Unreachable
from preprocess.stream.corpus import Log

# Errors that a retry cannot repair.
PERMANENT_ERRORS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)
MAX_TRIES = 100
MAX_BACKOFF_S = 3_600


@dataclass(frozen=True)
class Retries:
    """The number of times that reading is tried at one position, and the pauses between the tries.

    The first pause is `backoff_s` seconds; each further one is twice as long. Raises MisuseError if
    `tries` is not from 1 to 100, or `backoff_s` not from 0 to 3,600.
    """

    tries: int = 5
    backoff_s: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.tries, Integral) or not 1 <= self.tries <= MAX_TRIES:
            raise MisuseError(f"tries must be a whole number from 1 to {MAX_TRIES}, got {self.tries!r:.80}")
        if not isinstance(self.backoff_s, Real) or not 0 <= self.backoff_s <= MAX_BACKOFF_S:
            raise MisuseError(f"backoff_s must be from 0 to {MAX_BACKOFF_S} seconds, got {self.backoff_s!r:.80}")


def wait_before_retry(
    file: InputFile, error: OSError | FolioError, num_failures: int, retries: Retries, log: Log
) -> None:
    """Log a failure that may be temporary, and pause before the next try.

    `num_failures` is the number of failures at this position so far. Raises FolioError for a
    permanent failure, or after the last try. Readers convert the errors of libraries to FolioError,
    so the cause decides: an error of the operating system may be temporary, any other cause means
    that the file is damaged. pyarrow reports damaged compressed data as an OSError too, but without
    an errno.
    """
    if isinstance(error, InputChanged):
        raise FolioError(
            f"{error.reason}; restore the file and continue from the last state or checkpoint, or start again"
        ) from error
    cause = error if isinstance(error, OSError | Unreachable) else error.__cause__
    if not isinstance(cause, Unreachable) and (
        not isinstance(cause, OSError) or cause.errno is None or cause.errno in PERMANENT_ERRORS
    ):
        if isinstance(error, FolioError):
            raise error
        raise FolioError(explain_os_error(error)) from error
    if num_failures >= retries.tries:
        if isinstance(error, FolioError):
            raise error
        raise FolioError(
            f"{file.path} could not be read in {num_failures} tries ({first_line(cause)}); check its disk or network "
            "and continue from the last state"
        ) from error
    seconds = retries.backoff_s * 2 ** (num_failures - 1)
    log(
        f"{file.path} could not be read ({first_line(cause)}); "
        f"try {num_failures + 1} of {retries.tries} in {seconds:g} s"
    )
    time.sleep(seconds)
