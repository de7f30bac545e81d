"""TokenWindows, DataLoaders, workers, and misuse of the datasets."""

from __future__ import annotations

import json
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, default_convert

from preprocess.errors import MisuseError
from preprocess.shards.files import readable_json
from preprocess.shards.format import MANIFEST, Build, seal
from preprocess.shards.torch_dataset import Documents, ShuffledWindows, TokenWindows, make_loader
from tests.conftest import ROOT, assert_one_line
from tests.helpers.runs import make_build, make_environment
from tests.preprocess.shards.helpers import make_numbered_build, read_windows


@given(st.integers(1, 40), st.integers(1, 50))
def test_token_windows_are_slices_of_the_shards(build: Build, block_size: int, stride: int) -> None:
    dataset = TokenWindows(build, block_size=block_size, stride=stride)
    expected = [
        (shard.tokens[s : s + block_size], shard.tokens[s + 1 : s + block_size + 1])
        for shard in build.shards("train")
        for s in range(0, len(shard.tokens) - block_size, stride)
    ]
    assert len(dataset) == len(expected)
    for (x, y), (inputs, targets) in zip(dataset, expected, strict=True):
        assert x.dtype == y.dtype == torch.int64
        assert np.array_equal(x, inputs) and np.array_equal(y, targets)


def test_token_windows_with_stride_1_have_every_start(tmp_path: Path) -> None:
    build = make_numbered_build(tmp_path / "one", [700], shard_tokens=10_000)
    assert len(TokenWindows(build, stride=1)) == 700 - 256
    assert len(TokenWindows(build)) == 2
    assert [len(part) for part in TokenWindows(build)[0]] == [256, 256]


def test_token_windows_count_negative_indices_from_the_end(build: Build) -> None:
    dataset = TokenWindows(build, block_size=7)
    assert torch.equal(dataset[-1][0], dataset[len(dataset) - 1][0])
    for outside in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError, match=f"no item {outside}: the dataset has {len(dataset)}"):
            dataset[outside]


def test_loader_reads_every_item_once(build: Build) -> None:
    dataset = TokenWindows(build.folder, block_size=4)
    batches = list(make_loader(dataset))
    assert batches[0][0].shape == (32, 4) and sum(len(x) for x, _ in batches) == len(dataset)
    assert read_windows(make_loader(dataset, shuffle=True, num_workers=2, batch_size=5)) == read_windows(batches)


@pytest.mark.parametrize("num_processes", [2, 3, 100])
def test_range_sampler_divides_items(build: Build, num_processes: int) -> None:
    dataset = TokenWindows(build, block_size=4)
    shares = [
        read_windows(make_loader(dataset, batch_size=5, sampler=range(r, len(dataset), num_processes)))
        for r in range(num_processes)
    ]
    assert sorted(window for share in shares for window in share) == read_windows(make_loader(dataset))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_items(build: Build, method: str) -> None:
    both = ConcatDataset([TokenWindows(build, block_size=6), Documents(build)])
    read = list(DataLoader(both, None, num_workers=1, multiprocessing_context=method))
    assert str(read) == str([default_convert(item) for item in both])  # pairs of tensors, then tensors
    alone = ShuffledWindows(build, block_size=6)
    loader = DataLoader(ShuffledWindows(build, block_size=6), 5, num_workers=1, multiprocessing_context=method)
    assert [read_windows(loader), read_windows(loader)] == [
        read_windows(DataLoader(alone, 5)),
        read_windows(DataLoader(alone, 5)),
    ]


def huge_build(folder: Path, num_tokens: int) -> Build:
    """Return a build with one shard of zeros, a sparse file that takes no space on the disk."""
    make_build(folder, train_repeats=1)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    entry = manifest["splits"]["train"]["shards"][0]
    with open(folder / entry["file"], "r+b") as file:
        file.truncate(2 * num_tokens)
    np.array([num_tokens], "<u8").tofile((folder / entry["file"]).with_suffix(".ends"))
    entry |= {"tokens": num_tokens, "bytes": 2 * num_tokens}
    manifest["splits"]["train"]["tokens"] = num_tokens
    (folder / MANIFEST).write_bytes(readable_json(seal(manifest)))
    return Build(folder)


