"""The two ways a request can end badly, for both halves of Folio.

A message is one line that says what was got, what was wanted and what to do.
"""

import errno
import unicodedata

MAX_SHOWN = 80  # characters of a name, a value or an expression that a message repeats


class FolioError(Exception):
    """The work could not be done. Exit status 1."""

    exit_status = 1


class MisuseError(FolioError):
    """What was asked for cannot be meant: a wrong name, setting or combination. Exit status 2."""

    exit_status = 2


def explain_os_error(error: OSError) -> str:
    """One line for what the system refused, with the cure where there is a usual one."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"no space left on the disk{where}; free some, or choose a folder on another disk, and run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"may not write or read{where}: {error.strerror}; choose a folder that is yours"
    return f"{error.strerror or error}{where}"


def printable(text: str) -> str:
    """`text` with every control or formatting character but tab and line feed escaped.

    Names, messages and decoded tokens come from files of unknown origin: a terminal must show them, never obey them
    (escape sequences, and the bidirectional overrides that make text read as what it is not).
    """
    return "".join(c if c in "\t\n" or not _obeyed(c) else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """`text` as one line that cannot pass for two: `printable`, tabs and line feeds escaped too."""
    return printable(text).replace("\t", "\\t").replace("\n", "\\n")


def shown(text: str) -> str:
    """`text` on one line, and no more of it than a message should repeat."""
    return one_line(text[:MAX_SHOWN]) + ("…" if len(text) > MAX_SHOWN else "")


def first_line(error: Exception) -> str:
    """What a library's error says, without what it says below."""
    return str(error).splitlines()[0][:200]


def _obeyed(character: str) -> bool:
    # Cf holds the bidirectional overrides, but also the joiners that emoji and several scripts are spelled with.
    return (
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and character not in "\u200c\u200d\u00ad\ufeff"
    )
