"""Builds' tokens, mapped: which windows make which batch, and how they reach the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from preprocess.errors import MisuseError
from preprocess.shards.mapped import MappedSplit
from preprocess.shards.mixture import Mixture
from preprocess.shards.permutation import keyed_hash
from preprocess.shards.windows import ORDERS, check_windows, document_numbers, sequential_windows
from train.config import Config
from train.core.distributed import World
from train.data.builds import Builds

Batch = tuple[
    Tensor, Tensor, Tensor | None
]  # inputs, targets, and, where documents are masked, their documents' numbers: (B, T) int64 each
Places = tuple[
    np.ndarray, np.ndarray, np.ndarray
]  # which build, which of its shards, and the start in it, of windows: (B,) int64 each
# So that what follows from the seed does not follow from one another.
DROPOUT_KEY, BUILD_KEY = 0x5EED, 0xB01D
LOCATED_AT_ONCE = 1024  # samples; to locate that many takes twice as long as to locate twelve
MOST_WINDOWS = 1 << 16  # of a forward pass; no device computes more at once any faster


class Mixed:
    """One split of several builds: rows of a batch come from one or another."""

    def __init__(self, builds: Builds, split: str, config: Config, *, device: torch.device) -> None:
        """Raises FolioError where a build's split holds no window."""
        self.parts = [MappedSplit(build, split) for build in builds.builds]
        for part in self.parts:
            check_windows(part.lengths, config.block_size, split)
        self._block_size, self._masks_documents, self._device = config.block_size, config.mask_documents, device
        self._dtype = np.result_type(*(part.build.dtype for part in self.parts))

    def batch(self, places: Places) -> Batch:
        """The windows at `places`, in their order."""
        source, shard, start = places
        if len(self.parts) == 1:  # whose rows need no putting together: a third of a small batch's time
            return self._on_device(*self._read(self.parts[0], shard, start))
        tokens = np.empty((len(source), self._block_size + 1), self._dtype)
        documents = np.empty((len(source), self._block_size), np.int32) if self._masks_documents else None
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero(source == number)
            if len(rows):
                tokens[rows], of_rows = self._read(part, shard[rows], start[rows])
                if documents is not None:
                    documents[rows] = of_rows
        return self._on_device(tokens, documents)

    def _read(self, part: MappedSplit, shard: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, Any]:
        """Windows, and where documents are masked their documents' numbers."""
        documents = document_numbers(part.ends, shard, start, self._block_size) if self._masks_documents else None
        return part.windows(shard, start, self._block_size), documents

    def _on_device(self, tokens: np.ndarray, documents: np.ndarray | None) -> Batch:
        windows = to_device(tokens, self._device)
        return windows[:, :-1], windows[:, 1:], None if documents is None else to_device(documents, self._device)


class TrainingSamples(Protocol):
    """What a run asks of its training samples: TrainingData has them of builds, StreamedTraining of a stream."""

    num_tokens: int | None  # None where nobody knows

    def batch(self, first: int, count: int) -> Batch: ...
    def trial_batch(self, count: int) -> Batch: ...
    def state_at(self, first: int) -> dict[str, Any] | None: ...
    def go_to(self, state: dict[str, Any] | None) -> None: ...


class ValidationWindows(Protocol):
    """What an evaluation asks: ValidationData has it of builds, StreamedValidation of a stream."""

    source: np.ndarray  # (W,) which build each window comes from
    shares: tuple[float, ...]
    names: list[str]
    splits: list[dict[str, Any]]  # of each build, with tokens and text_bytes

    @property
    def num_windows(self) -> int: ...
    def batch(self, numbers: np.ndarray) -> Batch: ...

    def batches(self, batch_size: int, *, rank: int = 0, num_ranks: int = 1) -> Iterator[tuple[np.ndarray, Batch]]:
        """Every num_ranks-th window beginning with number `rank`, batch_size at a time: their numbers, and they.

        Where they are no multiple of it, the last batch begins early, with windows that came before: batches of one shape, for
        another would be compiled anew. Only fewer than batch_size in all come in a smaller one.
        """
        mine = np.arange(rank, self.num_windows, num_ranks)
        for first in range(0, len(mine), batch_size):
            begin = max(min(first, len(mine) - batch_size), 0)
            numbers = mine[begin : begin + batch_size]
            yield numbers, self.batch(numbers)


