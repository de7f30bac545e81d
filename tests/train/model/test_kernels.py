"""The hand-written kernels agree with ordinary PyTorch in value and gradient, and bound their
memory.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from train.config import Config
from train.core.memory import PeakMemory
from train.model import kernels, make_model
from train.model.kernels import (
    can_use_squared_relu,
    can_use_triton,
    chunk_tokens,
    chunked_cross_entropy,
    should_chunk_loss,
    squared_relu,
)

NUM_TOKENS, WIDTH, VOCAB_SIZE, PADDED = 300, 16, 70, 128
both_caps = pytest.mark.parametrize("cap", [None, 15.0])


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, a head's weight and targets whose logits exceed the cap."""
    torch.manual_seed(3)
    features = torch.randn(NUM_TOKENS, WIDTH).to(dtype).requires_grad_()
    weight = (torch.randn(PADDED, WIDTH) * 3).to(dtype).requires_grad_()
    return features, weight, torch.randint(VOCAB_SIZE, (NUM_TOKENS,))


def plain(features: Tensor, weight: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    logits = F.linear(features, weight).float()
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    logits[:, VOCAB_SIZE:] = -math.inf
    return F.cross_entropy(logits, targets, reduction="none")


@both_caps
@pytest.mark.parametrize(("chunk", "rows"), [(64, 7), (128, 128), (1 << 20, 1 << 20)])
def test_chunked_cross_entropy_agrees_with_torch(
    chunk: int, rows: int, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kernels.MAX_LOGITS, "cpu", chunk * PADDED)
    monkeypatch.setattr(kernels, "ROWS_LOGITS_ON_CPU", rows * PADDED)
    features, weight, targets = tensors()
    losses = plain(features, weight, targets, cap)
    (3.0 * losses.mean()).backward()
    expected = [features.grad, weight.grad]
    features.grad = weight.grad = None
    loss, each = chunked_cross_entropy(features, weight, targets, logit_cap=cap, vocab_size=VOCAB_SIZE)
    (3.0 * loss).backward()
    torch.testing.assert_close(each, losses.detach())
    torch.testing.assert_close(loss, losses.mean())
    for ours, theirs in zip([features.grad, weight.grad], expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert weight.grad is not None and (weight.grad[VOCAB_SIZE:] == 0).all()


@both_caps
def test_chunked_cross_entropy_in_bfloat16_keeps_dtype_and_gradients(
    cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kernels.MAX_LOGITS, "cpu", 64 * PADDED)
    features, weight, targets = tensors(torch.bfloat16)
    exact = [tensor.detach().float().requires_grad_() for tensor in (features, weight)]
    plain(exact[0], exact[1], targets, cap).mean().backward()
    loss, _ = chunked_cross_entropy(features, weight, targets, logit_cap=cap, vocab_size=VOCAB_SIZE)
    loss.backward()
    assert loss.dtype == torch.float32
    for ours, theirs in zip([features, weight], exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None and ours.grad.dtype == torch.bfloat16
        assert (ours.grad.float() - theirs.grad).norm() < 0.02 * theirs.grad.norm()


@both_caps
def test_chunked_cross_entropy_is_finite_for_extreme_probabilities(cap: float | None) -> None:
    """The target's probability rounds to 0 in float32 in one row and to 1 in the other."""
    weight = torch.zeros(PADDED, 2)
    weight[0] = torch.tensor([200.0, 0.0])
    features, targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])
    _, each = chunked_cross_entropy(features, weight, targets, logit_cap=cap, vocab_size=VOCAB_SIZE)
    assert each[0] < 1e-3 and each[1] == pytest.approx(200.0 if cap is None else cap, rel=1e-4)


def test_chunked_cross_entropy_of_tokens_has_no_gradient() -> None:
    features, weight, targets = tensors()
    _, each = chunked_cross_entropy(features, weight, targets, logit_cap=None, vocab_size=VOCAB_SIZE)
    with pytest.raises(RuntimeError, match="does not require grad"):
        each.sum().backward()


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 1000, 4096])
def test_chunk_tokens_gives_even_chunks(num_tokens: int) -> None:
    size = chunk_tokens(num_tokens, torch.empty(50_304, 0))
    assert size % 64 == 0 and size * 50_304 <= kernels.MAX_LOGITS["cpu"] * 2
    assert chunk_tokens(num_tokens, torch.empty(64, 0)) >= num_tokens


@both_caps
def test_chunked_cross_entropy_memory_does_not_grow_with_logits(
    cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kernels.MAX_LOGITS, "cpu", 1 << 22)
    torch.manual_seed(0)
    weight, peaks = torch.randn(20_032, 8, requires_grad=True), []
    for num_tokens in (1 << 10, 1 << 13):
        features, targets = torch.randn(num_tokens, 8, requires_grad=True), torch.randint(20_000, (num_tokens,))
        with PeakMemory() as memory:
            chunked_cross_entropy(features, weight, targets, logit_cap=cap, vocab_size=20_000)[0].backward()
        peaks.append(memory.peak_bytes)
    assert peaks[1] < 1.2 * peaks[0] < (1 << 13) * 20_032 * 4  # the last is the size of the logits


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
@pytest.mark.parametrize("with_documents", [False, True])
def test_forward_selects_a_loss_by_size_and_both_agree(
    arch: str, with_documents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(data="x", out_dir="y", arch=arch, n_layer=2, n_head=2, n_embd=32, block_size=16)
    ids = torch.randint(VOCAB_SIZE, (8, 17), generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([[0] * 9 + [1] * 7] * 8) if with_documents else None
    results = []
    for max_logits in (1 << 22, 64 * PADDED):
        monkeypatch.setitem(kernels.MAX_LOGITS, "cpu", max_logits)
        torch.manual_seed(0)
        model = make_model(config, VOCAB_SIZE)
        with torch.no_grad():
            model.head_weight.normal_(std=0.5)
        loss, row_losses = model(ids[:, :-1], ids[:, 1:], documents)
        loss.backward()
        results.append([loss.detach(), row_losses, *(p.grad for p in model.parameters())])
    for plain_value, chunked_value in zip(*results, strict=True):
        torch.testing.assert_close(plain_value, chunked_value, atol=1e-6, rtol=1e-4)


def test_chunking_is_faster_for_many_logits_and_always_with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has_triton in (False, True):
        monkeypatch.setattr(kernels, "HAS_TRITON", has_triton)
        assert (can_use_triton(cpu), can_use_triton(cuda)) == (False, has_triton)
        assert not should_chunk_loss(1 << 18, cpu) and should_chunk_loss((1 << 18) + 1, cpu)
        assert should_chunk_loss(1, cuda) is has_triton and should_chunk_loss((1 << 28) + 1, cuda)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squared_relu_and_its_derivative_equal_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 8, 64, dtype=dtype), torch.randn(8, 64, dtype=dtype)
    x[0, 0, :4] = torch.tensor([0.0, -0.0, 1e8, -1e8])
    for inputs in x:
        ours, theirs = (inputs.clone().requires_grad_() for _ in range(2))
        y, expected = squared_relu(ours), F.relu(theirs).square()
        assert torch.equal(y, expected)
        for result in (y, expected):
            result.backward(gradient)
        assert ours.grad is not None and torch.equal(ours.grad, theirs.grad)
    assert can_use_squared_relu(x)
    with torch.no_grad():
        assert not can_use_squared_relu(x)
