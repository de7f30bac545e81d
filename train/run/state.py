"""All that training changes, and how it becomes tensors and numbers and comes back from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from train.config import Config
from train.core.distributed import World
from train.model import make_model
from train.model.base import LanguageModel
from train.optim import SLOTS, allocate_state, make_optimizers
from train.run.validation import EarlyStopping

REFERENCE = "watch.reference"  # a tensor beside the optimizers', which are called after parameters
# fp16's gradient scaler begins high and halves with each overflow: those are no reason to worry.
MOST_SKIPPED = {True: 30, False: 5}


@dataclass
class Training:
    """All that an optimizer step or an evaluation changes. Random numbers are not in it: they follow from the seed and `num_samples`."""

    model: LanguageModel
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    device: torch.device
    skipped: Tensor  # (2,) int64 on the device: updates refused in a row, and of the whole run
    step: int = 0  # optimizer steps done
    micro_batch: int | None = None  # windows a forward pass, once known: where it changes, dropout draws other numbers
    num_samples: int = 0  # samples drawn; more than the steps' where some were skipped by going back
    streams: list[Any] | None = None  # where each process' stream stands, as JSON holds it; None for builds
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)

    @property
    def most_skipped(self) -> int:
        """How many refused updates in a row mean that training has diverged."""
        return MOST_SKIPPED[self.scaler.is_enabled()]


def new_training(config: Config, vocab_size: int, *, device: torch.device) -> Training:
    """Training at step 0, as the seed makes it."""
    # The first weights are drawn on the CPU, so that they are the same on every device.
    torch.manual_seed(config.seed)
    model = make_model(config, vocab_size).to(device)
    optimizers = make_optimizers(model, config, device=device)
    for optimizer in optimizers:
        allocate_state(optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    skipped = torch.zeros(2, dtype=torch.int64, device=device)
    return Training(model=model, optimizers=optimizers, scaler=scaler, device=device, skipped=skipped)


def slots(training: Training) -> Iterator[tuple[str, Tensor]]:
    """`<parameter name>.<slot>` and the tensor of everything that the optimizers remember."""
    names = {p: name for name, p in training.model.named_parameters()}
    for optimizer in training.optimizers:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            yield from ((f"{names[p]}.{key}", optimizer.state[p][key]) for key in SLOTS[type(optimizer).__name__])


def training_tensors(training: Training) -> dict[str, Tensor]:
    """What must be kept beside the weights."""
    reference = training.early_stopping.reference
    return dict(slots(training)) | ({} if reference is None else {REFERENCE: reference})


def training_numbers(training: Training) -> dict[str, Any]:
    """As JSON holds them."""
    watch = training.early_stopping
    return {
        "step": training.step,
        "num_samples": training.num_samples,
        "micro_batch": training.micro_batch,
        "streams": training.streams,
        "skipped_updates": int(training.skipped[1]),
        "scaler": training.scaler.state_dict(),
        "watch": {
            "best_step": watch.best_step,
            "best_loss": None if watch.best_step is None else watch.best_loss,
            "num_since": watch.num_since,
        },
    }


def load_training(training: Training, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """What training_numbers and training_tensors gave, from elsewhere.

    Raises KeyError, TypeError or ValueError for what they would not have given.
    """
    for name, tensor in slots(training):
        if tensor.shape != tensors[name].shape:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)}, wanted {tuple(tensor.shape)}")
        tensor.copy_(tensors[name])
    watch = numbers["watch"]
    best_step = _number(watch["best_step"], int) if watch["best_step"] is not None else None
    best_loss = math.inf if best_step is None else _number(watch["best_loss"], float)
    reference = tensors[REFERENCE].clone() if REFERENCE in tensors else None
    training.early_stopping = EarlyStopping(
        best_step=best_step, best_loss=best_loss, num_since=_number(watch["num_since"], int), reference=reference
    )
    if numbers["scaler"] and training.scaler.is_enabled():
        training.scaler.load_state_dict(_scaler_state(numbers["scaler"]))
    training.micro_batch = None if numbers["micro_batch"] is None else _number(numbers["micro_batch"], int)
    streams = numbers["streams"]
    if streams is not None and not (isinstance(streams, list) and all(isinstance(state, dict) for state in streams)):
        raise ValueError(f"streams is {streams!r:.40}, wanted a list of objects")
    training.streams = streams
    training.step, training.num_samples = _number(numbers["step"], int), _number(numbers["num_samples"], int)
    training.skipped.copy_(torch.tensor([0, _number(numbers["skipped_updates"], int)]))


def _scaler_state(state: Mapping[str, Any]) -> dict[str, Any]:
    kinds: dict[str, Callable[[Any], Any]] = {"scale": float, "growth_factor": float, "backoff_factor": float} | {
        "growth_interval": int
    }
    found = {key: _number(state[key], kind) for key, kind in kinds.items()} | {
        "_growth_tracker": _number(state["_growth_tracker"], int)
    }
    if not (
        found["scale"] > 0 and found["growth_factor"] > 1 > found["backoff_factor"] > 0 and found["growth_interval"] > 0
    ):
        raise ValueError(f"scaler is {found}, which none could work with")
    return found


def _number(value: Any, kind: Callable[[Any], Any]) -> Any:
    if type(value) is not kind or not 0 <= value < math.inf:
        raise ValueError(f"got {value!r:.40}, wanted a number of the kind {kind.__name__}, 0 or more")
    return value


def broadcast_state(training: Training, world: World) -> None:
    """Bring every process to where the main one is."""
    world.broadcast_tensors(
        [*training.model.state_dict().values(), *(tensor for _, tensor in slots(training)), training.skipped]
    )
    training.streams = world.broadcast(training.streams)
    scaler = training.scaler.state_dict()
    numbers = [
        training.step,
        training.num_samples,
        training.micro_batch or 0,
        scaler.get("scale", 0.0),
        scaler.get("_growth_tracker", 0),
    ]
    told = torch.tensor(numbers, dtype=torch.float64)  # whole numbers are exact in it up to 2**53
    world.broadcast_tensors([told])
    training.step, training.num_samples, training.micro_batch = int(told[0]), int(told[1]), int(told[2]) or None
    if scaler:
        training.scaler.load_state_dict(scaler | {"scale": told[3].item(), "_growth_tracker": int(told[4])})
