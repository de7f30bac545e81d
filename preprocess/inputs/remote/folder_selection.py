"""Choose the files that are read of a remote folder, as of a folder on the disk."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from preprocess.inputs.detect import describes_data, detect_format_by_name, has_known_suffix
from preprocess.recipes.schema import TABLE_FORMATS


def select_data(paths: Iterable[str], recipe_format: str) -> tuple[list[str], list[str]]:
    """Return those of `paths`, relative to the folder, that are data, and those that are skipped, both sorted.

    Data are files whose suffix is known or, with a format other than "auto", not that of another
    format. Files with another suffix are skipped. Hidden files are neither, nor are, beside tables,
    files such as README.md.
    """
    visible = [path for path in sorted(paths) if not any(part.startswith(".") for part in path.split("/"))]
    described = [path for path in visible if not describes_data(posixpath.basename(path))]
    has_tables = recipe_format in TABLE_FORMATS or any(map(is_table, described))
    is_read = {
        path: has_known_suffix(posixpath.basename(path), recipe_format)
        for path in (described if has_tables else visible)
    }
    return [path for path in is_read if is_read[path]], [path for path in is_read if not is_read[path]]


def is_table(path: str) -> bool:
    """Return whether the suffix of a file is that of a table."""
    return detect_format_by_name(path) in TABLE_FORMATS
