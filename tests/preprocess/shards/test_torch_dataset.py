"""Builds under DataLoader: token by token against the shards, every sample once among processes and workers, resumed at any batch."""

from __future__ import annotations

import copy
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, default_convert

from preprocess.errors import FolioError, MisuseError
from preprocess.shards import torch_dataset
from preprocess.shards.files import readable_json
from preprocess.shards.format import DOC_DTYPE, MANIFEST, Build, seal
from preprocess.shards.torch_dataset import Documents, ShuffledWindows, TokenWindows, make_loader, pad_documents
from preprocess.shards.windows import EpochWindows, RandomWindows
from tests.conftest import ROOT, assert_one_line, write_split
from tests.helpers.runs import environment, make_build

VOCAB_SIZE = 50_000
LENGTHS = [5, 40, 1, 17, 90, 2, 2, 60, 33, 8, 8, 8, 70, 3, 20, 4]  # tokens of the documents
PASSES = 3


def numbered_build(folder: Path, lengths: list[int], *, shard_tokens: int, **fields: Any) -> Build:
    """A build whose training tokens are 0, 1, 2, …, so that a token tells its place."""
    make_build(folder, vocab_size=VOCAB_SIZE)
    for path in folder.glob("train-*"):
        path.unlink()
    manifest = json.loads((folder / MANIFEST).read_bytes()) | fields
    ids, ends = np.arange(sum(lengths), dtype=np.uint16), np.cumsum(lengths)
    docs = np.zeros(len(lengths), DOC_DTYPE)
    manifest["splits"]["train"] = write_split(
        folder, "train", ids, ends, docs, vocab_size=VOCAB_SIZE, shard_tokens=shard_tokens
    )
    (folder / MANIFEST).write_bytes(readable_json(seal(manifest)))
    return Build(folder)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Of four shards, one of them too short for most windows."""
    build = numbered_build(tmp_path_factory.mktemp("builds") / "numbered", LENGTHS, shard_tokens=100)
    assert len(build.shards("train")) == 4
    return build


def pairs_of(loader: Any) -> list[list[int]]:
    """Every window of a loader's batches, sorted; targets are checked to be the next tokens."""
    windows = []
    for x, y in loader:
        assert x.dtype == y.dtype == torch.int64 and torch.equal(y, x + 1)
        windows += x.tolist()
    return sorted(windows)


# Pairs one after the other


@given(st.integers(1, 40), st.integers(1, 50))
def test_items_are_slices_of_the_shards(build: Build, block_size: int, stride: int) -> None:
    dataset = TokenWindows(build, block_size=block_size, stride=stride)
    wanted = [
        (shard.tokens[s : s + block_size], shard.tokens[s + 1 : s + block_size + 1])
        for shard in build.shards("train")
        for s in range(0, len(shard.tokens) - block_size, stride)
    ]
    assert len(dataset) == len(wanted)
    for (x, y), (inputs, targets) in zip(dataset, wanted, strict=True):
        assert x.dtype == y.dtype == torch.int64
        assert np.array_equal(x, inputs) and np.array_equal(y, targets)


def test_stride_1_gives_every_start_of_a_shard(tmp_path: Path) -> None:
    build = numbered_build(tmp_path / "one", [700], shard_tokens=10_000)
    assert len(TokenWindows(build, stride=1)) == 700 - 256
    assert len(TokenWindows(build)) == 2
    assert [len(part) for part in TokenWindows(build)[0]] == [256, 256]


def test_numbers_from_the_end_and_numbers_outside(build: Build) -> None:
    dataset = TokenWindows(build, block_size=7)
    assert torch.equal(dataset[-1][0], dataset[len(dataset) - 1][0])
    for outside in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError, match=f"no item {outside}: the dataset has {len(dataset)}"):
            dataset[outside]


def test_a_loader_batches_every_item_once(build: Build) -> None:
    dataset = TokenWindows(build.folder, block_size=4)
    batches = list(make_loader(dataset))
    assert batches[0][0].shape == (32, 4) and sum(len(x) for x, _ in batches) == len(dataset)
    assert pairs_of(make_loader(dataset, shuffle=True, num_workers=2, batch_size=5)) == pairs_of(batches)


