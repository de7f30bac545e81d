"""The loss of targets that do not count is zero and has no gradient, and packing documents changes no loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.train.model.test_kernels import PADDED, VOCAB_SIZE, both_caps, plain, tensors
from train.config import Config
from train.core.targets import IGNORE_INDEX
from train.model import kernels, make_model
from train.model.base import LanguageModel
from train.model.kernels import chunked_cross_entropy

both_archs = pytest.mark.parametrize("arch", ["gpt2", "modern"])
both_losses = pytest.mark.parametrize("is_chunked", [False, True])


def make_random_model(arch: str) -> LanguageModel:
    """Return a model whose predictions depend on all its tokens."""
    torch.manual_seed(0)
    model = make_model(
        Config(data="x", out_dir="y", arch=arch, n_layer=2, n_head=2, n_embd=32, block_size=24), VOCAB_SIZE
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(autouse=True)
def choose_loss(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all models of a test compute their loss in chunks of 64 tokens, if it asks for that."""
    if "is_chunked" in request.fixturenames and request.getfixturevalue("is_chunked"):
        monkeypatch.setitem(kernels.MAX_LOGITS, "cpu", 64 * PADDED)
        monkeypatch.setattr(kernels, "MAX_PLAIN_LOGITS_ON_CPU", 1)


def gradients(model: LanguageModel, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@both_caps
def test_chunked_cross_entropy_ignores_targets_exactly(cap: float | None) -> None:
    features, weight, targets = tensors()
    is_counted = torch.rand(len(targets)) < 0.4
    masked = targets.masked_fill(~is_counted, IGNORE_INDEX)
    loss, each = chunked_cross_entropy(features, weight, masked, logit_cap=cap, vocab_size=VOCAB_SIZE)
    loss.backward()
    assert features.grad is not None and weight.grad is not None
    assert (features.grad[~is_counted] == 0).all() and (each[~is_counted] == 0).all()
    expected = plain(features, weight, targets, cap)[is_counted]
    torch.testing.assert_close(each[is_counted], expected.detach())
    torch.testing.assert_close(loss, expected.sum() / len(targets))
    expected_weight_grad, expected_grad = torch.autograd.grad(expected.sum() / len(targets), [weight, features])
    torch.testing.assert_close(weight.grad, expected_weight_grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(features.grad, expected_grad, atol=1e-6, rtol=1e-4)


@both_losses
@both_archs
def test_tokens_after_the_last_counted_one_have_zero_gradients(arch: str, is_chunked: bool) -> None:
    """Only targets 0 to 9 count, so that the tokens from 10 on must not change the loss or a gradient."""
    ids = torch.randint(VOCAB_SIZE, (3, 25), generator=torch.Generator().manual_seed(1))
    others = ids.clone()
    others[:, 11:] = (ids[:, 11:] + 1) % VOCAB_SIZE
    model, results = make_random_model(arch), []
    for tokens in (ids, others):
        targets = tokens[:, 1:].clone()
        targets[:, 10:] = IGNORE_INDEX
        loss, _ = model(tokens[:, :-1], targets)
        results.append([loss.detach(), *gradients(model, loss)])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, atol=1e-7, rtol=1e-5)


@both_losses
@both_archs
def test_batch_without_counted_targets_has_loss_zero_and_zero_gradients(arch: str, is_chunked: bool) -> None:
    model = make_random_model(arch)
    ids = torch.randint(VOCAB_SIZE, (2, 24))
    loss, row_losses = model(ids, torch.full_like(ids, IGNORE_INDEX))
    assert loss == 0 and (row_losses == 0).all()
    assert all((gradient == 0).all() for gradient in gradients(model, loss))


@both_losses
@both_archs
def test_packed_documents_have_the_losses_of_each_alone(arch: str, is_chunked: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    lengths = [7, 1, 12, 5]  # 25 tokens: 24 inputs
    documents = [torch.randint(VOCAB_SIZE, (length,), generator=generator) for length in lengths]
    tokens = torch.cat(documents)[None]
    numbers = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    targets = tokens[:, 1:].masked_fill(numbers[:, 1:] != numbers[:, :-1], IGNORE_INDEX)  # not the first of each
    model = make_random_model(arch)
    packed, _ = model(tokens[:, :-1], targets, numbers[:, :-1])
    alone = sum(model(ids[None, :-1], ids[None, 1:])[0] * (len(ids) - 1) for ids in documents if len(ids) > 1)
    assert isinstance(alone, Tensor)
    torch.testing.assert_close(packed * 24, alone, atol=1e-5, rtol=1e-5)
    for ours, expected in zip(gradients(model, packed * 24), gradients(model, alone), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
