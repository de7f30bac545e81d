"""FSDP2: each process holds some rows of every weight, of its gradient and of its optimizer state.

Fully sharded data parallelism (ZeRO stage 3, Rajbhandari et al. 2020; PyTorch FSDP, Zhao et al.
2023) computes what data parallelism does, for models whose weights, gradients and optimizer state
do not fit one device. torch's `fully_shard` replaces each parameter by a DTensor: a tensor with
the whole shape, of which this process holds only some rows. The weights of a block are gathered from all
processes before the block's forward and backward pass and freed after it; its gradients are
averaged and divided by rows as soon as they are computed. The optimizers update the rows.

The model's code does not change, but all processes must call it equally often, because each call
gathers weights. Nothing else of Folio imports torch's FSDP or DTensor, which takes a second: a
tensor that has `full_tensor` is a DTensor.

Shapes: K matrices of A rows and B columns, of which process r holds a_r rows; N processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def shard_model(
    model: nn.Module, blocks: Iterable[nn.Module], *, device: torch.device, gather_dtype: torch.dtype | None = None
) -> None:
    """Divide the parameters of `model` among all processes, in place, and move them to `device`.

    Only the `blocks`, one at a time, and the parameters outside of them are ever gathered. With a
    `gather_dtype`, the blocks are gathered in it, as autocast would round them, which halves the
    traffic; their gradients are summed in float32. The embedding and the head stay in float32,
    because the sums of the residual stream begin with the embedding.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if gather_dtype is not None:  # the inputs are the residual stream, which autocast converts where it should
        policy = MixedPrecisionPolicy(param_dtype=gather_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_sharded(tensor: Tensor) -> bool:
    """Return whether the rows of `tensor` are divided among the processes."""
    return hasattr(tensor, "full_tensor")


def local_rows(tensor: Tensor) -> Tensor:
    """Return the rows of `tensor` that this process holds, as a view. All rows, if it is not sharded."""
    local: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return local


def first_row(tensor: Tensor) -> int:
    """Return the index of the first row of `tensor` that this process holds; 0 if it is not sharded."""
    if not is_sharded(tensor):
        return 0
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    return sum(_rows_by_process(tensor.shape[0], mesh.size())[: mesh.get_local_rank()])


def whole(tensor: Tensor) -> Tensor:
    """Return `tensor` with the rows of all processes, which must all call this."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def map_matrices(function: Callable[[Tensor], Tensor], rows: Tensor, *, like: Tensor) -> Tensor:
    """Return this process's rows, (K, a, B), of `function` applied to each of K matrices, (1, A, B).

    `rows`, (K, a, B), are this process's rows of the matrices, and `like` is a sharded (A, B) tensor
    whose rows are divided in the same way. Of N matrices at a time, every process receives a whole
    one, applies the function and sends the rows back. So no process holds more than one matrix, and
    they share the work. All processes must call this.
    """
    group = like.device_mesh.get_group()  # type: ignore[attr-defined]
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    num_rows = _rows_by_process(like.shape[0], size)
    num_columns = like.shape[1]
    results = torch.empty_like(rows)
    for begin in range(0, len(rows), size):
        mine, result = rows[begin : begin + size], results[begin : begin + size]  # (n, a, B), n at most N
        sent = [mine[0].numel()] * len(mine) + [0] * (size - len(mine))  # numbers, to each process
        received = [count * num_columns if rank < len(mine) else 0 for count in num_rows]  # from each
        matrix = rows.new_empty(sum(received))
        dist.all_to_all_single(matrix, mine.flatten(), received, sent, group=group)
        if rank < len(mine):
            matrix = function(matrix.view(1, -1, num_columns)).flatten()
        returned = rows.new_empty(mine.numel())
        dist.all_to_all_single(returned, matrix.contiguous(), sent, received, group=group)
        result.copy_(returned.view_as(mine))
    return results


def _rows_by_process(num_rows: int, size: int) -> list[int]:
    """Return how many of `num_rows` rows each of `size` processes holds, as torch.chunk divides them."""
    chunk = -(-num_rows // size)
    return [max(min(chunk, num_rows - rank * chunk), 0) for rank in range(size)]
