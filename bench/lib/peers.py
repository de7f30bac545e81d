"""What the processes of other trainers share: their task, a clock, the evaluation, and the result.

bench/trainers.py starts each trainer with the Python that has its library, so this module imports
only NumPy, torch, psutil and the standard library. The folder of a task has the tokens of a build
as `train.bin` and `val.bin` (uint16), which `preprocess export` writes for nanoGPT, too.

Shapes: B windows, T = block_size tokens, V ids.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from bench.lib.measure import read_peak_memory, reset_peak_memory

TASK_FILE, RESULT_FILE = "task.json", "result.json"
EVALUATION_TOKENS = 512  # per forward pass: fewer than a training step has, so that the peak is that of training
# The plain recipe, which all trainers have that bring none of their own: nanoGPT's for characters.
LEARNING_RATE, MIN_LEARNING_RATE, BETA2, WEIGHT_DECAY, GRAD_CLIP = 1e-3, 1e-4, 0.99, 0.1, 1.0

ComputeLogits = Callable[[Tensor], Tensor]  # (B, T) int64 → (B, T, V or more)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every trainer does: the model's shape, the number of steps, and how often it is evaluated."""

    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    batch_size: int
    steps: int
    warmup_steps: int
    interval: int  # steps between evaluations; divides `steps`
    num_windows: int  # of an evaluation
    seed: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """The validation loss after a step, in nats, and the seconds of training until then."""

    step: int
    elapsed_s: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured of a finished trainer."""

    num_parameters: int
    points: list[Point]
    start_up_s: float  # from the start of the process to the first step
    cpu_s: float | None  # of training
    peak_bytes: int | None  # the largest resident set from the first step on; None if the system does not report it
    digests: dict[str, str]  # split → SHA-256 of the tokens that the process read


def write_task(task: Task, folder: Path) -> None:
    (folder / TASK_FILE).write_text(json.dumps(asdict(task)))


def read_task(folder: Path) -> Task:
    return Task(**json.loads((folder / TASK_FILE).read_text()))


def read_result(folder: Path) -> Result:
    values = json.loads((folder / RESULT_FILE).read_text())
    return Result(**values | {"points": [Point(**point) for point in values["points"]]})


def read_tokens(folder: Path, split: str) -> np.ndarray:
    """Return the tokens of a split, uint16, mapped from the disk."""
    return np.memmap(folder / f"{split}.bin", dtype="<u2", mode="r")


def digest(tokens: np.ndarray) -> str:
    return hashlib.sha256(tokens.astype("<u2").tobytes()).hexdigest()


class TokenWindows(Dataset[Tensor]):
    """The consecutive windows of a split: item i is tokens i·T to (i + 1)·T, both included, (T + 1,) int64."""

    def __init__(self, tokens: np.ndarray, block_size: int) -> None:
        self._tokens, self._block_size = tokens, block_size

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._block_size

    def __getitem__(self, index: int) -> Tensor:
        begin = index * self._block_size
        return torch.from_numpy(self._tokens[begin : begin + self._block_size + 1].astype(np.int64))


@torch.no_grad()
def compute_loss(compute_logits: ComputeLogits, tokens: np.ndarray, task: Task) -> float:
    """Return the mean loss in nats of the first `num_windows` windows of `tokens`.

    Every trainer's model is evaluated by this function, in fp32 and without dropout: the caller
    switches the model to evaluation.
    """
    windows = TokenWindows(tokens, task.block_size)
    rows = torch.stack([windows[i] for i in range(min(task.num_windows, len(windows)))])  # (W, T + 1)
    total = 0.0
    for part in rows.split(max(EVALUATION_TOKENS // task.block_size, 1)):
        logits = compute_logits(part[:, :-1].contiguous())[..., : task.vocab_size].float()  # (B, T, V)
        total += F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
    return total / (len(rows) * task.block_size)


class Recorder:
    """Times the training of one process, and evaluates it while the clock is stopped."""

    def __init__(self, folder: Path) -> None:
        self.task = read_task(folder)
        self.tokens = {split: read_tokens(folder, split) for split in ("train", "val")}
        self._folder = folder
        self._points: list[Point] = []
        self._elapsed_s, self._cpu_s, self._start_up_s = 0.0, 0.0, 0.0
        self._peak_bytes: int | None = None
        self._started_at = (0.0, 0.0)  # the clock and the CPU time
        self._clock = time.perf_counter

    def start(self) -> None:
        """Start the clock, and count the peak of memory from now on."""
        self._start_up_s = self._start_up_s or time.time() - psutil.Process().create_time()
        reset_peak_memory(os.getpid())
        self._started_at = self._clock(), time.process_time()

    def record(self, compute_logits: ComputeLogits) -> float:
        """Stop the clock, evaluate the model after the next `interval` steps, and start the clock."""
        begin, cpu_begin = self._started_at
        self._elapsed_s += self._clock() - begin
        self._cpu_s += time.process_time() - cpu_begin
        peak_bytes = read_peak_memory(os.getpid())
        self._peak_bytes = max(peak_bytes, self._peak_bytes or 0) if peak_bytes else None
        loss = compute_loss(compute_logits, self.tokens["val"], self.task)
        step = (len(self._points) + 1) * self.task.interval
        self._points.append(Point(step=step, elapsed_s=self._elapsed_s, loss=loss))
        self.start()
        return loss

    def write_result(self, model: torch.nn.Module) -> None:
        result = Result(
            num_parameters=sum(p.numel() for p in model.parameters()),
            points=self._points,
            start_up_s=self._start_up_s,
            cpu_s=self._cpu_s,
            peak_bytes=self._peak_bytes,
            digests={split: digest(tokens) for split, tokens in self.tokens.items()},
        )
        (self._folder / RESULT_FILE).write_text(json.dumps(asdict(result)))
