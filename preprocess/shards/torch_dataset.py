"""PyTorch datasets over a build, for custom training loops. docs/own_loop.md shows their use.

TokenWindows gives windows in order, ShuffledWindows gives windows in shuffled order, and Documents
gives whole documents. Data is read when a batch needs it. A dataset is sent to a worker as the path
of the build and a few numbers, and the worker maps the shards itself (mapped.py).

Shuffled data must be divided: a DataLoader copies an iterable dataset into each of its workers, in
each process of a distributed run, and every copy must yield other samples. ShuffledWindows divides
sample numbers. A pass is one iteration over the dataset. Pass p consists of the samples p·n … p·n +
n − 1, for `num_samples` = n. With R ranks and W workers in each there are R·W readers. Worker w of
rank r is reader k = w·R + r and takes the samples k, k + R·W, k + 2·R·W, … of the pass. The window
of a sample is a pure function of its number (windows.py), so readers do not communicate, and
together they read each sample of the pass exactly once.

The state of a reader is therefore two integers: the number of the pass, and how many samples of it
the reader has yielded. By default a DataLoader ends its workers after each pass, so the number of
the pass is kept in shared memory.

This is the only file of preprocess/ that imports torch, and no other file of Folio imports this
file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.format import Build
from preprocess.shards.mapped import MappedSplit, locate_items
from preprocess.shards.permutation import make_hash_key
from preprocess.shards.windows import ORDERS, check_windows

try:
    import torch
    from torch import Tensor
    from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
except ModuleNotFoundError as e:
    raise FolioError(
        f"preprocess.shards.torch_dataset needs PyTorch, and there is no module {e.name!r}; run: pip install torch"
    ) from e

# The state of a reader: the number of its pass, how many samples of the pass it has yielded, and the
# description of the dataset and reader that the state belongs to.
PassState = TypedDict("PassState", {"pass": int, "taken": int, "of": str})
Pair = tuple[Tensor, Tensor]  # inputs and targets, (T,) int64 each; views of one tensor: clone before you change one
IGNORE_INDEX = -100  # a target that torch's cross_entropy and the models of Hugging Face ignore
CHUNK_SAMPLES = 32  # gathered at once by ShuffledWindows; one at a time takes about ten times as long
MAX_WORKERS = 64
MAX_PASS = (1 << 31) - 2  # so that the number of the next pass fits into int32


class TokenWindows(Dataset[Pair]):
    """Pairs of inputs `tokens[s : s + T]` and targets `tokens[s + 1 : s + T + 1]`, (T,) int64 each.

    T is `block_size`. In each shard s is 0, `stride`, 2·`stride`, …, and no window crosses the end
    of a shard. With stride 1 a shard of N tokens gives N − T items. With the default stride of T no
    token is a target twice. To train on windows in random order, use ShuffledWindows: a DataLoader
    with `shuffle=True` needs 8 bytes of memory per item.
    """

    def __init__(
        self, build: Build | str | Path, split: str = "train", *, block_size: int = 256, stride: int | None = None
    ) -> None:
        """`build`: an open build, its name, or its folder.

        Raises ShardError if the build is damaged, MisuseError if it does not exist or has no
        window.
        """
        self._split = MappedSplit(build, split)
        self._block_size = _check_positive("block_size", block_size)
        self._stride = _check_positive("stride", self._block_size if stride is None else stride)
        check_windows(self._split.lengths, self._block_size, split)
        counts = [max(-(-(length - self._block_size) // self._stride), 0) for length in self._split.lengths]
        self._edges = np.cumsum(counts)  # (S,) exclusive end of each shard's items

    def __len__(self) -> int:
        return int(self._edges[-1])

    def __getitem__(self, index: int) -> Pair:
        """Return the pair of window `index`; a negative index counts from the end.

        Raises IndexError for an index out of range, FolioError for an id outside the vocabulary.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Pair]:
        """Return the pairs of several windows. A DataLoader calls this once per batch."""
        shard, number = locate_items(self._edges, indices)
        return _make_pairs(self._split.read_windows(shard, number * self._stride, self._block_size))