def test_datasets_read_and_send_only_what_a_batch_needs(tmp_path: Path) -> None:
    build = huge_build(tmp_path / "huge", 1 << 28)
    before = psutil.Process().memory_info().rss
    datasets = [
        TokenWindows(build, stride=1),
        ShuffledWindows(build, order="random"),
        ShuffledWindows(build),
        Documents(build, max_tokens=9),
    ]
    for dataset in datasets:
        next(iter(make_loader(dataset)))
    assert psutil.Process().memory_info().rss - before < 50e6  # of 537 MB
    # A pickle has the name of the shared memory and some settings.
    assert max(len(ForkingPickler.dumps(dataset)) for dataset in datasets) < 4000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="batches are pinned where there is a GPU")
def test_make_loader_pins_batches(build: Build) -> None:
    x, y = next(iter(make_loader(ShuffledWindows(build, block_size=6))))
    batch = next(iter(make_loader(Documents(build))))
    assert x.is_pinned() and y.is_pinned() and all(part.is_pinned() for part in batch.values())


POSITIVE = "must be a whole number of 1 or more, got "
SEED = "seed must be a whole number from 0 to 2**64 - 1, got "
EPOCH = "epoch must be a whole number from 0 to 2,147,483,646, got "


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda build: TokenWindows(build, "test"), "no split 'test': a build has train and val"),
        (lambda build: TokenWindows(build, block_size=0), "block_size " + POSITIVE + "0"),
        (
            lambda build: TokenWindows(build, block_size=4, stride=0),
            "stride " + POSITIVE + "0",
        ),
        (
            lambda build: TokenWindows(build, block_size=4, stride=1.5),
            "stride " + POSITIVE + "1.5",
        ),
        (lambda build: TokenWindows(build, block_size=1000), "block_size 1000 needs 1001 consecutive tokens"),
        (lambda build: ShuffledWindows(build, block_size=1000), "block_size 1000 needs 1001 consecutive tokens"),
        (
            lambda build: ShuffledWindows(build, block_size=4, order="sorted"),
            "no order 'sorted'; choose one of epochs, random",
        ),
        (
            lambda build: ShuffledWindows(build, block_size=4, order="random", seed=-1),
            SEED + "-1",
        ),
        (
            lambda build: ShuffledWindows(build, block_size=2.5),
            "block_size " + POSITIVE + "2.5",
        ),
        (
            lambda build: ShuffledWindows(build, block_size="64"),
            "block_size " + POSITIVE + "'64'",
        ),
        (lambda build: TokenWindows(build, block_size=1000), "; set block_size="),
        (
            lambda build: ShuffledWindows(build, block_size=4, seed="a"),
            SEED + "'a'",
        ),
        (
            lambda build: ShuffledWindows(build, block_size=4).set_epoch("x"),
            EPOCH + "'x'",
        ),
        (lambda build: ShuffledWindows(None), "a dataset cannot be made from None; expected a build"),
        (
            lambda build: ShuffledWindows(build, block_size=4).load_state_dict(None),
            "the state belongs to None; this is build",
        ),
        (lambda build: make_loader("walk"), "a loader cannot be made from 'walk'; expected a dataset"),
        (
            lambda build: ShuffledWindows(build, block_size=4, num_samples=0),
            "num_samples " + POSITIVE + "0",
        ),
        (
            lambda build: ShuffledWindows(build, block_size=4).set_epoch(-1),
            EPOCH + "-1",
        ),
        (lambda build: ShuffledWindows(build, block_size=4, rank=1), "give both or neither"),
        (
            lambda build: ShuffledWindows(build, block_size=4, rank=2, world_size=2),
            "got rank 2 of world_size 2",
        ),
        (lambda build: Documents(build, max_tokens=0), "max_tokens " + POSITIVE + "0"),
        (lambda build: Documents("no-such-build"), "no build 'no-such-build'"),
    ],
)
def test_misuse_is_reported_in_one_line(build: Build, make: Any, message: str) -> None:
    with pytest.raises(MisuseError) as raised:
        make(build)
    assert message in str(raised.value)
    assert_one_line(str(raised.value))


def test_import_without_torch_explains_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None; import preprocess.shards.torch_dataset"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].endswith("needs PyTorch, and there is no module 'torch'; run: pip install torch")


def test_loader_benchmark_runs(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "bench/loader.py"),
        "--smoke",
        "--scratch",
        str(tmp_path),
        "--folio-python",
        sys.executable,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, env=make_environment(), timeout=200)
    assert ran.returncode == 0, ran.stderr
    table = [line.split("|")[1:-1] for line in ran.stdout.splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in row[:2]] for row in table[2:]] == [
        ["TokenWindows", "2"],
        ["ShuffledWindows", "2"],
    ]
    assert all(float(row[3]) > 0 for row in table[2:])
