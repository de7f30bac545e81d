"""Find out the compression, the encoding and the format of a file.

The first bytes decide if they can. So a Parquet file, or a compressed one, is read under any name.
Only for text, which has no distinctive first bytes, does the name decide between plain text, JSON
and CSV. An HTML page is known by its first bytes under the name of a plain text, but not under that
of Markdown or source code, which may begin in the same way.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Collection

from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.schema import PAGE_FORMATS, TABLE_FORMATS

HEAD_BYTES = 4_096  # that are looked at
SUFFIXES = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".json"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv", ".tab", ".psv"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".arrows", ".feather", ".ipc"), "arrow"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".warc", ".wet"), "warc"),
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".adoc", ".org"), "text"),
    **dict.fromkeys((".py", ".pyi", ".js", ".ts", ".jsx", ".tsx", ".java", ".kt", ".scala", ".go", ".rs"), "text"),
    **dict.fromkeys((".c", ".h", ".cc", ".cpp", ".hpp", ".cxx", ".cs", ".swift", ".rb", ".php", ".pl"), "text"),
    **dict.fromkeys((".sh", ".sql", ".lua", ".r", ".jl", ".hs", ".ml", ".ex", ".erl", ".clj", ".lean"), "text"),
}
COMPRESSION_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tzst")
CONTROLS = rb"[\0-\x08\x0e-\x1a\x1c-\x1f]"  # bytes that every binary format has, and text has not
# The first bytes of formats that are read. Text may begin with some of them, but not go on like this.
FORMAT_START = {
    "parquet": re.compile(rb"PAR1.*?" + CONTROLS, re.DOTALL),
    "arrow": re.compile(rb"ARROW1\0\0"),
    "warc": re.compile(rb"WARC/1\.[0-9][ \t]*\r?\n"),
}
# A mark, the size of the schema (below 16 MB), and the offset at which it begins.
ARROW_STREAM_START = re.compile(rb"\xff\xff\xff\xff...\0\x10\0\0\0", re.DOTALL)
FORMAT_STARTS = (b"PAR1", b"ARROW1", b"WARC/1.", b"\xff\xff\xff\xff")  # a file with other first bytes has no match
# First bytes of files that are not read, with what they are and what to do. See also REFUSED_START.
REFUSED_MAGIC = {
    b"%PDF-": ("a PDF document", "extract its text first, for example with pdftotext"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it"),
    b"Rar!\x1a\x07": ("a RAR archive", "unpack it"),
    b"\x04\x22\x4d\x18": ("an lz4 file", "decompress it with lz4 -d"),
    b"\x1f\x9d": ("a compress (.Z) file", "decompress it with uncompress"),
    b"\xff\x06\0\0sNaPpY": ("a snappy file", "decompress it"),
    b"SQLite format 3\0": ("an SQLite database", "export its table as CSV"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an old Office document", "save it as text or CSV"),
    b"{\\rtf": ("an RTF document", "save it as plain text"),
    b"GGUF": ("a GGUF model", "name text files"),
    b"\x93NUMPY": ("a NumPy array", "name text files"),
    b"\x89HDF\r\n": ("an HDF5 file", "export its text"),
    b"\x89PNG\r\n": ("an image", "name text files"),
    b"\xff\xd8\xff": ("an image", "name text files"),
    b"\x7fELF": ("a program", "name text files"),
    b"Obj\x01": ("an Avro file", "convert it to Parquet or JSON lines"),
    b"ORC": ("an ORC file", "convert it to Parquet"),
    b"FEA1": ("a Feather file of version 1", "write it again as Feather version 2, which is Arrow IPC"),
}
# How files with these first bytes go on, unlike text. The others have control characters.
REFUSED_START = {
    b"%PDF-": re.compile(rb"%PDF-[0-9]\.[0-9].*?(?:\bobj\b|" + CONTROLS + rb")", re.DOTALL),
    b"{\\rtf": re.compile(rb"\{\\rtf[0-9]"),
    b"GGUF": re.compile(rb"GGUF(?:[^\0]\0\0\0|\0\0\0[^\0])"),  # the version, little-endian or big-endian
}
CONTROL = re.compile(CONTROLS)
# Documents that are zip archives, by the beginning of the name or the content of their first file.
ZIP_FILE = b"PK\x03\x04"  # the beginning of the first file in an archive, whose name begins at ZIP_NAME_OFFSET
ZIP_NAME_OFFSET = 30
ZIPPED_DOCUMENTS = {
    b"mimetypeapplication/epub+zip": ("an EPUB book", "extract its text first, for example with pandoc -t plain"),
    b"mimetypeapplication/vnd.oasis.opendocument": ("an OpenDocument file", "save it as text or CSV"),
    b"[Content_Types].xml": ("an Office document", "save it as text or CSV"),
    b"_rels/.rels": ("an Office document", "save it as text or CSV"),
    b"docProps/app.xml": ("an Office document", "save it as text or CSV"),
    b"word/document.xml": ("an Office document", "save it as text or CSV"),
    b"xl/workbook.xml": ("an Office document", "save it as text or CSV"),
}
# Files beside tables: those of Hugging Face's `datasets`, and those of any repository.
DESCRIPTION_NAME = re.compile(
    r"dataset_infos?\.json|dataset_dict\.json|state\.json|(readme|licen[cs]e|copying|notice|citation)(\.\w+)?",
    re.IGNORECASE,
)
LFS_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/[^\n]*\n(?:ext-[^\n]*\n)*oid sha256:")
HTML_START = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml\b[^>]*>\s*)?(?:<!--.{0,1000}?-->\s*)?<(?:!doctype\s+html|html)\b",
    re.IGNORECASE | re.DOTALL,
)
UNSPECIFIC_SUFFIXES = (".txt", ".text")  # of files that may be HTML pages
JSON_START = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\[\s*)?\{\s*"')  # of an object, or of an array of objects
BYTE_ORDER_MARKS = {  # UTF-32 first: its mark in little-endian order begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
MIN_NUL_SHARE = 0.05  # of the high bytes of UTF-16: those of spaces and line ends, in any language
MAX_LOW_NUL_SHARE = 0.4  # low bytes that are NUL, as of U+0100, per high byte; UTF-32 and padded UTF-8 have more
HIGH_BYTES_OF_ALPHABETS = range(0x22)  # of letters and punctuation; in UTF-8 they are spaces and control characters
HIGH_BYTES_OF_SCRIPTS = (*range(9), *range(0xE, 0x20))  # without those that are white space in UTF-8
MIN_ALPHABET_SHARE = 0.9  # of the high bytes of UTF-16 that could be UTF-8, too
UNASSIGNED_PLANES = re.compile("[\U00040000-\U000dffff]")  # of Unicode
MIN_ALPHABET_BYTES = 24  # of a file with such bytes: fewer may be a text in UTF-8 with a NUL after every letter
MIN_CLEAR_BYTES = 32  # of these, ideographs in UTF-16 practically never are valid UTF-8


class UnclearFileError(MisuseError):
    """The format or the encoding of a file is not clear. `problem`: the message without advice, which is for inputs."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem}; {advice}")
        self.problem = problem


