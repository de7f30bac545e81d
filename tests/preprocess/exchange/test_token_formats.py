"""Exports to the token files of other programs: read back by their layout, and by their own readers."""

from __future__ import annotations

import csv
import dataclasses
import errno
import gzip
import hashlib
import io
import itertools
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from preprocess.cli.main import main
from preprocess.errors import FolioError, MisuseError
from preprocess.exchange import litdata, llmc, mds, megatron, parquet, tokens
from preprocess.exchange.datatrove import export_datatrove
from preprocess.exchange.litdata import export_litdata
from preprocess.exchange.llmc import export_llmc
from preprocess.exchange.mds import export_mds
from preprocess.exchange.megatron import export_megatron
from preprocess.exchange.olmo import export_olmo
from preprocess.exchange.parquet import export_parquet
from preprocess.shards.format import DOC_DTYPE, SPLITS, Build
from tests.conftest import VERSE, assert_one_line, file_bytes
from tests.helpers.chats import make_chat_build
from tests.helpers.memory import measure_peak_bytes
from tests.helpers.runs import small_disk

Documents = list[list[int]]
EXPORTS = {
    "llm.c": export_llmc,
    "megatron": export_megatron,
    "datatrove": export_datatrove,
    "olmo": export_olmo,
    "mds": export_mds,
    "litdata": export_litdata,
    "parquet": export_parquet,
}


@pytest.fixture
def build(build_text: Callable[..., Build], monkeypatch: pytest.MonkeyPatch) -> Build:
    """Return a build of several shards, of which the exporters read a few tokens and documents at a time."""
    monkeypatch.setattr(tokens, "CHUNK_TOKENS", 37)
    monkeypatch.setattr(tokens, "CHUNK_DOCUMENTS", 3)
    monkeypatch.setattr(megatron, "CHUNK_DOCUMENTS", 3)
    monkeypatch.setattr(litdata, "CHUNK_DOCUMENTS", 3)
    monkeypatch.setattr(parquet, "GROUP_TOKENS", 50)
    monkeypatch.setattr(llmc, "FILE_TOKENS", 500)
    monkeypatch.setattr(mds, "SHARD_BYTES", 3_000)
    text = "".join(f"Document {i}, of {i % 17} words:{' word' * (i % 17)}.\n" for i in range(200))
    build = build_text(text, split="exact", document="line", shard_tokens=700, author="Ann Lee", lang="en")
    assert len(build.manifest.splits["train"].shards) > 3
    return build


def read_build(build: Build, split: str) -> Documents:
    """Return the ids of all documents of a split, as `preprocess show` finds them."""
    return [build.document(split, i).tolist() for i in range(build.manifest.splits[split].documents)]


def read_llmc(folder: Path, build: Build, split: str) -> Documents:
    stream: list[int] = []
    for path in sorted(folder.glob(f"{build.name}_{split}_*.bin")):
        header = np.fromfile(path, "<i4", 256)
        assert header[:2].tolist() == [20240520, 1] and not header[3:].any()
        ids = np.fromfile(path, "<u2", offset=1024)
        assert len(ids) == header[2] <= 500
        stream += ids.tolist()
    starts = [i for i, token in enumerate(stream) if token == build.manifest.eot_id]
    assert starts[0] == 0
    return [stream[begin + 1 : end] for begin, end in zip(starts, [*starts[1:], len(stream)], strict=True)]


