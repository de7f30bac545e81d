"""Check that a folder has the files that `save_to_disk` of Hugging Face datasets wrote.

The library does not delete the files of an earlier data set in the same folder, and reads only those that
`state.json` names.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from preprocess.errors import FolioError, format_quantity, shorten
from preprocess.shards.files import parse_json, read_small_file

STATE = "state.json"


def check_saved_files(folder: str, names: Iterable[str]) -> None:
    """Raise FolioError if the Arrow files `names` in `folder` are not those that its state.json lists.

    A state.json of another program is ignored.
    """
    try:
        listed = {entry["filename"] for entry in parse_json(read_small_file(Path(folder, STATE)))["_data_files"]}
    except (FolioError, ValueError, KeyError, TypeError):
        return
    found = {name for name in names if name.endswith(".arrow")}
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
