"""The optimizers, and their learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from train.config import Config

# Where AdamW has one kernel for all parameters, which also leaves out an update that `found_inf` refuses.
FUSED_DEVICES = ("cuda", "cpu")
# Polynomials a x + b x³ + c x⁵ that, one after the other, bring singular values between 0.001 and 1 as near to 1 as such polynomials can
# (Polar Express, Amsel et al. 2025; computed by its algorithm).
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# Of a small matrix few singular values are small. At 128 rows the first three learned as much as all (bench/README.md), in three fifths of
# the time, which is a quarter of such a model's step.
SMALL_MATRIX, FEW_POLYNOMIALS = 256, 3
ROOM_FOR_ROUNDING = 1.02  # beyond 1, the first polynomial grows fast
ROOM_FOR_EACH = 1.01  # and each is steep where the one before has its highest values: the authors' safety factor
WSD_DECAY_FRACTION = 0.2
# What each optimizer keeps of a parameter; all but `step` have its shape.
SLOTS: dict[str, tuple[str, ...]] = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}


def orthogonalize(matrices: Tensor) -> Tensor:
    """`matrices`: (K, A, B). Returns about U Vᵀ of each one's U S Vᵀ: singular values near 1, by three polynomials from 0.1 to 1.9.

    On CUDA in bfloat16, which loses nothing that matters here; elsewhere that would cost time.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) * ROOM_FOR_ROUNDING + 1e-7)
    polynomials = POLAR_EXPRESS[:FEW_POLYNOMIALS] if x.shape[1] <= SMALL_MATRIX else POLAR_EXPRESS
    x = _step_by_step(x, polynomials) if x.is_cuda else _factor(x @ x.mT, polynomials) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


def _step_by_step(x: Tensor, polynomials: Sequence[tuple[float, float, float]]) -> Tensor:
    """The polynomials of `x`, (K, A, B), one after the other, with room for the rounding of bfloat16 before each."""
    for a, b, c in polynomials:
        x = x / ROOM_FOR_EACH
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _factor(gram: Tensor, polynomials: Sequence[tuple[float, float, float]]) -> Tensor:
    """What the polynomials together multiply x by, from `gram` = x xᵀ, (K, A, A), alone: it is the shorter side's, and x is not touched.

    A third less to multiply for the matrices of a block. In bfloat16 its rounding would show; in float32 a random matrix of 128 rows
    strays by 3 millionths from what the polynomials give one after the other, one of rank 1 and 768 rows by two thousandths.
    """
    factor = step = None
    for a, b, c in polynomials:
        if step is not None:
            gram = step @ gram @ step  # of x as it is by now; polynomials of one matrix can be multiplied in any order
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal(dim1=1, dim2=2).add_(a)
        factor = step if factor is None else step @ factor
    assert factor is not None
    return factor


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
    """AdamW over `model`; or Muon over its blocks' matrices, and AdamW over the rest. Matrices and embeddings decay.

    With embedding_learning_rate, the token embedding has a rate of its own: a step moves few of its rows.
    """
    by_muon = [p for p in model.get_submodule("h").parameters() if p.dim() == 2] if config.optimizer == "muon" else []
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in by_muon)]
    rates = {
        id(p): config.embedding_learning_rate or config.learning_rate for p in model.get_submodule("wte").parameters()
    }
    by_kind: dict[tuple[float, float], list[Tensor]] = {}
    for p in rest:
        kind = rates.get(id(p), config.learning_rate), config.weight_decay if p.dim() >= 2 else 0.0
        by_kind.setdefault(kind, []).append(p)
    groups = [
        {"params": params, "lr": lr, "weight_decay": weight_decay} for (lr, weight_decay), params in by_kind.items()
    ]
    fused = device.type in FUSED_DEVICES
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)
    ]
    if by_muon:
        optimizers.append(
            Muon(by_muon, lr=config.muon_learning_rate, momentum=config.muon_momentum, weight_decay=config.weight_decay)
        )
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
    counts_on_device = bool(
        optimizer.defaults.get("fused")
    )  # else the host reads the count of steps, for each parameter
    for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        slots = SLOTS[type(optimizer).__name__]
        step_device = p.device if counts_on_device else torch.device("cpu")
        states[i] = {
            key: torch.zeros((), device=step_device) if key == "step" else torch.zeros_like(p) for key in slots
        }
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
