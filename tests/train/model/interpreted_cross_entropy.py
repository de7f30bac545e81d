"""Compare the Triton kernel, run by Triton's interpreter, with PyTorch: a program of
test_cuda_kernels.py.

It needs the environment variable TRITON_INTERPRET=1 before Triton is imported, hence a new process.
"""

from __future__ import annotations

import itertools
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tests.train.model.test_kernels import PADDED, VOCAB_SIZE, plain, tensors
from train.config import Config
from train.core.targets import IGNORE_INDEX
from train.model import cuda_kernels, kernels, make_model
from train.model.cuda_kernels import replace_logits_by_gradients


def compare_kernel(
    cap: float | None, dtype: torch.dtype, *, padded_vocab_size: int, vocab_size: int, block: int, with_gradients: bool
) -> None:
    """Check each row's loss and the gradients that replace its logits."""
    torch.manual_seed(0)
    logits = (20 * torch.randn(6, padded_vocab_size)).to(dtype)
    logits[:, vocab_size:] = 1000.0  # of padded ids, to be ignored
    targets = torch.tensor([0, 1, vocab_size - 1, vocab_size // 2, 3, IGNORE_INDEX])
    exact = logits.double().requires_grad_()
    capped = exact if cap is None else cap * torch.tanh(exact / cap)
    expected = torch.nn.functional.cross_entropy(capped[:, :vocab_size], targets, reduction="none")
    expected.sum().backward()
    losses, before = torch.empty(6), logits.clone()
    with patch("train.model.cuda_kernels.MAX_BLOCK", block):
        replace_logits_by_gradients(
            logits, targets, losses, logit_cap=cap, vocab_size=vocab_size, with_gradients=with_gradients
        )
    torch.testing.assert_close(losses, expected.detach().float(), atol=1e-5, rtol=1e-5)
    if not with_gradients:
        assert torch.equal(logits, before)
        return
    assert exact.grad is not None
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(logits, exact.grad.to(dtype), atol=tolerance, rtol=tolerance)
    assert (logits[:, vocab_size:] == 0).all()


def compare_chunked_cross_entropy(cap: float | None, chunk: int) -> None:
    """Check the loss of several chunks and its gradients with respect to features and weight."""
    results: list[list[Tensor | None]] = []
    for use_triton in (False, True):
        features, weight, targets = tensors()
        targets[::3] = IGNORE_INDEX
        if use_triton:
            with (
                patch.dict(kernels.MAX_LOGITS, cpu=chunk * PADDED),
                patch.object(kernels, "can_use_triton", return_value=True),
            ):
                loss, losses = kernels.chunked_cross_entropy(
                    features, weight, targets, logit_cap=cap, vocab_size=VOCAB_SIZE
                )
        else:
            losses = plain(features, weight, targets, cap)
            loss = losses.mean()
        (3.0 * loss).backward()
        results.append([loss.detach(), losses.detach(), features.grad, weight.grad])
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


def compare_compiled_model() -> None:
    """Check that a compiled model calls the kernel without tracing it, and has the same gradients."""
    config = Config(data="x", out_dir="y", arch="modern", n_layer=1, n_head=1, n_embd=8, block_size=8)
    ids = torch.randint(VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(0))
    results: list[list[Tensor | None]] = []
    was_compiling: list[bool] = []

    def replace_logits(*arguments: Any, **settings: Any) -> None:
        was_compiling.append(torch.compiler.is_compiling())
        replace_logits_by_gradients(*arguments, **settings)

    for use_triton in (False, True):
        torch.manual_seed(0)
        model = make_model(config, VOCAB_SIZE)
        torch.nn.init.normal_(model.head_weight)
        if use_triton:
            model.compile(backend="aot_eager")
        with (
            patch.object(kernels, "can_use_triton", return_value=use_triton),
            patch.object(cuda_kernels, "replace_logits_by_gradients", replace_logits),
        ):
            loss, row_losses = model(ids[:, :-1], ids[:, 1:])
            loss.backward()
        results.append([loss.detach(), row_losses, *(p.grad for p in model.parameters())])
    assert was_compiling == [False]
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


if __name__ == "__main__":
    for cap, dtype in itertools.product((None, 15.0), (torch.float32, torch.bfloat16, torch.float16)):
        for with_gradients in (True, False):
            compare_kernel(cap, dtype, padded_vocab_size=192, vocab_size=150, block=2048, with_gradients=with_gradients)
            # Several blocks, the last of them partly beyond the row.
            compare_kernel(cap, dtype, padded_vocab_size=192, vocab_size=150, block=64, with_gradients=with_gradients)
            compare_kernel(cap, dtype, padded_vocab_size=192, vocab_size=192, block=128, with_gradients=with_gradients)
    for cap, chunk in itertools.product((None, 15.0), (64, 1 << 20)):
        compare_chunked_cross_entropy(cap, chunk)
    compare_compiled_model()
