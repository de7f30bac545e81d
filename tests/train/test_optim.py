"""Muon, schedules, and updates that are refused where numbers are not finite."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from train.config import Config
from train.model import make_model
from train.optim import (
    FEW_POLYNOMIALS,
    POLAR_EXPRESS,
    ROOM_FOR_ROUNDING,
    SMALL_MATRIX,
    Muon,
    _step_by_step,
    allocate_state,
    make_optimizers,
    orthogonalize,
    schedule_factor,
    update,
)

CPU = torch.device("cpu")
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16}


def config_of(**settings: object) -> Config:
    return Config(**({"data": "x", "out_dir": "y", **SIZES} | settings))  # type: ignore[arg-type]


def test_muon_does_what_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its polynomial for ours. It computes in bfloat16, of which it leaves two digits; a wrong scale would show in the first."""
    monkeypatch.setattr("train.optim.POLAR_EXPRESS", 5 * [(3.4445, -4.7750, 2.0315)])
    monkeypatch.setattr("train.optim.FEW_POLYNOMIALS", 5)
    monkeypatch.setattr("train.optim.ROOM_FOR_ROUNDING", 1.0)
    torch.manual_seed(0)
    begin = [torch.randn(shape) for shape in ((8, 16), (16, 8), (8, 16), (12, 12))]
    ours, theirs = ([nn.Parameter(w.clone()) for w in begin] for _ in range(2))
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    optimizers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(6):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, first in zip(ours, theirs, begin, strict=True):
        assert (one - other).norm() < 0.02 * (other - first).norm()


@pytest.mark.parametrize("size", [128, 300])
def test_the_gram_matrix_alone_gives_what_the_polynomials_do(size: int) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, size, 4 * size) * torch.logspace(0, -3, size)[:, None]
    x = matrices.double()
    x = x / (x.norm(dim=(1, 2), keepdim=True) * ROOM_FOR_ROUNDING)
    for a, b, c in POLAR_EXPRESS[: FEW_POLYNOMIALS if size <= SMALL_MATRIX else None]:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    assert (orthogonalize(matrices).double() - x).norm() < 1e-3 * x.norm()


@pytest.mark.parametrize("rank", [1, 5, 384])
def test_rounding_to_bfloat16_does_not_blow_up(rank: int) -> None:
    """With singular values where a polynomial ends highest, at 0.376 of the norm, or nearly all of them zero."""
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(2, side, rank)).Q for side in (384, 1536))
    values = torch.full((rank,), 0.1 if rank > 5 else 0.376)
    x = (u * values) @ v.mT
    x = (x / (x.norm(dim=(1, 2), keepdim=True).clamp(min=1.0))).bfloat16()
    assert torch.linalg.svdvals(_step_by_step(x, POLAR_EXPRESS).float()).max() < 1.6


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 300, 400)])
def test_nothing_to_orthogonalise_stays_nothing(shape: tuple[int, ...]) -> None:
    assert not orthogonalize(torch.zeros(shape)).any()
    row = torch.zeros(shape)
    row[:, 0] = 1e-3
    assert torch.linalg.matrix_norm(orthogonalize(row), ord=2) == pytest.approx([1.0] * shape[0], abs=0.9)


@pytest.mark.parametrize(("size", "lowest", "highest", "likeness"), [(20, 0.1, 1.9, 0.85), (257, 0.85, 1.15, 0.99)])
def test_singular_values_come_near_one(size: int, lowest: float, highest: float, likeness: float) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, size, 3 * size)
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.shape == (3, size) and values.min() > lowest and values.max() < highest
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    assert nn.functional.cosine_similarity(orthogonalize(matrices).flatten(1), (u @ vt).flatten(1)).min() > likeness
    torch.testing.assert_close(orthogonalize(matrices.mT), orthogonalize(matrices).mT)


