"""The optimizers (AdamW and Muon), their parameter groups, and the learning rate schedule.

Muon (Keller Jordan 2024) replaces the momentum of a weight matrix, U S Vᵀ, by about U Vᵀ: every
direction is updated by the same amount, so that rare directions are learned as fast as frequent
ones. Instead of a singular value decomposition, a few odd polynomials a x + b x³ + c x⁵ of the
matrix bring its singular values near 1. They need only matrix products. Two things make this cheap
here: all matrices of one shape are processed in one batch, and on a CPU the polynomials are
multiplied together in the Gram matrix of the shorter side (`polynomial_factor`), which saves a
third of the products.

An update whose loss or gradient is not finite must be skipped, without the host waiting for the
device to find out. Both optimizers therefore have an attribute `found_inf`, a tensor on the device:
if it is 1, `step` leaves weights and moments unchanged.

Shapes: K matrices of A rows and B columns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from train.config import Config
from train.core.sharding import is_sharded, local_rows, map_matrices
from train.model import get_architecture
from train.model.base import LanguageModel

# On these devices AdamW has one fused kernel for all parameters, which also skips an update if
# `found_inf` is 1.
FUSED_DEVICES = ("cuda", "cpu")
# The coefficients (a, b, c) that, one polynomial after the other, bring singular values from 0.001
# to 1 as near to 1 as such polynomials can (Polar Express, Amsel et al. 2025; computed by its
# algorithm).
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# A small matrix has few small singular values. With 128 rows, five polynomials instead of three
# lowered the loss by only 0.003, in 15 % more time (bench/README.md).
SMALL_MATRIX_ROWS, NUM_SMALL_POLYNOMIALS = 256, 3
NORM_MARGIN = 1.02  # the first polynomial grows fast beyond 1, and rounding may exceed it
STEP_MARGIN = 1.01  # the same before each polynomial in bfloat16: the safety factor of Polar Express
WSD_DECAY_FRACTION = 0.2
# The state that each optimizer keeps per parameter; all except `step` have the parameter's shape.
SLOTS: dict[str, tuple[str, ...]] = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}


# An embedding that is also the head has gradients for all of its rows in each step, and training
# diverges with the high rate of one that is not. With ten times the rate of the other weights it did not.
MAX_TIED_RATIO = 10.0
# AdamW's rate for the matrices of the blocks, times the width: 0.26 to 0.46 in the configs of GPT-2.
# At width 256 (bench/width.py), GPT-2 ended at a loss of 2.39 with 0.26, 2.55 with 1.0 and 2.73 with
# 2.0. The configs with Muon have 1.9 to 3.1, for the head only; with these and AdamW, GPT-2 learned
# the frequencies of the characters and nothing else.
MAX_ADAMW_RATE, SAFE_ADAMW_RATE = 1.0, 0.5


def correct_rates(config: Config) -> tuple[Config, list[str]]:
    """Return `config` with learning rates that fit architecture and optimizer, and a line for each warning."""
    corrected, lines = _correct_adamw_rate(config)
    rate = config.embedding_learning_rate
    is_tied = get_architecture(config.arch).has_tied_head
    if rate is None or not is_tied or rate <= MAX_TIED_RATIO * corrected.learning_rate:
        return corrected, lines
    line = (
        f"the token embedding of {config.arch} is also its head, and may diverge with the embedding_learning_rate "
        f"{rate:g}; it has the learning_rate {corrected.learning_rate:g} instead (set embedding_learning_rate = None)"
    )
    return dataclasses.replace(corrected, embedding_learning_rate=None), [*lines, line]


def _correct_adamw_rate(config: Config) -> tuple[Config, list[str]]:
    """Lower a learning_rate that was tuned for the head beside Muon, if AdamW has the matrices too.

    Such a config has an embedding_learning_rate. Otherwise learning_rate was meant for all weights,
    and a high one is only reported.
    """
    width = config.base_width or config.n_embd  # rate × width is the same at all widths (`scale_rates`)
    if config.optimizer != "adamw" or config.learning_rate * width <= MAX_ADAMW_RATE:
        return config, []
    rate = float(f"{SAFE_ADAMW_RATE / width:.1g}")
    problem = f"with the learning_rate {config.learning_rate:g}, AdamW may diverge at width {width:,}"
    if config.embedding_learning_rate is None:
        return config, [f"{problem}; set --learning_rate={rate:g} or lower"]
    line = f"{problem}, because it is for the head beside Muon; it is lowered to {rate:g} (or set --optimizer=muon)"
    min_lr = min(config.min_lr, rate)
    return dataclasses.replace(config, learning_rate=rate, min_lr=min_lr), [line]


def scale_rates(config: Config) -> tuple[Config, list[str]]:
    """Return `config` with the learning rates for its width, and a line for each rate that changes.

    The rates were tuned at base_width. In a model that is twice as wide, each output of a matrix is
    the sum of twice as many products, and AdamW changes each weight by about its learning rate, so
    half the rate changes the output as much (µP: Yang et al. 2022, "Tensor Programs V"). Beside
    Muon, AdamW has the head, whose best rate falls with the square root of the width, as in
    nanochat. The rates of Muon and of an untied embedding stay the same: Muon limits how far an
    update changes the output of a matrix, and the output of an embedding is a row, not a sum.

    The result has n_embd as its base_width, so scaling it again changes nothing.
    """
    if config.base_width is None or config.base_width == config.n_embd:
        return config, []
    factor = (config.base_width / config.n_embd) ** (0.5 if config.optimizer == "muon" else 1.0)
    scaled: dict[str, Any] = {"learning_rate": config.learning_rate * factor, "min_lr": config.min_lr * factor}
    if config.embedding_learning_rate is not None and get_architecture(config.arch).has_tied_head:
        scaled["embedding_learning_rate"] = config.embedding_learning_rate * factor
    lines = [
        f"{key} is {rate:g} at n_embd {config.n_embd:,} ({getattr(config, key):g} at base_width {config.base_width:,})"
        for key, rate in scaled.items()
        if rate != getattr(config, key)
    ]
    return dataclasses.replace(config, **scaled, base_width=config.n_embd), lines


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return about U Vᵀ for each matrix U S Vᵀ of `matrices`, (K, A, B): singular values near 1.

    Singular values of at least 0.001 times the Frobenius norm become about 0.86 to 1.13 or, in a
    matrix whose shorter side is at most SMALL_MATRIX_ROWS, 0.13 to 1.87. On CUDA the computation is
    in bfloat16, which is faster and learns as much.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) * NORM_MARGIN + 1e-7)
    polynomials = POLAR_EXPRESS[:NUM_SMALL_POLYNOMIALS] if x.shape[1] <= SMALL_MATRIX_ROWS else POLAR_EXPRESS
    x = apply_polynomials(x, polynomials) if x.is_cuda else polynomial_factor(x @ x.mT, polynomials) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


def orthogonalize_parts(matrices: Tensor, *, num_parts: int) -> Tensor:
    """Return `matrices`, (K, A, B), with each `num_parts`-th of their rows orthogonalized separately.

    For the queries, keys and values of 6 heads at width 384 this takes a CPU a ninth of the time of
    whole matrices: the Gram matrices have 64 rows instead of 384.
    """
    K, A, B = matrices.shape
    return orthogonalize(matrices.reshape(K * num_parts, A // num_parts, B)).reshape(K, A, B)


def apply_polynomials(x: Tensor, polynomials: Sequence[tuple[float, float, float]]) -> Tensor:
    """Return the result of applying the polynomials to `x`, (K, A, B), in turn.

    Before each polynomial, `x` is divided by STEP_MARGIN.
    """
    for a, b, c in polynomials:
        # The polynomial of x / STEP_MARGIN, with the division moved into the coefficients.
        a, b, c = a / STEP_MARGIN, b / STEP_MARGIN**3, c / STEP_MARGIN**5
        gram = x @ x.mT  # (K, A, A)
        # a x + (b gram + c gram²) x, with the sums inside the products: three kernels instead of
        # nine, and less rounding.
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def polynomial_factor(gram: Tensor, polynomials: Sequence[tuple[float, float, float]]) -> Tensor:
    """Return P, (K, A, A), such that P @ x equals applying the polynomials to x, (K, A, B), in turn.

    `gram` is the Gram matrix x xᵀ, (K, A, A), where A must be the shorter side to save time. In
    float32, P @ x differs from `apply_polynomials` by 3e-6 for a random matrix of 128 rows and by
    2e-3 for a matrix of rank 1 with 768 rows; bfloat16 is not precise enough.
    """
    factor = step = None
    for a, b, c in polynomials:
        if step is not None:
            gram = step @ gram @ step  # of the current x; polynomials of one matrix commute
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal(dim1=1, dim2=2).add_(a)
        factor = step if factor is None else step @ factor
    assert factor is not None
    return factor


class Muon(torch.optim.Optimizer):
    """The optimizer Muon, for matrices: momentum that is orthogonalized by `orthogonalize`.

    It computes what torch.optim.Muon computes, but for all matrices of one shape at once. If
    `found_inf` is 1 it skips the update, which torch's cannot do without waiting for the device. A
    parameter group can set `num_parts`: each of its parameters holds so many matrices of equal size,
    one below the other, and is updated as if they were separate parameters.

    If the matrices are sharded, this process holds a of the A rows of each. All is computed on these
    rows except `orthogonalize`, which needs whole matrices: `map_matrices` exchanges them.
    """

    found_inf: Tensor | None = None  # () float32, set before `step`, as for AdamW

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "num_parts": 1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # no caller passes a closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = torch.stack([local_rows(p.grad) for p in params if p.grad is not None])  # (K, a, B)
        is_applied: Tensor | float = 1.0  # 0.0 if the update is skipped
        if self.found_inf is not None:
            is_applied = 1.0 - self.found_inf
            grads = torch.where(self.found_inf > 0, 0.0, grads)  # not by multiplying: 0 × NaN is NaN
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [local_rows(self.state[p]["momentum_buffer"]) for p in params]
        momentum = torch.stack(momenta).lerp_(grads, is_applied * (1 - group["momentum"]))  # (K, a, B)
        nesterov = grads.lerp(momentum, group["momentum"])
        function = partial(orthogonalize_parts, num_parts=group["num_parts"])
        updates = map_matrices(function, nesterov, like=params[0]) if is_sharded(params[0]) else function(nesterov)
        num_rows, num_columns = params[0].shape[0] / group["num_parts"], params[0].shape[1]
        lr = group["lr"] * max(1.0, num_rows / num_columns) ** 0.5
        weights = [local_rows(p) for p in params]
        torch._foreach_copy_(momenta, list(momentum.unbind()))
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"] * is_applied)
        torch._foreach_add_(weights, list((updates * (-lr * is_applied)).unbind()))


def make_optimizers(model: LanguageModel, config: Config, *, device: torch.device) -> list[torch.optim.Optimizer]:
    """Return [AdamW], or [AdamW, Muon] with Muon for the matrices of the blocks of `model`.

    Only parameters of two or more dimensions have weight decay. The token embedding has the
    learning rate embedding_learning_rate, if it is set.
    """
    by_muon: dict[int, list[Tensor]] = {}  # number of matrices that a parameter holds → parameters
    for block in model.h if config.optimizer == "muon" else ():
        for name, p in block.named_parameters():
            if p.dim() == 2:
                by_muon.setdefault(model.n_head * model.matrices_per_head.get(name, 0) or 1, []).append(p)
    matrices = [p for params in by_muon.values() for p in params]
    embedding_lr = config.embedding_learning_rate or config.learning_rate
    groups: dict[tuple[float, float], list[Tensor]] = {}  # (learning rate, weight decay) → parameters
    for p in model.parameters():
        if not any(p is matrix for matrix in matrices):
            lr = embedding_lr if p is model.wte.weight else config.learning_rate
            groups.setdefault((lr, config.weight_decay if p.dim() >= 2 else 0.0), []).append(p)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            fused=device.type in FUSED_DEVICES,
            capturable=device.type == "cuda",  # by a CUDA graph (run/captured_step.py)
        )
    ]
    if by_muon:
        optimizers.append(
            Muon(
                [{"params": params, "num_parts": num_parts} for num_parts, params in by_muon.items()],
                lr=config.muon_learning_rate,
                momentum=config.muon_momentum,
                weight_decay=config.weight_decay,
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["max_lr"] = group["lr"]
            if device.type == "cuda":  # a CUDA graph repeats the numbers that it was recorded with, but reads tensors
                group["lr"] = torch.tensor(group["lr"], device=device)
    return optimizers


def use_whole_matrices(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Make Muon update the queries, keys and values of all heads as one matrix, as earlier versions of Folio did."""
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            for group in optimizer.param_groups:
                group["num_parts"] = 1


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set the learning rate of every parameter group to `factor` times its maximum."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            lr = factor * group["max_lr"]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


