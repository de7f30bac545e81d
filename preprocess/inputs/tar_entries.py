"""Read the entries of tar archives, with limits on the memory and the time that a hostile archive takes.

tarfile reads names and attributes of any size, calls itself for each header before a file, and needs
hours or any amount of memory for some attributes and maps of sparse files. The classes here replace
these parts. They keep the name and the size of a file and whether it is sparse, and nothing else.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from preprocess.inputs.compressions import DecompressedStream

MAX_HEADER_BYTES = 1 << 20  # of a long name or of attributes; tarfile reads them into memory
MAX_HEADERS = 16  # of one entry
REST_BYTES = 1 << 20  # of what follows the end of an archive; read at once
BLOCK_BYTES = 512
HEADER_TYPES = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
ATTRIBUTE_START = re.compile(rb"([0-9]{1,9}) ")
NEEDED_ATTRIBUTES = (b"path", b"size")
SPARSE_ATTRIBUTE = b"GNU.sparse."
SPARSE_CONTINUES = 504  # the offset of a flag: another block of the map of a sparse file follows
LINE_FEED = 0x0A


class _StrictTarInfo(tarfile.TarInfo):
    """An entry. A header that is damaged or missing, or that would take too much memory or time, is an error.

    A sparse file has an empty map, because such files are not read.
    """

    @classmethod
    def fromtarfile(cls, tar: StrictTarFile) -> Self:  # type: ignore[override]
        tar.num_headers += 1
        if tar.num_headers > MAX_HEADERS:
            raise tarfile.ReadError(f"an entry has more than {MAX_HEADERS} headers")
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            if tar.num_headers > 1:
                raise tarfile.ReadError("it ends after a header of attributes") from None
            raise  # the mark of the end
        except tarfile.HeaderError as e:  # which tarfile takes for the end, too
            raise tarfile.ReadError(f"at byte {tar.offset:,}: {e}") from e
        finally:
            tar.num_headers -= 1

    def _proc_member(self, tar: StrictTarFile) -> tarfile.TarInfo:
        if self.type in HEADER_TYPES and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"an entry has {self.size:,} bytes of attributes")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _proc_pax(self, tar: StrictTarFile) -> tarfile.TarInfo:
        """Read attributes of the next file or, in a global header, of all later files, and their own headers.

        That of tarfile takes hours, or any amount of memory, for some headers of a megabyte.
        """
        attributes = {**tar.pax_headers, **_parse_attributes(_read_exactly(tar, self.size))}
        if self.type == tarfile.XGLTYPE:
            tar.pax_headers = attributes
        following = self.fromtarfile(tar)
        if any(name.startswith(SPARSE_ATTRIBUTE.decode()) for name in attributes):
            following.sparse = b""
        if self.type != tarfile.XGLTYPE:
            following._apply_pax_info(attributes, tar.encoding, tar.errors)  # type: ignore[attr-defined]
            following.offset = self.offset
            if "size" in attributes:
                has_data = following.isreg() or following.type not in tarfile.SUPPORTED_TYPES
                num_bytes = following._block(following.size) if has_data else 0  # type: ignore[attr-defined]
                tar.offset = following.offset_data + num_bytes
        return following

    def _proc_sparse(self, tar: StrictTarFile) -> tarfile.TarInfo:
        """Skip the map of a sparse file, which may continue in any number of blocks."""
        _, is_continued, _ = self._sparse_structs  # type: ignore[attr-defined]
        while is_continued:
            is_continued = _read_exactly(tar, BLOCK_BYTES)[SPARSE_CONTINUES] != 0
        self.sparse = b""
        self.offset_data = tar.fileobj.tell()
        tar.offset = self.offset_data + self._block(self.size)  # type: ignore[attr-defined]
        return self


class StrictTarFile(tarfile.TarFile):
    """A tar archive that is read from its beginning."""

    tarinfo = _StrictTarInfo
    fileobj: Any
    num_headers = 0  # that are being read: those before a file, and its own


def _read_exactly(tar: StrictTarFile, num_bytes: int) -> bytes:
    """Read `num_bytes` and the padding after them. Raises tarfile.ReadError if the archive ends before."""
    data: bytes = tar.fileobj.read(num_bytes + -num_bytes % BLOCK_BYTES)
    if len(data) < num_bytes:
        raise tarfile.ReadError("it ends too early")
    return data[:num_bytes]


def _parse_attributes(data: bytes) -> dict[str, str]:
    """Return those attributes in an extended header that this module needs. Raises tarfile.ReadError if it is damaged.

    An attribute is a line "LENGTH NAME=VALUE", and LENGTH counts its bytes from the first digit to the line feed.
    """
    attributes: dict[str, str] = {}
    start = 0
    data = data.rstrip(b"\0")
    while start < len(data):
        match = ATTRIBUTE_START.match(data, start)
        end = start + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(data) or data[end - 1] != LINE_FEED:
            raise tarfile.ReadError("an entry has damaged attributes")
        name, is_attribute, value = data[match.end() : end - 1].partition(b"=")
        if not is_attribute:
            raise tarfile.ReadError("an entry has damaged attributes")
        if name in NEEDED_ATTRIBUTES or name.startswith(SPARSE_ATTRIBUTE):
            attributes[name.decode()] = value.decode(errors="surrogateescape")
        start = end
    return attributes


@contextmanager
def open_tar(path: str, compression: str) -> Iterator[StrictTarFile]:
    """Open a tar archive with `compression`, or "" for none."""
    with open(path, "rb") as raw:
        stream: Any = DecompressedStream(raw, compression) if compression else raw
        with StrictTarFile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as tar:
            yield tar


def iter_entries(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of an archive. Raises an error of tarfile if it is damaged, or if more data follow."""
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # there may be a million
        yield info
    _check_rest(tar)


def _check_rest(tar: tarfile.TarFile) -> None:
    """Raise tarfile.ReadError if anything but padding follows the end of an archive, e.g. another archive."""
    assert tar.fileobj is not None
    while block := tar.fileobj.read(REST_BYTES):
        if block.count(0) != len(block):
            raise tarfile.ReadError("more data follow its end, perhaps a second archive")
