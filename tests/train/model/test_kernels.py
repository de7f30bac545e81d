"""The loss of a head's logits some tokens at a time: its value, its gradients, and its memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from train.core.memory import PeakMemory
from train.model import kernels as head
from train.model.kernels import HeadLoss, logits_of, tokens_at_once

NUM_TOKENS, WIDTH, VOCAB_SIZE, PADDED = 300, 16, 70, 128
both_caps = pytest.mark.parametrize("cap", [None, 15.0])


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Features, a head's weight, targets; logits go well beyond the cap."""
    torch.manual_seed(3)
    features = torch.randn(NUM_TOKENS, WIDTH).to(dtype).requires_grad_()
    weight = (torch.randn(PADDED, WIDTH) * 3).to(dtype).requires_grad_()
    return features, weight, torch.randint(VOCAB_SIZE, (NUM_TOKENS,))


def plain(features: Tensor, weight: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    return F.cross_entropy(
        logits_of(features, weight, cap=cap, vocab_size=VOCAB_SIZE).float(), targets, reduction="none"
    )


@both_caps
@pytest.mark.parametrize("chunk", [64, 128, 1 << 20])
def test_loss_and_gradients_are_those_of_all_logits_at_once(
    chunk: int, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head.LOGITS_AT_ONCE, "cpu", chunk * PADDED)
    features, weight, targets = tensors()
    losses = plain(features, weight, targets, cap)
    (3.0 * losses.mean()).backward()
    wanted = [features.grad, weight.grad]
    features.grad = weight.grad = None
    loss, each = HeadLoss.apply(features, weight, targets, cap, VOCAB_SIZE, True)
    (3.0 * loss).backward()
    torch.testing.assert_close(each, losses.detach())
    torch.testing.assert_close(loss, losses.mean())
    for ours, theirs in zip([features.grad, weight.grad], wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert weight.grad is not None and (weight.grad[VOCAB_SIZE:] == 0).all()


@both_caps
def test_half_precision_keeps_the_dtype_and_the_gradients(cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.LOGITS_AT_ONCE, "cpu", 64 * PADDED)
    features, weight, targets = tensors(torch.bfloat16)
    exact = [tensor.detach().float().requires_grad_() for tensor in (features, weight)]
    plain(exact[0], exact[1], targets, cap).mean().backward()
    loss, _ = HeadLoss.apply(features, weight, targets, cap, VOCAB_SIZE, True)
    loss.backward()
    assert loss.dtype == torch.float32
    for ours, theirs in zip([features, weight], exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None and ours.grad.dtype == torch.bfloat16
        assert (ours.grad.float() - theirs.grad).norm() < 0.02 * theirs.grad.norm()


@both_caps
def test_what_is_all_but_certain_has_a_loss(cap: float | None) -> None:
    """Where the wanted id's probability is below what a float can tell from 0, and where it is as good as 1."""
    weight = torch.zeros(PADDED, 2)
    weight[0] = torch.tensor([200.0, 0.0])
    features, targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])
    _, each = HeadLoss.apply(features, weight, targets, cap, VOCAB_SIZE, False)
    assert each[0] < 1e-3 and each[1] == pytest.approx(200.0 if cap is None else cap, rel=1e-4)


def test_only_the_mean_has_a_gradient() -> None:
    features, weight, targets = tensors()
    _, each = HeadLoss.apply(features, weight, targets, None, VOCAB_SIZE, True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        each.sum().backward()


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 1000, 4096])
def test_chunks_are_even(num_tokens: int) -> None:
    size = tokens_at_once(num_tokens, 50_304, torch.device("cpu"))
    assert size % 64 == 0 and size * 50_304 <= head.LOGITS_AT_ONCE["cpu"] * 2
    assert tokens_at_once(num_tokens, 64, torch.device("cpu")) >= num_tokens


@both_caps
def test_memory_does_not_grow_with_the_logits(cap: float | None) -> None:
    torch.manual_seed(0)
    weight, peaks = torch.randn(20_032, 8, requires_grad=True), []
    for num_tokens in (1 << 10, 1 << 13):
        features, targets = torch.randn(num_tokens, 8, requires_grad=True), torch.randint(20_000, (num_tokens,))
        with PeakMemory() as memory:
            HeadLoss.apply(features, weight, targets, cap, 20_000, True)[0].backward()
        peaks.append(memory.peak_bytes)
    assert peaks[1] < 1.2 * peaks[0] < (1 << 13) * 20_032 * 4  # the logits alone would take the latter