def update(optimizers: Iterable[torch.optim.Optimizer], is_finite: Tensor) -> None:
    """Apply an optimizer step if `is_finite`, () bool, is true.

    Otherwise weights and moments are unchanged. The host does not wait for the device, unless AdamW
    is not fused.
    """
    for optimizer in optimizers:
        can_skip = isinstance(optimizer, Muon) or optimizer.defaults.get("fused")
        if can_skip or is_finite:
            optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined] # as GradScaler does for fused AdamW
            optimizer.step()


def schedule_factor(step: int, config: Config) -> float:
    """Return the learning rate of update number `step`, counted from 0, as a fraction of the maximum.

    A linear warmup is followed by a decay that reaches min_lr at the last update: along a cosine or
    a line from the end of the warmup on, or (wsd: warmup, stable, decay; Hu et al. 2024, MiniCPM)
    along a line in the last decay_steps after a constant phase.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    final = config.min_lr / config.learning_rate
    begin = config.warmup_steps
    if config.schedule == "wsd":
        decay_steps = config.decay_steps or max(round(config.max_steps * WSD_DECAY_FRACTION), 1)
        begin = max(config.max_steps - 1 - decay_steps, begin)
    progress = min(max(step - begin, 0) / max(config.max_steps - 1 - begin, 1), 1.0)
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return final + remaining * (1 - final)


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Allocate the optimizer's state as zeros, so that the preflight measures its memory."""
    states: dict[int, dict[str, Tensor]] = {}
    # An AdamW that is not fused needs its count of steps on the host, or each step would wait for
    # the device.
    is_fused = bool(optimizer.defaults.get("fused"))
    for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        step_device = p.device if is_fused else torch.device("cpu")
        states[i] = {
            key: torch.zeros((), device=step_device) if key == "step" else torch.zeros_like(p)
            for key in SLOTS[type(optimizer).__name__]
        }
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