@pytest.mark.parametrize("num_processes", [2, 3, 100])
def test_a_range_shares_items_out(build: Build, num_processes: int) -> None:
    dataset = TokenWindows(build, block_size=4)
    shares = [
        pairs_of(make_loader(dataset, batch_size=5, sampler=range(r, len(dataset), num_processes)))
        for r in range(num_processes)
    ]
    assert sorted(window for share in shares for window in share) == pairs_of(make_loader(dataset))


# Shuffled windows, shared out


@pytest.mark.parametrize(("order", "windows"), [("epochs", EpochWindows), ("random", RandomWindows)])
def test_samples_are_those_of_the_order(build: Build, order: str, windows: Any) -> None:
    dataset = ShuffledWindows(build, block_size=6, order=order, seed=3)
    shards = build.shards("train")
    lengths = [len(shard.tokens) for shard in shards]
    expected = windows(lengths, 6, seed=3).locate(np.arange(PASSES * dataset.num_samples, dtype=np.uint64))
    read = [pair for _ in range(PASSES) for pair in dataset]
    assert dataset.num_samples == EpochWindows(lengths, 6, seed=0).windows_per_epoch
    for (x, y), shard, start in zip(read, *expected, strict=True):
        assert np.array_equal(x, shards[shard].tokens[start : start + 6])
        assert np.array_equal(y, shards[shard].tokens[start + 1 : start + 7])


def test_an_epoch_repeats_no_token_as_a_target(build: Build) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    for _ in range(PASSES):
        targets = torch.cat([y for _, y in dataset])
        assert len(targets.unique()) == len(targets) == 6 * dataset.num_samples


def test_passes_go_on_where_the_last_one_ended(build: Build) -> None:
    whole = [x.tolist() for x, _ in ShuffledWindows(build, block_size=6, num_samples=30)]
    parts = ShuffledWindows(build, block_size=6, num_samples=10)
    assert [x.tolist() for _ in range(3) for x, _ in parts] == whole


class Worker:
    def __init__(self, worker: int, num_workers: int) -> None:
        self.id, self.num_workers = worker, num_workers


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(1, 120), st.integers(1, 5), st.integers(1, 5))
def test_readers_share_out_a_pass(
    build: Build, monkeypatch: Any, num_samples: int, world_size: int, num_workers: int
) -> None:
    options = {"block_size": 6, "order": "random", "num_samples": num_samples}
    monkeypatch.setattr(torch_dataset, "get_worker_info", lambda: None)
    whole = sorted(x.tolist() for x, _ in ShuffledWindows(build, **options))
    shared: list[list[list[int]]] = []
    for rank in range(world_size):
        of_rank = []
        dataset = ShuffledWindows(build, **options, rank=rank, world_size=world_size)
        for worker in range(num_workers):
            monkeypatch.setattr(torch_dataset, "get_worker_info", lambda worker=worker: Worker(worker, num_workers))
            of_rank += [x.tolist() for x, _ in dataset]
        shared.append(of_rank)
    assert sorted(window for of_rank in shared for window in of_rank) == whole
    assert max(map(len, shared)) - min(map(len, shared)) <= 1


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("persistent", [False, True])
def test_two_workers_and_two_processes_give_the_samples_of_one(build: Build, batch_size: int, persistent: bool) -> None:
    alone = ShuffledWindows(build, block_size=6)
    loaders = [
        DataLoader(
            ShuffledWindows(build, block_size=6, rank=rank, world_size=2),
            batch_size,
            num_workers=2,
            persistent_workers=persistent,
        )
        for rank in range(2)
    ]
    passes = []
    for _ in range(PASSES):
        passes.append(pairs_of(DataLoader(alone, batch_size)))
        assert sorted(pairs_of(loaders[0]) + pairs_of(loaders[1])) == passes[-1]
    assert passes[0] != passes[1] != passes[2]


def test_workers_of_a_copy_go_on_to_the_next_pass(build: Build) -> None:
    loader = DataLoader(copy.deepcopy(ShuffledWindows(build, block_size=6)), 5, num_workers=1)
    assert pairs_of(loader) != pairs_of(loader)


