"""Files of every kind and state → documents: nothing lost, nothing silent, whatever the size of partitions and blocks."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.build.build import build
from preprocess.build.plan import make_plan
from preprocess.errors import FolioError, MisuseError
from preprocess.progress import Progress
from preprocess.readers.record_blocks import find_cut
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build, check_name
from preprocess.shards.verify import verify
from preprocess.tokenizers import load_tokenizer

QUIET = Progress(quiet=True)
FIXTURE = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = [f"word{i}" for i in range(40)]


def make(folder: Path, *paths: Path | str, corpus: str | None = None, name: str = "x", **overrides: Any) -> Build:
    """A build of files by the byte tokenizer, everything that changes text switched off unless asked for."""
    plain = {"tokenizer": "byte", "clean": (), "dedup": False} | (
        {"val_fraction": 0.5} if overrides.get("split") != "given" else {}
    )
    recipe = load_recipe(corpus, inputs=tuple(map(str, paths)), **{**plain, **overrides})
    build(recipe, folder / name, name=name, replace=True, progress=QUIET)
    made = Build(folder / name)
    assert list(verify(made)) == []
    return made


def documents(made: Build) -> list[str]:
    """The texts of both splits, by source and position."""
    tokenizer = load_tokenizer(made.folder, made.manifest)
    special = np.zeros(made.vocab_size, bool)
    special[list(made.manifest["special_tokens"].values())] = True
    found = []
    for split in ("train", "val"):
        for number, entry in enumerate(made.docs(split)):
            ids = made.document(split, number)
            text = tokenizer.decode_bytes(ids[~special[ids]]).decode()
            found.append((int(entry["source"]), int(entry["position"]), text))
    places = [place[:2] for place in found]
    assert len(set(places)) == len(places)
    return [text for *_, text in sorted(found)]


def stats(made: Build) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads((made.folder / "stats.json").read_bytes())
    documents_ = counts["documents"]
    assert documents_["read"] == sum(n for key, n in documents_.items() if key != "read")
    return counts


@pytest.fixture(params=[16 << 20, 100], ids=["one partition", "many"])
def partitions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test runs with files in one span and in many."""
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", request.param)
    monkeypatch.setattr("preprocess.readers.decompress.BLOCK_BYTES", min(request.param, 64))
    monkeypatch.setattr("preprocess.readers.record_blocks.PROBE_BYTES", 7)
    return


# Text.

TEXT = "".join(f"{w} one\r\n{w} two\n \t\n\n{w} three\n\n" for w in WORDS)


@pytest.mark.usefixtures("partitions")
@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ("line", [line for w in WORDS for line in (f"{w} one", f"{w} two", " \t", f"{w} three")]),
        ("paragraph", [part for w in WORDS for part in (f"{w} one\r\n{w} two", f"{w} three")]),
    ],
)
def test_lines_and_paragraphs(tmp_path: Path, document: str, wanted: list[str]) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    assert documents(make(tmp_path, tmp_path / "a.txt", document=document)) == wanted


@pytest.mark.usefixtures("partitions")
@pytest.mark.parametrize("separator", ["<|endoftext|>", "==", "---\n"])
def test_between_separators(tmp_path: Path, separator: str) -> None:
    texts = [f"{w}\n{w} again" for w in WORDS]
    (tmp_path / "a.txt").write_text(f"\n{separator}\n".join(texts) + f"\n{separator}\n")
    assert documents(make(tmp_path, tmp_path / "a.txt", document="separator", separator=separator)) == texts


