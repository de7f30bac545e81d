"""The optimizers, and their learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from config import Config

# Where AdamW has one kernel for all parameters, which also leaves out an update that `found_inf` refuses.
FUSED_DEVICES = ("cuda", "cpu")
# Of Newton and Schulz' quintic iteration, chosen for the steepest slope at zero (Keller Jordan 2024, https://kellerjordan.github.io/posts/muon/).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
WSD_DECAY_FRACTION = 0.2
# What each optimizer keeps of a parameter; all but `step` have its shape.
SLOTS: dict[str, tuple[str, ...]] = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}


def orthogonalize(matrices: Tensor) -> Tensor:
    """`matrices`: (K, A, B). Returns them with all singular values near 1: about U Vᵀ of each one's U S Vᵀ.

    On CUDA in bfloat16, which loses nothing that matters here; on a CPU without bfloat16 units that would cost time.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Keller Jordan 2024), for matrices.

    Does what torch.optim.Muon does, which takes one matrix after the other and cannot refuse an update on the device: this one
    multiplies all matrices of a shape at once, and leaves weights and momentum as they are where `found_inf` is 1.
    """

    found_inf: Tensor | None = None  # () float32, set before a step, as AdamW's

    def __init__(self, params: Iterable[Tensor], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # nobody gives it one
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                self._step(params, group)

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = torch.stack([p.grad for p in params if p.grad is not None])  # (K, A, B)
        taken: Tensor | float = 1.0  # 0 where the update is refused
        if self.found_inf is not None:
            taken = 1.0 - self.found_inf
            grads = torch.where(self.found_inf > 0, 0.0, grads)  # never by multiplying: 0 × NaN is NaN
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in params]
        blended = torch.stack(momenta).lerp_(grads, taken * (1 - group["momentum"]))
        updates = orthogonalize(grads.lerp(blended, group["momentum"]))  # Nesterov's look ahead
        rows, columns = params[0].shape
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        torch._foreach_copy_(momenta, list(blended.unbind()))
        torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"] * taken)
        torch._foreach_add_(params, list((updates * (-rate * taken)).unbind()))


def make_optimizers(model: nn.Module, config: Config, *, device: torch.device) -> list[torch.optim.Optimizer]:
    """AdamW over `model`; or Muon over its blocks' matrices, and AdamW over the rest. Matrices and embeddings decay."""
    by_muon = [p for p in model.get_submodule("h").parameters() if p.dim() == 2] if config.optimizer == "muon" else []
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in by_muon)]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = device.type in FUSED_DEVICES
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)
    ]
    if by_muon:
        optimizers.append(Muon(by_muon, lr=config.muon_learning_rate, momentum=config.muon_momentum, weight_decay=config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["highest_lr"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every rate to `factor` times its highest."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["highest_lr"]


def update(optimizers: Iterable[torch.optim.Optimizer], is_good: Tensor) -> None:
    """Take a step, or, where `is_good`, () bool, is false, none: neither weights nor moments change.

    The device decides by itself, so that nobody waits for it; but where AdamW is not fused.
    """
    for optimizer in optimizers:
        is_refusable = isinstance(optimizer, Muon) or optimizer.defaults.get("fused")
        if is_refusable or is_good:
            optimizer.found_inf = (~is_good).float()  # type: ignore[attr-defined] # as GradScaler tells a fused optimizer
            optimizer.step()


def schedule_factor(step: int, config: Config) -> float:
    """The share of the highest learning rate for the update that follows `step` updates.

    Linear warmup; then, to min_lr at max_steps, a cosine, a line, or (wsd: warmup, stable, decay) nothing until the last
    decay_steps, and a line there (Hu et al. 2024, MiniCPM).
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    last = config.min_lr / config.learning_rate
    begin = config.warmup_steps
    if config.schedule == "wsd":
        decay_steps = config.decay_steps or max(round(config.max_steps * WSD_DECAY_FRACTION), 1)
        begin = max(config.max_steps - 1 - decay_steps, begin)
    progress = min(max(step - begin, 0) / max(config.max_steps - 1 - begin, 1), 1.0)
    left = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return last + left * (1 - last)


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter the slots that its first step would make, all zero: memory is then taken before training begins."""
    states: dict[int, dict[str, Tensor]] = {}
    counts_on_device = bool(optimizer.defaults.get("fused"))  # else the host reads the count of steps, for each parameter
    for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        slots = SLOTS[type(optimizer).__name__]
        step_device = p.device if counts_on_device else torch.device("cpu")
        states[i] = {key: torch.zeros((), device=step_device) if key == "step" else torch.zeros_like(p) for key in slots}
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
