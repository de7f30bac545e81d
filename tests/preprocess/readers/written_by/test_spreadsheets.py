"""CSV files as spreadsheet programs write them, and zstd files with the longest window."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from preprocess.inputs.compressions import import_zstd
from tests.preprocess.readers.written_by.helpers import ROWS, check_documents


def write_excel(*, delimiter: str, has_separator_row: bool) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\r\n")
    writer.writerows([[*ROWS], *zip(*ROWS.values(), strict=True)])
    return (f"sep={delimiter}\r\n" if has_separator_row else "") + buffer.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("has_separator_row", [True, False])
def test_csv_of_excel_is_read(tmp_path: Path, encoding: str, delimiter: str, has_separator_row: bool) -> None:
    content = write_excel(delimiter=delimiter, has_separator_row=has_separator_row)
    (tmp_path / "a.csv").write_bytes(content.encode(encoding))
    check_documents(tmp_path, tmp_path / "a.csv")


@pytest.mark.parametrize("window_log", [27, 31])
def test_zstd_of_any_window_is_read(tmp_path: Path, window_log: int) -> None:
    zstd = import_zstd()
    content = write_excel(delimiter=",", has_separator_row=False).encode()
    options = {zstd.CompressionParameter.window_log: window_log, zstd.CompressionParameter.content_size_flag: 0}
    # Without the size of the content, the frame asks for the whole window.
    compressor = zstd.ZstdCompressor(options=options)
    data = compressor.compress(content[:100]) + compressor.compress(content[100:]) + compressor.flush()
    (tmp_path / "a.csv.zst").write_bytes(data)
    check_documents(tmp_path, tmp_path / "a.csv.zst")