def test_looking_ahead_in_this_process_moves_no_worker(build: Build) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    first = pairs_of(make_loader(ShuffledWindows(build, block_size=6)))
    next(iter(dataset))
    assert pairs_of(make_loader(dataset, num_workers=2)) == first


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_can_be_set(build: Build, num_workers: int) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    loader = make_loader(dataset, num_workers=num_workers)
    passes = [pairs_of(loader) for _ in range(PASSES)]
    dataset.set_epoch(1)
    assert [pairs_of(loader), pairs_of(loader)] == passes[1:]


def test_torchrun_tells_which_process_this_is(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    told = [x.tolist() for x, _ in ShuffledWindows(build, block_size=6)]
    assert told == [x.tolist() for x, _ in ShuffledWindows(build, block_size=6, rank=1, world_size=3)]
    alone = ShuffledWindows(build, block_size=6, rank=0, world_size=1)
    assert told == [x.tolist() for x, _ in alone][1::3]
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(MisuseError, match="RANK='one'"):
        ShuffledWindows(build, block_size=6)


def test_an_initialised_process_group_comes_before_the_environment(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        dataset = ShuffledWindows(build, block_size=6)
    finally:
        torch.distributed.destroy_process_group()
    assert (dataset.rank, dataset.world_size) == (0, 1)


# Stopped and resumed


def batches_of(loader: Any) -> list[list[list[int]]]:
    """A pass, batch by batch."""
    return [x.tolist() for x, _ in loader]


@pytest.mark.parametrize(("num_workers", "persistent"), [(0, False), (2, False), (2, True)])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize(("passes_before", "k"), [(0, 3), (1, 4), (1, 0)])
def test_a_stateful_loader_resumes_at_the_next_batch(
    build: Build, num_workers: int, persistent: bool, passes_before: int, k: int
) -> None:
    stateful_dataloader = pytest.importorskip("torchdata.stateful_dataloader")

    def make() -> Any:
        dataset = ShuffledWindows(build, block_size=6, rank=1, world_size=2)
        return stateful_dataloader.StatefulDataLoader(
            dataset, 3, num_workers=num_workers, persistent_workers=persistent
        )

    straight = make()
    wanted = [batches_of(straight) for _ in range(PASSES)]
    stopped = make()
    for number in range(passes_before):
        assert batches_of(stopped) == wanted[number]
    if k:
        iterator = iter(stopped)
        assert [next(iterator)[0].tolist() for _ in range(k)] == wanted[passes_before][:k]
    state = stopped.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    # Saved between two passes, a state is of a pass that has ended: what follows is the next one, whole.
    assert batches_of(resumed) == wanted[passes_before][k:]
    for number in range(passes_before + 1, PASSES):
        assert batches_of(resumed) == wanted[number]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("kind", [TokenWindows, Documents])
def test_a_stateful_loader_resumes_items_that_it_shuffles(build: Build, num_workers: int, kind: Any) -> None:
    stateful_dataloader = pytest.importorskip("torchdata.stateful_dataloader")
    dataset = kind(build, **({"block_size": 6} if kind is TokenWindows else {}))

    def make() -> Any:
        torch.manual_seed(1)
        return stateful_dataloader.StatefulDataLoader(dataset, None, shuffle=True, num_workers=num_workers)

    wanted = list(map(str, make()))
    stopped, resumed = make(), make()
    iterator = iter(stopped)
    assert [str(next(iterator)) for _ in range(5)] == wanted[:5]
    resumed.load_state_dict(stopped.state_dict())
    assert list(map(str, resumed)) == wanted[5:]


def test_a_dataset_resumes_on_its_own(build: Build) -> None:
    dataset, again = ShuffledWindows(build, block_size=6), ShuffledWindows(build, block_size=6)
    wanted = [x.tolist() for _ in range(2) for x, _ in dataset]
    dataset.set_epoch(0)
    iterator = iter(dataset)
    for _ in range(5):
        next(iterator)
    state = dataset.state_dict()
    assert (state["pass"], state["taken"]) == (0, 5)
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert [x.tolist() for _ in range(2) for x, _ in again] == wanted[5:]


def test_a_state_taken_outside_of_workers_is_not_gone_on_from_in_them(build: Build) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    iterator = iter(dataset)
    state = [next(iterator) for _ in range(10)] and dataset.state_dict()
    resumed = ShuffledWindows(build, block_size=6)
    resumed.load_state_dict(state)
    with pytest.raises(MisuseError, match="the state is of .* no workers; this is .* worker 0 of 2"):
        list(DataLoader(resumed, 5, num_workers=2))


def test_what_workers_read_is_no_state_of_this_process(build: Build) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    assert dataset.state_dict()["taken"] == 0
    iterator = iter(DataLoader(dataset, 5, num_workers=1))
    next(iterator)
    with pytest.raises(MisuseError, match="take the state of a StatefulDataLoader") as raised:
        dataset.state_dict()
    assert_one_line(str(raised.value))


@pytest.mark.parametrize("damage", [{"taken": -5}, {"pass": "1"}, {"pass": None}, {"taken": True}])
def test_a_damaged_state_is_refused(build: Build, damage: dict[str, Any]) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    with pytest.raises(FolioError, match="holds no place in a pass; take another checkpoint"):
        dataset.load_state_dict(dataset.state_dict() | damage)
    with pytest.raises(MisuseError, match="the state is of None"):
        dataset.load_state_dict({})


def test_a_state_of_another_dataset_is_refused(build: Build) -> None:
    state = ShuffledWindows(build, block_size=6, seed=1).state_dict()
    for other in ({"seed": 2}, {"seed": 1, "rank": 0, "world_size": 2}, {"seed": 1, "num_samples": 5}):
        with pytest.raises(MisuseError, match="resume with what the state was saved with") as raised:
            ShuffledWindows(build, block_size=6, **other).load_state_dict(state)
        assert_one_line(str(raised.value))


# Documents


def test_documents_are_those_of_the_build(build: Build) -> None:
    dataset = Documents(build)
    assert len(dataset) == len(LENGTHS)
    for number, ids in enumerate(dataset):
        assert ids.dtype == torch.int64 and np.array_equal(ids, build.document("train", number))
    assert [len(ids) for ids in Documents(build, max_tokens=8)] == [min(n, 8) for n in LENGTHS]
    assert dataset[-1].tolist() == Documents(build, max_tokens=8)[15].tolist()


def test_control_ids_stay_around_the_text(tmp_path: Path) -> None:
    folder = make_build(tmp_path / "tiny")
    dataset = Documents(folder, "val")
    manifest = Build(folder).manifest
    assert (dataset.bos_id, dataset.eot_id, dataset.pad_id) == (None, manifest["eot_id"], manifest["eot_id"])
    assert all(
        ids[0] == manifest["special_tokens"]["<author_Anna_Akimova>"] and ids[-1] == dataset.eot_id for ids in dataset
    )


def test_a_build_without_documents_or_pad_id_says_so(tmp_path: Path) -> None:
    empty = make_build(tmp_path / "empty", val_repeats=0)
    with pytest.raises(MisuseError, match="has no document in its val split"):
        Documents(empty, "val")
    dataset = Documents(make_build(tmp_path / "bare", eot_id=None))
    with pytest.raises(MisuseError, match="neither pad nor end-of-text id"):
        dataset.collate([dataset[0]])
    padded = Documents(make_build(tmp_path / "padded", pad_id=0))
    assert padded.pad_id == 0 and padded.eot_id != 0


def test_collation_is_exact() -> None:
    batch = pad_documents([torch.tensor([5, 6, 9]), torch.tensor([7]), torch.tensor([], dtype=torch.int64)], 9)
    assert {name: part.tolist() for name, part in batch.items()} == {
        "input_ids": [[5, 6, 9], [7, 9, 9], [9, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0], [0, 0, 0]],
        "labels": [[5, 6, 9], [7, -100, -100], [-100, -100, -100]],
    }
    assert all(part.dtype == torch.int64 for part in batch.values())


@given(st.lists(st.lists(st.integers(0, 100), max_size=9), min_size=1, max_size=5))
def test_collation_loses_and_adds_nothing(documents: list[list[int]]) -> None:
    batch = pad_documents([torch.tensor(ids, dtype=torch.int64) for ids in documents], 0)
    assert batch["input_ids"].shape == (len(documents), max(map(len, documents)))
    for row, ids in enumerate(documents):
        mask = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][mask].tolist() == batch["labels"][row][mask].tolist() == ids
        assert set(batch["labels"][row][~mask].tolist()) <= {-100}


def test_a_loader_pads_documents(build: Build) -> None:
    batches = list(make_loader(Documents(build), batch_size=4))
    assert [batch["input_ids"].shape[1] for batch in batches] == [40, 90, 33, 70]
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == sum(LENGTHS)


# Workers, memory, devices


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_map_the_shards_themselves(build: Build, method: str) -> None:
    both = ConcatDataset([TokenWindows(build, block_size=6), Documents(build)])
    read = list(DataLoader(both, None, num_workers=1, multiprocessing_context=method))
    assert str(read) == str([default_convert(item) for item in both])  # pairs of tensors, and tensors
    alone = ShuffledWindows(build, block_size=6)
    loader = DataLoader(ShuffledWindows(build, block_size=6), 5, num_workers=1, multiprocessing_context=method)
    assert [pairs_of(loader), pairs_of(loader)] == [pairs_of(DataLoader(alone, 5)), pairs_of(DataLoader(alone, 5))]


def test_too_many_workers_are_refused(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    monkeypatch.setattr(torch_dataset, "get_worker_info", lambda: Worker(0, 65))
    with pytest.raises(MisuseError, match="65 workers are too many; set num_workers to 64 or less"):
        iter(dataset)


def huge_build(folder: Path, num_tokens: int) -> Build:
    """One shard of zeros that takes no room on the disk."""
    make_build(folder, train_repeats=1)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    entry = manifest["splits"]["train"]["shards"][0]
    with open(folder / entry["file"], "r+b") as file:
        file.truncate(2 * num_tokens)
    np.array([num_tokens], "<u8").tofile((folder / entry["file"]).with_suffix(".ends"))
    entry |= {"tokens": num_tokens, "bytes": 2 * num_tokens}
    (folder / MANIFEST).write_bytes(readable_json(seal(manifest)))
    return Build(folder)


def test_only_what_a_batch_needs_is_read_or_sent_to_workers(tmp_path: Path) -> None:
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
    # Shared memory travels as its name; all else is settings.
    assert max(len(ForkingPickler.dumps(dataset)) for dataset in datasets) < 4000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="batches are pinned where there is a GPU")
def test_batches_are_pinned(build: Build) -> None:
    x, y = next(iter(make_loader(ShuffledWindows(build, block_size=6))))
    batch = next(iter(make_loader(Documents(build))))
    assert x.is_pinned() and y.is_pinned() and all(part.is_pinned() for part in batch.values())


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda build: TokenWindows(build, "test"), "no split 'test': a build has train and val"),
        (lambda build: TokenWindows(build, block_size=0), "block_size is 0; wanted a whole number, 1 or more"),
        (lambda build: TokenWindows(build, block_size=4, stride=0), "stride is 0"),
        (lambda build: TokenWindows(build, block_size=4, stride=1.5), "stride is 1.5; wanted a whole number"),
        (lambda build: TokenWindows(build, block_size=1000), "block_size 1000 needs 1001 tokens in a row"),
        (lambda build: ShuffledWindows(build, block_size=1000), "block_size 1000 needs 1001 tokens in a row"),
        (
            lambda build: ShuffledWindows(build, block_size=4, order="sorted"),
            "no order 'sorted'; choose one of epochs, random",
        ),
        (lambda build: ShuffledWindows(build, block_size=4, order="random", seed=-1), "seed -1"),
        (lambda build: ShuffledWindows(build, block_size=2.5), "block_size is 2.5; wanted a whole number"),
        (lambda build: ShuffledWindows(build, block_size="64"), "block_size is '64'; wanted a whole number"),
        (lambda build: TokenWindows(build, block_size=1000), "; set block_size="),
        (lambda build: ShuffledWindows(build, block_size=4, seed="a"), "seed 'a' is not a whole number from 0 to"),
        (lambda build: ShuffledWindows(build, block_size=4).set_epoch("x"), "epoch is 'x'; wanted 0 to"),
        (lambda build: ShuffledWindows(None), "a dataset cannot be made of None; wanted a build"),
        (
            lambda build: ShuffledWindows(build, block_size=4).load_state_dict(None),
            "the state is of None; this is build",
        ),
        (lambda build: make_loader("walk"), "a loader cannot be made of 'walk'; wanted a dataset"),
        (lambda build: ShuffledWindows(build, block_size=4, num_samples=0), "num_samples is 0"),
        (lambda build: ShuffledWindows(build, block_size=4).set_epoch(-1), "epoch is -1; wanted 0 to"),
        (lambda build: ShuffledWindows(build, block_size=4, rank=1), "give both or neither"),
        (lambda build: ShuffledWindows(build, block_size=4, rank=2, world_size=2), "rank is 2 of world_size 2"),
        (lambda build: Documents(build, max_tokens=0), "max_tokens is 0"),
        (lambda build: Documents("no-such-build"), "no build 'no-such-build'"),
    ],
)
def test_misuse_is_told_in_one_line(build: Build, make: Any, message: str) -> None:
    with pytest.raises(MisuseError) as raised:
        make(build)
    assert message in str(raised.value)
    assert_one_line(str(raised.value))


