"""`preprocess import`: round trips through every format, and files that are damaged or hostile."""

from __future__ import annotations

import functools
import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from preprocess.build.stats import read_stats
from preprocess.cli.main import main
from preprocess.exchange import read_mds, read_tokens
from preprocess.inputs import token_files
from preprocess.shards.files import sha256_file
from preprocess.shards.format import SPLITS, Build
from preprocess.shards.leaks import count_leaks
from preprocess.shards.verify import verify
from tests.conftest import assert_one_line, file_bytes
from tests.helpers.memory import measure_peak_bytes

EOT = 50256  # of GPT-2
CHATS = "".join(
    json.dumps(
        {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
    )
    + "\n"
    for i in range(40)
)
FORMATS = ["nanogpt", "llm.c", "megatron", "datatrove", "olmo", "mds", "parquet"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs `preprocess` in this process, with builds in tmp_path/shards."""
    monkeypatch.setenv("FOLIO_SHARDS", str(tmp_path / "shards"))

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the readers return a few tokens and documents at a time."""
    monkeypatch.setattr(token_files, "BATCH_TOKENS", 41)
    for module in ("megatron", "olmo", "datatrove", "read_mds"):
        monkeypatch.setattr(f"preprocess.exchange.{module}.CHUNK_DOCUMENTS", 7)
    monkeypatch.setattr("preprocess.tokenizers.vocabulary.DECODED_AT_ONCE", 13)


@pytest.fixture
def build(build_text: Callable[..., Build], small_batches: None) -> Build:
    text = "".join(f"Документ {i}, of {i % 17} words:{' word' * (i % 17)}.\n" for i in range(200))
    return build_text(text, split="exact", document="line", shard_tokens=700, author="Ann Lee", lang="en")


def read_documents(build: Build, split: str) -> list[list[int]]:
    return [build.document(split, i).tolist() for i in range(build.manifest.splits[split].documents)]


def read_masks(build: Build, split: str) -> list[list[bool]]:
    return [build.document_mask(split, i).tolist() for i in range(build.manifest.splits[split].documents)]


def assert_refused(result: Result, tmp_path: Path, message: str) -> None:
    """Assert that a command ended with a message of one line, and that it left nothing."""
    assert result.exit_code in (1, 2) and message in result.stderr, result.output
    assert_one_line(result.stderr.splitlines()[-1])
    assert not [path for path in (tmp_path / "shards").glob("*") if not path.name.endswith(".lock")]


@pytest.mark.parametrize("format_", FORMATS)
def test_import_of_an_export_has_the_same_documents(
    build: Build, run: Callable[..., Result], tmp_path: Path, format_: str
) -> None:
    assert run("export", "own", "--format", format_, "--output", tmp_path / "out").exit_code == 0
    result = run(
        *("import", tmp_path / "out", "--format", format_, "--tokenizer", build.folder, "--name", "back"),
        *("--shard-tokens", 700, "--json"),
    )
    assert result.exit_code == 0, result.output
    back = Build("back")
    assert list(verify(back)) == [] and count_leaks(back).num_texts == 0
    for split in SPLITS:
        assert read_documents(back, split) == read_documents(build, split)
        assert (back.docs(split)["hash"] == build.docs(split)["hash"]).all()
        assert back.manifest.splits[split].text_bytes == build.manifest.splits[split].text_bytes
    assert back.manifest.special_tokens == build.manifest.special_tokens
    assert (back.vocab_size, back.manifest.recipe["eot"]) == (build.vocab_size, "append")
    assert run("stats", "back").exit_code == 0
    stats, expected = json.loads(read_stats(back)), json.loads(read_stats(build))
    for key in ("splits", "tokens", "text_bytes", "tokens_per_document", "vocabulary"):
        assert stats[key] == expected[key]
    if format_ == "parquet":
        assert back.manifest.languages == build.manifest.languages
        assert (back.docs("train")["lang"] == build.docs("train")["lang"]).all()


@pytest.mark.parametrize("format_", FORMATS)
def test_import_depends_on_its_files_only_and_is_not_repeated(
    build: Build, run: Callable[..., Result], tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("export", "own", "--format", format_, "--output", tmp_path / "out")
    command = ["import", tmp_path / "out", "--format", format_, "--tokenizer", build.folder, "--name"]
    assert json.loads(run(*command, "one", "--json").stdout)["is_new"]
    monkeypatch.setattr(token_files, "BATCH_TOKENS", 1 << 20)
    assert run(*command, "two").exit_code == 0
    one, two = (file_bytes(tmp_path / "shards" / name) for name in ("one", "two"))
    assert one.keys() == two.keys() and all(one[name] == two[name] for name in one if name != "manifest.json")
    assert Build("one").build_id == Build("two").build_id
    assert not json.loads(run(*command, "one", "--json").stdout)["is_new"]
    result = run(*command, "one", "--shard-tokens", 5)
    assert result.exit_code == 2 and "holds another build (other shard_tokens)" in result.stderr
    assert run(*command, "one", "--shard-tokens", 5, "--replace").exit_code == 0


@pytest.mark.parametrize("format_", ["datatrove", "mds", "parquet"])
def test_import_keeps_the_loss_masks_of_chats(run: Callable[..., Result], tmp_path: Path, format_: str) -> None:
    (tmp_path / "chats.jsonl").write_text(CHATS)
    run("build", "--input", tmp_path / "chats.jsonl", "--tokenizer", "byte", "--workers", 1, "--name", "own")
    chats = Build("own")
    assert chats.has_masks
    run("export", "own", "--format", format_, "--output", tmp_path / "out")
    result = run("import", tmp_path / "out", "--format", format_, "--tokenizer", chats.folder, "--name", "back")
    assert result.exit_code == 0, result.output
    back = Build("back")
    assert list(verify(back)) == []
    for split in SPLITS:
        assert read_documents(back, split) == read_documents(chats, split)
        assert read_masks(back, split) == read_masks(chats, split)
    assert json.loads(read_stats(back))["chats"] == json.loads(read_stats(chats))["chats"]
    assert run("show", "back", "--document", 0).stdout == run("show", "own", "--document", 0).stdout


def write_nanogpt(path: Path, documents: list[list[int]], dtype: str = "<u2") -> Path:
    np.array([i for ids in documents for i in ids], dtype).tofile(path)
    return path


def test_documents_of_one_set_are_split_by_their_text(run: Callable[..., Result], tmp_path: Path) -> None:
    documents = [[i % 50, i % 7, EOT] for i in range(700)]  # 350 different texts, each twice
    path = write_nanogpt(tmp_path / "tokens.bin", documents)
    command = ["import", path, "--format", "nanogpt", "--tokenizer", "gpt2", "--name"]
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        result = run(*command, name, "--val-fraction", 0.2, "--seed", seed)
        assert result.exit_code == 0, result.output
    one, two, other = map(Build, ("one", "two", "other"))
    assert count_leaks(one).num_texts == 0
    assert one.manifest.splits["val"].documents == 140
    assert sorted(read_documents(one, "train") + read_documents(one, "val")) == sorted(documents)
    assert read_documents(one, "val") == read_documents(two, "val") != read_documents(other, "val")
    docs = one.docs("train")
    assert [documents[i] for i in docs["position"].tolist()] == read_documents(one, "train")


def test_texts_in_both_given_splits_are_reported(run: Callable[..., Result], tmp_path: Path) -> None:
    train = write_nanogpt(tmp_path / "a.bin", [[5, EOT], [6, EOT]])
    val = write_nanogpt(tmp_path / "b.bin", [[6, EOT]])
    result = run("import", train, "--val", val, "--format", "nanogpt", "--tokenizer", "gpt2", "--name", "own")
    assert result.exit_code == 0 and "1 text is in both train and val" in result.stderr
    assert "too low; import only the training files:" in result.stderr and "--dedup" not in result.stderr
    assert count_leaks(Build("own")).num_texts == 1


def test_text_without_end_of_text_is_one_document(run: Callable[..., Result], tmp_path: Path) -> None:
    train, val = (write_nanogpt(tmp_path / f"{split}.bin", [[*range(100)]]) for split in SPLITS)
    result = run("import", tmp_path, "--format", "nanogpt", "--tokenizer", "gpt2", "--name", "own")
    assert result.exit_code == 0 and "do not end with the tokenizer's end-of-text token" in result.stderr
    assert Build("own").manifest.recipe["eot"] == "none"
    assert read_documents(Build("own"), "train") == [[*range(100)]]
    assert (train.name, val.name) == tuple(source["name"] for source in Build("own").manifest.sources)


def write_llmc(path: Path, ids: list[int], num_tokens: int | None = None, magic: int = 20240520) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = magic, 1, len(ids) if num_tokens is None else num_tokens
    path.write_bytes(header.tobytes() + np.array(ids, "<u2").tobytes())
    return path


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a_000000": 9, "a_000001": 9, "a_000002": 4}, ""),
        ({"a_000000": 8, "a_000001": 9, "a_000002": 9}, ""),  # as exported: of equal size to one token
        ({"a_000000": 9, "a_000001": 4, "a_000002": 9}, "a_000001.bin has 1,032 bytes, and another file of its set 1,"),
        ({"a_000000": 4, "a_000001": 9}, "a_000001.bin has 1,042 bytes, and another file of its set 1,032"),
        ({"a_000000": 9, "b_000000": 4, "b_000001": 4}, ""),
        ({"1/a_000000": 9, "1/a_000001": 4, "2/a_000000": 9}, ""),  # the same name in two folders
        ({"a_000001": -9}, "a_000001.bin does not begin with an end-of-text token, so a file before it may be missing"),
    ],
)
def test_llmc_files_that_do_not_follow_each_other_have_a_warning(
    run: Callable[..., Result], tmp_path: Path, files: dict[str, int], message: str
) -> None:
    for number, (name, size) in enumerate(files.items()):
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        ids = [number + 1] * abs(size)
        write_llmc(tmp_path / f"files/{name}.bin", [EOT, *ids[1:]] if size > 0 else ids)
    arguments = ("--format", "llm.c", "--tokenizer", "gpt2", "--name", "own", "--val-fraction", 0)
    result = run("import", tmp_path / "files", *arguments)
    assert result.exit_code == 0 and message in result.stderr
    assert ("its set" in result.stderr or "does not begin" in result.stderr) == bool(message)


def test_llmc_documents_continue_in_the_next_file(run: Callable[..., Result], tmp_path: Path) -> None:
    paths = [
        write_llmc(tmp_path / "a_000000.bin", [EOT, 1, 2, EOT, 3]),
        write_llmc(tmp_path / "a_000001.bin", [4]),
        write_llmc(tmp_path / "a_000002.bin", [5, EOT]),
        write_llmc(tmp_path / "a_000003.bin", [6]),
    ]
    result = run("import", *paths, "--format", "llm.c", "--tokenizer", "gpt2", "--name", "own", "--val-fraction", 0)
    assert result.exit_code == 0, result.output
    assert read_documents(Build("own"), "train") == [[1, 2, EOT], [3, 4, 5, EOT], [6, EOT]]
    assert Build("own").docs("train")["source"].tolist() == [0, 0, 3]
    assert Build("own").docs("train")["position"].tolist() == [0, 1, 0]


def write_megatron(folder: Path, lengths: list[int], bounds: list[int], **changes: Any) -> Path:
    """Write 2-byte tokens, and an index with sequences of `lengths` and documents with `bounds`."""
    num_tokens = changes.pop("num_tokens", sum(lengths))
    offsets = changes.pop("offsets", [2 * sum(lengths[:i]) for i in range(len(lengths))])
    header = {"magic": b"MMIDIDX\0\0", "version": 1, "code": 8, "sequences": len(lengths), "num_bounds": len(bounds)}
    header |= changes
    np.arange(num_tokens, dtype="<u2").tofile(folder / "a.bin")
    index = header["magic"] + struct.pack(
        "<QBQQ", header["version"], header["code"], header["sequences"], header["num_bounds"]
    )
    index += np.array(lengths, "<i4").tobytes() + np.array(offsets, "<i8").tobytes() + np.array(bounds, "<i8").tobytes()
    (folder / "a.idx").write_bytes(index)
    return folder / "a.bin"


def test_megatron_sequences_of_a_document_are_joined(
    run: Callable[..., Result], tmp_path: Path, small_batches: None
) -> None:
    lengths = [3, 1, 2, 4, *[1] * 20]
    path = write_megatron(tmp_path, lengths, [0, 2, 2, 3, 24])
    result = run("import", path, "--format", "megatron", "--tokenizer", "gpt2", "--name", "own", "--val-fraction", 0)
    assert result.exit_code == 0, result.output
    assert read_documents(Build("own"), "train") == [[0, 1, 2, 3], [], [4, 5], [*range(6, 30)]]


@pytest.mark.parametrize(
    ("lengths", "bounds", "changes", "message"),
    [
        ([2, 2], [0, 1, 2], {"magic": b"NOTMEGA\0\0"}, "is not an index of Megatron-LM"),
        ([2, 2], [0, 1, 2], {"version": 2}, "is not an index of Megatron-LM"),
        ([2, 2], [0, 1, 2], {"code": 7}, "has tokens of type 7"),
        ([2, 2], [0, 1, 2], {"sequences": 1 << 60}, "but its header says 1,152,921,504,606,846,976 sequences"),
        ([2, 2], [0, 1, 2], {"num_bounds": 1 << 63}, "bounds of documents"),
        ([2, 2], [0, 2, 1], {}, "do not ascend"),
        ([2, 2], [1, 2], {}, "do not ascend from sequence 0"),
        ([2, 2], [0, 1], {}, "has documents up to sequence 1 of 2"),
        ([2, 2], [0, 1, 3], {}, "has documents up to sequence 3 of 2"),
        ([5, -1], [0, 1, 2], {"num_tokens": 4}, "do not ascend"),
        ([2, 2], [0, 1, 2], {"offsets": [0, 0]}, "do not follow one another"),
        ([2, 2], [0, 1, 2], {"num_tokens": 3}, "have 4 tokens or more, but the file has 3"),
        ([2, 2], [0, 1, 2], {"num_tokens": 5}, "have 4 tokens, but the file has 5"),
        ([2, (1 << 31) - 1], [0, 1, 2], {"num_tokens": 5}, "has a document of more than 33,554,432 tokens"),
    ],
)
def test_damaged_megatron_index_is_refused(
    run: Callable[..., Result], tmp_path: Path, lengths: list[int], bounds: list[int], changes: Any, message: str
) -> None:
    path = write_megatron(tmp_path, lengths, bounds, **changes)
    result = run("import", path, "--format", "megatron", "--tokenizer", "gpt2", "--name", "own", "--val-fraction", 0)
    assert_refused(result, tmp_path, message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"short", "has 5 bytes, expected a header of 1,024"),
        (bytes(1024), "has the magic number 0 and the version 0"),
    ],
)
def test_file_without_a_header_of_llmc_is_refused(
    run: Callable[..., Result], tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "a.bin").write_bytes(data)
    result = run("import", tmp_path / "a.bin", "--format", "llm.c", "--tokenizer", "gpt2", "--name", "own")
    assert_refused(result, tmp_path, message)


