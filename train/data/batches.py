"""From the token shards of builds to batches on the device.

Sample number n of a run is a pure function of (seed, n): which build it comes from, which shard,
and where its window starts. So resuming needs one integer, and a step has the same samples for any
number of processes and any micro-batch. The setting data_order selects how windows are ordered
(`ORDERS` in preprocess/shards/windows.py), or packs documents into rows (packing.py there), which are
then called windows, too; mixed_split.py reads them from the memory-mapped shards and copies them to
the device.

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

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.mixture import Mixture
from preprocess.shards.packing import PackedRows
from preprocess.shards.permutation import keyed_hash
from preprocess.shards.windows import ORDERS, EpochWindows, RandomWindows, list_sequential_windows
from train.config import Config
from train.core.distributed import World
from train.data.builds import Builds
from train.data.mixed_split import MASK_CHUNK, Batch, Locations, MixedSplit, build_seed

ResumeState = Mapping[str, Any]  # a position in a stream, as JSON values
DROPOUT_KEY = 0x5EED  # combined with the seed, so that its uses are independent of each other
LOOKAHEAD_SAMPLES = 1024
MAX_WINDOWS = 1 << 16  # per forward pass; no device is faster with more


class TrainingSamples(Protocol):
    """What training reads: `TrainingData` for builds, `StreamedTraining` for a stream."""

    num_tokens: int | None  # training tokens; None if the number is not known
    num_loss_tokens: int | None = None  # those in the loss mask; None if there is none, so that all count
    counts_all_targets: bool = True  # whether no target is IGNORE_INDEX: no loss mask and no padding
    windows_per_epoch: int | None = None  # None if an epoch is not defined: for streams and mixtures
    packed: tuple[PackedRows, ...] = ()  # of each build with data_order "documents", else empty

    def batch(self, first: int, count: int) -> Batch:
        """Return samples number `first` to `first + count - 1`."""

    def loss_fraction(self, first: int, count: int) -> float:
        """Return the fraction of the targets of samples `first` to `first + count - 1` that count.

        It is at least that of one target, so that it can be a divisor.
        """
        return 1.0

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
    loss_fractions: np.ndarray | None = None  # (W,) float64: of the targets of each window that count; None: all

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
        self._split = MixedSplit(builds, "train", config, seed=config.seed, device=device)
        self._orders: Sequence[PackedRows | EpochWindows | RandomWindows] = self._split.rows or [
            ORDERS[config.data_order](part.lengths, config.block_size, seed=build_seed(config.seed, index))
            for index, part in enumerate(self._split.parts)
        ]
        self.packed = tuple(self._split.rows)
        self.windows_per_epoch = self._orders[0].windows_per_epoch if len(self._orders) == 1 else None
        self._mixture = Mixture(builds.shares, seed=config.seed) if len(builds.builds) > 1 else None
        self.num_tokens: int | None = sum(sum(part.lengths) for part in self._split.parts)
        self.num_loss_tokens = _count_loss_tokens(builds) if self._split.has_mask else None
        self.counts_all_targets = self._split.counts_all_targets
        empty = np.empty(0, np.int64)
        self._first_located = 0  # the number of the first sample in `_located`
        self._located: Locations = (empty, empty, empty)
        self._first_masked, self._mask = 0, np.empty((0, config.block_size), bool)  # the last mask that was read

    def batch(self, first: int, count: int) -> Batch:
        """Return samples number `first` to `first + count - 1`, counted from 0 over the whole run."""
        return self._split.batch(self._locate_range(first, count), self._read_mask(first, count))

    def loss_fraction(self, first: int, count: int) -> float:
        mask = self._read_mask(first, count)
        return 1.0 if mask is None else max(float(mask.mean()), 1 / mask.size)

    def _read_mask(self, first: int, count: int) -> np.ndarray | None:
        """Return which targets of samples `first` to `first + count - 1` count, (count, T) bool, or None if all do.

        A step needs the mask of its samples for the divisor of the loss and for each batch. So that
        it is read once, the mask of the next samples is read at the same time, and kept.
        """
        if self.counts_all_targets:
            return None
        begin = first - self._first_masked
        if not 0 <= begin <= len(self._mask) - count:
            num_samples = max(count, min(LOOKAHEAD_SAMPLES, MASK_CHUNK // self._split.block_size))
            mask = self._split.read_mask(self._locate_range(first, num_samples))
            assert mask is not None
            self._first_masked, self._mask, begin = first, mask, 0
        return self._mask[begin : begin + count]

    def _locate_range(self, first: int, count: int) -> Locations:
        """Return where the windows of samples number `first` to `first + count - 1` are."""
        begin, num_located = first - self._first_located, len(self._located[0])
        if not 0 <= begin <= num_located - count:
            # With several processes each call skips the other ranks' samples; look ahead only when
            # reading sequentially.
            is_sequential = 0 < begin <= num_located
            num_samples = max(count, LOOKAHEAD_SAMPLES) if is_sequential else count
            self._first_located, begin = first, 0
            self._located = self._locate(np.arange(first, first + num_samples, dtype=np.uint64))
        build_index, shard, start = (column[begin : begin + count] for column in self._located)
        return build_index, shard, start

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
        MixedSplit, and FolioError if no target in the windows of a build counts.
        """
        builds = select_validated(builds)
        # Rows are packed with a fixed seed, so that runs with different seeds can be compared.
        self._split = MixedSplit(builds, "val", config, seed=0, device=device)
        max_windows = _share_windows(config.eval_tokens, builds.shares, config.block_size)
        located = [
            rows.locate(np.arange(min(count or rows.windows_per_epoch, rows.windows_per_epoch)))
            for rows, count in zip(self._split.rows, max_windows, strict=False)
        ] or [
            list_sequential_windows(part.lengths, config.block_size, count)
            for part, count in zip(self._split.parts, max_windows, strict=True)
        ]
        self.build_index = np.repeat(np.arange(len(located)), np.array([len(shard) for shard, _ in located], np.int64))
        nothing = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        self._first, self._second = (np.concatenate(column) for column in zip(*(located or nothing), strict=True))
        self.shares = builds.shares
        self.names = builds.names
        splits = [build.manifest.splits["val"] for build in builds.builds]
        self.sizes = [TextSize(num_tokens=split.tokens, text_bytes=split.text_bytes) for split in splits]
        self.loss_fractions = self._split.loss_fractions((self.build_index, self._first, self._second))
        if self.loss_fractions is not None:
            for index, name in enumerate(self.names):
                if not self.loss_fractions[self.build_index == index].any():
                    raise FolioError(
                        f"the validation windows of {name} have no token that the model is to learn; raise "
                        "eval_tokens, or build the chats again with a larger --val-fraction"
                    )

    @property
    def num_windows(self) -> int:
        return len(self._first)

    def batch(self, indices: np.ndarray) -> Batch:
        locations = self.build_index[indices], self._first[indices], self._second[indices]
        return self._split.batch(locations, self._split.read_mask(locations))


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