def strip_compression_suffix(name: str) -> str:
    """Return a file name in lower case without the suffix of a compression."""
    stem, suffix = os.path.splitext(name.lower())
    return stem if suffix in COMPRESSION_SUFFIXES else name.lower()


def has_known_suffix(name: str, recipe_format: str = "auto") -> bool:
    """Return whether a file of this name in a folder is read: it is an archive, or `is_format_read`."""
    return is_format_read(name, recipe_format) or strip_compression_suffix(name).endswith(ARCHIVE_SUFFIXES)


def is_format_read(name: str, recipe_format: str) -> bool:
    """Return whether a file of this name in a folder or an archive is read, because of its format.

    Its suffix must be that of a format. With a format other than "auto", which the user asks for, it
    may be unknown, but must not be that of another format.
    """
    format_ = detect_format_by_name(name)
    return format_ is not None if recipe_format == "auto" else format_ in (None, recipe_format)


def describes_data(name: str) -> bool:
    """Return whether a file of this name in a folder with tables describes them and is not one of them."""
    return DESCRIPTION_NAME.fullmatch(name) is not None


def show_suffix(name: str) -> str:
    """Return the suffix of a file for a message that counts the files with each suffix."""
    return os.path.splitext(name)[1].lower() or "no suffix"


def detect_format_by_name(name: str) -> str | None:
    """Return the format of a file, as the suffixes of its name indicate, or None if they are unknown."""
    return _get_format_of_suffix(strip_compression_suffix(name))


def _get_format_of_suffix(stem: str) -> str | None:
    """`stem`: the result of `strip_compression_suffix`."""
    return SUFFIXES.get(os.path.splitext(stem)[1])


def detect_format_by_magic(head: bytes) -> str | None:
    """Return the format of a file that has distinctive first bytes, or None for any other file."""
    if not head.startswith(FORMAT_STARTS):
        return None
    if ARROW_STREAM_START.match(head):
        return "arrow"
    return next((format_ for format_, start in FORMAT_START.items() if start.match(head)), None)


