"""Paths that a user names, as an option or as a setting."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from preprocess.errors import MisuseError


def parse_path(text: str, name: str) -> Path:
    """Return `text` as a path, with the home directory in place of a leading `~` or `~USER`.

    `name` is the option or the setting, for messages. The path need not exist. Raises MisuseError
    if `text` is empty, if the home directory is not known, or if the system cannot have such a
    path.
    """
    if not text:
        raise MisuseError(f"{name} is empty; name a file or a folder")
    # Not Path.expanduser, which expands `./~USER` too, and raises RuntimeError for an unknown user.
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        home = text.partition("/")[0]
        raise MisuseError(
            f"{name} is {text!r:.80}, but the home directory of {home!r:.40} is not known; write the path in full, "
            f"or ./{home:.40} for a folder of that name"
        )
    path = Path(expanded)
    try:
        os.stat(path)
    except ValueError as e:  # a NUL character, or half of a surrogate pair
        raise MisuseError(f"{name} must be a path, got {text!r:.80}; remove the characters that are escaped") from e
    except OSError as e:
        if e.errno == errno.ENAMETOOLONG:
            raise MisuseError(
                f"{name} is longer than this system allows, {len(text):,} characters, got {text!r:.60}…; name a "
                "shorter path"
            ) from e
        if e.errno == errno.ELOOP:
            raise MisuseError(f"{name} is {text!r:.80}, whose symbolic links form a cycle; name another path") from e
    return path


def expand_home(text: str, name: str) -> str:
    """Return `text` with the home directory in place of a leading `~` or `~USER`, else unchanged.

    Parameters and errors are those of `parse_path`. Unlike there, `./demo` keeps its dot, which
    distinguishes the path `./demo` from the name `demo`.
    """
    path = parse_path(text, name)
    return str(path) if text.startswith("~") else text
