"""A build under torch's DataLoader, for a training loop of one's own: shifted pairs, shuffled windows, whole documents.

docs/own_loop.md shows it at work. What is read is what a batch needs; a dataset travels to a worker as its folder and a few
numbers, and the worker maps the shards anew. This is the only file of preprocess/ that imports torch, and nothing of Folio imports it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.format import Build
from preprocess.shards.mapped import MappedSplit, locate_items
from preprocess.shards.permutation import keyed_hash
from preprocess.shards.windows import ORDERS, check_windows

try:
    import torch
    from torch import Tensor
    from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
except ModuleNotFoundError as e:
    raise FolioError(
        f"preprocess.shards.torch_dataset needs PyTorch, and there is no module {e.name!r}; run: pip install torch"
    ) from e

Pair = tuple[
    Tensor, Tensor
]  # inputs and targets, (T,) int64 each: views of one tensor, to be cloned before one is changed in place
IGNORED = -100  # the target that torch's cross_entropy, and so Hugging Face's models, leave out
CHUNK = 32  # samples that ShuffledWindows gathers at once: one by one they take about ten times as long
MOST_WORKERS = 64
LAST_PASS = (1 << 31) - 2  # the number behind it is still an int32


class TokenWindows(Dataset[Pair]):
    """Shifted pairs: `x = tokens[s : s + T]` and `y = tokens[s + 1 : s + T + 1]`, (T,) int64 each, T being `block_size`.

    `s` goes through each shard in steps of `stride`, from its first token on, and no window leaves its shard: with stride 1 a shard of
    N tokens gives N − T items, with the default stride of T each token but the first is a target at most once. For training at random
    starts take ShuffledWindows: a DataLoader's `shuffle=True` holds 8 bytes for every item.
    """

    def __init__(
        self, build: Build | str | Path, split: str = "train", *, block_size: int = 256, stride: int | None = None
    ) -> None:
        """`build`: an open one, its name, or its folder. Raises ShardError or MisuseError where it cannot give a single window."""
        self._split = MappedSplit(build, split)
        self._block_size = _positive("block_size", block_size)
        self._stride = _positive("stride", self._block_size if stride is None else stride)
        check_windows(self._split.lengths, self._block_size, split)
        counts = [max(-(-(length - self._block_size) // self._stride), 0) for length in self._split.lengths]
        self._edges = np.cumsum(counts)  # (S,) exclusive ends of each shard's items

    def __len__(self) -> int:
        return int(self._edges[-1])

    def __getitem__(self, index: int) -> Pair:
        """Raises IndexError outside the dataset, FolioError for a token outside the vocabulary."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Pair]:
        """What a DataLoader calls for a batch: its windows in one gather."""
        shard, place = locate_items(self._edges, indices)
        return _pairs(self._split.windows(shard, place * self._stride, self._block_size))


