"""Optional, faster replacements of a few lines of PyTorch, tested to agree with them.

The model is not defined here. `base.py` computes the loss with F.cross_entropy, and `modern.py`
squares F.relu; each selects a function of this file with one `if`. To change the loss or the
activation, edit it there and delete that `if`.

`chunked_cross_entropy` saves memory. The logits of 64 × 1,024 tokens over 50,304 ids take 13 GB in
float32, and their gradients as much again. The function computes the logits of some tokens at a
time (a chunk), and immediately the gradients with respect to features and weight, while these
logits exist; the backward pass only scales the gradients. On two cores, 2,048 tokens of width 128
over 50,304 ids take 0.4 GB and 0.6 s instead of 1.5 GB and 1.2 s. Liger Kernel's fused linear
cross-entropy (Hsu et al. 2024) introduced the idea. The cost: it computes only plain cross-entropy.

On a CUDA GPU the function also saves time. PyTorch turns a chunk's logits into gradients with a
dozen kernels, each of which reads or writes all of them. The Triton kernel of `cuda_kernels.py`
reads them twice and writes them once.

Shapes: N tokens, C width, V padded vocabulary.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from train.core.targets import IGNORE_INDEX

# The most logits to hold at once. On a CPU a small chunk stays near the caches; a GPU needs large
# matrix products.
MAX_LOGITS = {"cpu": 1 << 22}
# With 16-bit weights a CPU takes fewer, larger chunks: the matrix products are faster, so adding the
# weight gradient of each chunk to the float32 sum takes a larger share of the time.
LARGER_CHUNK_ON_CPU = 4
MAX_LOGITS_ELSEWHERE = 1 << 28
# On a CPU `chunked_cross_entropy` is faster than PyTorch with more logits than about this: with a
# cap, 1,024 × 1,024 logits take 19 ms instead of 31, forward and backward.
MAX_PLAIN_LOGITS_ON_CPU = 1 << 18
HAS_TRITON = importlib.util.find_spec("triton") is not None  # torch for CUDA requires it on Linux
TOKENS_MULTIPLE = 64  # chunks are multiples of this many tokens: matrix products are faster at such sizes


def max_logits(device: torch.device) -> int:
    """Return the largest number of logits to hold at once on `device`."""
    return MAX_LOGITS.get(device.type, MAX_LOGITS_ELSEWHERE)


def can_use_triton(device: torch.device) -> bool:
    """Return whether the kernels of `cuda_kernels.py` run on `device`."""
    return device.type == "cuda" and HAS_TRITON


def should_chunk_loss(num_logits: int, device: torch.device) -> bool:
    """Return whether to compute the loss of `num_logits` logits with `chunked_cross_entropy`.

    With Triton, always. Otherwise, if there are too many logits to hold at once or, on a CPU,
    enough that it is faster.
    """
    limit = min(max_logits(device), MAX_PLAIN_LOGITS_ON_CPU) if device.type == "cpu" else max_logits(device)
    return can_use_triton(device) or num_logits > limit


def chunk_tokens(num_tokens: int, weight: Tensor) -> int:
    """Return how many tokens a chunk has, for a head with `weight`, (V, C).

    `num_tokens` is divided into chunks of equal size, rounded up to a multiple of TOKENS_MULTIPLE,
    with about `max_logits` logits or fewer each, or LARGER_CHUNK_ON_CPU times as many.
    """
    is_larger = weight.device.type == "cpu" and weight.dtype != torch.float32
    limit = max_logits(weight.device) * (LARGER_CHUNK_ON_CPU if is_larger else 1)
    num_chunks = math.ceil(num_tokens * len(weight) / limit)
    return math.ceil(num_tokens / num_chunks / TOKENS_MULTIPLE) * TOKENS_MULTIPLE


def chunked_cross_entropy(
    features: Tensor, weight: Tensor, targets: Tensor, *, logit_cap: float | None, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of the logits `features @ weight.T`, in nats, without storing them all.

    `features` (N, C) and `weight` (V, C) have the same dtype; `targets` is (N,) int64. If
    `logit_cap` is not None, the logits are first limited to cap · tanh(logits / cap). Ids from
    `vocab_size` on are padding and have probability 0. Tokens whose target is IGNORE_INDEX have the
    loss 0 and no gradient. Returns the mean over all N, () float32, which has a gradient, and each
    token's loss, (N,) float32, which has none.
    """
    settings = (logit_cap, vocab_size, torch.is_grad_enabled())
    if can_use_triton(features.device):  # the kernel skips the tokens
        return _apply_uncompiled(features, weight, targets, *settings)
    if not _can_have_ignored(targets):
        return _apply(features, weight, targets, *settings)
    # With features of zero a token has zero gradients. The shapes stay the same, so the host need
    # not wait for the device, and a compiled model is not compiled again.
    is_counted = targets != IGNORE_INDEX  # (N,)
    mean, token_losses = _apply(features * is_counted[:, None], weight, targets.clamp(min=0), *settings)
    return mean - (token_losses * ~is_counted).mean(), token_losses * is_counted


