"""What every architecture promises: causality, separate documents, padding, caching, and a loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.train.model.helpers import (
    VOCAB_SIZE,
    all_architectures,
    make_config,
    make_new_model,
    make_random_model,
    random_ids,
)
from train.core.memory import PeakMemory
from train.model import make_model
from train.model.base import document_mask
from train.model.gpt2 import GPT2


@all_architectures
def test_no_position_attends_to_a_later_one(arch: str) -> None:
    model, ids = make_random_model(arch).eval(), random_ids(1, 16)
    changed_ids = ids.clone()
    changed_ids[0, 10] = (changed_ids[0, 10] + 1) % VOCAB_SIZE
    before, after = model.features(ids), model.features(changed_ids)
    torch.testing.assert_close(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10], after[:, 10], atol=1e-3)
    assert not torch.allclose(before[:, 15], after[:, 15], atol=1e-4)


@all_architectures
def test_no_token_attends_to_another_document(arch: str) -> None:
    model, ids = make_random_model(arch).eval(), random_ids(1, 16)
    documents = torch.tensor([[0] * 5 + [1] * 7 + [2] * 4])
    before = model.features(ids, documents)
    changed_ids = ids.clone()
    changed_ids[0, :5] = (changed_ids[0, :5] + 1) % VOCAB_SIZE
    after = model.features(changed_ids, documents)
    torch.testing.assert_close(before[:, 5:], after[:, 5:])
    assert not torch.allclose(before[:, :5], after[:, :5], atol=1e-3)
    assert not torch.allclose(before[:, 5:], model.features(ids)[:, 5:], atol=1e-4)
    torch.testing.assert_close(model.features(ids, torch.zeros(1, 16, dtype=torch.int64)), model.features(ids))


def test_document_mask_is_causal_and_block_diagonal() -> None:
    (((mask,),)) = document_mask(torch.tensor([[0, 0, 1]]))
    assert mask.squeeze().tolist() == [[True, False, False], [True, True, False], [False, False, True]]


@all_architectures
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_checkpointing_changes_no_gradient(arch: str, dropout: float, masked: bool) -> None:
    ids = random_ids(3, 17)
    documents = torch.tensor([[0] * 9 + [1] * 7] * 3) if masked else None
    gradients = []
    for gradient_checkpointing in (False, True):
        model = make_random_model(arch, dropout=dropout, gradient_checkpointing=gradient_checkpointing)
        torch.manual_seed(5)
        model(ids[:, :-1], ids[:, 1:], documents)[0].backward()
        gradients.append([p.grad for p in model.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, recomputed)


@all_architectures
def test_gradient_checkpointing_needs_less_memory(arch: str) -> None:
    ids = random_ids(32, 129)
    peaks = []
    for gradient_checkpointing in (False, True):
        model = make_new_model(arch, block_size=128, n_layer=6, gradient_checkpointing=gradient_checkpointing)
        with PeakMemory() as memory:
            model(ids[:, :-1], ids[:, 1:])[0].backward()
        peaks.append(memory.peak_bytes)
    assert peaks[1] < peaks[0] / 2.5


@all_architectures
def test_padded_ids_do_not_count_in_the_loss(arch: str) -> None:
    model, ids = make_random_model(arch), random_ids(3, 17)
    logits = model.logits(model.features(ids[:, :-1]))
    assert logits.shape == (3, 16, 64) and torch.isneginf(logits[..., VOCAB_SIZE:]).all()
    exact = F.cross_entropy(logits[..., :VOCAB_SIZE].transpose(1, 2), ids[:, 1:], reduction="none").mean(dim=1)
    torch.testing.assert_close(model(ids[:, :-1], ids[:, 1:])[1], exact)


@all_architectures
def test_flops_per_token_follows_the_palm_paper(arch: str) -> None:
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024}
    model = make_model(make_config(arch=arch, **sizes), 50_257)
    in_blocks, head, attention = 12 * 12 * 768**2, 50_304 * 768, 12 * 12 * 768 * 1024
    assert model.flops_per_token() == 6 * (in_blocks + head) + attention


@all_architectures
def test_features_with_a_cache_equal_those_of_the_whole_window(arch: str) -> None:
    model, ids = make_random_model(arch).eval(), random_ids(2, 16)
    expected = model.features(ids)
    cache = model.empty_cache(2)
    parts = [
        model.features(ids[:, :6], cache=cache),
        *(model.features(ids[:, n : n + 1], cache=cache) for n in range(6, 16)),
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected)


@all_architectures
def test_model_learns_a_sequence(arch: str) -> None:
    model = make_new_model(arch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = random_ids(1, 17)
    for _ in range(60):
        loss, _ = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.5


def test_loss_is_changed_by_one_line_in_forward() -> None:
    """A z-loss (Chowdhery et al. 2022) is one more line in `forward`, without its optional kernel."""

    class WithZLoss(GPT2):
        def forward(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
            logits = self.logits(self.features(ids, documents))  # (B, T, V)
            token_losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
            loss = token_losses.mean() + 1e-2 * logits.logsumexp(dim=-1).square().mean()  # the line that changes
            return loss, token_losses.detach().view(targets.shape).mean(dim=1)

    ids = random_ids(4, 17)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    torch.manual_seed(0)
    model = WithZLoss(make_config(), VOCAB_SIZE)
    plain = make_new_model("gpt2")
    loss, row_losses = model(inputs, targets)
    plain_loss, plain_row_losses = plain(inputs, targets)
    torch.testing.assert_close(row_losses, plain_row_losses)
    z = plain.logits(plain.features(inputs)).logsumexp(dim=-1)
    torch.testing.assert_close(loss, plain_loss + 1e-2 * z.square().mean())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss, _ = model(inputs, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert model(inputs, targets)[1].mean() < 1.0
        assert model.logits(model.features(inputs)).logsumexp(dim=-1).abs().mean() < z.abs().mean()
