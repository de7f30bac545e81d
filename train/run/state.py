"""The training state: what a step or an evaluation changes, and how a checkpoint stores it.

The state of a random number generator is not part of it, because the order of samples and the
dropout are computed from the seed and the sample number. A resumed run needs only the weights, the
optimizer state, a few counters and the position in a stream to give the same results bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from preprocess.shards.files import JsonObject
from train.config import Config
from train.core.distributed import World
from train.core.memory import available_bytes
from train.core.sharding import shard_model
from train.model import make_model
from train.model.base import LanguageModel
from train.optim import SLOTS, allocate_state, make_optimizers, use_whole_matrices
from train.run.checkpoint_info import EARLY_STOPPING, MUON_BY_HEAD, CheckpointInfo
from train.run.stored_tensors import StoredTensor
from train.run.validation import EarlyStopping

REFERENCE = f"{EARLY_STOPPING}.reference"  # the name of early stopping's tensor in a checkpoint
# So many skipped updates in a row mean divergence. The gradient scale of fp16 begins high and halves
# with each overflow, so some skipped updates are normal with it.
MAX_SKIPPED = {"fp16": 30, "other": 5}


@dataclass
class TrainingState:
    """The model, its optimizers, and the counters that training changes."""

    model: LanguageModel
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    device: torch.device
    skipped: Tensor  # (2,) int64 on the device: updates skipped in a row, and in the whole run
    is_sharded: bool = False  # whether this process holds only some rows of the weights and the optimizers' state
    step: int = 0  # optimizer steps done
    micro_batch: int | None = None  # windows per forward pass, set by the preflight; dropout depends on it
    num_threads: int | None = None  # of the CPU, set by the preflight; the order of sums depends on it
    has_muon_by_head: bool = True  # False in a run with Muon that an earlier version began (`use_whole_matrices`)
    num_samples: int = 0  # samples used; more than step · windows_per_step if a rollback skipped some
    streams: list[Any] | None = None  # the resume state of each process's stream, as JSON; None for builds
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)

    @property
    def max_skipped(self) -> int:
        """How many skipped updates in a row mean that training has diverged."""
        return MAX_SKIPPED["fp16" if self.scaler.is_enabled() else "other"]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The loss and the gradient norm of a step, and the learning rate that it used."""

    loss: Tensor  # () float32, on the device
    grad_norm: Tensor  # () float32, on the device
    learning_rate_factor: float  # a fraction of the maximum, as `schedule_factor` returns it


