"""Read manifest.json, and files whose hash it has, from a build or a copy of parts of a build.

Everything that is read is compared with a hash: the manifest with its own checksum, any other file
with its hash in the manifest. So damage is noticed before a model is trained on wrong data. Uses
only the standard library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preprocess.errors import FolioError
from preprocess.shards.files import MAX_SMALL_FILE_BYTES, parse_json, read_small_file, sha256_bytes
from preprocess.shards.manifest import Manifest, hash_manifest, parse_manifest

FORMAT = "folio-shards"
VERSION = 1
MANIFEST = "manifest.json"
MAX_FILE_BYTES = 256 << 20  # a manifest that lists a million input files has this size
MIN_VALUE_BYTES = 16  # average size of a value in a large manifest; it limits the memory that parsing takes
ADVICE = "copy the build again or rebuild it"
MISSING_ADVICE = "choose a build that `preprocess list` shows"


class ShardError(FolioError):
    """A build is missing, incomplete or damaged, or has a version that Folio cannot read."""


def read_manifest(folder: Path, *, advice: str | None = None) -> Manifest:
    """Return the manifest of the build in `folder`.

    Raises ShardError if the manifest is missing, is malformed, does not match its checksum, or has
    an unknown format or version. `advice`: the part of the message that says what to do; by default
    MISSING_ADVICE or ADVICE.
    """
    path = folder / MANIFEST
    try:
        data = read_small_file(path, MAX_FILE_BYTES)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise ShardError(f"{folder} is not a build: it has no {MANIFEST}; {advice or MISSING_ADVICE}") from e
    return check_manifest(data, str(path), advice=advice or ADVICE)


def check_manifest(data: bytes, path: str, *, advice: str = ADVICE) -> Manifest:
    """Return the manifest whose file has the content `data`. `path`: of the file, for messages.

    Errors are as for `read_manifest`. `advice`: the part of the message that says what to do.
    """
    try:
        if len(data) > MAX_SMALL_FILE_BYTES and data.count(b",") > len(data) // MIN_VALUE_BYTES:
            raise ShardError(f"{path} has {data.count(b','):,} values, too many for its size; {advice}")
        value = parse_json(data)
        _check_version(path, value)
        manifest = parse_manifest(value)
        build_id, checksum = hash_manifest(value)
    except TypeError as e:
        raise ShardError(f"{path} is malformed: {e}; {advice}") from e
    except (ValueError, RecursionError) as e:
        raise ShardError(f"{path} is not JSON ({e}); {advice}") from e
    for name, computed, stored in (
        ("checksum", checksum, manifest.checksum),
        ("build_id", build_id, manifest.build_id),
    ):
        if computed != stored:
            raise ShardError(f"{path} does not match its {name}: it was damaged or edited; {advice}")
    return manifest


def _check_version(path: str, value: Any) -> None:
    found = value.get("format") if isinstance(value, dict) else type(value).__name__
    if not isinstance(value, dict) or found != FORMAT:
        raise ShardError(f"{path} has format {found!r:.80}, expected {FORMAT!r}; this is not a Folio build")
    if value.get("version") != VERSION:
        raise ShardError(
            f"{path} has version {value.get('version')!r:.80}, this Folio reads version {VERSION}; "
            "install the Folio that made it"
        )


def read_verified(path: Path, expected_sha256: str, *, advice: str = ADVICE) -> bytes:
    """Return the content of a file of a build, at most MAX_FILE_BYTES.

    Raises ShardError if the file is missing or does not have `expected_sha256`, its hash in the
    manifest, and FolioError if it is not a regular file or is larger. `advice`: the part of the
    message that says what to do.
    """
    try:
        data = read_small_file(path, MAX_FILE_BYTES)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise ShardError(f"{path} is missing; {advice}") from e
    if sha256_bytes(data) != expected_sha256:
        raise ShardError(f"{path} does not have the sha256 in its manifest; {advice}")
    return data