@FIXTURE
@given(st.text("ab \n\r\té", max_size=200), st.sampled_from(["line", "paragraph", "separator"]), st.integers(1, 60))
def test_where_a_file_is_cut_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, document: str, partition_bytes: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode() + b"\nend one\n\nend two")
    made = []
    for size in (1 << 20, partition_bytes):
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", size)
        monkeypatch.setattr("preprocess.readers.decompress.BLOCK_BYTES", max(size // 2, 1))
        try:
            made.append(
                documents(
                    make(tmp_path, path, document=document, **({"separator": "ab"} if document == "separator" else {}))
                )
            )
        except FolioError as e:
            assert "cannot be split" in str(e)
            made.append(["nothing to split"])
    assert made[0] == made[1]


def test_a_file_a_document_and_names_are_relative(tmp_path: Path) -> None:
    for name in ("b/two.txt", "b/deep/three.txt", "a.txt", ".hidden.txt", "b/.git/x.txt", "picture.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    made = make(tmp_path, tmp_path / "in")
    assert (
        documents(made) == ["a.txt", "b/deep/three.txt", "b/two.txt"] == [s["name"] for s in made.manifest["sources"]]
    )
    assert str(tmp_path) not in (made.folder / "manifest.json").read_text()
    again = make(tmp_path, tmp_path / "in/b/*.txt", tmp_path / "in/*.txt", tmp_path / "in/b/**/*.txt", name="again")
    assert documents(again) == documents(made)


def test_passages_of_files_that_are_split_exactly(tmp_path: Path) -> None:
    text = "".join(f"{w} is here.\n\n" for w in WORDS)
    (tmp_path / "a.txt").write_text(text)
    made = make(tmp_path, tmp_path / "a.txt", document="passage", passage_characters=60)
    assert "".join(documents(made)) == text and len(documents(made)) > 5


def test_a_long_document_is_cut_at_white_space_and_counted(tmp_path: Path) -> None:
    text = "".join(f"{w}-{i} \n" for i in range(20) for w in WORDS)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("short")
    made = make(tmp_path, tmp_path / "*.txt", max_document_bytes=500)
    parts = documents(made)
    assert "".join(parts) == text + "short" and all(len(p) <= 500 for p in parts)
    assert all(p[-1].strip() and q[0] == " " for p, q in itertools.pairwise(parts[:-1]))
    assert stats(made)["documents"]["read"] == len(parts)
    # A row of a table meets the same knife.
    pq.write_table(pa.table({"text": [text, "short"]}), tmp_path / "rows.parquet")
    rows = make(tmp_path, tmp_path / "rows.parquet", max_document_bytes=500, name="rows")
    assert documents(rows) == parts and stats(rows)["mended"]["cut"] == len(parts) - 2


@pytest.mark.parametrize("size", [900, 5000])
def test_what_cannot_be_cut_is_refused_or_skipped(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.txt").write_text("first one\n" + "x" * size + "\nthird\nfourth")
    with pytest.raises(FolioError, match=r"a.txt: .* longer than max_document_bytes \(500\) .* --oversized skip"):
        make(tmp_path, tmp_path / "a.txt", document="line", max_document_bytes=500)
    made = make(tmp_path, tmp_path / "a.txt", document="line", max_document_bytes=500, oversized="skip")
    assert documents(made) == ["first one", "third", "fourth"] and stats(made)["documents"]["oversized"] == 1


# Compression.


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_whole_of_several_frames_and_cut_short(tmp_path: Path, suffix: str) -> None:
    compress = gzip.compress if suffix == ".gz" else lambda data: pa.compress(data, codec="zstd", asbytes=True)
    rows = [
        json.dumps({"text": f"{w} {i} ".ljust(60, str(i % 10))}).encode() + b"\n" for i in range(500) for w in WORDS
    ]
    half = len(rows) // 2
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(b"".join(rows[:half])) + compress(b"".join(rows[half:])))
    assert documents(make(tmp_path, path)) == [json.loads(row)["text"] for row in rows]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 20])
    with pytest.raises(FolioError, match=rf"a.jsonl{suffix} cannot be decompressed .* copy it again"):
        make(tmp_path, path)
    path.write_bytes(b"this is no compressed file at all")
    with pytest.raises(FolioError, match="cannot be decompressed"):
        make(tmp_path, path)


# UTF-8.


def test_the_speech_that_is_not_utf8_under_each_policy(mirror: Path, tmp_path: Path) -> None:
    speeches = [mirror / "inaugural/2005-Bush.txt", mirror / "inaugural/2009-Obama.txt"]
    raw = speeches[0].read_bytes()
    offset = next(i for i, b in enumerate(raw) if b > 127)
    with pytest.raises(
        FolioError, match=rf"2005-Bush.txt is not UTF-8: byte 0x{raw[offset]:02x} at offset {offset:,} .*--invalid-utf8"
    ):
        make(tmp_path, *speeches)
    replaced = make(tmp_path, *speeches, invalid_utf8="replace")
    assert documents(replaced)[0] == raw.decode("utf-8", "replace") and stats(replaced)["mended"]["invalid_utf8"] == 1
    third = mirror / "inaugural/2017-Trump.txt"
    skipped = make(tmp_path, *speeches, third, invalid_utf8="skip")
    assert documents(skipped) == [p.read_text() for p in (speeches[1], third)]
    assert stats(skipped)["documents"]["invalid_utf8"] == 1 and stats(skipped)["documents"]["read"] == 3


@pytest.mark.usefixtures("partitions")
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "txt"])
def test_invalid_utf8_in_every_format(tmp_path: Path, suffix: str) -> None:
    texts = [b"good %d" % i for i in range(30)] + [b"bad \xff\xfe byte"] + [b"more %d" % i for i in range(30)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"text": pa.array(texts, pa.binary())}), path, row_group_size=7)
    else:
        lines = {"jsonl": [b'{"text": "%s"}' % t for t in texts], "csv": [b"text", *texts], "txt": texts}[suffix]
        path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(FolioError, match="not UTF-8: byte 0xff at offset"):
        make(tmp_path, path, document=None if suffix != "txt" else "line")
    line = {"document": "line"} if suffix == "txt" else {}
    assert documents(make(tmp_path, path, invalid_utf8="replace", **line))[30] == "bad \ufffd\ufffd byte"
    skipped = make(tmp_path, path, invalid_utf8="skip", **line)
    assert len(documents(skipped)) == 60 and stats(skipped)["documents"]["invalid_utf8"] == 1


