"""Check that a folder has the files that `save_to_disk` of Hugging Face datasets wrote.

The library does not delete the files of an earlier data set in the same folder, and reads only those that
`state.json` names. Its `map` and `filter` write files `cache-….arrow` beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from preprocess.errors import FolioError, format_quantity, shorten
from preprocess.shards.files import parse_json, read_small_file

STATE, INFO = "state.json", "dataset_info.json"
CACHE_NAME = re.compile(r"cache-[0-9a-f]{16}(_\d+_of_\d+)?\.arrow")


def is_cache(name: str) -> bool:
    """Return whether a file of this name, beside `state.json` or `dataset_info.json`, is a result of `map` or `filter`.

    Its rows are those of the data set again, or some of them.
    """
    return CACHE_NAME.fullmatch(name) is not None


def check_saved_files(folder: str, names: Iterable[str]) -> None:
    """Raise FolioError if the Arrow files `names` in `folder` are not those that its `state.json` lists.

    Caches are ignored, and so is a `state.json` of another program.
    """
    try:
        listed = {entry["filename"] for entry in parse_json(read_small_file(Path(folder, STATE)))["_data_files"]}
    except (FolioError, ValueError, KeyError, TypeError):
        return
    found = {name for name in names if name.endswith(".arrow") and (name in listed or not is_cache(name))}
    if missing := listed - found:
        raise FolioError(
            f"{folder} lacks {format_quantity(len(missing), 'file')} that its {STATE} lists, such as "
            f"{shorten(str(min(missing, key=str)))}; copy the folder again, or pass a glob of the files to read"
        )
    if extra := found - listed:
        raise FolioError(
            f"{folder} has {format_quantity(len(extra), 'file')} that its {STATE} does not list, such as "
            f"{shorten(min(extra))}, perhaps of a data set that was saved there before; delete them, or pass a glob of "
            "the files to read"
        )
