"""What the setting data names: a build, a mixture, and what cannot be mixed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocess.errors import FolioError, MisuseError
from tests.helpers.runs import AUTHOR_ID, SPECIAL_TOKENS, VOCAB_SIZE, make_build
from train.config import Config
from train.data.batches import TrainingData, ValidationData, build_seed
from train.data.builds import open_builds

CPU = torch.device("cpu")


def config_of(**settings: object) -> Config:
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


def test_one_build_is_itself(folder: Path) -> None:
    builds = open_builds(str(folder / "one"))
    assert (builds.name, builds.shares, builds.vocab_size) == ("one", (1.0,), VOCAB_SIZE)
    assert builds.build_id == builds.manifest["build_id"]


def test_weights_become_shares(folder: Path) -> None:
    builds = open_builds(f"{folder / 'one'}:3, {folder / 'two'}:1")
    assert builds.shares == (0.75, 0.25) and builds.name == "one 75.0%, two 25.0%"
    assert open_builds(f"{folder / 'one'}:0.75,{folder / 'two'}:.25").build_id == builds.build_id
    assert open_builds(f"{folder / 'one'}:1,{folder / 'two'}:1").build_id != builds.build_id


def test_samples_come_from_each_by_its_share_and_rows_keep_their_order(folder: Path) -> None:
    builds = open_builds(f"{folder / 'one'}:3,{folder / 'two'}:1")
    data = TrainingData(builds, config_of(data_order="epochs"), device=CPU)
    whole = data.batch(0, 4000)[0]
    assert torch.equal(whole, torch.cat([data.batch(n, 400)[0] for n in range(0, 4000, 400)]))
    # The two hold the same sentence, and differ by their length alone: where a window lies tells them apart only by chance.
    source, _ = data._mixture.assign(np.arange(4000, dtype=np.uint64))  # type: ignore[union-attr]
    share = Counter(source.tolist())[0] / 4000
    assert share == pytest.approx(0.75, abs=0.03)


def test_each_build_is_read_as_it_would_be_alone(folder: Path) -> None:
    """A row of the mixture is the window that its build alone gives for that number."""
    builds = open_builds(f"{folder / 'one'}:1,{folder / 'two'}:1")
    mixed = TrainingData(builds, config_of(), device=CPU)
    samples = np.arange(64, dtype=np.uint64)
    source, number = mixed._mixture.assign(samples)  # type: ignore[union-attr]
    rows = mixed.batch(0, 64)[0]
    for build, seed in ((0, 3), (1, build_seed(3, 1))):
        alone = TrainingData(open_builds(str(builds.builds[build].folder)), config_of(seed=seed), device=CPU)
        for row in np.flatnonzero(source == build):
            assert torch.equal(rows[row], alone.batch(int(number[row]), 1)[0][0])


def test_validation_reads_all_of_them(folder: Path) -> None:
    builds = open_builds(f"{folder / 'one'}:3,{folder / 'two'}:1")
    alone = [ValidationData(open_builds(str(folder / name)), config_of(), device=CPU) for name in ("one", "two")]
    both = ValidationData(builds, config_of(), device=CPU)
    assert both.num_windows == sum(data.num_windows for data in alone)
    assert both.names == ["one", "two"] and [split["tokens"] for split in both.splits] == [6 * 46, 12 * 46]
    windows = both.batch(np.arange(both.num_windows))[0]
    assert torch.equal(windows, torch.cat([data.batch(np.arange(data.num_windows))[0] for data in alone]))
    assert ValidationData(builds, config_of(eval_tokens=16 * 8), device=CPU).num_windows == 6 + 2


def test_the_vocabulary_is_that_of_the_build_that_knows_most(folder: Path) -> None:
    builds = open_builds(f"{folder / 'fewer'}:1,{folder / 'one'}:1")
    assert "<author_Anna_Akimova>" in builds.manifest["special_tokens"]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("{0}/one:1,{0}/bytes:1", "bytes and one have different tokenizers, so that an id means one thing here"),
        (
            "{0}/one:1,{0}/other_authors:1",
            "the control token <author_Someone_Else> is id 29 in other_authors and unknown in one",
        ),
        ("{0}/one:1,{0}/two", "in which '{0}/two' has no weight above 0; write NAME:WEIGHT,NAME:WEIGHT"),
        ("{0}/one:1,{0}/two:0", "has no weight above 0"),
        ("{0}/one:1,{0}/nowhere:1", "no build '{0}/nowhere'"),
        ("{0}/one,{0}/two", "several builds are mixed by NAME:WEIGHT,NAME:WEIGHT"),
        ("{0}/one:1,{0}/two/../one:2", "in which a build stands twice; add its weights up"),
    ],
)
def test_what_cannot_be_mixed(folder: Path, data: str, complaint: str) -> None:
    with pytest.raises((MisuseError, FolioError)) as error:
        open_builds(data.format(folder))
    assert complaint.format(folder) in str(error.value) and "\n" not in str(error.value)


def test_documents_are_numbered_where_they_are_masked(folder: Path) -> None:
    builds = open_builds(f"{folder / 'one'}:1,{folder / 'two'}:1")
    ids, _, documents = TrainingData(builds, config_of(mask_documents=True), device=CPU).batch(0, 50)
    assert documents is not None and documents.shape == ids.shape
    begins = ids[:, 1:] == AUTHOR_ID  # every document of these begins with its author
    assert torch.equal(documents[:, 1:] - documents[:, :-1], begins.long())
    assert torch.equal(documents[:, 0], torch.zeros(50))