# JSON lines.


@pytest.mark.usefixtures("partitions")
def test_bad_lines_are_kept_aside_and_good_ones_are_not_harmed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good = [{"text": f"{w} ü \u2028 {i}", "n": i} for i in range(4) for w in WORDS]
    bad = [
        '{"text": "open',
        "[1, 2]",
        '{"text": 5}',
        '{"text": ["a"]}',
        "nonsense",
        '{"text": "\\ud800"}',
        '{"text": "a"} trailing',
        "NaN",
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in good]
    for i, line in enumerate(bad):
        lines.insert(i * 7 + 3, line)
    path = tmp_path / "a.jsonl"
    path.write_bytes(("\r\n".join(lines) + "\n\n  \n").encode())
    made = make(tmp_path, path)
    assert documents(made) == [row["text"] for row in good] and stats(made)["documents"]["malformed"] == len(bad)
    kept = [json.loads(line) for line in (tmp_path / ".x.work/refused.jsonl").read_text().splitlines()]
    assert [k["record"].strip() for k in kept] == bad and all(k["source"] == "a.jsonl" and k["reason"] for k in kept)
    data = path.read_bytes()
    assert all(data[int(k["place"].removeprefix("byte ")) :].startswith(k["record"].encode()) for k in kept)
    assert "refused.jsonl" in capsys.readouterr().err


def test_null_and_missing_text_is_counted(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": None}, {"text": "b"}, {"other": 1}, {"text": ""}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = stats(make(tmp_path, tmp_path / "a.jsonl"))["documents"]
    assert (counts["kept"], counts["null_text"], counts["empty"]) == (2, 2, 1)


def test_a_line_too_long_for_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in ("one", "x " * 400, "two", "y" * 3000, "three")))
    with pytest.raises(FolioError, match="longer than max_document_bytes"):
        make(tmp_path, path, max_document_bytes=500)
    made = make(tmp_path, path, max_document_bytes=500, oversized="skip")
    assert (
        documents(made)[0] == "one"
        and "".join(documents(made)[1:-2]) == "x " * 400
        and documents(made)[-2:] == ["two", "three"]
    )
    assert stats(made)["documents"]["oversized"] == 1


# Tables.

ROWS = [
    {
        "text": f"text {i}",
        "who": "Анна" if i % 3 else None,
        "when": 1900 + i % 5,
        "lang": "ru" if i % 2 else "en",
        "score": i / 10,
        "q": f"{{{i}}}",
    }
    for i in range(80)
]