class TrainingData:
    """The endless line of training samples. Sample `number` depends on nothing but the seed, so resuming needs one integer."""

    def __init__(self, builds: Builds, config: Config, *, device: torch.device) -> None:
        self._mixed = Mixed(builds, "train", config, device=device)
        self._orders = [
            ORDERS[config.data_order](part.lengths, config.block_size, seed=build_seed(config.seed, number))
            for number, part in enumerate(self._mixed.parts)
        ]
        self._mixture = Mixture(builds.shares, seed=config.seed) if len(builds.builds) > 1 else None
        self.num_tokens: int | None = sum(sum(part.lengths) for part in self._mixed.parts)
        none = np.empty(0, np.int64)
        self._located_from, self._located = 0, (none, none, none)  # places that were found, of samples in a row

    def trial_batch(self, count: int) -> Batch:
        """`count` samples to try a step with."""
        return self.batch(0, count)

    def state_at(self, first: int) -> dict[str, Any] | None:
        """None: samples follow from their number."""
        return None

    def go_to(self, state: dict[str, Any] | None) -> None:
        """Raises MisuseError where a checkpoint holds a place in a stream."""
        if state is not None:
            raise MisuseError("the checkpoint holds a place in a stream; take its weights alone, by --init_from")

    def batch(self, first: int, count: int) -> Batch:
        """Samples number `first` to `first + count`, counted from 0 over the whole run."""
        begin, num_located = first - self._located_from, len(self._located[0])
        if not 0 <= begin <= num_located - count:
            # One of many processes skips what the others read; only what is read on from here is worth locating before it is asked for.
            reads_on = 0 < begin <= num_located
            self._located_from, begin = first, 0
            self._located = self._locate(
                np.arange(first, first + (max(count, LOCATED_AT_ONCE) if reads_on else count), dtype=np.uint64)
            )
        source, shard, start = (column[begin : begin + count] for column in self._located)
        return self._mixed.batch((source, shard, start))

    def _locate(self, samples: np.ndarray) -> Places:
        if self._mixture is None:
            return np.zeros(len(samples), np.int64), *self._orders[0].locate(samples)
        source, number = self._mixture.assign(samples)
        shard, start = np.empty(len(samples), np.int64), np.empty(len(samples), np.int64)
        for build, order in enumerate(self._orders):
            rows = source == build
            shard[rows], start[rows] = order.locate(number[rows])
        return source, shard, start


class ValidationData(ValidationWindows):
    """The fixed windows that every evaluation of a run reads, in order."""

    def __init__(self, builds: Builds, config: Config, *, device: torch.device) -> None:
        self._mixed = Mixed(builds, "val", config, device=device)
        lengths = [part.lengths for part in self._mixed.parts]
        wanted = _allot(config.eval_tokens, builds.shares, config.block_size)
        places = [sequential_windows(part, config.block_size, most) for part, most in zip(lengths, wanted, strict=True)]
        self.source = np.repeat(np.arange(len(places)), [len(shard) for shard, _ in places])
        self._shard, self._start = (np.concatenate(column) for column in zip(*places, strict=True))
        self.shares = builds.shares
        self.names = [build.name for build in builds.builds]
        self.splits: list[dict[str, Any]] = [build.manifest["splits"]["val"] for build in builds.builds]

    @property
    def num_windows(self) -> int:
        return len(self._shard)

    def batch(self, numbers: np.ndarray) -> Batch:
        """Windows number `numbers`, (B,)."""
        return self._mixed.batch((self.source[numbers], self._shard[numbers], self._start[numbers]))


