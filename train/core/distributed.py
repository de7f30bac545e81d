"""Several processes that train one model, as torchrun starts them: who is who, and what they tell each other."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from preprocess.errors import FolioError, MisuseError, first_line
from preprocess.shards.files import canonical_json, parse_json

# What Gloo and NCCL say when another process is gone.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL error", "remote process")
TIMEOUT = timedelta(hours=1)  # the others wait while the main process saves and writes samples
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run, `size` of them; the main one, rank 0, alone writes and speaks."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    num_local: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_max(self, value: int) -> int:
        """The highest of all processes' values. On a GPU it does not wait for the GPU: the word goes over the CPU."""
        if self.size == 1:
            return value
        told = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told)

    def all_equal(self, value: int) -> bool:
        """Whether all processes have the same value."""
        return self.all_reduce_max(value) == -self.all_reduce_max(-value)

    def run_on_main(self, action: Callable[[], Result]) -> Result | None:
        """What `action` returns in the main process; None in the others, which end quietly where it raises there."""
        if not self.is_main:
            if status := self.all_reduce_max(0):
                sys.exit(status)
            return None
        try:
            result = action()
        except Exception as e:
            self.all_reduce_max(getattr(e, "exit_status", 1))
            raise
        self.all_reduce_max(0)
        return result

    def broadcast(self, value: Any) -> Any:
        """The main process' `value`, which JSON can hold, in all."""
        return self.gather(value if self.is_main else None)[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process' `value`, which JSON can hold, by rank."""
        if self.size == 1:
            return [value]
        told = canonical_json(value)
        padded = torch.zeros(self.all_reduce_max(len(told)), dtype=torch.uint8)
        padded[: len(told)] = torch.frombuffer(bytearray(told), dtype=torch.uint8)
        lengths = [torch.zeros((), dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor(len(told)))
        parts = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [parse_json(bytes(part[: int(length)].tolist())) for part, length in zip(parts, lengths, strict=True)]

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """`tensor`, summed in place over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite `tensors` with those of the main process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """`model` such that a backward pass averages the gradients of all processes."""
        if self.size == 1:
            return model
        device_ids = [device.index] if device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
        # The buffers are constants: nothing of them need be told at each pass. The argument for it has another name in torch 2.13.
        wrapped.broadcast_buffers = False
        return wrapped

    def set_gradient_sync(self, wrapped: nn.Module, *, is_last: bool) -> None:
        """Whether the next backward pass sends gradients: of the passes of a step, only the last needs to."""
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.require_backward_grad_sync = is_last


@contextmanager
def init_processes(*, by_cuda: bool) -> Iterator[World]:
    """The world that torchrun's environment tells of, whose models are on GPUs where `by_cuda`; without it, of this process alone."""
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield World()
        return
    names = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "num_local": "LOCAL_WORLD_SIZE"}
    try:
        world = World(
            **{
                key: int(os.environ.get(name, default))
                for (key, name), default in zip(names.items(), "0101", strict=True)
            }
        )
    except ValueError as e:
        raise MisuseError(
            f"torchrun's environment cannot be read: {e}; start the run with torchrun, or without RANK and WORLD_SIZE"
        ) from e
    if not 0 <= world.rank < world.size:
        raise MisuseError(
            f"RANK is {world.rank} of WORLD_SIZE {world.size}; start the run with torchrun, or without RANK and WORLD_SIZE"
        )
    if world.size == 1:
        yield world
        return
    # Gloo carries what is told over the CPU, such as signals; NCCL, which Windows has not, carries gradients.
    by_nccl = by_cuda and dist.is_nccl_available()
    if by_cuda:
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if by_nccl else "gloo", timeout=TIMEOUT)
    except ValueError as e:
        raise MisuseError(f"the processes cannot find each other: {first_line(e)}; start the run with torchrun") from e
    try:
        yield world
        world.all_reduce_max(0)  # where one takes down its connections while another still uses them, either may abort
    except RuntimeError as e:
        if not any(words in str(e) for words in LOST):
            raise
        raise FolioError(
            f"another process of the run has ended, and process {world.rank} with it; "
            "see what that one says, then run the same command again: it continues from the last checkpoint"
        ) from e
    finally:
        gc.collect()  # DistributedDataParallel is a cycle that holds on to the group
        dist.destroy_process_group()
