"""Describe the input files of a build: formats, checksums, and the metadata in their names."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import posixpath
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from preprocess.errors import FolioError, MisuseError, name_file_in_errors
from preprocess.inputs.archives import clean_member_name, detect_archive, explain_damage, iter_members
from preprocess.inputs.compressions import is_cut_in_magic
from preprocess.inputs.detect import (
    ARCHIVE_SUFFIXES,
    COMPRESSION_SUFFIXES,
    HEAD_BYTES,
    UnclearFileError,
    describes_data,
    detect_encoding,
    detect_format,
    detect_format_by_magic,
    detect_format_by_name,
    has_mac_line_ends,
    is_binary,
    is_format_read,
    reject_unreadable,
    show_suffix,
    strip_compression_suffix,
)
from preprocess.inputs.disk_file import NO_SHA256, DiskFile
from preprocess.inputs.file_heads import HashingStream, read_head
from preprocess.inputs.input_files import InputFile, NameMetadata
from preprocess.inputs.open_input import decode_stream
from preprocess.recipes.schema import TABLE_FORMATS, Recipe, reject_settings_of_other_formats
from preprocess.recipes.templates import parse_name_pattern
from preprocess.recipes.text_encodings import find_codec

MAX_FILES_PER_TASK = 256
MAX_KEPT_BYTES = 64 << 20  # of small files whose content is kept in memory, so that they are opened only once


@dataclass
class Description:
    """The input files of a build."""

    files: list[InputFile] = field(default_factory=list)
    skipped_suffixes: Counter[str] = field(default_factory=Counter)  # of files in archives whose format is unknown


def describe_input_files(
    paths: list[tuple[str, str]], recipe: Recipe, known_sha256: dict[str, str], *, num_threads: int
) -> Description:
    """Return the InputFile of each (name, path) in `paths`, and those of the files in archives.

    The files are in the order of `paths`, and those in an archive in its order. They are not yet
    numbered. `known_sha256` maps names to checksums that need not be computed; other files are
    hashed in `num_threads` threads. Raises MisuseError if the format of a file is unknown or not
    supported, FolioError if a file is damaged.
    """
    size = min(max(len(paths) // (num_threads * 16), 1), MAX_FILES_PER_TASK)
    describer = _Describer(recipe, known_sha256, threading.Event(), MAX_KEPT_BYTES // max(len(paths), 1))
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            # Threads hash in parallel, because hashlib releases the GIL. A task is several files, because starting a
            # task takes longer than hashing a small file.
            tasks = pool.map(lambda start: describer.describe(paths[start : start + size]), range(0, len(paths), size))
            parts = list(tasks)
        except BaseException:  # an interruption must not wait until the other threads have hashed their files
            describer.is_cancelled.set()
            raise
    return Description(
        list(itertools.chain.from_iterable(part.files for part in parts)),
        sum((part.skipped_suffixes for part in parts), Counter()),
    )


def sort_by_name(files: list[InputFile]) -> list[InputFile]:
    """Sort files as if the archives among them were unpacked, and shorten their names accordingly.

    A name becomes relative to the deepest folder that contains all files. The files of an archive
    that can only be read in its own order stay in that order.
    """
    folder = posixpath.commonpath({file.name.rpartition("/")[0] for file in files})
    num_removed = len(folder) + bool(folder)

    def sort_key(file: InputFile) -> tuple[str, int]:
        if file.member is None or not file.is_sequential:
            return file.name, 0
        return file.name.removesuffix(clean_member_name(file.member.name)), file.member.entry

    files = sorted(files, key=sort_key)
    return [file._replace(name=file.name[num_removed:]) for file in files] if num_removed else files


def number_files(files: list[InputFile], recipe: Recipe) -> list[InputFile]:
    """Return `files` with their numbers and the metadata in their names.

    Raises MisuseError if a name does not match `recipe.name_pattern` or is not UTF-8.
    """
    for file in files:
        if not _is_utf8(file.name):
            raise MisuseError(
                f"the name of {file.path} is not UTF-8, so the manifest cannot contain it; rename the file"
            )
    metadata = _parse_names([file.name for file in files], recipe)
    return [file._replace(number=i, metadata=metadata[i]) for i, file in enumerate(files)]


@dataclass(frozen=True)
class _Describer:
    recipe: Recipe
    known_sha256: dict[str, str]
    is_cancelled: threading.Event
    max_kept_bytes: int  # of one file, or of the files in one archive

    def describe(self, paths: list[tuple[str, str]]) -> Description:
        description = Description()
        for name, path in paths:
            with name_file_in_errors(path), open(path, "rb", buffering=0) as raw:
                stat = os.fstat(raw.fileno())  # before hashing, so that a change during hashing is detected
                stream = HashingStream(raw, self.is_cancelled)
                compression, head = read_head(stream, path, self._has_lines(name))
                reject_unreadable(path, head)
                archive = detect_archive(head)
                if archive == "zip" and compression:
                    raise MisuseError(f"{path} is a compressed zip archive; decompress it")
                known_sha256 = self.known_sha256.get(name)
                sha256 = known_sha256 or stream.hash_all()
            disk = DiskFile(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, sha256)
            if archive:
                description.files += self._describe_members(name, disk, archive, compression, description)
            else:
                file = InputFile(disk, "", stat.st_size, sha256, compression, name=name)
                is_kept = known_sha256 is None and len(head) <= self.max_kept_bytes
                description.files.append(self._detect(file, head, is_kept=is_kept))
        return description

    def _describe_members(
        self, name: str, disk: DiskFile, archive: str, compression: str, description: Description
    ) -> list[InputFile]:
        files: list[InputFile] = []
        num_kept_bytes = 0
        for member, raw in iter_members(disk, archive, compression):
            if not is_format_read(member.name, self.recipe.format):
                description.skipped_suffixes[show_suffix(member.name)] += 1
                continue
            path = f"{disk.path}/{member.name}"
            stream = HashingStream(raw, self.is_cancelled)
            with explain_damage(disk.path, f"a {archive} archive"):
                member_compression, head = read_head(stream, path, self._has_lines(member.name))
                sha256 = NO_SHA256 if disk.sha256 == NO_SHA256 else stream.hash_all()
            reject_unreadable(path, head)
            if detect_archive(head):
                raise MisuseError(f"{path} is an archive in an archive; unpack {disk.path}")
            file = InputFile(
                disk, "", member.size_bytes, sha256, member_compression, archive=archive,
                archive_compression=compression, member=member, name=f"{name}/{clean_member_name(member.name)}",
            )  # fmt: skip
            is_kept = sha256 != NO_SHA256 and num_kept_bytes + len(head) <= self.max_kept_bytes
            files.append(self._detect(file, head, is_kept=is_kept))
            num_kept_bytes += len(files[-1].content or b"")
        files = _remove_descriptions(files)
        if twice := [n for n, count in Counter(file.name for file in files).items() if count > 1]:
            raise MisuseError(f"{disk.path} contains two files of the name {twice[0]!r}; unpack it")
        return files

    def _has_lines(self, name: str) -> bool:
        """Return whether a file of this name is probably a text whose lines or paragraphs are documents."""
        return self.recipe.document in ("line", "paragraph") and detect_format_by_name(name) in ("text", None)

    def _detect(self, file: InputFile, head: bytes, *, is_kept: bool) -> InputFile:
        """Return `file` with its format and encoding. `head`: its first bytes, decompressed.

        With `is_kept`, `head` becomes the content if it is the whole file and what readers get.
        """
        whole = head if is_kept and len(head) < HEAD_BYTES else None
        _check_name(file, head)
        has_magic = detect_format_by_magic(head) is not None
        encoding = detect_encoding(head) if self.recipe.encoding == "auto" else find_codec(self.recipe.encoding)
        if encoding and not has_magic:
            head = decode_stream(io.BytesIO(head), "", encoding).read(4 * len(head))
        if encoding is None and not has_magic:
            raise UnclearFileError(
                f"{file.path} may be UTF-16, or UTF-8 with NULs", "pass --encoding utf-16 or --encoding utf-8"
            )
        format_ = detect_format(file.name, file.path, head, self.recipe.format)
        if title := {"parquet": "Parquet", "arrow": "Arrow"}.get(format_):
            if file.compression:
                raise MisuseError(f"{file.path} is a compressed {title} file; decompress it")
            if file.archive:
                raise MisuseError(f"{file.path} is a {title} file in an archive; unpack {file.disk.path}")
            if not _is_utf8(file.path):
                raise MisuseError(
                    f"the path {file.path} is not UTF-8, so Arrow cannot open the file; rename its folder"
                )
        has_lines = format_ == "text" and self.recipe.document in ("line", "paragraph")
        has_mac_ends = has_lines and has_mac_line_ends(head)
        return file._replace(
            format=format_,
            encoding=encoding if encoding and not (has_magic or title) else "",
            has_mac_line_ends=has_mac_ends,
            content=None if file.compression or encoding or title or has_mac_ends else whole,
        )


def _remove_descriptions(files: list[InputFile]) -> list[InputFile]:
    """Return the files of an archive without those that describe its tables, as in a folder."""
    others = [file for file in files if not describes_data(posixpath.basename(file.name))]
    return others if any(file.format in TABLE_FORMATS for file in others) else files


def _check_name(file: InputFile, head: bytes) -> None:
    """Raise FolioError for a file that is not the archive or compressed file that its name promises.

    Text is read under the name of a compressed file, because some servers and browsers decompress it.
    """
    suffix = os.path.splitext(file.name.lower())[1]
    is_damaged = is_binary(head) or is_cut_in_magic(head)
    is_damaged_file = suffix in COMPRESSION_SUFFIXES and not file.compression and is_damaged
    if is_damaged_file or strip_compression_suffix(file.name).endswith(ARCHIVE_SUFFIXES):
        kind = "a compressed file" if is_damaged_file else "an archive"
        raise FolioError(f"{file.path} is not {kind}, although its name ends in {suffix}; copy it again")


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # Python represents other bytes by surrogates
        return False
    return True


def _parse_names(names: list[str], recipe: Recipe) -> list[NameMetadata]:
    """Return the metadata that `recipe.name_pattern` finds in each of `names`."""
    if recipe.name_pattern is None:
        return [{}] * len(names)
    metadata: list[NameMetadata] = []
    for name, groups in zip(names, parse_name_pattern(recipe.name_pattern).extract(names), strict=True):
        if not groups:
            raise MisuseError(
                f"name_pattern {recipe.name_pattern!r} does not match {name!r}; widen the pattern, or leave the file "
                "out"
            )
        fields: NameMetadata = {field: value for field, value in groups.items() if value}
        if year := groups.get("year"):
            if not (year.isascii() and year.isdecimal() and len(year) <= 4):
                raise MisuseError(f"name_pattern must find a year of up to four digits, found {year!r} in {name!r}")
            fields["year"] = int(year)
        metadata.append(fields)
    return metadata


def resolve_format(recipe: Recipe, files: list[InputFile]) -> Recipe:
    """Return `recipe` with `format` "auto" replaced by the format of `files`, if all have the same.

    If the format is known, the manifest leaves out the settings of other formats, so they cannot
    make two equal builds look different. Raises MisuseError for settings that do not apply to the
    formats of `files`.
    """
    formats = {file.format for file in files}
    if recipe.split == "contiguous" and formats - {"text"}:
        raise MisuseError(
            f"split 'contiguous' cuts text files, but {files[0].path} is {files[0].format}; set split to 'exact'"
        )
    if recipe.format == "auto" and len(formats) == 1:
        recipe = dataclasses.replace(recipe, format=formats.pop())
        reject_settings_of_other_formats(recipe)
    elif formats - {*TABLE_FORMATS} and (recipe.where or recipe.template):
        path, format_ = next((file.path, file.format) for file in files if file.format not in TABLE_FORMATS)
        raise MisuseError(
            f"where and template apply to tables, but {path} is {format_}; leave them out, or build the {format_} "
            "files separately"
        )
    return recipe