def _can_have_ignored(targets: Tensor) -> bool:
    """Return whether a target is IGNORE_INDEX, or true if finding out would make the host wait."""
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    return bool((targets == IGNORE_INDEX).any())


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        targets: Tensor,
        logit_cap: float | None,
        vocab_size: int,
        with_gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        if can_use_triton(features.device):
            return _forward_with_triton(ctx, features, weight, targets, logit_cap, vocab_size, with_gradients)
        # Allocate everything large once: blocks that each chunk allocates and frees would leave
        # holes in the heap.
        token_losses = torch.empty(len(features), device=features.device)
        features_grad = torch.empty_like(features) if with_gradients else None
        weight_grad = torch.zeros(weight.shape, device=weight.device) if with_gradients else None
        size = chunk_tokens(len(features), weight)
        buffers = [
            torch.empty(min(size, len(features)), len(weight), device=features.device)
            for _ in range(2 if logit_cap is None else 3)
        ]
        products = _Products(weight, num_tokens=min(size, len(features)))
        for begin in range(0, len(features), size):
            chunk = slice(begin, begin + size)
            x, target = features[chunk], targets[chunk, None]  # (n, C), (n, 1)
            logits, grad, *rest = (buffer[: len(x)] for buffer in buffers)  # (n, V) each
            sigmoid = rest[0] if rest else None
            # cap · tanh(z / cap) = 2 cap · σ(2 z / cap) − cap, and a constant does not change a
            # softmax. On a CPU tanh takes six times as long as σ.
            products.multiply(x if logit_cap is None else x * (2 / logit_cap), weight.T, out=logits)
            if logit_cap is not None and sigmoid is not None:
                torch.sigmoid(logits, out=sigmoid)
                torch.mul(sigmoid, 2 * logit_cap, out=logits)
            logits[:, vocab_size:] = -math.inf
            torch.softmax(logits, dim=1, out=grad)
            # log Σ exp(z) from the most likely id, because the probability of the target can round
            # to 0.
            token_losses[chunk] = logits.amax(dim=1) - grad.amax(dim=1).log() - logits.gather(1, target)[:, 0]
            if features_grad is None or weight_grad is None:
                continue
            # The gradient of cross-entropy: softmax minus one-hot, times the derivative of the cap.
            grad.scatter_add_(1, target, torch.full_like(target, -1, dtype=grad.dtype))
            if sigmoid is not None:
                grad.mul_(sigmoid.addcmul_(sigmoid, sigmoid, value=-1)).mul_(4)
            rounded = products.round(grad)
            torch.mm(rounded, weight, out=features_grad[chunk])
            products.add(rounded.T, x, to=weight_grad)
        if with_gradients:
            ctx.save_for_backward(features_grad, weight_grad)
        ctx.mark_non_differentiable(token_losses)
        return token_losses.mean(), token_losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features_grad, weight_grad = ctx.saved_tensors
        scale = gradients[0] / len(features_grad)
        return features_grad * scale, (weight_grad * scale).to(features_grad.dtype), None, None, None, None


