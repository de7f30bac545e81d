"""The Triton kernel of the loss, for CUDA GPUs. `kernels.py` imports this file when it needs it.

After a chunk's logits are computed, three things remain: each row's log Σ exp, the loss of its
target, and the gradient of that loss with respect to the logits. PyTorch needs a dozen kernels for
them. Each reads or writes all logits, so the bandwidth of the GPU's memory limits the speed. Here
one program processes one row. It reads the row once for the loss, in blocks, with a running maximum
as in online softmax (Milakov & Gimelshein 2018), and once more to overwrite each logit with its
gradient, in the dtype of the logits. On an H100 the loss of 32,768 tokens over 50,304 ids took
17.2 ms instead of 33.9, forward and backward, including the matrix products (bench/README.md).

Shapes: n tokens, V padded vocabulary.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 2048  # ids that a program holds in registers; 4,096 and more were slower on an H100


def replace_logits_by_gradients(
    logits: Tensor,
    targets: Tensor,
    losses: Tensor,
    *,
    logit_cap: float | None,
    vocab_size: int,
    with_gradients: bool,
) -> None:
    """Write the cross-entropy of each row of `logits`, (n, V), to `losses`, (n,) float32, in nats.

    `logit_cap` is applied here, not by the caller. Ids from `vocab_size` on have probability 0.
    `targets` is (n,) int64; a row whose target is negative, as IGNORE_INDEX is, has the loss 0 and
    zero gradients. If `with_gradients` is true, each row of `logits` is overwritten with
    the gradient of its loss with respect to that row; otherwise the logits are unchanged.
    """
    padded_vocab_size = logits.shape[1]
    block = min(triton.next_power_of_2(padded_vocab_size), MAX_BLOCK)
    _cross_entropy_row[(len(logits),)](
        logits,
        targets,
        losses,
        logits.stride(0),
        vocab_size,
        padded_vocab_size,
        logit_cap or 0.0,
        logit_cap is not None,
        with_gradients,
        block,
        num_warps=max(min(block // 512, 16), 1),
    )


@triton.jit
def _cross_entropy_row(  # type: ignore[no-untyped-def] # Triton passes pointers and constants, which have no Python types
    logits,
    targets,
    losses,
    stride,
    vocab_size: tl.constexpr,
    padded_vocab_size: tl.constexpr,
    cap,
    HAS_CAP: tl.constexpr,
    WITH_GRADIENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Process one row: the one whose number is the id of this program."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    logits += row * stride
    maximum, total = -float("inf"), 0.0  # total: Σ exp(z - maximum) of the blocks so far
    for begin in range(0, vocab_size, BLOCK):
        ids = begin + tl.arange(0, BLOCK)
        z = tl.load(logits + ids, mask=ids < vocab_size, other=-float("inf")).to(tl.float32)
        if HAS_CAP:  # cap · tanh(z / cap) = 2 cap · σ(2 z / cap) - cap
            z = tl.where(ids < vocab_size, 2 * cap * tl.sigmoid(z * (2 / cap)) - cap, -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(z, 0))
        total = total * tl.exp(maximum - new_maximum) + tl.sum(tl.exp(z - new_maximum), 0)
        maximum = new_maximum
    log_sum = maximum + tl.log(total)
    is_counted = target >= 0
    target_logit = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)
    if HAS_CAP:
        target_logit = 2 * cap * tl.sigmoid(target_logit * (2 / cap)) - cap
    tl.store(losses + row, tl.where(is_counted, log_sum - target_logit, 0.0))
    if WITH_GRADIENTS:
        tl.debug_barrier()  # all threads have read the target's logit before one of them overwrites it
        for begin in range(0, padded_vocab_size, BLOCK):
            ids = begin + tl.arange(0, BLOCK)
            z = tl.load(logits + ids, mask=ids < vocab_size, other=-float("inf")).to(tl.float32)
            slope = 1.0  # the derivative of the cap
            if HAS_CAP:
                sigma = tl.sigmoid(z * (2 / cap))
                z = 2 * cap * sigma - cap
                slope = 4 * sigma * (1 - sigma)
            # The gradient of cross-entropy: softmax minus one-hot, times the derivative of the cap.
            gradient = (tl.exp(z - log_sum) - tl.where(ids == target, 1.0, 0.0)) * slope
            gradient = tl.where((ids < vocab_size) & is_counted, gradient, 0.0)
            tl.store(logits + ids, gradient.to(logits.dtype.element_ty), mask=ids < padded_vocab_size)