@pytest.fixture(params=["jsonl", "jsonl.gz", "csv", "parquet"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same rows in every format."""
    path = tmp_path / f"rows.{request.param}"
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=9)
    elif request.param == "csv":
        import csv

        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        data = "\n".join(json.dumps(row) for row in ROWS).encode()
        path.write_bytes(gzip.compress(data) if request.param.endswith("gz") else data)
    return path


@pytest.mark.usefixtures("partitions")
def test_columns_conditions_and_templates_mean_the_same_in_every_format(table: Path, tmp_path: Path) -> None:
    settings_ = {"author_column": "who", "year_column": "when", "lang_column": "lang", "group_column": "when"}
    made = make(tmp_path, table, where='lang == "ru" and score >= 2.5', template="Q: {q}\nA: {text}", **settings_)
    wanted = [row for row in ROWS if row["lang"] == "ru" and row["score"] >= 2.5]
    assert documents(made) == [f"Q: {row['q']}\nA: {row['text']}" for row in wanted]
    counts = stats(made)
    assert counts["documents"]["filtered"] == len(ROWS) - len(wanted)
    assert set(counts["languages"]) == {"ru"} and counts["authors"]["author"]["documents"] == sum(
        r["who"] is not None for r in wanted
    )
    assert set(counts["authors"]["year"]["documents_by_value"]) == {str(row["when"]) for row in wanted}
    # Groups are years: none is on both sides.
    years = {i for token, i in made.manifest["special_tokens"].items() if token.startswith("<year_")}
    sides = {
        s: {i for n in range(len(made.docs(s))) for i in made.document(s, n).tolist() if i in years}
        for s in ("train", "val")
    }
    assert sides["train"] and sides["val"] and not sides["train"] & sides["val"]


def test_a_missing_column_is_named_before_any_work(table: Path, tmp_path: Path) -> None:
    for overrides, message in (
        ({"text_column": "body"}, r"has no column 'body', it has text, who"),
        ({"where": 'language == "en"'}, "has no column 'language'"),
        ({"template": "{question}"}, "has no column 'question'"),
    ):
        with pytest.raises(MisuseError, match=message):
            make(tmp_path, table, **overrides)
    assert not (tmp_path / ".x.work").exists()


def test_a_column_of_a_wrong_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2], "list": [["a"], ["b"]]}), tmp_path / "a.parquet")
    with pytest.raises(MisuseError, match="column 'text' of .*a.parquet is of type int64, wanted text"):
        make(tmp_path, tmp_path / "a.parquet")
    with pytest.raises(MisuseError, match="column 'list' .* wanted text"):
        make(tmp_path, tmp_path / "a.parquet", text_column="list")


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_text_of_every_arrow_type(tmp_path: Path, type_: pa.DataType) -> None:
    texts = ["a", "b", "ü", "a", "c" * 5000]
    pq.write_table(
        pa.table({"text": pa.array(texts, pa.binary() if type_ == pa.binary() else pa.string()).cast(type_)}),
        tmp_path / "a.parquet",
    )
    assert documents(make(tmp_path, tmp_path / "a.parquet")) == texts


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i} " * 50 for i in range(3000)]}), path, row_group_size=500)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"PAR1 nothing", b"", whole[:5000] + bytes(4000) + whole[9000:]):
        path.write_bytes(damaged)
        with pytest.raises(FolioError, match=r"a.parquet cannot be read as Parquet .* copy it again"):
            make(tmp_path, path)
    os.rename(path, tmp_path / "a.parquet.gz")
    with pytest.raises(MisuseError, match="is a compressed Parquet file"):
        make(tmp_path, tmp_path / "a.parquet.gz")


def test_csv_with_quotes_line_feeds_and_rows_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,"a, ""quoted""\nline"\n2\n3,plain,too,many\n4,NA\n5,last\n')
    made = make(tmp_path, path)
    assert documents(made) == ['a, "quoted"\nline', "NA", "last"] and stats(made)["documents"]["malformed"] == 2
    assert len((tmp_path / ".x.work/refused.jsonl").read_text().splitlines()) == 2
    path.write_text("text,text\na,b\n")
    with pytest.raises(MisuseError, match="names a column twice"):
        make(tmp_path, path)


def test_years_that_are_none_are_counted(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "y": y} for i, y in enumerate([1999, "2001", "later", None, "", 20222, 1999.0])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = stats(make(tmp_path, tmp_path / "a.jsonl", year_column="y"))
    assert (
        counts["authors"]["year"]["documents_by_value"] == {"1999": 2, "2001": 1}
        and counts["mended"]["unreadable_year"] == 2
    )


# Files that are missing, empty, or change.


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "odd.xyz").write_text("text")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "none*.txt", "matches no file"),
        (tmp_path / "empty", "matches no file"),
        (tmp_path / "odd.xyz", "does not tell its format; pass --format"),
    ):
        with pytest.raises(MisuseError, match=message):
            make(tmp_path, path)
    assert documents(make(tmp_path, tmp_path / "odd.xyz", tmp_path / "odd.xyz", format="text", split="contiguous")) == [
        "te",
        "xt",
    ]


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_an_empty_file_alone_and_among_others(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"" if suffix != "csv" else b"text\n")
    with pytest.raises(FolioError, match="no document is left of own"):
        make(tmp_path, tmp_path / f"a.{suffix}")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}')
    assert documents(make(tmp_path, tmp_path / f"a.{suffix}", tmp_path / "b.jsonl")) == ["one", "two"]


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preprocess.build import prepare

    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": w}) for w in WORDS))
    real = prepare.documents_of

    def appended(*arguments: Any) -> Any:
        for batch in real(*arguments):
            yield batch
            with open(path, "a") as file:
                file.write('\n{"text": "late"}')

    monkeypatch.setattr(prepare, "documents_of", appended)
    with pytest.raises(FolioError, match="a.jsonl changed while it was read"):
        make(tmp_path, path)
    monkeypatch.undo()
    monkeypatch.setattr(prepare, "documents_of", lambda *a: (path.unlink(missing_ok=True), *real(*a))[1:])
    with pytest.raises(FolioError, match="a.jsonl went away while it was read"):
        make(tmp_path, path)


# Splits and names.


def test_metadata_from_names(mirror: Path, tmp_path: Path) -> None:
    pattern = r"(?P<year>\d{4})-(?P<author>\w+)"
    made = make(tmp_path, mirror / "inaugural", name_pattern=pattern, invalid_utf8="replace")
    special = {i: t for t, i in made.manifest["special_tokens"].items()}
    for split in ("train", "val"):
        for number, entry in enumerate(made.docs(split)):
            year, author = made.manifest["sources"][int(entry["source"])]["name"].removesuffix(".txt").split("-")
            ids = made.document(split, number)
            assert [special[int(i)] for i in ids[:2]] == [f"<author_{author}>", f"<year_{year}>"]
    with pytest.raises(MisuseError, match="does not match '1789-Washington.txt'"):
        make(tmp_path, mirror / "inaugural", name_pattern="(?P<year>9999)")
    begin = time.perf_counter()
    with pytest.raises(MisuseError, match="does not match"):
        make(tmp_path, mirror / "inaugural", name_pattern="(?P<author>(?:a+)+)$")
    assert time.perf_counter() - begin < 5


def test_pairs_by_line_stay_on_one_side(mirror: Path, tmp_path: Path) -> None:
    recipe = load_recipe("pud", num_pieces=600)
    build(recipe, tmp_path / "pud", name="pud", replace=False, progress=QUIET)
    made = Build(tmp_path / "pud")
    sides = {s: set(made.docs(s)["position"].tolist()) for s in ("train", "val")}
    assert len(sides["val"]) == 100 and not sides["train"] & sides["val"]
    assert stats(made)["languages"]["ru"]["documents"] == 1000


def test_the_split_that_names_give(mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    build(load_recipe("wikitext-2", tokenizer="byte"), tmp_path / "w", name="w", replace=False, progress=QUIET)
    made = Build(tmp_path / "w")
    texts = {n: (mirror / f"wikitext-2/{n}.txt").read_bytes() for n in ("test", "valid")}
    tokenizer = load_tokenizer(made.folder, made.manifest)
    assert tokenizer.decode_bytes(made.document("train", 0)[:-1]) == texts["test"]
    assert tokenizer.decode_bytes(made.document("val", 0)[:-1]) == texts["valid"]
    assert "what is given for testing trains" in capsys.readouterr().err


def test_a_split_column(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "s": s} for i, s in enumerate(["train", "validation", "test", "train", "dev"])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = make(tmp_path, tmp_path / "a.jsonl", split="given", split_column="s")
    assert [made.manifest["splits"][s]["documents"] for s in ("train", "val")] == [2, 2] and stats(made)["documents"][
        "held_out"
    ] == 1
    (tmp_path / "a.jsonl").write_text('{"text": "t", "s": "exam"}')
    with pytest.raises(FolioError, match="gives the split 'exam', wanted one of train, val"):
        make(tmp_path, tmp_path / "a.jsonl", split="given", split_column="s")


HUB = {
    "synth": [
        {
            "query": f"q{i}",
            "synthetic_reasoning": f"r{i}",
            "synthetic_answer": f"a{i}",
            "language": "en" if i % 2 else "fr",
        }
        for i in range(4000)
    ],
    "fineweb-edu": [{"text": f"t{i}", "id": str(i), "language": "en", "score": 3.0} for i in range(2000)],
    "openwebtext": [{"text": f"t{i}"} for i in range(4000)],
}


@pytest.mark.parametrize("corpus", HUB)
def test_recipes_of_the_hub_take_local_files(tmp_path: Path, corpus: str) -> None:
    pq.write_table(pa.Table.from_pylist(HUB[corpus]), tmp_path / "a.parquet")
    recipe = load_recipe(corpus, inputs=(str(tmp_path / "*.parquet"),), tokenizer="byte")
    build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET)
    found = documents(Build(tmp_path / "x"))
    if corpus == "synth":
        assert found[0] == "Q: q1\n\nReasoning:\nr1\n\nA: a1" and len(found) == 2000
    else:
        assert found == [row["text"] for row in HUB[corpus]]


@pytest.mark.parametrize(
    ("corpus", "names"), [("wikitext-103", ("train", "validation", "test")), ("tinystories", ("train", "validation"))]
)
def test_recipes_whose_files_name_the_split(tmp_path: Path, corpus: str, names: tuple[str, ...]) -> None:
    for name in names:
        pq.write_table(
            pa.table({"text": [f"{name} {i}" for i in range(5)]}), tmp_path / f"{name}-00000-of-00001.parquet"
        )
    recipe = load_recipe(corpus, inputs=(str(tmp_path),), tokenizer="byte")
    build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET)
    made = Build(tmp_path / "x")
    assert [made.manifest["splits"][s]["documents"] for s in ("train", "val")] == [5, 5]


def test_a_corpus_of_the_hub_without_files_says_what_to_do() -> None:
    with pytest.raises(MisuseError, match="pass --input with the Parquet files of PleIAs/SYNTH"):
        make_plan(load_recipe("synth"), None, QUIET)


# Recipes of one's own.


def test_a_recipe_of_ones_own_and_its_data_travel_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data/a.jsonl").write_text("\n".join(json.dumps({"q": w, "lang": "en"}) for w in WORDS))
    (folder / "mine.toml").write_text(
        'inputs = ["data/*.jsonl"]\ntemplate = "Q: {q}"\nwhere = \'lang == "en"\'\ntokenizer = "byte"\n'
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("project/mine.toml")
    assert recipe.corpus == "mine"
    build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET)
    assert documents(Build(tmp_path / "x")) == [f"Q: {w}" for w in WORDS]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('template = "{x.__class__}"', "x.__class__"),
        ("where = 'open(\"/etc/passwd\") == 1'", "function call"),
        ("where = '__import__(\"os\") == 1'", "function call"),
        ('name_pattern = "(?<=a)(?P<year>b)"', "name_pattern|pattern"),
        ('corpus = "../../evil"', "a corpus cannot be called"),
        ('inputz = ["a"]', "no setting is called 'inputz'; did you mean 'inputs'"),
        ("max_documents = 0", "max_documents is 0"),
        ("= broken", "is not TOML"),
        ('split = "given"', "nothing gives it"),
        ('tokenizer = "../../../etc/passwd"', "passwd"),
        ('[[files]]\nname = "../../x"\nbytes = 1\nsha256 = "00"', "no plain file name"),
    ],
)
def test_hostile_and_mistaken_recipes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}')
    (tmp_path / "mine.toml").write_text(
        text if "inputz" in text else f'inputs = ["a.jsonl"]\n{text}' if "[[" not in text else text
    )
    with pytest.raises(FolioError, match=message):
        recipe = load_recipe(str(tmp_path / "mine.toml"))
        check_name(recipe.corpus)
        make_plan(recipe, None, QUIET)


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(MisuseError, match="no recipe nowhere/mine.toml"):
        load_recipe("nowhere/mine.toml")


# What reviewers and users broke.


@FIXTURE
@given(
    st.lists(st.text("ab \n\ré=", max_size=90), min_size=2, max_size=6),
    st.sampled_from(["line", "paragraph", "separator", "file", "jsonl"]),
    st.integers(1, 70),
    st.sampled_from([1, 3, 17, 200]),
    st.integers(5, 40),
)
def test_long_records_are_cut_alike_wherever_blocks_and_partitions_end(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    texts: list[str],
    document: str,
    partition_bytes: int,
    block_bytes: int,
    limit: int,
) -> None:
    folder = tmp_path_factory.mktemp("x")
    path = folder / ("a.jsonl" if document == "jsonl" else "a.txt")
    if document == "jsonl":
        path.write_text(
            "\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in [*texts, "the end", "of all"]),
            encoding="utf-8",
        )
    else:
        path.write_bytes("=*=".join([*texts, "the end", "of all"]).encode())
    settings_: dict[str, Any] = {} if document == "jsonl" else {"document": document}
    if document == "separator":
        settings_["separator"] = "=*="
    made = []
    for partition, block in ((1 << 20, 1 << 20), (partition_bytes, block_bytes)):
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", partition)
        monkeypatch.setattr("preprocess.readers.decompress.BLOCK_BYTES", block)
        try:
            built = make(
                folder,
                path,
                max_document_bytes=limit,
                oversized="skip",
                min_characters=2,
                name=f"b{block}",
                **settings_,
            )
        except FolioError as e:
            made.append(str(e).split(":")[0])
        else:
            counts = stats(built)
            made.append((documents(built), counts["documents"], counts["mended"], built.build_id))
    assert made[0] == made[1]


def test_positions_do_not_depend_on_partitions_where_documents_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"{i} is long enough text" if i % 3 else "x", "lang": "en" if i % 5 else "fr"} for i in range(400)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ids = set()
    for size in (1 << 20, 1000, 3000):
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", size)
        ids.add(make(tmp_path, tmp_path / "a.jsonl", min_characters=20, where='lang == "en"').build_id)
    assert len(ids) == 1


def test_a_megabyte_of_spaces_at_the_cut_takes_no_time() -> None:
    data = b"word " * 100 + b" " * 1_000_000 + b"more"
    begin = time.perf_counter()
    assert find_cut(data, len(data) - 10) == 499 and time.perf_counter() - begin < 1
    assert find_cut(b"x" * 1000, 500) == 0


def test_a_byte_order_mark_costs_no_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"text": "one"}\n{"text": "two"}\n')
    assert documents(make(tmp_path, tmp_path / "a.jsonl")) == ["one", "two"]


def test_settings_for_tables_are_refused_on_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}')
    for overrides in ({"where": 'lang == "en"'}, {"text_column": "body"}, {"template": "{a}"}, {"author_column": "a"}):
        with pytest.raises(MisuseError, match="has no effect on text files"):
            make(tmp_path, tmp_path / "a.txt", document="line", **overrides)
    with pytest.raises(MisuseError, match="document has no effect on jsonl files"):
        make(tmp_path, tmp_path / "b.jsonl", document="line")
    with pytest.raises(MisuseError, match="where and template are for tables, and .*a.txt is text"):
        make(tmp_path, tmp_path, where='text == "one"')
    with pytest.raises(MisuseError, match="split_column goes with split 'given'"):
        make(tmp_path, tmp_path / "b.jsonl", split_column="s")


def test_what_a_folder_holds_besides_is_told_and_builds_are_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}')
    for name in ("doc.pdf", "tab.tsv", "more.tsv"):
        (data / name).write_text("x")
    made = make(data / "shards", data)
    assert "3 files were passed over, whose names tell no format: 2 .tsv, 1 .pdf" in capsys.readouterr().err
    assert make(data / "shards", data, name="again").build_id == made.build_id
    (data / "a.jsonl").unlink()
    with pytest.raises(MisuseError, match="matches no file; 3 files are there whose names tell no format"):
        make(tmp_path, data)
    with pytest.raises(MisuseError, match="--input '' matches no file"):
        make(tmp_path, "")
    for name in ("a.tar.gz", "a.zip", "a.jsonl.bz2"):
        (data / name).write_bytes(b"x")
        with pytest.raises(MisuseError, match="is an archive or of a compression that is not read"):
            make(tmp_path, data / name, format="jsonl")


def test_nothing_left_says_why_and_keeps_the_evidence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('["a list"]\n{"text": 5}\n')
    with pytest.raises(FolioError, match="no document is left of own: 2 documents were read; 2 malformed"):
        make(tmp_path, tmp_path / "a.jsonl")
    assert len((tmp_path / ".x.work/refused.jsonl").read_text().splitlines()) == 2
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1}\n')
    with pytest.raises(FolioError, match="1 documents were read; 1 filtered"):
        make(tmp_path, tmp_path / "a.jsonl", where="n > 5")


def test_losses_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [{"text": "a"}, {"text": "b"}, {"body": "c"}, {"text": 7}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make(tmp_path, tmp_path / "a.jsonl")
    err = capsys.readouterr().err
    assert (
        "some documents were not taken as they are: 1 malformed, 1 null text" in err
        and "1 records that could not be read" in err
    )


@pytest.mark.parametrize("value", ["9007199254740993", "123456789012345678901234567890"])
def test_numbers_beyond_what_a_float_holds(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.jsonl").write_text(
        f'{{"text": "a", "id": {value}}}\n{{"text": "b", "id": 2}}\n{{"text": "c", "id": 3}}'
    )
    assert documents(make(tmp_path, tmp_path / "a.jsonl", where="id > 2")) == ["a", "c"]
    made = documents(make(tmp_path, tmp_path / "a.jsonl", template="{id}"))
    assert made == ([value] if len(value) < 20 else []) + [
        "2",
        "3",
    ]  # more digits than anything can tell apart: malformed


def test_a_condition_of_several_kinds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "id": 1}')
    with pytest.raises(MisuseError, match="compares id with values of several kinds"):
        make(tmp_path, tmp_path / "a.jsonl", where='id == 1 or id == "a"')


def test_years_with_spaces_around_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,y\na, 1999 \nb,1\n")
    assert stats(make(tmp_path, tmp_path / "a.csv", year_column="y"))["authors"]["year"]["documents_by_value"] == {
        "1": 1,
        "1999": 1,
    }


def test_sources_of_one_group_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": w}) for w in WORDS))
    with pytest.raises(FolioError, match="all 40 documents are one group"):
        make(tmp_path, tmp_path / "a.jsonl", group_by="source")


def test_a_tokenizer_file_without_a_folder_is_known_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": w}) for w in WORDS))
    (tmp_path / "my.txt").write_text("\nabcdefghijklmnopqrstuvwxyz0123456789")
    recipe = load_recipe(None, inputs=("a.jsonl",), tokenizer="my.txt", val_fraction=0.5)
    build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET)
    assert build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET) is False
    (tmp_path / "my.txt").write_text("\n0123456789abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(MisuseError, match="holds another build .tokenizer_sha256 differ"):
        build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET)


def test_a_column_with_a_dot_in_its_name_beside_a_nested_one(tmp_path: Path) -> None:
    rows = pa.table({"my.text": [f"t{i}" for i in range(40)], "meta": [{"a": i} for i in range(40)]})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=7)
    made = make(tmp_path, tmp_path / "a.parquet", text_column="my.text", where="`my.text` != 't3'")
    assert documents(made) == [f"t{i}" for i in range(40) if i != 3]
    plan = make_plan(
        load_recipe(None, inputs=(str(tmp_path / "a.parquet"),), tokenizer="byte", text_column="my.text"), None, QUIET
    )
    assert plan.partition_bytes()[0] > 40 * 2
