"""The files that a build reads, and the spans that they are divided into.

There may be a million of them, and they are sent to the workers. So they are named tuples, which
take less memory than other objects, and a tenth of the time to copy and to pickle.
"""

from __future__ import annotations

from typing import NamedTuple

from preprocess.inputs.archives import Member
from preprocess.inputs.disk_file import DiskFile

# What `name_pattern` finds in a file name: author, city, lang, group, split, and the year as an int.
NameMetadata = dict[str, str | int]
# Large enough that the fixed cost of a task is negligible, small enough that all workers finish at
# about the same time: 400 MB make 25 tasks.
PARTITION_BYTES = 16 << 20
# Reading a small file takes up to 0.1 ms, so a task on this many takes no longer than one on
# PARTITION_BYTES of text.
PARTITION_FILES = 2_048


class Origin(NamedTuple):
    """Where a file was copied from."""

    url: str  # without credentials
    version: str  # revision, ETag or similar; "" if the service gave none


class InputFile(NamedTuple):
    """A file, or a file in an archive, that a build reads, as it was when the build was planned."""

    disk: DiskFile  # the archive if there is one
    format: str  # text, jsonl, csv, parquet, arrow or synthetic
    size_bytes: int
    sha256: str  # NO_SHA256 if the file was not hashed
    compression: str = ""  # gzip, zstd, bzip2 or xz
    encoding: str = ""  # a name of Python's codecs; empty for UTF-8
    has_mac_line_ends: bool = False  # its lines end with a carriage return, which readers get as a line feed
    archive: str = ""  # zip or tar
    archive_compression: str = ""  # of a tar archive
    member: Member | None = None  # of the archive
    number: int = 0  # its index in the manifest's `sources`
    name: str = ""  # relative path with `/`, as in the manifest and for `name_pattern`
    metadata: NameMetadata = {}  # noqa: RUF012 (not modified)
    origin: Origin | None = None  # of a remote file
    content: bytes | None = None  # what a reader gets, if the file is so small that it was kept when it was hashed

    @property
    def path(self) -> str:
        """The path for messages."""
        return self.disk.path if self.member is None else f"{self.disk.path}/{self.member.name}"

    @property
    def is_plain(self) -> bool:
        """Whether the file on the disk has the bytes that a reader gets, so that it can be read from any offset."""
        return not (self.compression or self.encoding or self.archive or self.has_mac_line_ends)

    @property
    def is_sequential(self) -> bool:
        """Whether the file is in an archive whose files can only be read in their order."""
        return bool(self.archive_compression)

    def describe_container(self) -> str:
        """Return for example "a gzip file", for messages about damage."""
        kind = f"{self.compression} file" if self.compression else f"{self.archive} archive"
        return f"a {kind}" if self.compression or self.archive else "a file"

    def check_unchanged(self) -> None:
        """Raise InputChanged if the file on the disk has changed, FolioError if it was removed."""
        self.disk.check_unchanged()

    def manifest_entry(self) -> dict[str, str | int]:
        """Return the file's entry in the manifest's `sources`."""
        return {"name": self.name, "bytes": self.size_bytes, "sha256": self.sha256, **self.origin_entry()}

    def origin_entry(self) -> dict[str, str | int]:
        """Return what the manifest says about the origin of a remote file, {} for other files."""
        return {} if self.origin is None else {"url": self.origin.url, "version": self.origin.version}


class Span(NamedTuple):
    """A range of one input file: bytes of text and JSON lines, row groups of Parquet."""

    file_number: int  # InputFile.number
    start: int = 0
    stop: int | None = None  # exclusive; by default the end of the file
    size_bytes: int = 0  # approximate; for progress bars and estimates
    # With the split "contiguous", for a part of a divided text: the offset of the split in the cleaned text from
    # `start`, in characters. It may be outside of the span.
    boundary: int | None = None