@dataclass(frozen=True)
class Data:
    """What a run reads."""

    train: TrainingSamples
    val: ValidationWindows


def open_data(builds: Builds, config: Config, *, device: torch.device) -> Data:
    """Raises FolioError where no shard holds a window."""
    return Data(TrainingData(builds, config, device=device), ValidationData(builds, config, device=device))


def build_seed(seed: int, number: int) -> int:
    """What the order of build `number` of a mixture follows from: the first's from `seed`, as if it were alone."""
    return seed if number == 0 else int(keyed_hash(seed ^ BUILD_KEY, np.array([number], np.uint64))[0])


def _allot(eval_tokens: int | None, shares: Sequence[float], block_size: int) -> list[int | None]:
    """How many windows an evaluation reads of each build: its share, and at least one."""
    if eval_tokens is None:
        return [None] * len(shares)
    return [max(round(eval_tokens // block_size * share), 1) for share in shares]


def to_device(tokens: np.ndarray, device: torch.device) -> Tensor:
    """`tokens`, none negative, any shape, as int64 on `device`. To a GPU they travel narrow and widen there."""
    if device.type != "cuda":
        return torch.from_numpy(tokens.astype(np.int64)).to(device)
    # Few of torch's kernels take unsigned integers: the same bits travel signed, and the mask takes the sign away.
    bits = 8 * tokens.dtype.itemsize
    narrow = torch.from_numpy(tokens.view(f"i{tokens.dtype.itemsize}")).pin_memory()
    return narrow.to(device, non_blocking=True).to(torch.int64) & ((1 << bits) - 1)


class Prefetcher:
    """This process' part of the samples of each step, a micro-batch at a time, the next one made while the device computes.

    Step samples are numbered through; micro-batch m of process r holds `micro_batch` of them from (m · processes + r) · micro_batch on.
    So the samples of a step are the same for any number of processes and any micro-batch.
    """

    def __init__(self, data: TrainingSamples, *, windows_per_step: int, micro_batch: int, world: World) -> None:
        """`micro_batch` divides this process' share of windows_per_step."""
        self._data, self._world, self.micro_batch = data, world, micro_batch
        self.accumulation = windows_per_step // (world.size * micro_batch)
        self._ready: tuple[int, Batch] | None = None

    def first_sample(self, step_begin: int, micro: int) -> int:
        """The number of the first sample of micro-batch `micro` of the step whose samples begin at `step_begin`.

        `micro` = accumulation is the first micro-batch of the next step.
        """
        return step_begin + (micro * self._world.size + self._world.rank) * self.micro_batch

    def prepare(self, first: int) -> None:
        self._ready = first, self._data.batch(first, self.micro_batch)

    def take(self, first: int) -> Batch:
        """The micro-batch of samples from `first` on: the prepared one, or, where training went another way, a new one."""
        if self._ready is None or self._ready[0] != first:
            self.prepare(first)
        assert self._ready is not None
        return self._ready[1]


def share_of_step(windows_per_step: int, world: World) -> int:
    """Windows of a step that each process computes. Raises MisuseError where they cannot be shared out evenly."""
    if windows_per_step % world.size:
        raise MisuseError(
            f"batch_size × gradient_accumulation_steps is {windows_per_step:,}, which {world.size} processes cannot share evenly; "
            f"make it a multiple of {world.size}"
        )
    return windows_per_step // world.size


def largest_micro_batch(share: int, most: int) -> int:
    """The largest number of windows up to `most`, and up to MOST_WINDOWS, that divides `share`."""
    return next(n for n in range(min(share, most, MOST_WINDOWS), 0, -1) if share % n == 0)


def dropout_seed(seed: int, first_sample: int) -> int:
    """What torch's generator begins a micro-batch with, so that dropout too follows from the sample number alone."""
    return int(keyed_hash(seed ^ DROPOUT_KEY, np.array([first_sample], np.uint64))[0])