@pytest.mark.parametrize("num_tokens", [-1, 2, 4, (1 << 31) - 1])
def test_header_of_llmc_with_a_wrong_size_is_refused(
    run: Callable[..., Result], tmp_path: Path, num_tokens: int
) -> None:
    path = write_llmc(tmp_path / "a.bin", [EOT, 1, 2], num_tokens)
    result = run("import", path, "--format", "llm.c", "--tokenizer", "gpt2", "--name", "own")
    assert_refused(result, tmp_path, f"has 3 tokens, but its header says {num_tokens:,}")


@pytest.mark.parametrize(
    ("ends", "loss", "message"),
    [
        ([2, 1, 4], None, "do not ascend"),
        ([2, 3], None, "expected 2 or 4 for each of the 3 tokens"),
        ([1 << 63, 4], None, "which is not in the file"),
        ([2, 1 << 63], None, "expected 2 or 4 for each of the 9,223,372,036,854,775,808 tokens"),
        ([2, 4], [1, 1, 1], "expected one for each of 4 tokens"),
        ([2, 4], [1, 1, 7, 0], "has the byte 7"),
    ],
)
def test_damaged_datatrove_files_are_refused(
    run: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: list[int],
    loss: list[int] | None,
    message: str,
) -> None:
    np.array([1, EOT, 2, EOT], "<u2").tofile(tmp_path / "a.ds")
    np.array(ends, "<u8").tofile(tmp_path / "a.ds.index")
    if loss is not None:
        np.array(loss, "u1").tofile(tmp_path / "a.ds.loss")
    hashed: list[Path] = []
    monkeypatch.setattr(token_files, "sha256_file", lambda path: hashed.append(path) or sha256_file(path))
    result = run("import", tmp_path, "--format", "datatrove", "--tokenizer", "gpt2", "--name", "own")
    assert_refused(result, tmp_path, message)
    if "expected" in message:  # a wrong size is reported before the files are hashed, which can take minutes
        assert not hashed
    else:
        assert tmp_path / "a.ds" in hashed


