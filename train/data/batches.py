"""From the token shards of builds to batches on the device.

Sample number n of a run is a pure function of (seed, n): which build it comes from, which shard,
and where its window starts. So resuming needs one integer, and a step has the same samples for any
number of processes and any micro-batch. The setting data_order selects how windows are ordered
(`ORDERS` in preprocess/shards/windows.py); this file reads the windows from the memory-mapped
shards and copies them to the device.

Hashing is the slow part of locating a sample: locating 1,024 takes twice as long as locating 12. A
process that reads sequentially therefore locates 1,024 at once and keeps the result.

Shapes: B windows, T = block_size tokens, W validation windows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from preprocess.errors import MisuseError
from preprocess.shards.mapped import MappedSplit
from preprocess.shards.mixture import Mixture
from preprocess.shards.permutation import keyed_hash
from preprocess.shards.windows import ORDERS, check_windows, list_sequential_windows, number_documents
from train.config import Config
from train.core.distributed import World
from train.data.builds import Builds

# Inputs, targets and, with mask_documents, the number of each token's document: (B, T) int64 each.
Batch = tuple[Tensor, Tensor, Tensor | None]
# Of each window: the index of its build, its shard in that build, and its first token in that
# shard: (B,) int64 each.
Locations = tuple[np.ndarray, np.ndarray, np.ndarray]
ResumeState = Mapping[str, Any]  # a position in a stream, as JSON values
DROPOUT_KEY, BUILD_KEY = 0x5EED, 0xB01D  # combined with the seed, so that its uses are independent of each other
LOOKAHEAD_SAMPLES = 1024
MAX_WINDOWS = 1 << 16  # per forward pass; no device is faster with more


class MixedSplit:
    """One split of one or more builds. The rows of a batch can come from any of them."""

    def __init__(self, builds: Builds, split: str, config: Config, *, device: torch.device) -> None:
        """Memory-map the shards of `split`, "train" or "val".

        Raises FolioError if the split of a build is shorter than one window, and ShardError if a
        build was replaced or, with mask_documents, has damaged document ends.
        """
        self.parts = [MappedSplit(build, split) for build in builds.builds]
        for part in self.parts:
            check_windows(part.lengths, config.block_size, split)
            if config.mask_documents:
                part.check_ends()
        self._block_size, self._masks_documents, self._device = config.block_size, config.mask_documents, device
        self._dtype = np.result_type(np.uint16, *(part.build.dtype for part in self.parts))

    def batch(self, locations: Locations) -> Batch:
        """Return the windows at `locations`, in that order."""
        build_index, shard, start = locations
        if len(self.parts) == 1:  # no rows to merge, which would take a third of a small batch's time
            return self._to_batch(*self._read(self.parts[0], shard, start))
        tokens = np.empty((len(build_index), self._block_size + 1), self._dtype)  # (B, T + 1)
        documents = np.empty((len(build_index), self._block_size), np.int32) if self._masks_documents else None
        for index, part in enumerate(self.parts):
            rows = np.flatnonzero(build_index == index)
            if len(rows):
                tokens[rows], row_documents = self._read(part, shard[rows], start[rows])
                if documents is not None:
                    documents[rows] = row_documents
        return self._to_batch(tokens, documents)

    def _read(self, part: MappedSplit, shard: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, Any]:
        """Return the tokens, (B, T + 1), and the number of each token's document, (B, T).

        Without mask_documents, the second value is None.
        """
        documents = number_documents(part.ends, shard, start, self._block_size) if self._masks_documents else None
        return part.read_windows(shard, start, self._block_size), documents

    def _to_batch(self, tokens: np.ndarray, documents: np.ndarray | None) -> Batch:
        windows = to_device(tokens, self._device)  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:], None if documents is None else to_device(documents, self._device)


class TrainingSamples(Protocol):
    """What training reads: `TrainingData` for builds, `StreamedTraining` for a stream."""

    num_tokens: int | None  # training tokens; None if the number is not known

    def batch(self, first: int, count: int) -> Batch:
        """Return samples number `first` to `first + count - 1`."""

    def trial_batch(self, count: int) -> Batch:
        """Return `count` samples to try a step with, without consuming them."""

    def resume_state(self, first: int) -> ResumeState | None:
        """Return what a checkpoint must store, besides the number, to continue with sample `first`.

        It is None for builds, where the number is enough.
        """

    def restore(self, state: ResumeState | None) -> None:
        """Continue from `state`, which `resume_state` returned.

        Raises MisuseError if it belongs to another kind of data.
        """


@dataclass(frozen=True, kw_only=True)
class TextSize:
    """The size of a text in tokens and in bytes, to convert nats per token to bits per byte."""

    num_tokens: int
    text_bytes: int  # UTF-8


class ValidationWindows(Protocol):
    """What an evaluation reads: `ValidationData` for builds, `StreamedValidation` for a stream."""

    build_index: np.ndarray  # (W,) the build of each window
    shares: tuple[float, ...]  # of the builds
    names: list[str]  # of the builds
    sizes: list[TextSize]  # for each build, of the text that the windows were taken from

    @property
    def num_windows(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the windows with the numbers `indices`, (B,) int64."""

    def batches(self, batch_size: int, *, rank: int = 0, num_ranks: int = 1) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yield (window indices, batch) for the windows rank, rank + num_ranks, … in batches.

        All batches have the same shape, because a compiled model is compiled again for another one:
        the last batch begins earlier and repeats windows of the one before. A rank that has fewer
        than `batch_size` windows yields one smaller batch.
        """
        indices = np.arange(rank, self.num_windows, num_ranks)
        for first in range(0, len(indices), batch_size):
            begin = max(min(first, len(indices) - batch_size), 0)
            chosen = indices[begin : begin + batch_size]
            yield chosen, self.batch(chosen)


class TrainingData(TrainingSamples):
    """The endless sequence of training samples of builds; sample n depends only on the seed and n."""

    def __init__(self, builds: Builds, config: Config, *, device: torch.device) -> None:
        self._split = MixedSplit(builds, "train", config, device=device)
        self._orders = [
            ORDERS[config.data_order](part.lengths, config.block_size, seed=build_seed(config.seed, index))
            for index, part in enumerate(self._split.parts)
        ]
        self._mixture = Mixture(builds.shares, seed=config.seed) if len(builds.builds) > 1 else None
        self.num_tokens: int | None = sum(sum(part.lengths) for part in self._split.parts)
        empty = np.empty(0, np.int64)
        self._first_located = 0  # the number of the first sample in `_located`
        self._located: Locations = (empty, empty, empty)

    def batch(self, first: int, count: int) -> Batch:
        """Return samples number `first` to `first + count - 1`, counted from 0 over the whole run."""
        begin, num_located = first - self._first_located, len(self._located[0])
        if not 0 <= begin <= num_located - count:
            # With several processes each call skips the other ranks' samples; look ahead only when
            # reading sequentially.
            is_sequential = 0 < begin <= num_located
            num_samples = max(count, LOOKAHEAD_SAMPLES) if is_sequential else count
            self._first_located, begin = first, 0
            self._located = self._locate(np.arange(first, first + num_samples, dtype=np.uint64))
        build_index, shard, start = (column[begin : begin + count] for column in self._located)
        return self._split.batch((build_index, shard, start))

    def trial_batch(self, count: int) -> Batch:
        return self.batch(0, count)

    def resume_state(self, first: int) -> ResumeState | None:
        return None

    def restore(self, state: ResumeState | None) -> None:
        if state is not None:
            raise MisuseError("the checkpoint stores the position in a stream, not in a build; use --init_from")

    def _locate(self, samples: np.ndarray) -> Locations:
        """Return where the windows of `samples`, (B,) uint64, are."""
        if self._mixture is None:
            return np.zeros(len(samples), np.int64), *self._orders[0].locate(samples)
        build_index, number_in_build = self._mixture.assign(samples)
        shard, start = np.empty(len(samples), np.int64), np.empty(len(samples), np.int64)
        for index, order in enumerate(self._orders):
            rows = build_index == index
            shard[rows], start[rows] = order.locate(number_in_build[rows])
        return build_index, shard, start


class ValidationData(ValidationWindows):
    """The windows that every evaluation of a run reads: always the same, in order, without overlap."""

    def __init__(self, builds: Builds, config: Config, *, device: torch.device) -> None:
        """Choose the windows: about eval_tokens tokens, divided among the builds by their shares.

        Every build that has validation documents has at least one window; one that was built with
        val_fraction 0 has none. Without eval_tokens, the whole splits are read. Raises the errors of
        MixedSplit.
        """
        builds = select_validated(builds)
        self._split = MixedSplit(builds, "val", config, device=device)
        max_windows = _share_windows(config.eval_tokens, builds.shares, config.block_size)
        located = [
            list_sequential_windows(part.lengths, config.block_size, count)
            for part, count in zip(self._split.parts, max_windows, strict=True)
        ]
        self.build_index = np.repeat(np.arange(len(located)), np.array([len(shard) for shard, _ in located], np.int64))
        nothing = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        self._shard, self._start = (np.concatenate(column) for column in zip(*(located or nothing), strict=True))
        self.shares = builds.shares
        self.names = [build.name for build in builds.builds]
        splits = [build.manifest.splits["val"] for build in builds.builds]
        self.sizes = [TextSize(num_tokens=split.tokens, text_bytes=split.text_bytes) for split in splits]

    @property
    def num_windows(self) -> int:
        return len(self._shard)

    def batch(self, indices: np.ndarray) -> Batch:
        return self._split.batch((self.build_index[indices], self._shard[indices], self._start[indices]))


@dataclass(frozen=True)
class Data:
    """The training samples and the validation windows of a run."""

    train: TrainingSamples
    val: ValidationWindows


def open_data(builds: Builds, config: Config, *, device: torch.device) -> Data:
    """Return the data of `builds`.

    Raises FolioError if a split of a build is shorter than one window, unless it is an empty
    validation split.
    """
    return Data(TrainingData(builds, config, device=device), ValidationData(builds, config, device=device))


def select_validated(builds: Builds) -> Builds:
    """Return the builds that have validation documents; their shares sum to 1."""
    pairs = zip(builds.builds, builds.shares, strict=True)
    chosen = [(build, share) for build, share in pairs if build.manifest.splits["val"].documents]
    if len(chosen) == len(builds.builds):
        return builds
    total = sum(share for _, share in chosen)
    shares = tuple(share / total for _, share in chosen)
    return dataclasses.replace(builds, builds=tuple(build for build, _ in chosen), shares=shares)


def build_seed(seed: int, index: int) -> int:
    """Return the seed of the data order of build number `index`.

    For build 0 it is `seed` itself, so that it has the same order alone and as the first of
    several.
    """
    return seed if index == 0 else int(keyed_hash(seed ^ BUILD_KEY, np.array([index], np.uint64))[0])


def dropout_seed(seed: int, first_sample: int) -> int:
    """Return the seed of the dropout of the micro-batch that begins with sample `first_sample`.

    It depends only on these two numbers, so a resumed run has the same dropout.
    """
    return int(keyed_hash(seed ^ DROPOUT_KEY, np.array([first_sample], np.uint64))[0])


def _share_windows(eval_tokens: int | None, shares: Sequence[float], block_size: int) -> list[int | None]:
    """Return the number of windows that an evaluation reads from each build, or None for all.

    It is at least one.
    """
    if eval_tokens is None:
        return [None] * len(shares)
    return [max(round(eval_tokens // block_size * share), 1) for share in shares]


def to_device(tokens: np.ndarray, device: torch.device) -> Tensor:
    """Return `tokens`, an array of any shape, as an int64 tensor on `device`.

    `tokens` contains non-negative integers in a dtype of at most 32 bits. For a GPU, they are
    copied asynchronously from pinned memory in this dtype, and converted to int64 on the GPU.
    """
    if device.type != "cuda":
        return torch.from_numpy(tokens.astype(np.int64)).to(device)
    # Few torch kernels accept unsigned integers: send the same bits as signed ones and mask off the
    # sign extension.
    bits = 8 * tokens.dtype.itemsize
    narrow = torch.from_numpy(tokens.view(f"i{tokens.dtype.itemsize}")).pin_memory()
    return narrow.to(device, non_blocking=True).to(torch.int64) & ((1 << bits) - 1)


class Prefetcher:
    """This process's micro-batches of each step; the next one is read while the device computes.

    Of a step's samples, counted from 0, micro-batch m of process r has those from
    (m · num_processes + r) · micro_batch to (m · num_processes + r + 1) · micro_batch - 1.
    """

    def __init__(self, samples: TrainingSamples, *, windows_per_step: int, micro_batch: int, world: World) -> None:
        """`micro_batch` must divide this process's share of windows_per_step."""
        self._samples, self._world, self.micro_batch = samples, world, micro_batch
        self.num_micro_batches = windows_per_step // (world.size * micro_batch)
        self._ready: tuple[int, Batch] | None = None

    def first_sample(self, step_begin: int, micro: int) -> int:
        """Return the number of the first sample of micro-batch `micro` of a step.

        `step_begin` is the number of the step's first sample. `micro` = num_micro_batches is the
        first micro-batch of the next step.
        """
        return step_begin + (micro * self._world.size + self._world.rank) * self.micro_batch

    def prepare(self, first: int) -> None:
        """Read the micro-batch that begins with sample `first`, and keep it for `take`."""
        self._ready = first, self._samples.batch(first, self.micro_batch)

    def take(self, first: int) -> Batch:
        """Return the micro-batch that begins with sample `first`; read it unless it is prepared."""
        if self._ready is None or self._ready[0] != first:
            self.prepare(first)
        assert self._ready is not None
        return self._ready[1]


def windows_per_process(windows_per_step: int, world: World) -> int:
    """Return how many windows of a step each process computes.

    Raises MisuseError if they cannot be divided evenly.
    """
    if windows_per_step % world.size:
        raise MisuseError(
            f"batch_size × gradient_accumulation_steps must be a multiple of the {world.size} processes, "
            f"got {windows_per_step:,}; change one of them"
        )
    return windows_per_step // world.size


def largest_micro_batch(num_windows: int, max_windows: int) -> int:
    """Return the largest divisor of `num_windows` that is at most `max_windows` and MAX_WINDOWS."""
    return next(n for n in range(min(num_windows, max_windows, MAX_WINDOWS), 0, -1) if num_windows % n == 0)