class ShuffledWindows(IterableDataset[Pair]):
    """Shifted pairs in shuffled order, shared out among processes and DataLoader workers. Pairs are as TokenWindows has them.

    `order="epochs"` visits windows that do not overlap, each once an epoch, other ones in another order each epoch;
    `order="random"` draws any start of any shard, with replacement. Either is a pure function of `seed` and the sample's number.

    One `iter()` is one pass: the next `num_samples` samples, by default as many as an epoch has windows. Of a pass, process r of
    `world_size` takes every world_size-th sample from the r-th on, and its worker w of n every n-th of those: together they give each
    sample of the pass once, whatever the batch size. Where `num_samples` is a multiple of world_size × workers × batch size,
    all batches are full and all processes have equally many, and no sample is lost, since the next pass goes on where this one ended.

    The number of the pass is kept in shared memory, so it grows whether or not workers persist; `set_epoch` sets it. Loaders of
    another number of workers count for themselves, and two loaders of the same number must not run at the same time on one dataset.
    torchdata's StatefulDataLoader stops and resumes at any batch.
    """

    def __init__(
        self,
        build: Build | str | Path,
        split: str = "train",
        *,
        block_size: int = 256,
        order: str = "epochs",
        seed: int = 1337,
        num_samples: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """`rank` and `world_size` default to torch.distributed's if it is initialised, else to torchrun's `RANK` and `WORLD_SIZE`, else
        to one process; they are settled here, so initialise first. Raises ShardError or MisuseError.
        """
        self._split = MappedSplit(build, split)
        self._block_size = _positive("block_size", block_size)
        if order not in tuple(ORDERS):
            raise MisuseError(f"no order {order!r}; choose one of {', '.join(ORDERS)}")
        keyed_hash(seed, np.empty(0, np.uint64))  # refuses a seed beyond 64 bits here, not in a worker
        check_windows(self._split.lengths, self._block_size, split)
        self._order = ORDERS[order](self._split.lengths, self._block_size, seed=seed)
        windows = sum((length - 1) // self._block_size for length in self._split.lengths if length)
        self.num_samples = _positive("num_samples", windows if num_samples is None else num_samples)
        self.rank, self.world_size = _process(rank, world_size)
        self._settings = (
            f"build {self._split.build.build_id[:12]} {split}, block_size {block_size}, {order}, seed {seed}, "
        )
        # The next pass of worker w of n at [n, w], of no worker at [0, 0]: each writes a place of its own, so none waits for another.
        self._passes = torch.zeros((MOST_WORKERS + 1, MOST_WORKERS), dtype=torch.int32).share_memory_()
        self._resume: dict[str, Any] | None = None  # the state that was loaded, until it is gone on from
        self._position: list[int] = []  # pass, and samples that this reader has given of it

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._passes.share_memory_()  # a copy's is not: its workers would count passes each for itself, and lose count with each pass

    def set_epoch(self, epoch: int) -> None:
        """Make the next `iter()` pass number `epoch`, from 0, in workers too."""
        if not isinstance(epoch, Integral) or not 0 <= epoch <= LAST_PASS:
            raise MisuseError(f"epoch is {epoch!r}; wanted 0 to {LAST_PASS:,}")
        self._passes.fill_(epoch)
        self._resume, self._position = None, []

    def state_dict(self) -> dict[str, Any]:
        """How far this process, or in a worker this worker, has read. Raises MisuseError where workers read and this process does not."""
        if self._resume is not None:
            return self._resume
        slot = self._slot()
        if not self._position and slot == (0, 0) and bool((self._passes != self._passes[slot]).any()):
            raise MisuseError(
                "workers read this dataset, and each knows its own place alone; take the state of a StatefulDataLoader"
            )
        number, taken = self._position or (int(self._passes[slot]), 0)
        return {"pass": number, "taken": taken, "of": self._describe()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next `iter()` the rest of the pass that `state` is of: nothing, where that pass had been read to its end.

        Raises MisuseError for a state of other data, settings, processes or workers, FolioError for one that is damaged.
        """
        self._check_own(state)
        if any(
            type(state.get(key)) is not int or not 0 <= state[key] <= most
            for key, most in (("pass", LAST_PASS), ("taken", 1 << 62))
        ):
            raise FolioError("the state holds no place in a pass; take another checkpoint")
        self._resume, self._position = dict(state), []

    def _check_own(self, state: dict[str, Any]) -> None:
        told = state.get("of") if isinstance(state, dict) else None
        if told != self._describe():
            raise MisuseError(
                f"the state is of {told}; this is {self._describe()}; resume with what the state was saved with"
            )

    def __iter__(self) -> Iterator[Pair]:
        slot = self._slot()
        number, taken = int(self._passes[slot]), 0
        if self._resume is not None:
            self._check_own(self._resume)  # workers get it from the process that loaded it
            number, taken = self._resume["pass"], self._resume["taken"]
            self._resume = None
        self._passes[slot] = number + 1
        self._position = position = [number, taken]
        num_workers, worker = slot
        reader, num_readers = worker * self.world_size + self.rank, self.world_size * max(num_workers, 1)
        first = number * self.num_samples
        return self._read(range(first + reader, first + self.num_samples, num_readers)[taken:], position)

    def _read(self, samples: range, position: list[int]) -> Iterator[Pair]:
        for begin in range(0, len(samples), CHUNK):
            place = self._order.locate(np.array(samples[begin : begin + CHUNK], np.uint64))
            for pair in _pairs(self._split.windows(*place, self._block_size)):
                position[1] += 1
                yield pair

    def _slot(self) -> tuple[int, int]:
        """The number of workers, and which of them this is; (0, 0) outside of workers."""
        info = get_worker_info()
        if info is None:
            return 0, 0
        if info.num_workers > MOST_WORKERS:
            raise MisuseError(f"{info.num_workers} workers are too many; set num_workers to {MOST_WORKERS} or less")
        return info.num_workers, info.id

    def _describe(self) -> str:
        num_workers, worker = self._slot()
        reader = f"rank {self.rank} of {self.world_size}, " + (
            f"worker {worker} of {num_workers}" if num_workers else "no workers"
        )
        return f"{self._settings}{self.num_samples} samples a pass, {reader}"


class Documents(Dataset[Tensor]):
    """Whole documents: item i is the ids of the split's document i, (L,) int64, with the control ids that the build put around its text.

    `bos_id`, `eot_id` and `pad_id` are the manifest's, None where there is none; `pad_id` falls back to `eot_id`, which does no harm
    where attention mask and labels leave padding out. With `max_tokens` a longer document ends there, without its end-of-text id.
    """

    def __init__(self, build: Build | str | Path, split: str = "train", *, max_tokens: int | None = None) -> None:
        """`build`: an open one, its name, or its folder. Raises ShardError, or MisuseError where it has no document."""
        self._split = MappedSplit(build, split)
        self._split.check_ends()
        self._max_tokens = None if max_tokens is None else _positive("max_tokens", max_tokens)
        self._edges = np.cumsum(
            [len(ends) for ends in self._split.ends], dtype=np.int64
        )  # (S,) exclusive ends of each shard's documents
        if not len(self):
            raise MisuseError(
                f"{self._split.build.folder} has no document in its {split} split; name the other split, or build from more text"
            )
        manifest = self._split.build.manifest
        self.bos_id: int | None = manifest["bos_id"]
        self.eot_id: int | None = manifest["eot_id"]
        self.pad_id: int | None = self.eot_id if manifest["pad_id"] is None else manifest["pad_id"]

    def __len__(self) -> int:
        return int(self._edges[-1]) if len(self._edges) else 0

    def __getitem__(self, index: int) -> Tensor:
        """Raises IndexError outside the dataset, FolioError for a token outside the vocabulary."""
        (shard,), (place,) = locate_items(self._edges, [index])
        return torch.from_numpy(self._split.document(shard, place, self._max_tokens).astype(np.int64))

    def collate(self, documents: Sequence[Tensor]) -> dict[str, Tensor]:
        """`pad_documents` with the build's `pad_id`: a DataLoader's `collate_fn`. Raises MisuseError where the build has none."""
        if self.pad_id is None:
            raise MisuseError(
                f"{self._split.build.folder} has neither pad nor end-of-text id; collate with pad_documents and an id of yours"
            )
        return pad_documents(documents, self.pad_id)


def pad_documents(documents: Sequence[Tensor], pad_id: int) -> dict[str, Tensor]:
    """Documents, (L,) int64 each, as a batch of the longest's length: `input_ids`, `attention_mask`, `labels`, (B, L) int64 each.

    Labels are the input ids, unshifted, as Hugging Face's models want them, and −100 at padding. What is padding goes by
    length, not by id: a document's own end-of-text is learnt, though the padding may have the same id.
    """
    shape = len(documents), max(len(ids) for ids in documents)
    batch = {
        "input_ids": torch.full(shape, pad_id),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, IGNORED),
    }
    for row, ids in enumerate(documents):
        batch["input_ids"][row, : len(ids)] = batch["labels"][row, : len(ids)] = ids
        batch["attention_mask"][row, : len(ids)] = 1
    return batch


def make_loader(
    dataset: Dataset[Any], *, batch_size: int = 32, num_workers: int = 0, **options: Any
) -> DataLoader[Any]:
    """A DataLoader whose workers persist, whose batches are pinned where there is a GPU, and which collates as `dataset` wants.

    Each of the `options` goes to DataLoader as it is, in place of these defaults. Raises MisuseError where `dataset` is none.
    """
    if not isinstance(dataset, Dataset):
        raise MisuseError(
            f"a loader cannot be made of {dataset!r:.80}; wanted a dataset, such as ShuffledWindows(build)"
        )
    usual: dict[str, Any] = {
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "collate_fn": getattr(dataset, "collate", None),
    }
    return DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, **(usual | options))


def _pairs(windows: np.ndarray) -> list[Pair]:
    """Windows, (B, T + 1), as B shifted pairs."""
    tensor = torch.from_numpy(windows.astype(np.int64))
    return list(zip(tensor[:, :-1], tensor[:, 1:], strict=True))


def _process(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process' number among how many, by what was given, by torch.distributed, by torchrun's environment. Raises MisuseError."""
    if (rank is None) != (world_size is None):
        raise MisuseError(f"rank is {rank} and world_size {world_size}; give both or neither")
    if rank is None or world_size is None:
        rank, world_size = _own_process()
    if not 0 <= rank < world_size:
        raise MisuseError(f"rank is {rank} of world_size {world_size}; wanted a rank from 0 to world_size - 1")
    return rank, world_size


def _own_process() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world_size.isdecimal()):
        raise MisuseError(
            f"the environment has RANK={rank!r} and WORLD_SIZE={world_size!r}, wanted numbers; unset them or use torchrun"
        )
    return int(rank), int(world_size)


def _positive(name: str, value: int) -> int:
    if not isinstance(value, Integral) or value < 1:
        raise MisuseError(f"{name} is {value!r}; wanted a whole number, 1 or more")
    return int(value)