compress = functools.partial(gzip.compress, mtime=0)  # with the time of day, the names of tests would differ
CSV = b"0,2,id,file,1\n2,4,id,file,2\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not gzip", "cannot be read as compressed CSV"),
        (compress(CSV)[:-9], "cannot be read as compressed CSV"),
        (compress(b"0,2\n3,4\n"), "line 2 begins with '3,4', expected the begin 2"),
        (compress(b"0,2\n2,2\n2,4\n"), "line 2 begins with '2,2'"),
        (compress(b"0,2\n2,-4\n"), "line 2 begins with '2,-4'"),
        (compress(b"0,2\n\x1b[31m2\n"), "line 2 begins with"),
        (compress(b"0,99\n"), "have 99 tokens or more, but the file has 4"),
        (compress(b"0,2\n"), "have 2 tokens, but the file has 4"),
        (compress(b"0," + b"9" * 5_000_000), "decompresses to more text than its documents can have"),
        (compress(b'0,1,"' + b"\n" * 3_000_000), "decompresses to more text than its documents can have"),
        (compress(b'0,1,"\n' + b'","\n' * 100_000), "decompresses to more text than its documents can have"),  # one row
        (compress(b"0,2,id\n" * 1 + b"\n" * 3_000_000), "line 2 begins with ''"),
    ],
)
def test_damaged_olmo_documents_are_refused(
    run: Callable[..., Result], tmp_path: Path, data: bytes, message: str
) -> None:
    np.array([1, EOT, 2, EOT], "<u2").tofile(tmp_path / "a.npy")
    (tmp_path / "a.csv.gz").write_bytes(data)
    result = run("import", tmp_path, "--format", "olmo", "--tokenizer", "gpt2", "--name", "own")
    assert_refused(result, tmp_path, message)


