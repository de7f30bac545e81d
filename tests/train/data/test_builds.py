"""The setting `data`: one build, a mixture, and builds that cannot be mixed."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import replace_directory
from preprocess.shards.format import Build
from preprocess.shards.manifest_file import ShardError, read_manifest
from preprocess.shards.replaced import ReplacedError
from tests.helpers.runs import AUTHOR_ID, SPECIAL_TOKENS, VOCAB_SIZE, make_build, write_config
from train.config import Config, load_config
from train.core.distributed import World
from train.data.batches import TrainingData, ValidationData, build_seed
from train.data.builds import NAME_AND_WEIGHT, open_builds
from train.data.streams import DataSource
from train.run import context

CPU = torch.device("cpu")


def make_config(**settings: object) -> Config:
    return Config(**({"data": "x", "out_dir": "y", "block_size": 16, "seed": 3} | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("builds")
    make_build(folder / "one")
    make_build(folder / "two", train_repeats=30, val_repeats=12)
    make_build(folder / "fewer", special_tokens={"<|endoftext|>": SPECIAL_TOKENS["<|endoftext|>"]})
    make_build(folder / "other_authors", special_tokens={"<author_Someone_Else>": AUTHOR_ID})
    make_build(folder / "bytes", tokenizer={"kind": "byte", "files": {}, "settings": {}})
    return folder


def test_open_builds_of_one_name_keeps_its_id(folder: Path) -> None:
    builds = open_builds(str(folder / "one"))
    assert (builds.name, builds.shares, builds.vocab_size) == ("one", (1.0,), VOCAB_SIZE)
    assert builds.build_id == builds.manifest.build_id


def test_open_builds_normalizes_weights(folder: Path) -> None:
    builds = open_builds(f"{folder / 'one'}:3, {folder / 'two'}:1")
    assert builds.shares == (0.75, 0.25) and builds.name == "one 75.0%, two 25.0%"
    assert open_builds(f"{folder / 'one'}:0.75,{folder / 'two'}:.25").build_id == builds.build_id
    assert open_builds(f"{folder / 'one'}:1,{folder / 'two'}:1").build_id != builds.build_id


@pytest.mark.parametrize(
    ("part", "name_and_weight"),
    [
        ("http://localhost:8000", None),
        (" HTTPS://[::1]:8000 ", None),
        ("http://localhost:8000:2", ("http://localhost:8000", "2")),
        ("http://localhost:.5", ("http://localhost", ".5")),
        ("http://localhost:8000/a:2", ("http://localhost:8000/a", "2")),
        ("s3://bucket:2", ("s3://bucket", "2")),
        ("one:8000", ("one", "8000")),
    ],
)
def test_port_of_a_url_is_not_a_weight(part: str, name_and_weight: tuple[str, str] | None) -> None:
    match = NAME_AND_WEIGHT.fullmatch(part)
    assert (match and match.groups()) == name_and_weight


def test_mixture_draws_samples_by_share_and_keeps_row_order(folder: Path) -> None:
    builds = open_builds(f"{folder / 'one'}:3,{folder / 'two'}:1")
    data = TrainingData(builds, make_config(data_order="epochs"), device=CPU)
    samples = data.batch(0, 4000)[0]
    assert torch.equal(samples, torch.cat([data.batch(n, 400)[0] for n in range(0, 4000, 400)]))
    # Both builds contain the same sentence, so the build of a sample cannot be read off its tokens.
    build_index, _ = data._mixture.assign(np.arange(4000, dtype=np.uint64))  # type: ignore[union-attr]
    share = Counter(build_index.tolist())[0] / 4000
    assert share == pytest.approx(0.75, abs=0.03)


def test_rows_of_a_mixture_equal_those_of_its_builds_alone(folder: Path) -> None:
    builds = open_builds(f"{folder / 'one'}:1,{folder / 'two'}:1")
    mixed = TrainingData(builds, make_config(), device=CPU)
    samples = np.arange(64, dtype=np.uint64)
    build_index, number_in_build = mixed._mixture.assign(samples)  # type: ignore[union-attr]
    ids = mixed.batch(0, 64)[0]
    for index, seed in ((0, 3), (1, build_seed(3, 1))):
        alone = TrainingData(open_builds(str(builds.builds[index].folder)), make_config(seed=seed), device=CPU)
        for row in np.flatnonzero(build_index == index):
            assert torch.equal(ids[row], alone.batch(int(number_in_build[row]), 1)[0][0])


def test_validation_of_a_mixture_reads_all_builds(folder: Path) -> None:
    builds = open_builds(f"{folder / 'one'}:3,{folder / 'two'}:1")
    alone = [ValidationData(open_builds(str(folder / name)), make_config(), device=CPU) for name in ("one", "two")]
    both = ValidationData(builds, make_config(), device=CPU)
    assert both.num_windows == sum(data.num_windows for data in alone)
    assert both.names == ["one", "two"] and [size.num_tokens for size in both.sizes] == [6 * 46, 12 * 46]
    windows = both.batch(np.arange(both.num_windows))[0]
    assert torch.equal(windows, torch.cat([data.batch(np.arange(data.num_windows))[0] for data in alone]))
    assert ValidationData(builds, make_config(eval_tokens=16 * 8), device=CPU).num_windows == 6 + 2


def test_builds_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("first/same", "second/same", "other")]
    for path, repeats in zip(paths, (40, 30, 20), strict=True):
        make_build(path, train_repeats=repeats)
    builds = open_builds(",".join(f"{path}:1" for path in paths))
    names = ["first/same", "second/same", "other"]
    assert builds.names == names and builds.name == "first/same 33.3%, second/same 33.3%, other 33.3%"
    assert ValidationData(builds, make_config(), device=CPU).names == names, "each has its own loss"
    assert open_builds(str(paths[0])).names == ["same"]


def test_vocabulary_is_that_of_the_build_with_most_control_tokens(folder: Path) -> None:
    builds = open_builds(f"{folder / 'fewer'}:1,{folder / 'one'}:1")
    assert "<author_Anna_Akimova>" in builds.manifest.special_tokens


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{0}/one:1,{0}/bytes:1", "bytes and one have different tokenizers, so the same id means different text"),
        (
            "{0}/one:1,{0}/other_authors:1",
            "the control token <author_Someone_Else> is id 29 in other_authors and unknown in one",
        ),
        ("{0}/one:1,{0}/two", "'{0}/two' has no weight above 0; write NAME:WEIGHT,NAME:WEIGHT"),
        ("{0}/one:1,{0}/two:0", "has no weight above 0"),
        ("{0}/one:1,{0}/nowhere:1", "no build '{0}/nowhere'"),
        ("{0}/one,{0}/two", "mix several builds as NAME:WEIGHT,NAME:WEIGHT"),
        ("{0}/one:1,{0}/two/../one:2", "which names a build twice; add its weights"),
    ],
)
def test_open_builds_rejects_what_cannot_be_mixed(folder: Path, data: str, message: str) -> None:
    with pytest.raises((MisuseError, FolioError)) as error:
        open_builds(data.format(folder))
    assert message.format(folder) in str(error.value) and "\n" not in str(error.value)


def test_mask_documents_numbers_the_documents_of_each_row(folder: Path) -> None:
    builds = open_builds(f"{folder / 'one'}:1,{folder / 'two'}:1")
    ids, _, documents = TrainingData(builds, make_config(mask_documents=True), device=CPU).batch(0, 50)
    assert documents is not None and documents.shape == ids.shape
    is_start = ids[:, 1:] == AUTHOR_ID  # every document of these builds begins with its author
    assert torch.equal(documents[:, 1:] - documents[:, :-1], is_start.long())
    assert torch.equal(documents[:, 0], torch.zeros(50))


def test_open_builds_rejects_a_damaged_tokenizer(tmp_path: Path) -> None:
    """A run decodes text only after some of its steps, which would be lost."""
    build = make_build(tmp_path / "own")
    (build / "tokenizer" / "alphabet.txt").write_bytes(b"abc")
    with pytest.raises(ShardError, match="alphabet.txt does not have the sha256 in its manifest; copy the build again"):
        open_builds(str(build))
    assert open_builds(str(make_build(tmp_path / "good"))).vocabulary_files.keys() == {
        "tokenizer/alphabet.txt",
        "manifest.json",
    }


def test_mask_documents_rejects_damaged_ends(tmp_path: Path) -> None:
    folder = make_build(tmp_path / "own")
    ends = np.fromfile(folder / "train-00000.ends", "<u8")
    ends[[3, 4]] = ends[[4, 3]]
    ends.tofile(folder / "train-00000.ends")
    builds = open_builds(str(folder))
    TrainingData(builds, make_config(), device=CPU)
    with pytest.raises(ShardError, match="train-00000.ends does not ascend to the shard's 1,840 tokens"):
        TrainingData(builds, make_config(mask_documents=True), device=CPU)
    ValidationData(builds, make_config(mask_documents=True), device=CPU)


def test_data_of_a_replaced_build_is_not_mixed_with_its_manifest(tmp_path: Path) -> None:
    """The new shards have the size of the old ones, so only the manifest shows that they are others."""
    folder, new = make_build(tmp_path / "own"), make_build(tmp_path / "new", name="own", sources=[1])
    builds = open_builds(str(folder))
    replace_directory(new, folder)
    with pytest.raises(ReplacedError, match="was replaced or deleted while it was read; run the command again"):
        TrainingData(builds, make_config(), device=CPU)


def test_data_of_a_build_that_was_made_again_is_read(tmp_path: Path) -> None:
    """Its bytes are the same, and so they are if only the times of its files have changed."""
    folder, again = make_build(tmp_path / "own"), make_build(tmp_path / "again", name="own")
    builds = open_builds(str(folder))
    replace_directory(again, folder)
    os.utime(folder / "manifest.json")
    assert TrainingData(builds, make_config(), device=CPU).num_tokens == 40 * 46
    (folder / "train-00000.bin").unlink()
    with pytest.raises(ShardError, match="train-00000.bin is missing"):
        TrainingData(builds, make_config(), device=CPU)
    shutil.rmtree(folder)
    with pytest.raises(ReplacedError, match="was replaced or deleted"):
        TrainingData(builds, make_config(), device=CPU)


def test_open_run_opens_a_replaced_build_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, new = make_build(tmp_path / "own"), make_build(tmp_path / "new", train_repeats=50)
    new_id, open_source, replacements = Build(new).build_id, context.open_data_source, [new]

    def open_then_replace(setting: str, *, world: World, stream_shards: bool) -> DataSource:
        source = open_source(setting, world=world, stream_shards=stream_shards)
        if replacements:
            replace_directory(replacements.pop(), folder)
        return source

    monkeypatch.setattr(context, "open_data_source", open_then_replace)
    run = context.open_run(load_config(write_config(tmp_path / "run.py", folder), {}), World())
    assert run.source.build_id == new_id and run.data.train.num_tokens == 50 * 46


def test_save_vocabulary_writes_the_build_that_was_opened(tmp_path: Path) -> None:
    folder, new = make_build(tmp_path / "own"), make_build(tmp_path / "new", train_repeats=50)
    builds = open_builds(str(folder))
    replace_directory(new, folder)
    builds.save_vocabulary(tmp_path / "copy")
    assert read_manifest(tmp_path / "copy") == builds.manifest != Build(folder).manifest
