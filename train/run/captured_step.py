"""An optimizer step as a CUDA graph, for models so small that the host cannot keep up with the GPU.

A step of a small model is about a thousand kernels of a few microseconds each. The host takes
longer to start them one by one than the GPU takes to run them, so the GPU is idle half of the time.
A CUDA graph records them once and starts all of them with a single call: 10.7 million parameters
took 12.3 ms per step instead of 23.4 on an H100 (bench/README.md). The kernels and the numbers are
the same as those of `optimizer_step`.

The cost: a graph always uses the memory addresses that it was recorded with. Each batch is
therefore copied into fixed tensors, and everything else that changes from step to step must be a
tensor on the GPU: the divisor of the loss, the learning rates (`make_optimizers`) and AdamW's step
counts. The host cannot make decisions inside the graph, which excludes the gradient scaler of fp16,
and steps of several micro-batches or processes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from train.data.batches import Prefetcher, dropout_seed
from train.data.mixed_split import Batch
from train.optim import schedule_factor, set_learning_rate
from train.run.context import Run
from train.run.state import StepResult, TrainingState

# A graph keeps the peak memory of a step for the rest of the run, and evaluations need more memory
# besides. A model that needs a larger fraction of the GPU's memory keeps the GPU busy anyway.
MAX_MEMORY_FRACTION = 0.5
NUM_WARMUP_STEPS = 2  # steps before the recording; in the first ones libraries choose kernels and allocate workspaces


def can_capture_step(run: Run, state: TrainingState, prefetcher: Prefetcher) -> bool:
    """Return whether a step can be recorded as a CUDA graph and is expected to be faster then.

    A compiled model is excluded because it leaves the host little to do. Gradient checkpointing is
    excluded because with dropout it reads the state of the random number generator, which a
    recording forbids; models that need it keep a GPU busy anyway. Call this after the preflight:
    the memory that is reserved then is the peak of the step that it tried.
    """
    config = run.config
    is_one_pass = run.device.type == "cuda" and run.world.size == 1 and prefetcher.num_micro_batches == 1
    if not is_one_pass or state.scaler.is_enabled() or config.compile or config.gradient_checkpointing:
        return False
    _, total_bytes = torch.cuda.mem_get_info(run.device)
    return torch.cuda.memory_reserved(run.device) <= MAX_MEMORY_FRACTION * total_bytes


class CapturedStep:
    """An optimizer step of one micro-batch that is recorded as a CUDA graph at the third `take`."""

    def __init__(
        self,
        run: Run,
        state: TrainingState,
        prefetcher: Prefetcher,
        *,
        forward_backward: Callable[[Batch, Tensor], Tensor],
        clip_and_update: Callable[[Tensor], Tensor],
    ) -> None:
        """Store the functions that the graph will record.

        Given a batch and the divisor of its loss, (), `forward_backward` computes the gradients and
        returns the loss, (). Given the loss, `clip_and_update` updates the weights and returns the
        gradient norm, (). They must not wait for the GPU.
        """
        self._run, self._state, self._prefetcher = run, state, prefetcher
        self._forward_backward, self._clip_and_update = forward_backward, clip_and_update
        self._stream = torch.cuda.Stream(run.device)  # a graph cannot be recorded on the default stream
        self._num_warmup_steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch  # the graph's input
        self._divisor = torch.ones((), device=run.device)  # of the loss; with a loss mask, each step has another one
        self._result: tuple[Tensor, Tensor]  # the graph's output

    def take(self) -> StepResult:
        """Take one step, with the same result as `optimizer_step` in train/train.py."""
        state, config = self._state, self._run.config
        factor = schedule_factor(state.step, config)
        set_learning_rate(state.optimizers, factor)
        first_sample = self._prefetcher.first_sample(state.num_samples, 0)
        self._divisor.fill_(self._prefetcher.loss_divisor(state.num_samples))
        batch = self._prefetcher.take(first_sample)
        if config.dropout:
            torch.manual_seed(dropout_seed(config.seed, first_sample))
        loss, grad_norm = self._replay(batch)
        self._prefetcher.prepare(self._prefetcher.first_sample(state.num_samples, 1))  # while the device computes
        state.step += 1
        state.num_samples += config.windows_per_step
        return StepResult(loss=loss, grad_norm=grad_norm, learning_rate_factor=factor)

    def _replay(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss and the gradient norm of the step, () each."""
        current_stream = torch.cuda.current_stream()
        if self._num_warmup_steps < NUM_WARMUP_STEPS:
            self._num_warmup_steps += 1
            self._stream.wait_stream(current_stream)
            with torch.cuda.stream(self._stream):
                result = self._compute(batch)
            current_stream.wait_stream(self._stream)
            return result
        if self._graph is None:
            ids, targets, documents = batch
            self._batch = _empty_like(ids), _empty_like(targets), None if documents is None else _empty_like(documents)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):  # records the kernels without running them
                self._result = self._compute(self._batch)
        for graph_input, tensor in zip(self._batch, batch, strict=True):
            if graph_input is not None and tensor is not None:
                graph_input.copy_(tensor)
        self._graph.replay()
        loss, grad_norm = self._result
        return loss.clone(), grad_norm.clone()  # the next replay overwrites them

    def _compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = self._forward_backward(batch, self._divisor)
        return loss, self._clip_and_update(loss)


def _empty_like(tensor: Tensor) -> Tensor:
    """Return an uninitialized tensor with the shape and strides of `tensor`.

    torch.empty_like does not keep the strides of a slice.
    """
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
