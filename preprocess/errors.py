"""The two kinds of errors that a user can fix, and functions that escape untrusted text.

`preprocess` and `train` use both. The message of an error is one line that says what was found,
what was expected, and what to do. Commands print it without a traceback.
"""

import errno
import re
import unicodedata
from collections.abc import Collection, Iterator
from contextlib import contextmanager

MAX_SHOWN = 80  # characters of a name, a value or an expression that a message repeats
FULL_DISK = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
BLOCKING_PATHS = {errno.EISDIR: "a folder", errno.EEXIST: "a file"}  # what prevents creating a file or a folder
SCHEME = r"\b[A-Za-z][A-Za-z0-9+.-]{1,20}:/{1,2}"
LOGIN = re.compile(rf"({SCHEME})[^\s/?#'\"]{{1,1000}}@")
QUERY = re.compile(rf"({SCHEME}[^\s?'\"]{{0,1000}})\?[^\s'\"]{{0,9000}}[^\s'\";:,.)]")


class FolioError(Exception):
    """The work could not be done, e.g. because a file is damaged. Commands exit with status 1."""

    exit_status = 1


class MisuseError(FolioError):
    """The request is wrong, e.g. a name or a setting in it. Commands exit with status 2."""

    exit_status = 2


def explain_os_error(error: OSError) -> str:
    """Return `error` as one line, with advice, e.g. if the disk is full, access is denied, or a file is in the way."""
    file = f" ({error.filename})" if error.filename else ""
    if error.errno in FULL_DISK:
        return (
            f"no space left on the disk{file}; free some space, or choose a directory on another disk, and run the "
            "same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"cannot read or write{file}: {error.strerror}; change its permissions, or choose another path"
    if error.errno == errno.EIO:
        return (
            f"the disk could not read or write{file}: {error.strerror}; check the disk, or use another copy of the file"
        )
    if error.errno in BLOCKING_PATHS and file:
        return (
            f"{BLOCKING_PATHS[error.errno]} is in the way at {error.filename}; move it elsewhere, and run the same "
            "command again"
        )
    if error.errno == errno.ENOTDIR and file:
        return f"a folder in the path {error.filename} is a file; move it elsewhere, or choose another path"
    return f"{error.strerror or error}{file}"


@contextmanager
def name_file_in_errors(path: str, *, only: Collection[int] | None = None) -> Iterator[None]:
    """Add `path` to an OSError that names no file, such as those of reads from a disk that fails.

    `only`: the numbers of the errors to which it is added, by default all.
    """
    try:
        yield
    except OSError as e:
        if e.errno is not None and e.filename is None and (only is None or e.errno in only):
            e.filename = path
        raise


def printable(text: str) -> str:
    """Return `text` with every control and formatting character escaped, except tab and line feed.

    Names, messages and decoded tokens come from untrusted files. Printed as they are, they could
    contain escape sequences, which a terminal executes, or bidirectional overrides, which make text
    look like different text.
    """
    return "".join(c.encode("unicode_escape").decode() if _must_escape(c) else c for c in text)


def hide_credentials(text: str) -> str:
    """Return `text` without the logins and queries of the URLs in it. A query may be a signature or a token."""
    return QUERY.sub(r"\1?…", LOGIN.sub(r"\1", text)) if ":/" in text else text


def one_line(text: str) -> str:
    """Return `printable(text)` with tabs and line feeds escaped too."""
    return printable(text).replace("\t", "\\t").replace("\n", "\\n")


def shorten(text: str) -> str:
    """Return at most the first MAX_SHOWN characters of `text`, on one line and without credentials, for a message."""
    shown = hide_credentials(text[: 100 * MAX_SHOWN])
    return one_line(shown[:MAX_SHOWN]) + ("…" if len(shown) > MAX_SHOWN else "")


def format_quantity(number: int, noun: str) -> str:
    """Return for example "1 file" or "1,234 files". `noun` is singular and has a plural in -s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def first_line(error: Exception) -> str:
    """Return the first line of a library's error message. Further lines are usually a traceback."""
    lines = str(error).splitlines() or [type(error).__name__]  # some errors have no message
    return lines[0][:200]


def _must_escape(character: str) -> bool:
    # Category Cf contains the bidirectional overrides, but also joiners that emoji and some scripts need.
    if character in "\t\n\u200c\u200d\u00ad\ufeff":
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
