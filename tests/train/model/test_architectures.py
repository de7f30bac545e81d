"""What both architectures promise: causality, documents kept apart, less memory for the same gradients, padding without weight."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from train.config import Config
from train.core.memory import PeakMemory
from train.model import ARCHITECTURES, make_model
from train.model.base import LanguageModel, document_mask
from train.model.modern import LOGIT_CAP, norm, rotary_table, rotate

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16}
VOCAB_SIZE = 31
both = pytest.mark.parametrize("arch", list(ARCHITECTURES))


def make(arch: str, **settings: object) -> LanguageModel:
    """A model whose every weight matters: what begins at zero is drawn, or nothing would flow."""
    torch.manual_seed(0)
    model = make_model(Config(**({"data": "x", "out_dir": "y", "arch": arch, **SIZES} | settings)), VOCAB_SIZE)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return model


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(1))


@both
def test_no_position_sees_a_later_one(arch: str) -> None:
    model, ids = make(arch).eval(), random_ids(1, 16)
    other = ids.clone()
    other[0, 10] = (other[0, 10] + 1) % VOCAB_SIZE
    before, after = model.features(ids), model.features(other)
    torch.testing.assert_close(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10], after[:, 10], atol=1e-3)
    assert not torch.allclose(before[:, 15], after[:, 15], atol=1e-4)


@both
def test_no_token_sees_another_document(arch: str) -> None:
    model, ids = make(arch).eval(), random_ids(1, 16)
    documents = torch.tensor([[0] * 5 + [1] * 7 + [2] * 4])
    whole = model.features(ids, documents)
    other = ids.clone()
    other[0, :5] = (other[0, :5] + 1) % VOCAB_SIZE
    changed = model.features(other, documents)
    torch.testing.assert_close(whole[:, 5:], changed[:, 5:])
    assert not torch.allclose(whole[:, :5], changed[:, :5], atol=1e-3)
    assert not torch.allclose(whole[:, 5:], model.features(ids)[:, 5:], atol=1e-4)
    torch.testing.assert_close(model.features(ids, torch.zeros(1, 16, dtype=torch.int64)), model.features(ids))


def test_the_mask_of_documents() -> None:
    (((mask,),)) = document_mask(torch.tensor([[0, 0, 1]]))
    assert mask.squeeze().tolist() == [[True, False, False], [True, True, False], [False, False, True]]


@both
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_checkpointing_changes_no_gradient(arch: str, dropout: float, masked: bool) -> None:
    ids = random_ids(3, 17)
    documents = torch.tensor([[0] * 9 + [1] * 7] * 3) if masked else None
    gradients = []
    for recomputing in (False, True):
        model = make(arch, dropout=dropout, gradient_checkpointing=recomputing)
        torch.manual_seed(5)
        model(ids[:, :-1], ids[:, 1:], documents)[0].backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@both
def test_gradient_checkpointing_takes_less(arch: str) -> None:
    """Activations of one block at a time."""
    ids = random_ids(32, 129)
    peaks = []
    for recomputing in (False, True):
        torch.manual_seed(0)
        sizes = SIZES | {"block_size": 128, "n_layer": 6, "gradient_checkpointing": recomputing}
        model = make_model(Config(data="x", out_dir="y", arch=arch, **sizes), VOCAB_SIZE)  # type: ignore[arg-type]
        with PeakMemory() as memory:
            model(ids[:, :-1], ids[:, 1:])[0].backward()
        peaks.append(memory.peak_bytes)
    assert peaks[1] < peaks[0] / 2.5


@both
def test_padding_has_no_part_in_the_loss(arch: str) -> None:
    model, ids = make(arch), random_ids(3, 17)
    logits = model.logits(model.features(ids[:, :-1]))
    assert logits.shape == (3, 16, 64) and torch.isneginf(logits[..., VOCAB_SIZE:]).all()
    exact = F.cross_entropy(logits[..., :VOCAB_SIZE].transpose(1, 2), ids[:, 1:], reduction="none").mean(dim=1)
    torch.testing.assert_close(model(ids[:, :-1], ids[:, 1:])[1], exact)


@both
def test_flops_are_counted_as_in_the_palm_paper(arch: str) -> None:
    model = make_model(Config(data="x", out_dir="y", arch=arch), 50_257)
    in_blocks, head, attention = 12 * 12 * 768**2, 50_304 * 768, 12 * 12 * 768 * 1024
    assert model.flops_per_token() == 6 * (in_blocks + head) + attention


def test_a_new_modern_model_guesses_evenly() -> None:
    torch.manual_seed(0)
    model = make_model(Config(data="x", out_dir="y", arch="modern", **SIZES), VOCAB_SIZE)  # type: ignore[arg-type]
    ids = random_ids(2, 17)
    assert model(ids[:, :-1], ids[:, 1:])[1].tolist() == pytest.approx([math.log(VOCAB_SIZE)] * 2, abs=1e-5)


def test_a_new_modern_model_keeps_the_scale_of_what_it_multiplies() -> None:
    torch.manual_seed(0)
    model = make_model(
        Config(data="x", out_dir="y", arch="modern", n_layer=1, n_head=2, n_embd=64, block_size=16), VOCAB_SIZE
    )
    weight = model.get_parameter("h.0.attn.c_attn.weight")
    assert weight.std().item() == pytest.approx(64**-0.5, rel=0.03) and weight.abs().max() <= (3 / 64) ** 0.5


def test_logits_are_capped() -> None:
    model = make("modern")
    with torch.no_grad():
        model.get_parameter("lm_head.weight").mul_(1e4)
    logits = model.logits(model.features(random_ids(2, 16)))[..., :VOCAB_SIZE]
    assert logits.abs().max().item() == pytest.approx(LOGIT_CAP, abs=1e-3)


def test_rotation_depends_on_the_distance_alone() -> None:
    table = rotary_table(64, 8)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(i: int, j: int) -> float:
        return float((rotate(q, table[:, i : i + 1]) * rotate(k, table[:, j : j + 1])).sum())

    assert product(7, 3) == pytest.approx(product(44, 40), abs=1e-5)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-3)
    torch.testing.assert_close(rotate(q, table[:, :1]), q)


def test_norm_has_unit_mean_square() -> None:
    torch.testing.assert_close(norm(torch.randn(5, 64) * 30).square().mean(dim=1), torch.ones(5))


@both
def test_a_cache_continues_where_the_whole_would_be(arch: str) -> None:
    model, ids = make(arch).eval(), random_ids(2, 16)
    whole = model.features(ids)
    cache = model.empty_cache(2)
    pieces = [
        model.features(ids[:, :6], cache=cache),
        *(model.features(ids[:, n : n + 1], cache=cache) for n in range(6, 16)),
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


@both
def test_both_learn(arch: str) -> None:
    torch.manual_seed(0)
    model = make_model(Config(data="x", out_dir="y", arch=arch, **SIZES), VOCAB_SIZE)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = random_ids(1, 17)
    for _ in range(60):
        loss, _ = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.5
