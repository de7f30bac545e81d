"""Files that people bring, with something unusual, have the same outcome in every command that reads."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from preprocess.cli.main import main
from preprocess.errors import FolioError
from preprocess.inputs.compressions import import_zstd
from preprocess.stream import TokenStream
from tests.preprocess.stream.helpers import open_files, read_documents

TEXTS = [f"text number {i}" for i in range(20)]
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def make_lines(*values: str) -> bytes:
    """Return JSON lines with all texts. Each has one of `values`, further keys of the record, in turn."""
    return "".join(
        f'{{"text": "{text}"{values[i % len(values)] if values else ""}}}\n' for i, text in enumerate(TEXTS)
    ).encode()


def make_csv(delimiter: str, line_end: str = "\n", header: str = "text") -> str:
    return line_end.join(f"{a}{delimiter}{b}" for a, b in [("id", header), *enumerate(TEXTS)]) + line_end


def make_parquet(*columns: tuple[str, pa.DataType]) -> bytes:
    buffer = io.BytesIO()
    arrays = [pa.array(TEXTS, type_) for _, type_ in columns]
    pq.write_table(pa.Table.from_arrays(arrays, names=[name for name, _ in columns]), buffer)
    return buffer.getvalue()


def compress_with_long_window(data: bytes) -> bytes:
    zstd = import_zstd()
    parameters = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.content_size_flag: 0}
    return zstd.compress(data, options=parameters)


RUSSIAN_CSV = make_csv(",", header="текст").encode("cp1251")
SURROGATE = make_lines() + b'{"text": "\\ud83d"}\n'
LANGUAGES = (', "meta": {"lang": "ru"}', ', "meta": {"lang": "en"}')
READ: list[tuple[str, Callable[[], bytes], dict[str, Any]]] = [
    ("cp1251.csv", lambda: RUSSIAN_CSV, {"encoding": "cp1251", "text_column": "текст"}),
    ("semicolon.csv", lambda: make_csv(";").encode(), {}),
    ("tabs.tsv", lambda: make_csv("\t").encode(), {}),
    ("backslash.csv", lambda: make_csv(",").replace("text n", 't\\ext n').encode(), {"escape": "\\"}),
    ("mac.csv", lambda: make_csv(",", "\r").encode(), {}),
    ("mac.txt", lambda: "\r".join(TEXTS).encode(), {"document": "line"}),
    ("utf16.txt", lambda: "\n".join(TEXTS).encode("utf-16"), {"document": "line"}),
    ("gzip.txt", lambda: gzip.compress("\n".join(TEXTS).encode()), {"document": "line"}),
    ("zeros.txt.gz", lambda: gzip.compress("\n".join(TEXTS).encode()) + bytes(512), {"document": "line"}),
    ("window.jsonl.zst", lambda: compress_with_long_window(make_lines()), {}),
    ("array.json", lambda: json.dumps([{"text": text} for text in TEXTS]).encode(), {}),
    ("c4.json.gz", lambda: gzip.compress(make_lines()), {"format": "jsonl"}),
    ("nested.jsonl", lambda: make_lines(*LANGUAGES), {"lang_column": "meta.lang"}),
    ("nan.jsonl", lambda: make_lines(', "score": NaN', ', "score": 1'), {}),
    ("surrogate.jsonl", lambda: SURROGATE, {"invalid_utf8": "skip"}),
    ("late.jsonl", lambda: b'{"id": "%b"}\n' % (b"x" * 1_000) * 1_100 + make_lines(), {}),
    ("view.parquet", lambda: make_parquet(("text", pa.string_view())), {}),
    ("twice.parquet", lambda: make_parquet(("text", pa.string()), ("a", pa.string()), ("a", pa.string())), {}),
]  # fmt: skip
REFUSED: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("cp1251.csv", RUSSIAN_CSV, {}, "the header of .* pass the encoding of the file, with --encoding"),
    ("cp1251.csv", RUSSIAN_CSV, {"invalid_utf8": "replace"}, "with --encoding"),
    ("twice.parquet", make_parquet(("text", pa.string()), ("text", pa.string())), {}, "two columns .*'text'; rename"),
    ("twice.csv", b"text,text\na,b\nc,d\n", {}, "two columns .*'text'; rename"),
    ("quote.csv", make_csv(",").replace("\n3,t", '\n3,"t').encode(), {}, "opened in row 5 is not closed"),
    ("backslash.csv", make_csv(",").replace("5,text", r'5,"a \"text\" b"').encode(), {}, r"pass --escape '\\'"),
    ("surrogate.jsonl", SURROGATE, {}, r"\\ud83d, .* pass --invalid-utf8 replace or skip"),
    ("pointer.jsonl", LFS_POINTER, {}, "a Git LFS pointer, .* `git lfs pull`"),
    ("pointer.txt", LFS_POINTER, {}, "a Git LFS pointer, .* `git lfs pull`"),
    ("chat.jsonl", b'{"messages": [{"role": "user"}]}\n' * 9, {"text_column": "messages"}, "all 9: messages must be"),
]  # fmt: skip


def run_commands(path: Path, settings: dict[str, Any]) -> list[str | int]:
    """Return for each command the number of documents that it reads, or its error."""
    options = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    outcomes: list[str | int] = []
    for command, key in (
        (("build", "--tokenizer", "byte", "--output", str(path.parent / "b")), "splits"),
        (("estimate", "--tokenizer", "byte"), "documents"),
        (("tokenizer", "train", "--tokenizer", "char", "--output", str(path.parent / "t")), "ids"),
    ):
        result = CliRunner().invoke(
            main, [*command, "--input", str(path), *options, "--workers", "1", "--json"], catch_exceptions=False
        )
        if result.exit_code:
            assert result.exit_code in (1, 2), result.output
            outcomes.append(result.stderr.splitlines()[-1])
            continue
        found = json.loads(result.stdout)
        if key == "splits":
            outcomes.append(sum(split["documents"] for split in found["splits"].values()))
        elif key == "documents":
            outcomes.append(found["documents"])
        else:
            outcomes.append(len((path.parent / "t" / "alphabet.txt").read_text(encoding="utf-8")))
    try:
        stream = TokenStream(open_files(path, val_fraction=1e-9, **settings), block_size=9, tail="pad", stream_buffer=0)
        outcomes.append(len(read_documents(stream)))
    except FolioError as error:
        outcomes.append(f"error: {error}")
    return outcomes


@pytest.mark.parametrize(("name", "make", "settings"), READ, ids=[case[0] for case in READ])
def test_unusual_file_is_read_by_every_command(
    tmp_path: Path, name: str, make: Callable[[], bytes], settings: dict[str, Any]
) -> None:
    (tmp_path / name).write_bytes(make())
    built, estimated, num_characters, streamed = run_commands(tmp_path / name, settings)
    assert (built, estimated, streamed) == (20, 20, 20)
    assert num_characters == len({*"".join(TEXTS)})


@pytest.mark.parametrize(("name", "data", "settings", "message"), REFUSED, ids=[f"{c[0]}-{len(c[2])}" for c in REFUSED])
def test_file_is_refused_for_the_same_reason_by_every_command(
    tmp_path: Path, name: str, data: bytes, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    for outcome in run_commands(tmp_path / name, settings):
        assert isinstance(outcome, str)
        with pytest.raises(FolioError, match=message):
            raise FolioError(outcome)
