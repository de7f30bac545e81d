"""The check that every exporter makes before it writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from preprocess.errors import MisuseError
from preprocess.shards.format import check_no_build


def check_output(folder: Path, paths: Iterable[Path], *, replace: bool) -> None:
    """Raise MisuseError if `folder` is a build, or if a path exists and `replace` is not set."""
    check_no_build(folder, "which must not contain other files")
    for path in paths:
        if path.exists() and not replace:
            raise MisuseError(f"{path} exists already; pass --replace, or choose another --output")