def test_a_flipped_bit_is_no_token(tmp_path: Path) -> None:
    build = numbered_build(tmp_path / "flipped", [50], shard_tokens=100)
    with open(build.folder / "train-00000.bin", "r+b") as file:
        file.seek(2 * 30)
        file.write(b"\xff\xff")
    for dataset in (TokenWindows(build, block_size=20), ShuffledWindows(build, block_size=20), Documents(build)):
        with pytest.raises(FolioError, match="holds id 65535, its vocabulary ends at 49999"):
            list(dataset)


def test_a_build_of_more_files_than_may_be_open_says_what_to_do(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    build = numbered_build(tmp_path / "many", [10] * 100, shard_tokens=10)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + 100, before[1]))
    try:
        with pytest.raises(
            FolioError, match="is one file more than this process may open; allow it more, as `ulimit -n 65536` does"
        ):
            TokenWindows(build, block_size=4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_build_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    dataset = Documents(make_build(tmp_path / "one"))
    sent = bytes(ForkingPickler.dumps(dataset))
    make_build(tmp_path / "other", train_repeats=3)
    (tmp_path / "one").rename(tmp_path / "gone")
    (tmp_path / "other").rename(tmp_path / "one")
    with pytest.raises(FolioError, match="has been replaced by another build"):
        ForkingPickler.loads(sent)


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_spawned_worker_is_not_begun_where_the_build_is_another(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], is_gone: bool
) -> None:
    dataset = ShuffledWindows(make_build(tmp_path / "one"), block_size=8)
    (tmp_path / "one").rename(tmp_path / "gone")
    if not is_gone:
        make_build(tmp_path / "one", train_repeats=3)
    loader = make_loader(dataset, num_workers=2, multiprocessing_context="spawn")
    with pytest.raises(FolioError, match="is no build" if is_gone else "has been replaced by another build"):
        next(iter(loader))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("ends", [[5, 4, 3], [1, 2, 4], [1, 2, 1 << 60], [0, 0, 0]])
def test_damaged_ends_are_no_documents(tmp_path: Path, ends: list[int]) -> None:
    folder = numbered_build(tmp_path / "damaged", [1, 1, 3], shard_tokens=100).folder
    np.array(ends, "<u8").tofile(folder / "train-00000.ends")
    with pytest.raises(
        FolioError, match="train-00000.ends does not rise to the shard's 5 tokens; copy the build again"
    ) as raised:
        Documents(folder)
    assert_one_line(str(raised.value))


def test_without_torch_one_line_says_so() -> None:
    code = "import sys; sys.modules['torch'] = None; import preprocess.shards.torch_dataset"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].endswith("needs PyTorch, and there is no module 'torch'; run: pip install torch")


def test_the_bench_of_loaders_runs(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "bench/loader.py"),
        "--smoke",
        "--scratch",
        str(tmp_path),
        "--folio-python",
        sys.executable,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=200)
    assert ran.returncode == 0, ran.stderr
    table = [line.split("|")[1:-1] for line in ran.stdout.splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in row[:2]] for row in table[2:]] == [
        ["TokenWindows", "2"],
        ["ShuffledWindows", "2"],
    ]
    assert all(float(row[3]) > 0 for row in table[2:])
