"""Several processes that train one model, as torchrun starts them.

Every process computes the gradients of its part of each step's samples (data parallelism). By
default it holds the whole model, and DistributedDataParallel averages the gradients, on GPUs with
NCCL; sharding.py divides the model instead. Small values, such as whether a signal arrived, are
exchanged between the CPUs with Gloo, so that the processes do not wait for a GPU to agree on them.
Only the main process, rank 0, prints, and writes files, except the parts of a sharded checkpoint.
"""

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
from train.core.sharding import is_sharded

# Parts of the messages of Gloo and NCCL when another process has ended.
CONNECTION_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "NCCL error",
    "remote process",
)
TIMEOUT = timedelta(hours=1)  # the other processes wait while the main process saves and generates text
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class World:
    """The rank of this process, the number of processes of the run, and their collectives.

    `local_rank` and `num_local` are the rank and the number among the processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    num_local: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_max(self, value: int) -> int:
        """Return the maximum of all processes' values. They are exchanged between the CPUs."""
        if self.size == 1:
            return value
        maximum = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(maximum, dist.ReduceOp.MAX)
        return int(maximum)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over all processes in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_equal(self, value: int) -> bool:
        """Return whether all processes have the same value."""
        return self.all_reduce_max(value) == -self.all_reduce_max(-value)

    def run_on_main(self, action: Callable[[], Result]) -> Result | None:
        """Return the result of `action` in the main process, and None in the others.

        If `action` raises an exception, it propagates in the main process. The others exit with its
        `exit_status`, or 1 if it has none.
        """
        return self.run_in_all(lambda: action() if self.is_main else None)

    def run_in_all(self, action: Callable[[], Result]) -> Result:
        """Return the result of `action`, which every process calls, when all have called it.

        If it raises an exception in some processes, it propagates there. The others exit with the
        largest `exit_status` of these exceptions; that of an exception without one is 1.
        """
        try:
            result = action()
        except Exception as e:
            self.all_reduce_max(getattr(e, "exit_status", 1))
            raise
        if status := self.all_reduce_max(0):
            sys.exit(status)
        return result

    def run_on_each_machine(self, action: Callable[[], object]) -> None:
        """Call `action` in one process of each machine while the others wait. Exceptions are as for `run_on_main`."""
        status, error = 0, None
        if self.local_rank == 0:
            try:
                action()
            except Exception as e:
                status, error = getattr(e, "exit_status", 1), e
        status = self.all_reduce_max(status)
        if error is not None:
            raise error
        if status:
            sys.exit(status)

    def broadcast(self, value: Any) -> Any:
        """Return the main process's `value`, a JSON value, in all processes."""
        return self.gather(value if self.is_main else None)[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the list of all processes' `value`, a JSON value each, ordered by rank."""
        if self.size == 1:
            return [value]
        data = canonical_json(value)
        padded = torch.zeros(self.all_reduce_max(len(data)), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        lengths = [torch.zeros((), dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor(len(data)))
        parts = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [parse_json(bytes(part[: int(length)].tolist())) for part, length in zip(parts, lengths, strict=True)]

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite `tensors` in all processes with those of the main process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return `model` in DistributedDataParallel.

        Return `model` itself if there is one process, or if `shard_model` has divided it.
        """
        if self.size == 1 or any(map(is_sharded, model.parameters())):
            return model
        device_ids = [device.index] if device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
        # The buffers are constants, so they need not be sent in each pass. Set as an attribute,
        # because the constructor's argument has another name from torch 2.13 on.
        wrapped.broadcast_buffers = False
        return wrapped

    def set_gradient_sync(self, wrapped: nn.Module, *, is_last: bool) -> None:
        """Average gradients in the next backward pass only if it is the optimizer step's last one.

        A sharded model averages them in every pass: otherwise each process would hold all gradients.
        """
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.require_backward_grad_sync = is_last


@contextmanager
def init_processes(*, use_cuda: bool) -> Iterator[World]:
    """Connect the processes that torchrun started, and yield the World.

    Without torchrun, yield a World of one process. Raises MisuseError if torchrun's environment
    variables are wrong, and FolioError if another process ends during the block.
    """
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield World()
        return
    world = _read_environment()
    if world.size == 1:
        yield world
        return
    use_nccl = use_cuda and dist.is_nccl_available()  # Windows has no NCCL
    if use_cuda:
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if use_nccl else "gloo", timeout=TIMEOUT)
    except ValueError as e:
        raise MisuseError(f"the processes cannot connect: {first_line(e)}; start the run with torchrun") from e
    try:
        yield world
        world.all_reduce_max(0)  # wait: a process that disconnects while another communicates can abort both
    except RuntimeError as e:
        if not any(text in str(e) for text in CONNECTION_LOST):
            raise
        raise FolioError(
            f"another process of the run has ended, so process {world.rank} ends too; read the other's "
            "message, then run the same command again: it continues from the last checkpoint"
        ) from e
    finally:
        gc.collect()  # DistributedDataParallel is a reference cycle that keeps the process group alive
        dist.destroy_process_group()


def _read_environment() -> World:
    """Return the World that torchrun's environment variables describe.

    Raises MisuseError if they are wrong.
    """
    advice = "start the run with torchrun, or unset RANK and WORLD_SIZE"
    get = os.environ.get
    try:
        world = World(
            rank=int(get("RANK", "0")),
            size=int(get("WORLD_SIZE", "1")),
            local_rank=int(get("LOCAL_RANK", "0")),
            num_local=int(get("LOCAL_WORLD_SIZE", "1")),
        )
    except ValueError as e:
        raise MisuseError(f"torchrun's environment variables must be whole numbers: {e}; {advice}") from e
    if not 0 <= world.rank < world.size:
        raise MisuseError(f"RANK must be between 0 and WORLD_SIZE - 1, got RANK {world.rank} of {world.size}; {advice}")
    return world