def new_state(config: Config, vocab_size: int, *, device: torch.device, is_sharded: bool = False) -> TrainingState:
    """Return the state at step 0 on `device`, with weights that the setting `seed` determines.

    With `is_sharded`, it is divided among all processes. Raises MemoryError, before memory is taken,
    if the weights do not fit the memory of this machine.
    """
    _check_memory(config, vocab_size)
    torch.manual_seed(config.seed)
    model = make_model(config, vocab_size)  # drawn on the CPU, to be the same on every device
    if is_sharded:
        # On a CPU, layer_norm does not accept weights in bf16 for inputs in float32; on CUDA, autocast converts them.
        is_bf16 = config.precision == "bf16" and device.type == "cuda"
        shard_model(model, model.h, device=device, gather_dtype=torch.bfloat16 if is_bf16 else None)
    model.to(device)
    optimizers = make_optimizers(model, config, device=device)
    for optimizer in optimizers:
        allocate_state(optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    skipped = torch.zeros(2, dtype=torch.int64, device=device)
    return TrainingState(
        model=model,
        optimizers=optimizers,
        scaler=scaler,
        device=device,
        skipped=skipped,
        is_sharded=is_sharded,
    )


def _check_memory(config: Config, vocab_size: int) -> None:
    """Raise MemoryError if the weights, which are drawn on the CPU, take more memory than is available.

    An allocation that is too large fails at once, but many smaller ones may first fill the memory.
    """
    with torch.device("meta"):
        needed_bytes = sum(p.nbytes for p in make_model(config, vocab_size).parameters())
    if needed_bytes > available_bytes():
        raise MemoryError(f"the weights take {needed_bytes:,} bytes")


def optimizer_tensors(state: TrainingState) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the optimizers' state with its name, `<parameter name>.<slot>`."""
    names = {p: name for name, p in state.model.named_parameters()}
    for optimizer in state.optimizers:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            yield from ((f"{names[p]}.{slot}", optimizer.state[p][slot]) for slot in SLOTS[type(optimizer).__name__])


def state_tensors(state: TrainingState) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint stores besides the weights, by name."""
    reference = state.early_stopping.reference
    return dict(optimizer_tensors(state)) | ({} if reference is None else {REFERENCE: reference})


def checkpoint_bytes(state: TrainingState) -> int:
    """Return the size in bytes of the tensors of a checkpoint, of all parts together."""
    return sum(tensor.nbytes for tensor in [*state.model.state_dict().values(), *state_tensors(state).values()])


def state_numbers(state: TrainingState) -> JsonObject:
    """Return the numbers that a checkpoint stores, as a JSON object."""
    early_stopping = state.early_stopping
    return {
        "step": state.step,
        "num_samples": state.num_samples,
        "micro_batch": state.micro_batch,
        "num_threads": state.num_threads,
        MUON_BY_HEAD: state.has_muon_by_head,
        "streams": state.streams,
        "skipped_updates": int(state.skipped[1]),
        "scaler": state.scaler.state_dict(),
        EARLY_STOPPING: {
            "best_step": early_stopping.best_step,
            "best_loss": None if early_stopping.best_step is None else early_stopping.best_loss,
            "num_since": early_stopping.num_since,
        },
    }


def load_state(state: TrainingState, info: CheckpointInfo, tensors: Mapping[str, StoredTensor]) -> None:
    """Restore what `state_numbers` and `state_tensors` returned, from `info` and `tensors`.

    The caller has checked that the optimizer's tensors have the shapes of those in `state`. Raises
    ValueError if the tensor of early stopping does not have one dimension.
    """
    stored = tensors.get(REFERENCE)
    if stored is not None and len(stored.shape) != 1:
        raise ValueError(f"{REFERENCE} must have one dimension, got the shape {stored.shape}")
    for name, tensor in optimizer_tensors(state):
        tensors[name].copy_to(tensor)
    state.early_stopping = EarlyStopping(
        best_step=info.best_step,
        best_loss=info.best_loss,
        num_since=info.num_since,
        reference=None if stored is None else stored.whole().to(torch.float32, copy=True),  # not memory-mapped
    )
    if info.scaler and state.scaler.is_enabled():
        state.scaler.load_state_dict(info.scaler)
    state.micro_batch, state.num_threads, state.streams = info.micro_batch, info.num_threads, info.streams
    state.step, state.num_samples = info.step, info.num_samples
    _set_muon_rule(state, has_muon_by_head=info.has_muon_by_head)
    state.skipped.copy_(torch.tensor([0, info.skipped_updates]))


def _set_muon_rule(state: TrainingState, *, has_muon_by_head: bool) -> None:
    """Make Muon continue with the rule that the run began with, or its losses would change."""
    state.has_muon_by_head = has_muon_by_head
    if not has_muon_by_head:
        use_whole_matrices(state.optimizers)


def load_in_all(world: World, state: TrainingState, load: Callable[[], None]) -> None:
    """Bring `state` in every process to what `load` makes of it in the main process.

    `load` is called in the main process, and the result is broadcast. If the state is sharded, it is
    then called in the other processes too, each of which loads its rows. It must not communicate.
    """
    world.run_on_main(load)
    if state.is_sharded:
        world.run_in_all(lambda: None if world.is_main else load())
    else:
        broadcast_state(state, world)


def broadcast_state(state: TrainingState, world: World) -> None:
    """Overwrite the state of every process with that of the main process, except early stopping.

    The state must not be sharded.
    """
    tensors = [*state.model.state_dict().values(), *(tensor for _, tensor in optimizer_tensors(state)), state.skipped]
    world.broadcast_tensors(tensors)
    state.streams = world.broadcast(state.streams)
    scaler = state.scaler.state_dict()
    # float64 represents whole numbers exactly up to 2**53.
    numbers = torch.tensor(
        [
            state.step,
            state.num_samples,
            state.micro_batch or 0,
            scaler.get("scale", 0),
            scaler.get("_growth_tracker", 0),
            state.has_muon_by_head,
        ],
        dtype=torch.float64,
    )
    world.broadcast_tensors([numbers])
    state.step, state.num_samples, state.micro_batch = int(numbers[0]), int(numbers[1]), int(numbers[2]) or None
    _set_muon_rule(state, has_muon_by_head=bool(numbers[5]))
    if scaler:
        state.scaler.load_state_dict(scaler | {"scale": numbers[3].item(), "_growth_tracker": int(numbers[4])})
