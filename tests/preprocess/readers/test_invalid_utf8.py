"""Invalid UTF-8 under each policy, in every format."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.errors import FolioError
from tests.helpers.file_builds import build_files, read_stats, read_texts


def test_speech_with_invalid_utf8_under_each_policy(mirror: Path, tmp_path: Path) -> None:
    speeches = [mirror / "inaugural/2005-Bush.txt", mirror / "inaugural/2009-Obama.txt"]
    raw = speeches[0].read_bytes()
    offset = next(i for i, b in enumerate(raw) if b > 127)
    with pytest.raises(
        FolioError, match=rf"2005-Bush.txt is not UTF-8: byte 0x{raw[offset]:02x} at offset {offset:,} .*--invalid-utf8"
    ):
        build_files(tmp_path, *speeches)
    replaced = build_files(tmp_path, *speeches, invalid_utf8="replace")
    assert read_texts(replaced)[0] == raw.decode("utf-8", "replace")
    assert read_stats(replaced)["mended"]["invalid_utf8"] == 1
    third = mirror / "inaugural/2017-Trump.txt"
    skipped = build_files(tmp_path, *speeches, third, invalid_utf8="skip")
    assert read_texts(skipped) == [p.read_text() for p in (speeches[1], third)]
    assert read_stats(skipped)["documents"]["invalid_utf8"] == 1 and read_stats(skipped)["documents"]["read"] == 3


@pytest.mark.usefixtures("partition_sizes")
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "txt"])
def test_invalid_utf8_in_every_format(tmp_path: Path, suffix: str) -> None:
    texts = [b"good %d" % i for i in range(30)] + [b"bad \xff\xfe byte"] + [b"more %d" % i for i in range(30)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"text": pa.array(texts, pa.binary())}), path, row_group_size=7)
    else:
        lines = {"jsonl": [b'{"text": "%s"}' % t for t in texts], "csv": [b"text", *texts], "txt": texts}[suffix]
        path.write_bytes(b"\n".join(lines) + b"\n")
    # The header of a CSV file is row 1, the first row of a Parquet file is row 0.
    row = {"csv": " of row 32", "parquet": " of row 30"}.get(suffix, "")
    with pytest.raises(FolioError, match=rf"not UTF-8: byte 0xff at offset \d+{row} \("):
        build_files(tmp_path, path, document=None if suffix != "txt" else "line")
    line = {"document": "line"} if suffix == "txt" else {}
    assert read_texts(build_files(tmp_path, path, invalid_utf8="replace", **line))[30] == "bad \ufffd\ufffd byte"
    skipped = build_files(tmp_path, path, invalid_utf8="skip", **line)
    assert len(read_texts(skipped)) == 60 and read_stats(skipped)["documents"]["invalid_utf8"] == 1


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_error_suggests_the_encoding_of_the_file(tmp_path: Path, suffix: str) -> None:
    text = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему."
    (tmp_path / f"a.{suffix}").write_bytes((text + " Всё смешалось в доме Облонских.").encode("cp1251"))
    with pytest.raises(FolioError, match="is not UTF-8: .*, perhaps --encoding cp1251, or pass --invalid-utf8"):
        build_files(tmp_path, tmp_path / f"a.{suffix}")