class ShuffledWindows(IterableDataset[Pair]):
    """Pairs like those of TokenWindows, shuffled, and divided among processes and workers.

    With `order="epochs"`, windows do not overlap, each is visited once per epoch, and the shards
    are cut at other places in each epoch. With `order="random"`, a window may begin at any token,
    and windows are drawn with replacement. The window of a sample is a pure function of `seed` and
    the sample number.

    One `iter()` is one pass: the next `num_samples` samples, by default as many as an epoch has
    windows. All readers together yield each sample of the pass once, for any batch size. If
    `num_samples` is a multiple of world_size × workers × batch size, all batches are full and all
    processes have the same number of them. If it is also less than an epoch, no window of the epoch
    is lost: the next pass begins with the remaining ones.

    The number of the pass is kept in shared memory, so it also advances if workers do not persist.
    `set_epoch` sets it. Loaders with different numbers of workers count passes separately. Two
    loaders with the same number of workers must not read one dataset at the same time. With the
    StatefulDataLoader of torchdata a loop can stop and resume at any batch.
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
        """`build`: an open build, its name, or its folder.

        `rank` and `world_size` default to those of torch.distributed if it is initialised, else to
        the environment variables `RANK` and `WORLD_SIZE` of torchrun, else to a single process.
        They are determined here, so call `torch.distributed.init_process_group` first.

        Raises ShardError if the build is damaged, MisuseError for invalid settings.
        """
        self._split = MappedSplit(build, split)
        self._block_size = _check_positive("block_size", block_size)
        if order not in tuple(ORDERS):
            raise MisuseError(f"no order {order!r}; choose one of {', '.join(ORDERS)}")
        make_hash_key(seed)  # rejects a seed beyond 64 bits here, not in a worker
        check_windows(self._split.lengths, self._block_size, split)
        self._order = ORDERS[order](self._split.lengths, self._block_size, seed=seed)
        windows = sum((length - 1) // self._block_size for length in self._split.lengths if length)
        self.num_samples = _check_positive("num_samples", windows if num_samples is None else num_samples)
        self.rank, self.world_size = _resolve_process(rank, world_size)
        self._settings = (
            f"build {self._split.build.build_id[:12]} {split}, block_size {block_size}, {order}, seed {seed}, "
        )
        # Element [n, w] is the number of the next pass of worker w of n, and [0, 0] that of a process
        # without workers. Each reader writes to a different element, so no lock is needed.
        self._passes = torch.zeros((MAX_WORKERS + 1, MAX_WORKERS), dtype=torch.int32).share_memory_()
        self._loaded: PassState | None = None  # a loaded state, until the next iter() continues from it
        self._position: list[int] = []  # of this reader: number of its pass, number of samples that it yielded

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A copied tensor is not in shared memory. Without this, the passes that a worker counts
        # would be lost when it ends.
        self._passes.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Make the next `iter()` yield pass number `epoch`, from 0, in this process and in workers.

        Raises MisuseError for a number outside 0 to MAX_PASS.
        """
        if not isinstance(epoch, Integral) or not 0 <= epoch <= MAX_PASS:
            raise MisuseError(f"epoch must be a whole number from 0 to {MAX_PASS:,}, got {epoch!r}")
        self._passes.fill_(epoch)
        self._loaded, self._position = None, []

    def state_dict(self) -> PassState:
        """Return the position of this process, or of this worker if called in a worker.

        Raises MisuseError in the main process if only workers have read the dataset.
        """
        if self._loaded is not None:
            return self._loaded
        slot = self._find_slot()
        if not self._position and slot == (0, 0) and bool((self._passes != self._passes[slot]).any()):
            raise MisuseError(
                "workers read this dataset, and only they know their positions; save the state of a StatefulDataLoader"
            )
        number, num_taken = self._position or (int(self._passes[slot]), 0)
        return {"pass": number, "taken": num_taken, "of": self._describe()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next `iter()` yield the remaining samples, if any, of the pass in `state`.

        Raises MisuseError for a state of other data, settings, processes or workers, FolioError for
        a damaged state. Whether the number of workers differs may be noticed only by `iter()`.
        """
        self._check_identity(state)
        if any(
            type(state.get(key)) is not int or not 0 <= state[key] <= max_value
            for key, max_value in (("pass", MAX_PASS), ("taken", 1 << 62))
        ):
            raise FolioError("the state has no valid position in a pass; use another checkpoint")
        self._loaded, self._position = {"pass": state["pass"], "taken": state["taken"], "of": state["of"]}, []

    def _check_identity(self, state: Mapping[str, Any]) -> None:
        identity = state.get("of") if isinstance(state, dict) else None
        if identity != self._describe():
            raise MisuseError(
                f"the state belongs to {identity}; this is {self._describe()}; "
                "resume with the data, settings, processes and workers of the state"
            )

    def __iter__(self) -> Iterator[Pair]:
        slot = self._find_slot()
        number, num_taken = int(self._passes[slot]), 0
        if self._loaded is not None:
            self._check_identity(self._loaded)  # a worker gets the state from the process that loaded it
            number, num_taken = self._loaded["pass"], self._loaded["taken"]
            self._loaded = None
        self._passes[slot] = number + 1
        self._position = position = [number, num_taken]
        num_workers, worker = slot
        reader, num_readers = worker * self.world_size + self.rank, self.world_size * max(num_workers, 1)
        first = number * self.num_samples
        return self._read(range(first + reader, first + self.num_samples, num_readers)[num_taken:], position)

    def _read(self, samples: range, position: list[int]) -> Iterator[Pair]:
        for begin in range(0, len(samples), CHUNK_SAMPLES):
            shard, start = self._order.locate(np.array(samples[begin : begin + CHUNK_SAMPLES], np.uint64))
            for pair in _make_pairs(self._split.read_windows(shard, start, self._block_size)):
                position[1] += 1
                yield pair

    def _find_slot(self) -> tuple[int, int]:
        """Return the number of workers and that of this worker, or (0, 0) outside of workers."""
        info = get_worker_info()
        if info is None:
            return 0, 0
        if info.num_workers > MAX_WORKERS:
            raise MisuseError(f"{info.num_workers} workers are too many; set num_workers to {MAX_WORKERS} or less")
        return info.num_workers, info.id

    def _describe(self) -> str:
        """Describe this dataset and reader. States contain the text, so it must never change."""
        num_workers, worker = self._find_slot()
        reader = f"rank {self.rank} of {self.world_size}, " + (
            f"worker {worker} of {num_workers}" if num_workers else "no workers"
        )
        return f"{self._settings}{self.num_samples} samples a pass, {reader}"


class Documents(Dataset[Tensor]):
    """Whole documents: item i is the ids of document i of the split, (L,) int64.

    The ids include the control tokens around the text. `bos_id`, `eot_id` and `pad_id` are those of
    the manifest. If the manifest has no pad_id, `pad_id` is the eot_id; this is safe if the
    attention mask and the labels exclude padding. A document longer than `max_tokens` is truncated,
    so it has no end-of-text token.
    """

    def __init__(self, build: Build | str | Path, split: str = "train", *, max_tokens: int | None = None) -> None:
        """`build`: an open build, its name, or its folder.

        Raises ShardError if the build is damaged, MisuseError if it does not exist or has no
        document.
        """
        self._split = MappedSplit(build, split)
        self._split.check_ends()
        self._max_tokens = None if max_tokens is None else _check_positive("max_tokens", max_tokens)
        counts = [len(ends) for ends in self._split.ends]
        self._edges = np.cumsum(counts, dtype=np.int64)  # (S,) exclusive end of each shard's documents
        if not len(self):
            raise MisuseError(
                f"{self._split.build.folder} has no document in its {split} split; "
                "name the other split, or build from more text"
            )
        manifest = self._split.build.manifest
        self.bos_id = manifest.bos_id
        self.eot_id = manifest.eot_id
        self.pad_id = manifest.eot_id if manifest.pad_id is None else manifest.pad_id

    def __len__(self) -> int:
        return int(self._edges[-1]) if len(self._edges) else 0

    def __getitem__(self, index: int) -> Tensor:
        """Return the ids of document `index`, (L,) int64; a negative index counts from the end.

        Raises IndexError for an index out of range, FolioError for an id outside the vocabulary.
        """
        (shard,), (number,) = locate_items(self._edges, [index])
        return torch.from_numpy(self._split.read_document(shard, number, self._max_tokens).astype(np.int64))

    def collate(self, documents: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return `pad_documents(documents, self.pad_id)`. This is a `collate_fn` for a DataLoader.

        Raises MisuseError if the build has neither pad_id nor eot_id.
        """
        if self.pad_id is None:
            raise MisuseError(
                f"{self._split.build.folder} has neither a padding id nor an end-of-text id; "
                "call pad_documents with an id of your choice"
            )
        return pad_documents(documents, self.pad_id)


def pad_documents(documents: Sequence[Tensor], pad_id: int) -> dict[str, Tensor]:
    """Return B documents, (L,) int64 each, as a dict of three int64 tensors, (B, max L).

    `input_ids` are padded with `pad_id` to the length of the longest document. `attention_mask` is
    1 at tokens and 0 at padding. `labels` are the input ids, not shifted, as the models of Hugging
    Face expect, and −100 at padding. Padding is determined by length, not by id. So the end-of-text
    token of a document is learned even if it is also used for padding.
    """
    shape = len(documents), max(len(ids) for ids in documents)  # (B, L)
    batch = {
        "input_ids": torch.full(shape, pad_id),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, IGNORE_INDEX),
    }
    for row, ids in enumerate(documents):
        batch["input_ids"][row, : len(ids)] = batch["labels"][row, : len(ids)] = ids
        batch["attention_mask"][row, : len(ids)] = 1
    return batch