class _Products:
    """Matrix products whose factors have the dtype of the weight, and whose results are float32.

    PyTorch on a CPU multiplies 16-bit matrices only into 16-bit results. These go to memory that is
    allocated once, because new memory of this size takes as long as the product.
    """

    def __init__(self, weight: Tensor, *, num_tokens: int) -> None:
        self._is_float32 = weight.dtype == torch.float32
        if not self._is_float32:
            self._of_tokens = torch.empty(num_tokens, len(weight), dtype=weight.dtype, device=weight.device)  # (n, V)
            self._of_weight = torch.empty_like(weight)  # (V, C)

    def multiply(self, a: Tensor, b: Tensor, *, out: Tensor) -> None:
        """Write `a @ b`, (n, V), to `out`."""
        product = out if self._is_float32 else self._of_tokens[: len(a)]
        torch.mm(a, b, out=product)
        if product is not out:
            out.copy_(product)

    def round(self, x: Tensor) -> Tensor:
        """Return `x`, (n, V), in the dtype of the weight; valid until the next product of tokens."""
        return x if self._is_float32 else self._of_tokens[: len(x)].copy_(x)

    def add(self, a: Tensor, b: Tensor, *, to: Tensor) -> None:
        """Add `a @ b`, (V, C), to `to`."""
        if self._is_float32:
            to.addmm_(a, b)
        else:
            to += torch.mm(a, b, out=self._of_weight)


def _apply(*arguments: Any) -> tuple[Tensor, Tensor]:
    mean, token_losses = _ChunkedCrossEntropy.apply(*arguments)
    return mean, token_losses


# torch.compile does not trace this function, through which a compiled model calls the Triton kernel.
# Without Triton it is not needed; torch.compiler.disable imports the compiler, which takes a second.
_apply_uncompiled = torch.compiler.disable(_apply) if HAS_TRITON else _apply


def _forward_with_triton(
    ctx: Any,
    features: Tensor,
    weight: Tensor,
    targets: Tensor,
    logit_cap: float | None,
    vocab_size: int,
    with_gradients: bool,
) -> tuple[Tensor, Tensor]:
    """Compute what `_ChunkedCrossEntropy.forward` does, with one kernel between the matrix products."""
    from train.model.cuda_kernels import replace_logits_by_gradients

    token_losses = torch.empty(len(features), device=features.device)
    features_grad = torch.empty_like(features) if with_gradients else None
    weight_grad = torch.zeros(weight.shape, device=weight.device) if with_gradients else None
    size = chunk_tokens(len(features), weight)
    buffer = torch.empty(min(size, len(features)), len(weight), dtype=weight.dtype, device=features.device)
    for begin in range(0, len(features), size):
        chunk = slice(begin, begin + size)
        x = features[chunk]  # (n, C)
        logits = buffer[: len(x)]  # (n, V)
        torch.mm(x, weight.T, out=logits)
        replace_logits_by_gradients(
            logits,
            targets[chunk],
            token_losses[chunk],
            logit_cap=logit_cap,
            vocab_size=vocab_size,
            with_gradients=with_gradients,
        )
        if features_grad is None or weight_grad is None:
            continue
        grad = logits
        torch.mm(grad, weight, out=features_grad[chunk])
        if grad.dtype == weight_grad.dtype:
            weight_grad.addmm_(grad.T, x)
        else:  # sums in float32 without a float32 copy of the factors
            torch.addmm(weight_grad, grad.T, x, out_dtype=weight_grad.dtype, out=weight_grad)
    if with_gradients:
        ctx.save_for_backward(features_grad, weight_grad)
    ctx.mark_non_differentiable(token_losses)
    return token_losses.mean(), token_losses


def can_use_squared_relu(x: Tensor) -> bool:
    """Return whether `squared_relu` is faster for `x`: on a CPU or CUDA, with gradients enabled."""
    return x.device.type in ("cpu", "cuda") and torch.is_grad_enabled()


def squared_relu(x: Tensor) -> Tensor:
    """Return `F.relu(x) ** 2`.

    Its backward pass reads and writes memory twice, PyTorch's four times. For 768 × 512 numbers on
    a CPU, forward and backward take 0.5 ms instead of 0.85 ms, with the same results.
    """
    y: Tensor = _SquaredReLU.apply(x)
    return y


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)