def _count_loss_tokens(builds: Builds) -> int:
    """Return how many training tokens are in the loss masks. Raises FolioError if there are none."""
    shards = [shard for build in builds.builds for shard in build.manifest.splits["train"].shards]
    num_tokens = sum(shard.tokens if shard.loss_tokens is None else shard.loss_tokens for shard in shards)
    if not num_tokens:
        raise FolioError(
            f"{builds.name} has no training token that the model is to learn; build it from chats in which the "
            "assistant replies"
        )
    return num_tokens


class Prefetcher:
    """This process's micro-batches of each step; the next one is read while the device computes.

    Of a step's samples, counted from 0, micro-batch m of process r has those from
    (m · num_processes + r) · micro_batch to (m · num_processes + r + 1) · micro_batch - 1.
    """

    def __init__(self, samples: TrainingSamples, *, windows_per_step: int, micro_batch: int, world: World) -> None:
        """`micro_batch` must divide this process's share of windows_per_step."""
        self._samples, self._world, self.micro_batch = samples, world, micro_batch
        self._windows_per_step = windows_per_step
        self.num_micro_batches = windows_per_step // (world.size * micro_batch)
        self._ready: tuple[int, Batch] | None = None

    def first_sample(self, step_begin: int, micro: int) -> int:
        """Return the number of the first sample of micro-batch `micro` of a step.

        `step_begin` is the number of the step's first sample. `micro` = num_micro_batches is the
        first micro-batch of the next step.
        """
        return step_begin + (micro * self._world.size + self._world.rank) * self.micro_batch

    def loss_divisor(self, step_begin: int) -> float:
        """Return the number by which the mean loss of each micro-batch of a step is divided.

        The mean loss has zeros for targets that do not count. So if `step_begin` is the number of
        the step's first sample, the sum of the quotients is the mean over all targets of the step
        that count. If all count, the number is that of the micro-batches. Every process computes it
        from the loss mask of all samples of the step.
        """
        if self._samples.counts_all_targets:
            return self.num_micro_batches
        return self.num_micro_batches * self._samples.loss_fraction(step_begin, self._windows_per_step)

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