def make_loader(
    dataset: Dataset[Any], *, batch_size: int = 32, num_workers: int = 0, **options: Any
) -> DataLoader[Any]:
    """Return a DataLoader with good defaults for the datasets of this module.

    Workers persist, batches are in pinned memory if there is a GPU, and `dataset.collate`, if it
    exists, is the `collate_fn`. `options` are passed to DataLoader and override these defaults.
    Raises MisuseError if `dataset` is not a `torch.utils.data.Dataset`.
    """
    if not isinstance(dataset, Dataset):
        raise MisuseError(
            f"a loader cannot be made from {dataset!r:.80}; expected a dataset, such as ShuffledWindows(build)"
        )
    defaults: dict[str, Any] = {
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "collate_fn": getattr(dataset, "collate", None),
    }
    return DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, **(defaults | options))


def _make_pairs(windows: np.ndarray) -> list[Pair]:
    """Return windows, (B, T + 1), as B pairs of inputs and targets, (T,) each."""
    tensor = torch.from_numpy(windows.astype(np.int64))
    return list(zip(tensor[:, :-1], tensor[:, 1:], strict=True))


def _resolve_process(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return the given rank and world size, or those of this process if they are None."""
    if (rank is None) != (world_size is None):
        raise MisuseError(f"rank is {rank} and world_size {world_size}; give both or neither")
    if rank is None or world_size is None:
        rank, world_size = _detect_process()
    if not 0 <= rank < world_size:
        raise MisuseError(f"rank must be from 0 to world_size - 1, got rank {rank} of world_size {world_size}")
    return rank, world_size


def _detect_process() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world_size.isdecimal()):
        raise MisuseError(
            f"the environment has RANK={rank!r} and WORLD_SIZE={world_size!r}, expected numbers; "
            "unset them or use torchrun"
        )
    return int(rank), int(world_size)


def _check_positive(name: str, value: int) -> int:
    if not isinstance(value, Integral) or value < 1:
        raise MisuseError(f"{name} must be a whole number of 1 or more, got {value!r}")
    return int(value)