def test_muon_takes_the_blocks_matrices_and_nothing_else() -> None:
    model = make_model(config_of(arch="modern", optimizer="muon"), 31)
    adamw, muon = make_optimizers(model, config_of(optimizer="muon", muon_learning_rate=0.3), device=CPU)
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    matrices = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert by_muon == {f"h.{n}.{name}.weight" for n in range(2) for name in matrices}
    rest = {"wte.weight", "lm_head.weight", "shift"}
    assert {names[id(p)] for group in adamw.param_groups for p in group["params"]} == rest
    assert (adamw.param_groups[0]["lr"], muon.param_groups[0]["lr"]) == (6e-4, 0.3)


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_the_embedding_may_have_a_rate_of_its_own(arch: str) -> None:
    model = make_model(config_of(arch=arch), 31)
    names = {id(p): name for name, p in model.named_parameters()}
    (adamw,) = make_optimizers(model, config_of(arch=arch, embedding_learning_rate=0.3), device=CPU)
    rates = {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in adamw.param_groups for p in group["params"]
    }
    assert rates.keys() == {*names.values()} and rates.pop("wte.weight") == (0.3, 0.1)
    assert {name for name, (_, decay) in rates.items() if decay} == {
        name for name, p in model.named_parameters() if p.dim() > 1
    } - {"wte.weight"}
    assert {rate for rate, _ in rates.values()} == {6e-4}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_refused_update_changes_nothing_and_a_good_one_goes_on(optimizer: str) -> None:
    torch.manual_seed(0)
    config = config_of(optimizer=optimizer)

    def fresh() -> tuple[nn.Module, list[torch.optim.Optimizer]]:
        torch.manual_seed(1)
        model = make_model(config, 31)
        optimizers = make_optimizers(model, config, device=CPU)
        for each in optimizers:
            allocate_state(each)
        return model, optimizers

    gradients = [[torch.randn(p.shape) for p in fresh()[0].parameters()] for _ in range(3)]

    def train(*, with_bad: bool) -> list[torch.Tensor]:
        model, optimizers = fresh()
        for number, step in enumerate(gradients):
            for p, g in zip(model.parameters(), step, strict=True):
                p.grad = g.clone()
            if with_bad and number == 1:
                bad = [
                    torch.full_like(p, value)
                    for p, value in zip(model.parameters(), itertools.cycle([torch.nan, torch.inf]))
                ]
                for p, g in zip(model.parameters(), bad, strict=True):
                    p.grad = g
                update(optimizers, torch.tensor(False))
                for p, g in zip(model.parameters(), step, strict=True):
                    p.grad = g.clone()
            update(optimizers, torch.tensor(True))
        return [*model.parameters(), *(v for each in optimizers for s in each.state.values() for v in s.values())]

    assert all(torch.equal(a, b) for a, b in zip(train(with_bad=False), train(with_bad=True), strict=True))


def test_allocated_state_is_what_a_first_step_begins_with() -> None:
    def train(*, allocated: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = make_model(config_of(), 31)
        (optimizer,) = make_optimizers(model, config_of(), device=CPU)
        if allocated:
            allocate_state(optimizer)
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.1)
        optimizer.step()
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(train(allocated=True), train(allocated=False), strict=True))


def test_linear_goes_straight_down() -> None:
    config = config_of(schedule="linear", learning_rate=1.0, min_lr=0.1, warmup_steps=10, max_steps=111)
    factors = [schedule_factor(step, config) for step in range(111)]
    assert (factors[10], factors[60], factors[110]) == pytest.approx((1.0, 0.55, 0.1))
    assert all(a - b == pytest.approx(0.009) for a, b in itertools.pairwise(factors[10:]))


def test_wsd_stays_and_then_goes_down() -> None:
    config = config_of(schedule="wsd", learning_rate=2.0, min_lr=0.0, warmup_steps=10, max_steps=101, decay_steps=40)
    factors = [schedule_factor(step, config) for step in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert set(factors[10:61]) == {1.0}
    assert (factors[80], factors[100]) == pytest.approx((0.5, 0.0))


def test_wsd_decays_over_a_fifth_unless_told() -> None:
    config = config_of(schedule="wsd", learning_rate=1.0, min_lr=0.1, warmup_steps=0, max_steps=101)
    factors = [schedule_factor(step, config) for step in range(101)]
    assert factors[80] == 1.0 and factors[81] < 1.0 and factors[100] == pytest.approx(0.1)