def read_megatron(folder: Path, build: Build, split: str) -> Documents:
    index = (folder / f"{split}.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\0\0"
    version, code, num_sequences, num_documents = struct.unpack_from("<QBQQ", index, 9)
    assert (version, code, num_documents) == (1, 8, num_sequences + 1)
    lengths = np.frombuffer(index, "<i4", num_sequences, 34)
    offsets = np.frombuffer(index, "<i8", num_sequences, 34 + 4 * num_sequences)
    documents = np.frombuffer(index, "<i8", num_documents, 34 + 12 * num_sequences)
    assert documents.tolist() == list(range(num_documents)) and len(index) == 42 + 20 * num_sequences
    ids = (folder / f"{split}.bin").read_bytes()
    return [np.frombuffer(ids, "<u2", n, start).tolist() for n, start in zip(lengths, offsets, strict=True)]


def read_datatrove(folder: Path, build: Build, split: str) -> Documents:
    documents: Documents = []
    for path in sorted((folder / split).glob("*.ds")):
        ids, ends = np.fromfile(path, "<u2"), np.fromfile(f"{path}.index", "<u8")
        documents += [part.tolist() for part in np.split(ids, ends.astype(np.int64)[:-1])]
        first, count, _ = Path(f"{path}.metadata").read_text().split("\n")
        assert (first, int(count)) == (f"{build.manifest.tokenizer.kind}|2", len(ids)) and ends[-1] == len(ids)
    return documents


def read_olmo(folder: Path, build: Build, split: str) -> Documents:
    documents: Documents = []
    for path in sorted((folder / split).glob("*.npy")):
        ids = np.fromfile(path, "<u2")
        rows = list(csv.reader(io.StringIO(gzip.decompress(path.with_suffix(".csv.gz").read_bytes()).decode())))
        documents += [ids[int(begin) : int(end)].tolist() for begin, end, *_ in rows]
        assert {row[3] for row in rows} == {build.manifest.sources[0]["name"]}
    return documents


def read_mds(folder: Path, build: Build, split: str) -> Documents:
    documents: Documents = []
    index = json.loads((folder / split / "index.json").read_bytes())
    assert index["version"] == 2 and len(index["shards"]) == len(list((folder / split).glob("*.mds")))
    for number, entry in enumerate(index["shards"]):
        assert entry["raw_data"]["basename"] == f"shard.{number:05}.mds" and entry["column_names"] == ["tokens"]
        data = (folder / split / entry["raw_data"]["basename"]).read_bytes()
        assert entry["raw_data"]["bytes"] == len(data) <= 3_000
        assert entry["raw_data"]["hashes"] == {"sha256": hashlib.sha256(data).hexdigest()}
        (num_samples,) = struct.unpack_from("<I", data)
        offsets = np.frombuffer(data, "<u4", num_samples + 1, 4).tolist()
        config = json.loads(data[8 + 4 * num_samples : offsets[0]])
        assert num_samples == entry["samples"] and config == {key: entry[key] for key in config}
        assert offsets[-1] == len(data)
        for begin, end in itertools.pairwise(offsets):
            size, dimension, length = struct.unpack_from("<IBB", data, begin)  # no document has 256 tokens
            assert (size, dimension, end - begin) == (2 + 4 * length, 4, 6 + 4 * length)
            documents.append(np.frombuffer(data, "<i4", length, begin + 6).tolist())
    return documents


def read_litdata(folder: Path, build: Build, split: str, dtype: str = "<u2", code: int = 20) -> Documents:
    documents: Documents = []
    index = json.loads((folder / split / "index.json").read_bytes())
    assert len(index["chunks"]) == len(list((folder / split).glob("*.bin")))
    assert index["config"]["data_format"] == [f"no_header_tensor:{code}"]
    assert index["config"]["item_loader"] == "TokensLoader" and index["config"]["compression"] is None
    for number, entry in enumerate(index["chunks"]):
        assert entry["filename"] == f"chunk-0-{number}.bin"
        data = (folder / split / entry["filename"]).read_bytes()
        (num_items,) = struct.unpack_from("<I", data)
        offsets = np.frombuffer(data, "<u4", num_items + 1, 4).tolist()
        assert offsets[0] == 8 + 4 * num_items and offsets[-1] == len(data) == entry["chunk_bytes"]
        parts = [np.frombuffer(data[begin:end], dtype).tolist() for begin, end in itertools.pairwise(offsets)]
        assert (num_items, sum(map(len, parts))) == (entry["chunk_size"], entry["dim"])
        documents += parts
    return documents


def read_parquet(folder: Path, build: Build, split: str) -> Documents:
    documents: Documents = []
    for path in sorted(folder.glob(f"{split}-*.parquet")):
        table = pq.read_table(path)
        assert set(table["language"].to_pylist()) == {"en"}
        documents += table["input_ids"].to_pylist()
    return documents


READERS = {
    "llm.c": read_llmc,
    "megatron": read_megatron,
    "datatrove": read_datatrove,
    "olmo": read_olmo,
    "mds": read_mds,
    "litdata": read_litdata,
    "parquet": read_parquet,
}


@pytest.mark.parametrize("format_", EXPORTS)
def test_export_has_the_same_documents(build: Build, tmp_path: Path, format_: str) -> None:
    EXPORTS[format_](build, tmp_path, replace=False)
    for split in SPLITS:
        expected = read_build(build, split)
        if format_ == "llm.c":  # the end-of-text token is before a document
            expected = [ids[:-1] for ids in expected]
        assert READERS[format_](tmp_path, build, split) == expected


@pytest.mark.parametrize("format_", EXPORTS)
def test_export_depends_on_the_build_only(build: Build, tmp_path: Path, format_: str) -> None:
    first, second = (EXPORTS[format_](build, tmp_path / name, replace=False) for name in ("first", "second"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("format_", EXPORTS)
def test_export_keeps_existing_files_without_replace(build: Build, tmp_path: Path, format_: str) -> None:
    paths = EXPORTS[format_](build, tmp_path / "out", replace=False)
    paths[-1].write_text("mine")
    with pytest.raises(MisuseError, match="exists already; pass --replace"):
        EXPORTS[format_](build, tmp_path / "out", replace=False)
    assert paths[-1].read_text() == "mine"
    EXPORTS[format_](build, tmp_path / "out", replace=True)
    assert paths[-1].read_bytes() != b"mine"
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path not in paths]


@pytest.mark.parametrize("format_", EXPORTS)
def test_export_to_a_folder_in_a_file_is_rejected(build: Build, tmp_path: Path, format_: str) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file/x/y"):
        with pytest.raises(MisuseError, match="/file is a file; name a folder"):
            EXPORTS[format_](build, output, replace=True)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("format_", ["llm.c", "datatrove", "olmo", "mds", "litdata", "parquet"])
def test_export_does_not_leave_shards_of_a_larger_one(
    build: Build, build_text: Callable[..., Build], tmp_path: Path, format_: str
) -> None:
    before = EXPORTS[format_](build, tmp_path / "out", replace=False)
    small = build_text(VERSE, name="own", replace=True)
    with pytest.raises(MisuseError, match="exists, and this export does not replace it; delete it"):
        EXPORTS[format_](small, tmp_path / "out", replace=True)
    assert all(path.exists() for path in before)


@pytest.mark.parametrize("format_", ["llm.c", "megatron", "datatrove", "olmo", "mds", "litdata", "parquet"])
def test_export_does_not_leave_the_validation_split_of_another(
    build_text: Callable[..., Build], tmp_path: Path, format_: str
) -> None:
    before = EXPORTS[format_](build_text(), tmp_path / "out", replace=False)
    without = build_text(val_fraction=0, name="own", replace=True)
    for replace in (False, True):  # the advice is never to replace what is refused then
        with pytest.raises(MisuseError, match=r"val.* exists, and this export does not replace it; delete it"):
            EXPORTS[format_](without, tmp_path / "out", replace=replace)
    assert all(path.exists() for path in before)


@pytest.mark.parametrize("format_", EXPORTS)
def test_build_without_validation_documents_is_exported(
    build_text: Callable[..., Build], tmp_path: Path, format_: str
) -> None:
    build = build_text(val_fraction=0)
    paths = EXPORTS[format_](build, tmp_path / "out", replace=False)
    assert paths and not any("val" in str(path.relative_to(tmp_path / "out")) for path in paths)


@pytest.mark.parametrize("format_", EXPORTS)
def test_export_to_a_full_disk_leaves_nothing(build_text: Callable[..., Build], tmp_path: Path, format_: str) -> None:
    rng = np.random.default_rng(0)  # does not compress
    build = build_text("".join(chr(c) for c in rng.integers(0x4E00, 0x9FFF, 900_000)), document="file")
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(OSError, match="No space left"):
            EXPORTS[format_](build, disk, replace=False)
        assert not [path for path in disk.rglob("*") if path.name != "lost+found"]


@pytest.mark.parametrize("format_", EXPORTS)
def test_export_that_fails_between_two_names_leaves_the_old_files(
    build: Build, build_text: Callable[..., Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    small = build_text(VERSE, name="small")
    paths = EXPORTS[format_](small, tmp_path / "out", replace=False)
    before = file_bytes(tmp_path / "out")
    replace, num_calls = os.replace, itertools.count()

    def fail_later(old: Path, new: Path) -> None:
        if next(num_calls) == 3:  # the second old file has another name, the new one not yet its own
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(new))
        replace(old, new)

    monkeypatch.setattr(os, "replace", fail_later)
    with pytest.raises(OSError, match="Input/output error"):
        EXPORTS[format_](small, tmp_path / "out", replace=True)
    assert len(paths) > 1 and file_bytes(tmp_path / "out") == before
    with pytest.raises(OSError, match="Input/output error"):
        num_calls = itertools.count(2)
        EXPORTS[format_](small, tmp_path / "new/folder", replace=True)
    assert not (tmp_path / "new").exists()


def test_llmc_files_are_of_equal_size(build: Build, tmp_path: Path) -> None:
    paths = export_llmc(build, tmp_path, replace=False)
    sizes = [(path.stat().st_size - 1024) // 2 for path in paths if "_train_" in path.name]
    assert len(sizes) > 3 and max(sizes) - min(sizes) <= 1 and sum(sizes) == build.manifest.splits["train"].tokens


def test_llmc_has_one_end_of_text_token_where_documents_begin_and_end_with_it(build: Build, tmp_path: Path) -> None:
    documents = {split: read_build(build, split) for split in SPLITS}
    recipe = build.manifest.recipe | {"bos": True}
    # The same tokens, read as if the end-of-text token were also the first of each document.
    eot_id = build.manifest.eot_id
    assert eot_id is not None
    for split in SPLITS:
        for entry in build.manifest.splits[split].shards:
            path = build.folder / entry.file
            ids, ends = np.fromfile(path, "<u2"), np.fromfile(path.with_suffix(".ends"), "<u8").astype(np.int64)
            ids[np.concatenate([[0], ends[:-1]])] = eot_id
            path.write_bytes(ids.tobytes())
    build.manifest = dataclasses.replace(build.manifest, recipe=recipe, bos_id=eot_id)
    export_llmc(build, tmp_path / "out", replace=False)
    for split in SPLITS:
        assert read_llmc(tmp_path / "out", build, split) == [ids[1:-1] for ids in documents[split]]


def test_llmc_needs_the_end_of_text_token(build_text: Callable[..., Build], tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="do not end with an end-of-text token") as caught:
        export_llmc(build_text(eot="none"), tmp_path / "out", replace=False)
    assert_one_line(str(caught.value))


@pytest.mark.parametrize(("vocab_size", "is_refused"), [(65_499, False), (65_500, True), (65_536, True)])
def test_megatron_vocabulary_is_refused_where_it_is_misread(
    build: Build, tmp_path: Path, vocab_size: int, is_refused: bool
) -> None:
    build.manifest = dataclasses.replace(build.manifest, vocab_size=vocab_size)
    if is_refused:
        with pytest.raises(MisuseError, match="Megatron-LM misreads vocabularies of"):
            export_megatron(build, tmp_path, replace=False)
    else:
        export_megatron(build, tmp_path, replace=False)


def test_large_vocabularies_take_four_bytes(build: Build, tmp_path: Path) -> None:
    documents = read_build(build, "train")
    for split in SPLITS:
        for entry in build.manifest.splits[split].shards:
            path = build.folder / entry.file
            path.write_bytes(np.fromfile(path, "<u2").astype("<u4").tobytes())
    build.manifest = dataclasses.replace(build.manifest, vocab_size=70_000, dtype="<u4")
    export_megatron(build, tmp_path / "megatron", replace=False)
    assert (tmp_path / "megatron" / "train.idx").read_bytes()[17] == 4  # int32
    assert np.fromfile(tmp_path / "megatron" / "train.bin", "<i4").tolist() == np.concatenate(documents).tolist()
    first, *_ = export_llmc(build, tmp_path / "llm.c", replace=False)
    assert np.fromfile(first, "<i4", 2).tolist() == [20240801, 7]
    assert np.fromfile(first, "<u4", offset=1024)[1 : len(documents[0])].tolist() == documents[0][:-1]
    export_datatrove(build, tmp_path / "datatrove", replace=False)
    assert np.fromfile(tmp_path / "datatrove" / "train" / "00000.ds", "<u4", len(documents[0])).tolist() == documents[0]
    export_litdata(build, tmp_path / "litdata", replace=False)
    assert read_litdata(tmp_path / "litdata", build, "train", "<i4", code=16) == documents


def test_litdata_refuses_chunks_that_its_offsets_cannot_describe(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litdata, "MAX_CHUNK_BYTES", 1_000)
    with pytest.raises(MisuseError, match=r"train-00000\.bin of own has \d+ tokens, and .* at most 4 GiB; build") as e:
        export_litdata(build, tmp_path / "out", replace=False)
    assert_one_line(str(e.value))
    assert not (tmp_path / "out").exists()


def test_document_of_an_unknown_source_is_an_error(build: Build, tmp_path: Path) -> None:
    path = build.folder / "train-00000.docs"
    docs = np.fromfile(path, DOC_DTYPE)
    docs["source"][3] = 4_294_967_295
    docs.tofile(path)
    with pytest.raises(FolioError, match="has documents of source 4294967295, which is not in its manifest"):
        export_parquet(build, tmp_path / "out", replace=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_datasets_reads_parquet(build: Build, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    export_parquet(build, tmp_path / "out", replace=False)
    files = {split: str(tmp_path / "out" / f"{split}-*.parquet") for split in SPLITS}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    for split in SPLITS:
        assert loaded[split]["input_ids"][:] == read_build(build, split)


READ_MDS = """
import json, sys, types
from pathlib import Path
root, folder = sys.argv[1:]
sys.path.append(root)
# The package imports readers of images and of all clouds. Its reader of shards needs none of them.
for name in ("streaming", "streaming.base", "streaming.base.format"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(Path(root, *name.split(".")))]
from streaming.base.format.mds.reader import MDSReader
documents = []
for entry in json.loads(Path(folder, "index.json").read_bytes())["shards"]:
    reader = MDSReader.from_json(folder, "", entry)
    reader.validate(allow_unsafe_types=False)
    documents += [{key: value.tolist() for key, value in reader[i].items()} for i in range(len(reader))]
print(json.dumps(documents))
"""


@pytest.mark.slow
@pytest.mark.parametrize("has_masks", [False, True])
def test_mosaicml_streaming_reads_mds(build: Build, tmp_path: Path, has_masks: bool) -> None:
    root = os.environ.get("MOSAICML_STREAMING_DIR")  # it needs an older NumPy than Folio
    if root is None:
        pytest.skip(
            "needs MOSAICML_STREAMING_DIR: pip install --no-deps --target DIR mosaicml-streaming python-snappy zstd"
        )
    if has_masks:
        build = Build(make_chat_build(tmp_path / "chats"))
    export_mds(build, tmp_path / "out", replace=False)
    for split in SPLITS:
        command = [sys.executable, "-c", READ_MDS, root, str(tmp_path / "out" / split)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert [sample["tokens"] for sample in found] == read_build(build, split)
        for number, sample in enumerate(found if has_masks else []):
            mask = build.document_mask(split, number)
            assert sample["labels"] == np.where(mask, build.document(split, number).astype(int), -100).tolist()


READ_LITDATA = """
import json, sys
root, folder, block_size = sys.argv[1:]
sys.path.append(root)
from litdata import StreamingDataset, TokensLoader
dataset = StreamingDataset(folder, item_loader=TokensLoader(block_size=int(block_size)))
print(json.dumps([dataset[i].tolist() for i in range(len(dataset))]))
"""


@pytest.mark.slow
def test_litdata_reads_its_chunks(build: Build, tmp_path: Path) -> None:
    root = os.environ.get("LITDATA_DIR")  # it asks for torchvision, which its reader of tokens does not need
    if root is None:
        pytest.skip("needs LITDATA_DIR: pip install --no-deps --target DIR litdata lightning-utilities obstore")
    export_litdata(build, tmp_path / "out", replace=False)
    for split in SPLITS:
        command = [sys.executable, "-c", READ_LITDATA, root, str(tmp_path / "out" / split), "16"]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | {"HOME": str(tmp_path)}
        )
        blocks = []
        for entry in build.manifest.splits[split].shards:
            ids = build.map_shard(entry).tokens
            blocks += ids[: len(ids) // 16 * 16].reshape(-1, 16).tolist()
        assert len(blocks) > 10 and json.loads(done.stdout.splitlines()[-1]) == blocks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_megatron_core_reads_its_index(build: Build, tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    export_megatron(build, tmp_path / "out", replace=False)
    for split in SPLITS:
        dataset = IndexedDataset(str(tmp_path / "out" / split))
        assert [dataset[i].tolist() for i in range(len(dataset))] == read_build(build, split)
        assert dataset.document_indices.tolist() == list(range(len(dataset) + 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_datatrove_reads_its_files(build: Build, tmp_path: Path) -> None:
    from datatrove.utils.dataset import DatatroveFolderDataset

    export_datatrove(build, tmp_path / "out", replace=False)
    for split in SPLITS:
        length = 24
        dataset = DatatroveFolderDataset(str(tmp_path / "out" / split), seq_len=length, token_size=2)
        windows = [dataset[i]["input_ids"].tolist() for i in range(len(dataset))]
        expected = []
        for shard in build.shards(split):
            ids = shard.tokens.tolist()
            expected += [ids[i : i + length + 1] for i in range(0, len(ids) - length, length + 1)]
        assert windows == expected


def test_ids_of_a_long_document_are_not_copied_for_mds() -> None:
    ids = np.arange(1_000_000, dtype="<i4")
    sizes: list[int] = []
    peak = measure_peak_bytes(lambda: sizes.extend(len(part) for part in mds._encode_sample([ids])))
    assert peak < 100_000 and len(sizes) == 3


class NotIterable(list[object]):
    """A list whose items are looked up one at a time."""

    def __iter__(self) -> Iterator[object]:
        raise AssertionError("all sources were read for a batch of documents")


def test_sources_of_a_batch_are_looked_up_one_at_a_time(build: Build) -> None:
    """There may be a million sources, and 20,000 shards."""
    names = [str(source["name"]) for source in build.manifest.sources]
    build.manifest = dataclasses.replace(build.manifest, sources=NotIterable(build.manifest.sources))
    for docs in build.iter_docs(build.manifest.splits["val"].shards[0], 7):
        assert tokens.name_sources(build, docs) == [names[i] for i in docs["source"].tolist()]


@pytest.mark.parametrize("format_", ["parquet", "nanogpt", "text"])
def test_damaged_build_is_not_exported(build: Build, tmp_path: Path, format_: str) -> None:
    path = build.folder / "train-00001.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    flags = ["--format", format_, "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["export", str(build.folder), *flags])
    assert result.exit_code == 1 and "is damaged: train-00001.bin has sha256" in result.stderr
    assert_one_line(result.stderr.splitlines()[-1])
    assert not (tmp_path / "out").exists()