def detect_format(name: str, path: str, head: bytes, recipe_format: str) -> str:
    """Return the format with which a file is read.

    `head`: its first bytes, decompressed and in UTF-8. `recipe_format`: the format that the user
    asks for, or "auto". Raises FolioError for a Git LFS pointer, MisuseError for a file that cannot
    be read, or whose format is unknown.
    """
    reject_unreadable(path, head)
    by_content = detect_format_by_magic(head)
    stem = strip_compression_suffix(name)
    by_name = _get_format_of_suffix(stem)
    if recipe_format != "auto":
        if by_content not in (None, recipe_format):
            raise MisuseError(f"{path} is a {by_content} file, but format is {recipe_format}; leave --format out")
        return recipe_format
    may_be_page = by_name is None or stem.endswith(UNSPECIFIC_SUFFIXES)
    if by_content is None and may_be_page and HTML_START.match(head):
        return "html"
    format_ = by_content or by_name or ("jsonl" if JSON_START.match(head) else None)
    if format_ is None:
        raise UnclearFileError(
            f"the format of {path} is not clear from its name",
            f"pass --format with one of text, {', '.join((*TABLE_FORMATS, *PAGE_FORMATS))}",
        )
    if format_ in TABLE_FORMATS and by_content is None and HTML_START.match(head):
        raise FolioError(
            f"{path} is an HTML page, expected {format_}: perhaps an error page was downloaded; download it again"
        )
    return format_


def reject_unreadable(path: str, head: bytes) -> None:
    """Raise an error for a Git LFS pointer and for a file that is known not to be text or a table."""
    if LFS_POINTER.match(head):
        raise FolioError(
            f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository, or download it"
        )
    found = [
        refusal for magic, refusal in REFUSED_MAGIC.items() if head.startswith(magic) and _is_not_text(magic, head)
    ]
    if head.startswith(ZIP_FILE):
        found = [refusal for start, refusal in ZIPPED_DOCUMENTS.items() if head.startswith(start, ZIP_NAME_OFFSET)]
    if found:
        description, advice = found[0]
        raise MisuseError(f"{path} is {description}, expected text or a table; {advice}, or leave the file out")


def _is_not_text(magic: bytes, head: bytes) -> bool:
    """Return whether a file that begins with `magic` goes on in a way that text does not."""
    start = REFUSED_START.get(magic)
    return (CONTROL.search(head) if start is None else start.match(head)) is not None


def is_binary(head: bytes) -> bool:
    """Return whether the beginning of a file is neither UTF-8 nor cut within a character of it, or has a NUL."""
    return b"\0" in head or not _is_utf8(head)


def _is_utf8(head: bytes) -> bool:
    """Return whether the beginning of a file is UTF-8, perhaps cut within a character."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def has_mac_line_ends(head: bytes) -> bool:
    """Return whether the lines of a text end with carriage returns, as on the Macintosh before 2001.

    A carriage return at the end of `head` may be the first half of a line end.
    """
    return b"\r" in head[:-1] and b"\n" not in head


def detect_encoding(head: bytes) -> str | None:
    """Return "utf-16-le" or another form of UTF-16 or UTF-32, or "" for UTF-8 and unknown encodings.

    Without a byte order mark, UTF-16 is recognised by its NULs: the high bytes of all Latin letters,
    spaces and line ends are NUL, and the low bytes rarely are. UTF-8 with NULs can look like this,
    too, but then the other bytes are letters, and as high bytes they would mean ideographs. A script
    without spaces, such as Thai, is recognised by high bytes that are control characters in UTF-8, and
    UTF-32 by the upper halves of its characters, which are at most 16. Returns None if a file is too
    short to say.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    if not CONTROL.search(head):
        return ""
    for encoding in ("utf-32-le", "utf-32-be"):
        if _may_be_utf32(head, encoding):
            return None if len(head) < MIN_ALPHABET_BYTES else encoding
    evens, odds = head[0::2], head[1::2]
    for high_bytes, low_bytes, encoding in ((odds, evens, "utf-16-le"), (evens, odds, "utf-16-be")):
        num_nuls, num_low_nuls = high_bytes.count(0), low_bytes.count(0)
        has_nuls = num_nuls > MIN_NUL_SHARE * len(high_bytes) and num_low_nuls <= MAX_LOW_NUL_SHARE * num_nuls
        has_controls = len(head) >= MIN_CLEAR_BYTES and not num_low_nuls and _are(HIGH_BYTES_OF_SCRIPTS, high_bytes)
        if not (has_nuls or has_controls):
            continue
        if not _is_utf8(head):
            return encoding
        if _are(HIGH_BYTES_OF_ALPHABETS, high_bytes):
            return encoding if len(head) >= MIN_ALPHABET_BYTES else None
        return "" if len(head) >= MIN_CLEAR_BYTES else None
    return ""


def _are(values: Collection[int], data: bytes) -> bool:
    """Return whether more than MIN_ALPHABET_SHARE of the bytes of `data` are `values`."""
    return sum(map(data.count, values)) > MIN_ALPHABET_SHARE * len(data)


def _may_be_utf32(head: bytes, encoding: str) -> bool:
    """Return whether all characters of `head`, perhaps cut within one, are UTF-32, and few of them are NUL."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    return text.count("\0") < MAX_LOW_NUL_SHARE * len(text) and not UNASSIGNED_PLANES.search(text)