def test_olmo_needs_two_columns_only(run: Callable[..., Result], tmp_path: Path) -> None:
    np.array([1, EOT, 2, EOT], "<u2").tofile(tmp_path / "a.npy")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"0,2\r\n2,4\r\n"))
    run("import", tmp_path, "--format", "olmo", "--tokenizer", "gpt2", "--name", "own", "--val-fraction", 0)
    assert read_documents(Build("own"), "train") == [[1, EOT], [2, EOT]]


def test_a_document_of_too_much_text_is_refused(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.build.from_tokens.MAX_TEXT_BYTES", 99)
    np.array([0] * 100, "<u2").tofile(tmp_path / "a.bin")
    result = run("import", tmp_path / "a.bin", "--format", "nanogpt", "--tokenizer", "gpt2", "--name", "own")
    assert_refused(result, tmp_path, "a document has 100 bytes of text, expected at most 99; divide it")


def write_parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ids": [[1]]}, "has no column 'input_ids'"),
        ({"input_ids": [1]}, "expected one column of lists of integers"),
        ({"input_ids": ["one"]}, "expected one column of lists of integers"),
        ({"input_ids": [[1], None]}, "a document without tokens"),
        ({"input_ids": [[1, None]]}, "a token without a value"),
        ({"input_ids": [[-1]]}, "has the id -1"),
        ({"input_ids": [[1, 2]], "labels": [[2, -100]]}, "has labels that are neither"),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, "has labels that are neither"),
        ({"input_ids": [[1, 2], [3, 0]], "attention_mask": [[1, 1], [1, 0]]}, "so some tokens are padding"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "so some tokens are padding"),
        ({"input_ids": [[1]], "language": ["x" * 300]}, "has a language of more than 255 bytes"),
        ({"input_ids": [[1]], "language": [5]}, "expected one column of text"),
    ],
)
def test_parquet_with_unsuitable_columns_is_refused(
    run: Callable[..., Result], tmp_path: Path, columns: Any, message: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", **columns)
    result = run("import", path, "--format", "parquet", "--tokenizer", "gpt2", "--name", "own", "--val-fraction", 0)
    assert_refused(result, tmp_path, message)


def test_truncated_parquet_is_refused(run: Callable[..., Result], tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", input_ids=[[1, 2, 3]] * 1000)
    path.write_bytes(path.read_bytes()[:-50])
    result = run("import", path, "--format", "parquet", "--tokenizer", "gpt2", "--name", "own", "--val-fraction", 0)
    assert_refused(result, tmp_path, "cannot be read as Parquet")


def test_parquet_of_datasets_has_other_columns_and_large_lists(run: Callable[..., Result], tmp_path: Path) -> None:
    ids = pa.array([[1, EOT], [2, 3, EOT]], pa.large_list(pa.int64()))
    path = write_parquet(tmp_path / "a.parquet", input_ids=ids, attention_mask=[[1, 1], [1, 1, 1]])
    run("import", path, "--format", "parquet", "--tokenizer", "gpt2", "--name", "own", "--val-fraction", 0)
    assert read_documents(Build("own"), "train") == [[1, EOT], [2, 3, EOT]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizer", "byte"], "has the id 50256, but the vocabulary of --tokenizer has 257 ids"),
        (["--tokenizer", "nonsense"], "unknown tokenizer 'nonsense'"),
        (["--tokenizer", "cl100k_base"], "cl100k_base"),
        (["--tokenizer", "gpt2", "--val-fraction", "0.01"], "2 documents cannot be split with val_fraction 0.01"),
        (["--tokenizer", "gpt2", "--val-fraction", "7"], "val_fraction must be at least 0"),
        (["--tokenizer", "gpt2", "--shard-tokens", "0"], "shard_tokens must be from 1"),
        (["--tokenizer", "gpt2", "--val", "missing.bin"], "missing.bin does not exist"),
        (["--tokenizer", "gpt2", "--val", "a.bin"], "is given twice"),
        (["--tokenizer", "gpt2", "--format", "megatron"], "a.idx is missing"),
        (["--tokenizer", "gpt2", "--format", "parquet"], "is not named like a file of tokens of this format"),
    ],
)
def test_unsuitable_import_is_refused(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    write_nanogpt(tmp_path / "a.bin", [[1, EOT], [2, EOT]])
    result = run("import", "a.bin", "--format", "nanogpt", "--name", "own", *arguments)
    assert_refused(result, tmp_path, message)


def test_odd_number_of_bytes_is_refused(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"123")
    result = run("import", tmp_path, "--format", "nanogpt", "--tokenizer", "gpt2", "--name", "own")
    assert_refused(result, tmp_path, "has 3 bytes, expected 2 for each token")


@pytest.mark.parametrize("format_", ["nanogpt", "megatron", "mds", "parquet"])
def test_document_that_does_not_fit_in_memory_is_refused(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    monkeypatch.setattr(token_files, "MAX_DOCUMENT_TOKENS", 999)
    monkeypatch.setattr(token_files, "BATCH_TOKENS", 100)
    write_nanogpt(tmp_path / "a.bin", [[1] * 1000])
    write_megatron(tmp_path, [1000], [0, 1]) if format_ == "megatron" else None
    write_parquet(tmp_path / "a.parquet", input_ids=[[1] * 1000])
    write_mds(tmp_path / "a.mds", [encode_mds([1] * 1000)])
    result = run("import", tmp_path, "--format", format_, "--tokenizer", "gpt2", "--name", "own")
    assert_refused(result, tmp_path, "has a document of more than 999 tokens")


def test_folder_with_test_files_is_refused(run: Callable[..., Result], tmp_path: Path) -> None:
    for name in ("train.bin", "test.bin"):
        write_nanogpt(tmp_path / name, [[1, EOT]])
    result = run("import", tmp_path, "--format", "nanogpt", "--tokenizer", "gpt2", "--name", "own")
    assert_refused(result, tmp_path, "has test files, such as test.bin")


def test_named_pipe_is_refused(run: Callable[..., Result], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.bin")
    result = run("import", tmp_path / "a.bin", "--format", "nanogpt", "--tokenizer", "gpt2", "--name", "own")
    assert_refused(result, tmp_path, "is not a regular file")


def test_file_that_changes_during_an_import_is_an_error(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_nanogpt(tmp_path / "a.bin", [[1, EOT], [2, EOT]])
    read = read_tokens.Values.read

    def change_and_read(self: read_tokens.Values, count: int) -> np.ndarray:
        values = read(self, count)
        write_nanogpt(path, [[3, EOT], [2, EOT]])
        os.utime(path, ns=(0, 0))
        return values

    monkeypatch.setattr(read_tokens.Values, "read", change_and_read)
    result = run("import", path, "--format", "nanogpt", "--tokenizer", "gpt2", "--name", "own", "--val-fraction", 0)
    assert_refused(result, tmp_path, "changed while it was read")


def test_import_that_fails_keeps_the_build_it_would_replace(run: Callable[..., Result], tmp_path: Path) -> None:
    path = write_nanogpt(tmp_path / "a.bin", [[1, EOT], [2, EOT]])
    command = ["import", path, "--format", "nanogpt", "--tokenizer", "gpt2", "--name", "own", "--val-fraction", 0]
    assert run(*command).exit_code == 0
    before = file_bytes(tmp_path / "shards" / "own")
    path.write_bytes(b"123")
    assert run(*command, "--replace").exit_code == 1
    assert file_bytes(tmp_path / "shards" / "own") == before
    assert not [path for path in (tmp_path / "shards").iterdir() if path.name.endswith(".work")]


def write_mds(path: Path, samples: list[bytes], *, config: bytes | None = None, **columns: Any) -> None:
    """Write a shard of MDS whose samples are given as they are stored."""
    described = {"version": 2, "format": "mds", "column_names": ["tokens"], "column_encodings": ["ndarray:uint16"]}
    described |= {"column_sizes": [None] * len(columns.get("column_names", ["tokens"]))} | columns
    config = json.dumps(described).encode() if config is None else config
    offsets = np.cumsum([4 + 4 * (len(samples) + 1) + len(config), *map(len, samples)]).astype("<u4")
    path.write_bytes(struct.pack("<I", len(samples)) + offsets.tobytes() + config + b"".join(samples))


def encode_mds(ids: list[int], dtype: str = "<u2") -> bytes:
    values = np.array(ids, dtype).tobytes()
    return struct.pack("<IBH", 3 + len(values), 5, len(ids)) + values  # a length of two bytes


@pytest.mark.parametrize(("encoding", "encode"), [
    ("ndarray:uint16", encode_mds),
    ("ndarray:int64", lambda ids: encode_mds(ids, "<i8")),
    ("ndarray", lambda ids: struct.pack("<IBBB", 3 + 4 * len(ids), 32, 4, len(ids)) + np.array(ids, "<u4").tobytes()),
    ("bytes", lambda ids: struct.pack("<I", 8 * len(ids)) + np.array(ids, "<i8").tobytes()),
])  # fmt: skip
def test_mds_of_other_programs_is_read(
    run: Callable[..., Result], tmp_path: Path, encoding: str, encode: Callable[[list[int]], bytes]
) -> None:
    documents = [[5, 6, EOT], [7, EOT], [8] * 200]
    samples = [
        struct.pack("<I", 3) + encode(ids)[:4] + b"abc" + struct.pack("<q", 9) + encode(ids)[4:] for ids in documents
    ]
    columns = {"column_names": ["a", "n", "tokens"], "column_encodings": ["str", "int64", encoding]}
    write_mds(tmp_path / "shard.00000.mds", samples, **columns, column_sizes=[None, 8, None])
    options = ("--format", "mds", "--tokenizer", "gpt2", "--name", "own", "--val-fraction", "0")
    result = run("import", tmp_path / "shard.00000.mds", *options)
    assert result.exit_code == 0, result.output
    assert read_documents(Build(tmp_path / "shards/own"), "train") == documents


def test_a_long_mds_document_is_in_memory_once(tmp_path: Path) -> None:
    encoded = encode_mds([7] * 60_000, "<i8")
    columns = {"column_names": ["image", "tokens"], "column_encodings": ["bytes", "ndarray:int64"]}
    sample = struct.pack("<I", 1_000_000) + encoded[:4] + bytes(1_000_000) + encoded[4:]
    write_mds(tmp_path / "shard.00000.mds", [sample], **columns)
    [files] = token_files.describe_token_files([[tmp_path / "shard.00000.mds"]], read_mds.NAMES)

    def read() -> None:
        [batch] = read_mds.read_mds(files, token_files.TokenIds(50257, EOT))
        assert batch.ends.tolist() == [60_000]
        assert (batch.ids == 7).all()

    assert measure_peak_bytes(read) < 1.5 * 8 * 60_000  # and columns that are not needed are not read


@pytest.mark.parametrize(("samples", "columns", "message"), [
    ([encode_mds([1])[:-1]], {}, "a sample has 8 bytes, its columns 9"),
    ([b"\1"], {}, "its offsets do not ascend to its size"),
    ([struct.pack("<IBB", 2, 5, 9)], {}, "a column is not an array of one dimension with integers"),
    ([struct.pack("<IBBBHH", 7, 8, 1, 2, 3, 4)], {}, "a column is not an array of one dimension with integers"),
    ([struct.pack("<I", 7) + b"1234567"], {"column_encodings": ["bytes"]}, "a column is not an array"),
    ([encode_mds([-1], "<i2")], {"column_encodings": ["ndarray:int16"]}, "has the id -1"),
    ([encode_mds([2**64 - 1], "<u8")], {"column_encodings": ["ndarray:uint64"]}, "a token is 18446744073709551615"),
    ([b"....pickled"], {"column_encodings": ["pkl"]}, "the column 'tokens' of pkl, expected one of ndarray:DTYPE"),
    ([], {"column_names": ["text"]}, "has no column 'tokens'"),
    ([], {"column_sizes": [-1]}, "the description of its columns is malformed"),
    ([], {"column_names": [], "column_sizes": [None]}, "the description of its columns is malformed"),
    ([], {"config": b"{}"}, "its columns are not described"),
    ([], {"config": b"{"}, "its columns are not described"),
])  # fmt: skip
def test_damaged_mds_is_refused(
    run: Callable[..., Result], tmp_path: Path, samples: list[bytes], columns: dict[str, Any], message: str
) -> None:
    write_mds(tmp_path / "shard.00000.mds", samples, **columns)
    result = run("import", tmp_path / "shard.00000.mds", "--format", "mds", "--tokenizer", "gpt2", "--name", "own")
    assert_refused(result, tmp_path, message)


@pytest.mark.parametrize("edit", [
    lambda data: data[:6],
    lambda data: b"\xff" * 8 + data[8:],
    lambda data: data[:-1],
    lambda data: data + b"1",
    lambda data: data[:8] + struct.pack("<I", 1) + data[12:],
    lambda data: b"",
])  # fmt: skip
def test_mds_with_wrong_offsets_is_refused(
    run: Callable[..., Result], tmp_path: Path, edit: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "shard.00000.mds"
    write_mds(path, [encode_mds([1, 2]), encode_mds([3])])
    path.write_bytes(edit(path.read_bytes()))
    result = run("import", path, "--format", "mds", "--tokenizer", "gpt2", "--name", "own")
    assert_refused(result, tmp_path, "cannot be read as MDS: ")


def test_mds_folder_without_a_shard_of_its_index_is_refused(run: Callable[..., Result], tmp_path: Path) -> None:
    folder, options = (
        tmp_path / "set",
        ("--format", "mds", "--tokenizer", "gpt2", "--name", "own", "--val-fraction", "0"),
    )
    folder.mkdir()
    names = ["shard.00000.mds", "shard.00001.mds"]
    write_mds(folder / names[0], [encode_mds([1, 2, 3])])
    index = json.dumps({"version": 2, "shards": [{"raw_data": {"basename": name}} for name in names]})
    (folder / "index.json").write_text(index)
    result = run("import", folder, *options)
    assert_refused(result, tmp_path, "names 2 shards, of which 1 are missing, such as shard.00001.mds; copy the folder")
    for damaged in (index[:-3], "[]", '{"shards": [{"raw_data": {"basename": 3}}]}'):
        (folder / "index.json").write_text(damaged)
        assert_refused(run("import", folder, *options), tmp_path, "index.json does not list the shards")
    assert run("import", folder / names[0], *options).exit_code == 0  # a file that is named is read without the index
    (folder / "index.json").write_text(index)
    write_mds(folder / names[1], [encode_mds([4, 5])])
    assert run("import", folder, *options, "--replace").exit_code == 0
    assert sorted(map(len, read_documents(Build(tmp_path / "shards" / "own"), "train"))) == [2, 3]


def test_mds_folder_with_other_shards_than_its_index_says_is_refused(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    folder, options = tmp_path / "set", ("--format", "mds", "--tokenizer", "gpt2", "--name", "own")
    folder.mkdir()
    for i in range(2):
        write_mds(folder / f"shard.{i:05}.mds", [encode_mds([i, 2, 3])])
    shards = [
        {"raw_data": {"basename": path.name, "bytes": path.stat().st_size}} for path in sorted(folder.glob("*.mds"))
    ]
    (folder / "index.json").write_text(json.dumps({"shards": shards[:1]}))
    assert_refused(
        run("import", folder, *options), tmp_path, "does not name 1 shard beside it, such as shard.00001.mds"
    )
    (folder / "index.json").write_text(
        json.dumps({"shards": [shards[0], shards[1] | {"raw_data": {**shards[1]["raw_data"], "bytes": 7}}]})
    )
    assert_refused(run("import", folder, *options), tmp_path, "bytes, but index.json says 7; copy the folder again")
    (folder / "index.json").write_text(json.dumps({"shards": shards}))
    assert run("import", folder, *options, "--val-fraction", "0").exit_code == 0


@pytest.mark.parametrize("dtype", ["<u4", "<i8"])
def test_nanogpt_files_of_a_wider_dtype_are_refused(run: Callable[..., Result], tmp_path: Path, dtype: str) -> None:
    options = ("--format", "nanogpt", "--tokenizer", "gpt2", "--name", "own", "--val-fraction", "0")
    path = write_nanogpt(tmp_path / "a.bin", [[*range(1, 200), EOT]], dtype)
    num_bits = 8 * np.dtype(dtype).itemsize
    assert_refused(run("import", path, *options), tmp_path, f"is 0, so it seems to have ids of {num_bits} bits")
    zeros = write_nanogpt(tmp_path / "b.bin", [[0] * 600])
    assert run("import", zeros, *options).exit_code == 0


def test_copies_of_a_file_are_refused(run: Callable[..., Result], tmp_path: Path) -> None:
    for name in ("a.bin", "copy of a.bin"):
        write_nanogpt(tmp_path / name, [[5, EOT], [6, EOT]])
    for name in ("empty.bin", "empty too.bin"):
        write_nanogpt(tmp_path / name, [])
    result = run("import", tmp_path, "--format", "nanogpt", "--tokenizer", "gpt2", "--name", "own")
    assert_refused(result, tmp_path, "have the same content, so each document would be in the build twice")


def test_missing_files_are_noticed(build: Build, run: Callable[..., Result], tmp_path: Path) -> None:
    options = ("--tokenizer", build.folder, "--name", "back")
    for format_, suffix in (("datatrove", ".ds"), ("olmo", ".npy")):
        folder = tmp_path / format_
        run("export", "own", "--format", format_, "--output", folder)
        first, second, *_ = sorted((folder / "train").glob(f"*{suffix}"))
        second.unlink()
        result = run("import", folder, "--format", format_, *options)
        assert result.exit_code == 1 and f"has no {second.name} beside it; copy that" in result.stderr
        for path in second.parent.glob(f"{second.stem}.*"):
            path.unlink()
        result = run("import", folder, "--format", format_, *options, "--replace")
        assert result.exit_code == 0 and f"train/{second.name} is missing between the numbered" in result.stderr
        named = sorted((folder / "train").glob(f"*{suffix}"))
        assert "is missing" not in run("import", *named, "--format", format_, *options, "--replace").stderr
        run("export", "own", "--format", format_, "--output", folder, "--replace")
        assert "is missing" not in run("import", folder, "--format", format_, *options, "--replace").stderr
        assert first.exists()
