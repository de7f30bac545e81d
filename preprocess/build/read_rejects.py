"""Read the records that a build rejected or changed, from the file beside the build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from preprocess.build.work_dir import REJECTS_FILE, get_work_root
from preprocess.errors import MAX_SHOWN, FolioError, MisuseError, one_line, shorten
from preprocess.shards.files import JsonObject, parse_json
from preprocess.shards.format import MANIFEST, default_root

MAX_LINE_BYTES = 16 << 20  # a saved record of a megabyte takes at most six, with its escapes
MAX_SUMMARIZED = 100  # records in the result of `build --json`
KEYS = ("source", "place", "reason", "record")


def find_rejects(name: str) -> Path | None:
    """Return the file of rejected records of a build, given by its name or folder.

    The build itself may be missing, because it fails if it rejects all records. Returns None if
    there is a build but no such file. Raises MisuseError if there is neither.
    """
    folder = Path(name) if "/" in name or name in (".", "..") else default_root() / name
    folder = folder.resolve()
    path = get_work_root(folder) / REJECTS_FILE
    if path.is_file():
        return path
    if not (folder / MANIFEST).is_file():
        raise MisuseError(
            f"there is neither a build {shorten(str(folder))} nor a list of its rejected records, {path.name} in "
            f"{shorten(str(path.parent))}; name a build, or its folder"
        )
    return None


def read_rejects(path: Path) -> Iterator[JsonObject]:
    """Yield the records in a file of rejected records: source, place, reason and record.

    Only one record is in memory at a time. Raises FolioError if the file is damaged.
    """
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            try:
                entry = parse_json(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in KEYS):
                raise FolioError(f"line {number:,} of {path} is damaged; build again to list the rejected records")
            yield entry


def summarize_rejects(folder: Path) -> JsonObject:
    """Return how many records the build in `folder` rejected or changed, and the first MAX_SUMMARIZED of them.

    "file" has all of them; it is None if there are none.
    """
    path = get_work_root(folder.resolve()) / REJECTS_FILE
    if not path.is_file():
        return {"number": 0, "file": None, "records": []}
    number, records = 0, []
    for entry in read_rejects(path):
        number += 1
        if number <= MAX_SUMMARIZED:
            records.append({**entry, "record": entry["record"][:MAX_SHOWN]})
    return {"number": number, "file": str(path), "records": records}


def format_reject(entry: JsonObject) -> str:
    """Return one rejected record as a line for a person, without control characters."""
    record = f": {shorten(entry['record'])}" if entry["record"] else ""
    return f"{one_line(entry['source'])}, {one_line(entry['place'])}: {one_line(entry['reason'])}{record}"
