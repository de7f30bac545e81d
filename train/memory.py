"""How much memory there is, and how much of it a forward pass will keep."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch import Tensor

from data import Batch
from language_model import LanguageModel

CGROUP = Path("/sys/fs/cgroup")  # where Linux tells a container its limit


def available_bytes() -> int:
    """What this machine, or the container that this process runs in, can still give to it."""
    available = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no such files, or "max": no limit
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        available = min(available, limit - used)
    return available


def kept_bytes(model: LanguageModel, batch: Batch) -> int:
    """Bytes that a forward pass of `batch` keeps for the backward pass, the weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = model(*batch)  # held until all is counted: what is freed may lie where the next tensor does
    del loss
    return sum(kept.values())
