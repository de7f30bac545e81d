"""Optional, faster replacements of a few lines of PyTorch, tested to agree with them.

The model is not defined here. `base.py` computes the loss with F.cross_entropy, and `modern.py`
squares F.relu; each selects a function of this file with one `if`. To change the loss or the
activation, edit it there and delete that `if`.

`chunked_cross_entropy` saves memory. The logits of 64 × 1,024 tokens over 50,304 ids take 13 GB in
float32, and their gradients as much again. The function computes the logits of some tokens at a
time (a chunk), and immediately the gradients with respect to features and weight, while these
logits exist; the backward pass only scales the gradients. On two cores, 2,048 tokens of width 128
over 50,304 ids take 0.2 GB and 0.6 s instead of 1.7 GB and 1.3 s. Liger Kernel's fused linear
cross-entropy (Hsu et al. 2024) introduced the idea. The cost: it computes only plain cross-entropy.

On a CUDA GPU the function also saves time. PyTorch turns a chunk's logits into gradients with a
dozen kernels, each of which reads or writes all of them. The Triton kernel of `cuda_kernels.py`
reads them twice and writes them once.

Shapes: N tokens, C width, V padded vocabulary.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from train.core.targets import IGNORE_INDEX

# The most logits to hold at once: 128 MB in float32 on a CPU. A GPU needs larger matrix products.
MAX_LOGITS = {"cpu": 1 << 25}
MAX_LOGITS_ELSEWHERE = 1 << 28
# The most logits that `_replace_logits_by_gradients` takes at once: 4 MB in float32 stay in a CPU's caches.
ROWS_LOGITS_ON_CPU = 1 << 20
ROWS_LOGITS_ELSEWHERE = 1 << 25
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
    with about `max_logits` logits or fewer each.
    """
    num_chunks = math.ceil(num_tokens * len(weight) / max_logits(weight.device))
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
        # Allocate everything large once: blocks that each chunk allocates and frees would leave
        # holes in the heap, and new memory of this size takes as long as the product.
        token_losses = torch.empty(len(features), device=features.device)
        features_grad = torch.empty_like(features) if with_gradients else None
        weight_grad = _WeightGradient(weight) if with_gradients else None
        size = chunk_tokens(len(features), weight)
        buffer = torch.empty(min(size, len(features)), len(weight), dtype=weight.dtype, device=features.device)
        replace = _select_replace_logits(buffer)
        for begin in range(0, len(features), size):
            chunk = slice(begin, begin + size)
            x = features[chunk]  # (n, C)
            logits = buffer[: len(x)]  # (n, V)
            torch.mm(x, weight.T, out=logits)
            replace(
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
            weight_grad.add(grad, x)
        if weight_grad is not None:
            ctx.save_for_backward(features_grad, weight_grad.sum)
        ctx.mark_non_differentiable(token_losses)
        return token_losses.mean(), token_losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features_grad, weight_grad = ctx.saved_tensors
        scale = gradients[0] / len(features_grad)
        return features_grad * scale, (weight_grad * scale).to(features_grad.dtype), None, None, None, None


def _select_replace_logits(buffer: Tensor) -> Callable[..., None]:
    """Return the function that turns logits in `buffer` into their gradients: Triton's where it runs."""
    if can_use_triton(buffer.device):
        from train.model.cuda_kernels import replace_logits_by_gradients

        return replace_logits_by_gradients
    return _replace_logits_by_gradients


def _replace_logits_by_gradients(
    logits: Tensor,
    targets: Tensor,
    losses: Tensor,
    *,
    logit_cap: float | None,
    vocab_size: int,
    with_gradients: bool,
) -> None:
    """Overwrite `logits`, (n, V), with their gradients, and write each token's loss to `losses`, (n,) float32.

    Works on the rows of a few tokens at a time, in float32. On a CPU these stay in the caches: all
    rows of a chunk at once would be read from memory and written to it once for each line below.
    """
    size = _rows_at_once(logits)
    scratch = torch.empty(3, size, logits.shape[1], device=logits.device)
    for rows, target, loss in zip(logits.split(size), targets[:, None].split(size), losses.split(size), strict=True):
        z, grad, sigmoid = scratch[:, : len(rows)]  # (size, V) float32 each
        z.copy_(rows)
        if logit_cap is not None:
            # cap · tanh(z / cap) = 2 cap · σ(2 z / cap) − cap, and a constant does not change a
            # softmax. On a CPU tanh takes six times as long as σ.
            torch.sigmoid(z.mul_(2 / logit_cap), out=sigmoid)
            torch.mul(sigmoid, 2 * logit_cap, out=z)
        z[:, vocab_size:] = -math.inf
        torch.softmax(z, dim=1, out=grad)
        # log Σ exp(z) from the most likely id, because the probability of the target can round to 0.
        loss.copy_(z.amax(dim=1) - grad.amax(dim=1).log() - z.gather(1, target)[:, 0])
        if not with_gradients:
            continue
        # The gradient of cross-entropy: softmax minus one-hot, times the derivative of the cap.
        grad.scatter_add_(1, target, torch.full_like(target, -1, dtype=grad.dtype))
        if logit_cap is not None:
            grad.mul_(sigmoid.addcmul_(sigmoid, sigmoid, value=-1)).mul_(4)
        rows.copy_(grad)


def _rows_at_once(logits: Tensor) -> int:
    """Return how many rows of `logits` are turned into gradients at once: all, if a compiler fuses the operations."""
    if torch.compiler.is_compiling():
        return len(logits)
    limit = ROWS_LOGITS_ON_CPU if logits.device.type == "cpu" else ROWS_LOGITS_ELSEWHERE
    return max(1, min(len(logits), limit // logits.shape[1]))


class _WeightGradient:
    """A sum of matrix products in float32, whose factors have the dtype of the weight."""

    def __init__(self, weight: Tensor) -> None:
        self.sum = torch.zeros(weight.shape, device=weight.device)  # (V, C)
        # A CPU multiplies 16-bit matrices only into 16-bit results.
        self._product = torch.empty_like(weight) if weight.dtype != torch.float32 and not weight.is_cuda else None

    def add(self, grad: Tensor, x: Tensor) -> None:
        """Add `grad.T @ x`, of (n, V) and (n, C), to the sum."""
        if self._product is not None:
            self.sum += torch.mm(grad.T, x, out=self._product)
        elif grad.dtype == self.sum.dtype:
            self.sum.addmm_(grad.T, x)
        else:  # without a float32 copy of the factors
            torch.addmm(self.sum, grad.T, x, out_dtype=self.sum.dtype, out=self.sum)


def _apply(*arguments: Any) -> tuple[Tensor, Tensor]:
    mean, token_losses = _ChunkedCrossEntropy.apply(*arguments)
    return mean, token_losses


# torch.compile does not trace this function, through which a compiled model calls the Triton kernel.
# Without Triton it is not needed; torch.compiler.disable imports the compiler, which takes a second.
_apply_uncompiled = torch.compiler.disable(_apply) if HAS_TRITON else _apply


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
