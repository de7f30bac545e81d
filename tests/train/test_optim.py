"""Muon, parameter groups, schedules, and updates that are skipped because a number is not finite."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import ROOT
from train.config import Config, load_config
from train.model import make_model
from train.model.gpt2 import GPT2
from train.optim import (
    NORM_MARGIN,
    NUM_SMALL_POLYNOMIALS,
    POLAR_EXPRESS,
    SMALL_MATRIX_ROWS,
    STEP_MARGIN,
    Muon,
    allocate_state,
    apply_polynomials,
    correct_rates,
    make_optimizers,
    orthogonalize,
    scale_rates,
    schedule_factor,
    update,
)

CPU = torch.device("cpu")
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16}
VOCAB_SIZE = 31


def make_config(**settings: object) -> Config:
    return Config(**({"data": "x", "out_dir": "y", **SIZES} | settings))  # type: ignore[arg-type]


# Muon


def test_muon_agrees_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's polynomial in place of ours.

    Torch computes in bfloat16, with two or three correct digits.
    """
    monkeypatch.setattr("train.optim.POLAR_EXPRESS", 5 * [(3.4445, -4.7750, 2.0315)])
    monkeypatch.setattr("train.optim.NUM_SMALL_POLYNOMIALS", 5)
    monkeypatch.setattr("train.optim.NORM_MARGIN", 1.0)
    torch.manual_seed(0)
    initial = [torch.randn(shape) for shape in ((8, 16), (16, 8), (8, 16), (12, 12))]
    ours, theirs = ([nn.Parameter(w.clone()) for w in initial] for _ in range(2))
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    optimizers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(6):
        for our_weight, their_weight in zip(ours, theirs, strict=True):
            our_weight.grad = torch.randn(our_weight.shape)
            their_weight.grad = our_weight.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for our_weight, their_weight, initial_weight in zip(ours, theirs, initial, strict=True):
        assert (our_weight - their_weight).norm() < 0.02 * (their_weight - initial_weight).norm()


def test_muon_updates_stacked_matrices_like_separate_ones() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(12, 8) for _ in range(3)]
    stacked, separate = nn.Parameter(torch.cat(parts)), [nn.Parameter(part) for part in parts]
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    optimizers = Muon([{"params": [stacked], "num_parts": 3}], **settings), Muon(separate, **settings)
    for _ in range(3):
        for p in separate:
            p.grad = torch.randn(p.shape)
        stacked.grad = torch.cat([p.grad for p in separate if p.grad is not None])
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(stacked.data, torch.cat([p.data for p in separate]))


@pytest.mark.parametrize("size", [128, 300])
def test_polynomial_factor_agrees_with_the_polynomials(size: int) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, size, 4 * size) * torch.logspace(0, -3, size)[:, None]
    x = matrices.double()
    x = x / (x.norm(dim=(1, 2), keepdim=True) * NORM_MARGIN)
    for a, b, c in POLAR_EXPRESS[: NUM_SMALL_POLYNOMIALS if size <= SMALL_MATRIX_ROWS else None]:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    assert (orthogonalize(matrices).double() - x).norm() < 1e-3 * x.norm()


@pytest.mark.parametrize("shape", [(3, 128, 512), (2, 384, 384)])
@pytest.mark.parametrize(("dtype", "max_error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_apply_polynomials_agrees_with_their_definition(
    shape: tuple[int, ...], dtype: torch.dtype, max_error: float
) -> None:
    """The definition, in steps that round more often, differs more from float64 in bfloat16."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    x = (x / (x.norm(dim=(1, 2), keepdim=True) * NORM_MARGIN)).to(dtype)

    def define(x: torch.Tensor) -> torch.Tensor:
        for a, b, c in POLAR_EXPRESS:
            x = x / STEP_MARGIN
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x

    exact = define(x.double())
    torch.testing.assert_close(apply_polynomials(x.double(), POLAR_EXPRESS), exact)
    errors = [
        (f(x).double() - exact).norm() / exact.norm()
        for f in (partial(apply_polynomials, polynomials=POLAR_EXPRESS), define)
    ]
    assert errors[0] < max_error and errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("rank", [1, 5, 384])
def test_apply_polynomials_in_bfloat16_does_not_diverge(rank: int) -> None:
    """Singular values of 0.376 of the norm, which a polynomial increases most, and many zeros."""
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(2, side, rank)).Q for side in (384, 1536))
    values = torch.full((rank,), 0.1 if rank > 5 else 0.376)
    x = (u * values) @ v.mT
    x = (x / (x.norm(dim=(1, 2), keepdim=True).clamp(min=1.0))).bfloat16()
    assert torch.linalg.svdvals(apply_polynomials(x, POLAR_EXPRESS).float()).max() < 1.6


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 300, 400)])
def test_orthogonalize_handles_zero_matrices_and_rank_one(shape: tuple[int, ...]) -> None:
    assert not orthogonalize(torch.zeros(shape)).any()
    row = torch.zeros(shape)
    row[:, 0] = 1e-3
    assert torch.linalg.matrix_norm(orthogonalize(row), ord=2) == pytest.approx([1.0] * shape[0], abs=0.9)


@pytest.mark.parametrize(
    ("size", "min_value", "max_value", "min_similarity"), [(20, 0.1, 1.9, 0.85), (257, 0.85, 1.15, 0.99)]
)
def test_orthogonalize_brings_singular_values_near_one(
    size: int, min_value: float, max_value: float, min_similarity: float
) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, size, 3 * size)
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.shape == (3, size) and values.min() > min_value and values.max() < max_value
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    similarity = nn.functional.cosine_similarity(orthogonalize(matrices).flatten(1), (u @ vt).flatten(1))
    assert similarity.min() > min_similarity
    torch.testing.assert_close(orthogonalize(matrices.mT), orthogonalize(matrices).mT)


# Parameter groups


def test_only_matrices_decay() -> None:
    config = make_config(dropout=0.1)
    model = GPT2(config, VOCAB_SIZE)
    decaying, constant = make_optimizers(model, config, device=CPU)[0].param_groups
    assert (decaying["weight_decay"], constant["weight_decay"]) == (config.weight_decay, 0.0)
    assert all(p.dim() == 2 for p in decaying["params"])
    assert all(p.dim() == 1 for p in constant["params"])
    assert len(decaying["params"]) + len(constant["params"]) == len(list(model.parameters()))


def test_muon_updates_only_the_matrices_of_the_blocks() -> None:
    model = make_model(make_config(arch="modern", token_shift=True, optimizer="muon"), VOCAB_SIZE)
    adamw, muon = make_optimizers(model, make_config(optimizer="muon", muon_learning_rate=0.3), device=CPU)
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    matrices = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert by_muon == {f"h.{n}.{name}.weight" for n in range(2) for name in matrices}
    rest = {"wte.weight", "lm_head.weight", "shift"}
    assert {names[id(p)] for group in adamw.param_groups for p in group["params"]} == rest
    assert (adamw.param_groups[0]["lr"], muon.param_groups[0]["lr"]) == (6e-4, 0.3)


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_muon_updates_each_heads_queries_keys_and_values_separately(arch: str) -> None:
    config = make_config(arch=arch, optimizer="muon")
    model = make_model(config, VOCAB_SIZE)
    names = {id(p): name for name, p in model.named_parameters()}
    stacked = {
        names[id(p)]: group["num_parts"]
        for group in make_optimizers(model, config, device=CPU)[1].param_groups
        for p in group["params"]
        if group["num_parts"] > 1
    }
    assert stacked == {f"h.{n}.attn.c_attn.weight": 3 * config.n_head for n in range(2)}


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_embedding_can_have_another_learning_rate(arch: str) -> None:
    model = make_model(make_config(arch=arch), VOCAB_SIZE)
    names = {id(p): name for name, p in model.named_parameters()}
    (adamw,) = make_optimizers(model, make_config(arch=arch, embedding_learning_rate=0.3), device=CPU)
    rates = {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in adamw.param_groups for p in group["params"]
    }
    assert rates.keys() == {*names.values()} and rates.pop("wte.weight") == (0.3, 0.1)
    assert {name for name, (_, decay) in rates.items() if decay} == {
        name for name, p in model.named_parameters() if p.dim() > 1
    } - {"wte.weight"}
    assert {rate for rate, _ in rates.values()} == {6e-4}


# Updates


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_skipped_update_changes_nothing_and_the_next_one_is_applied(optimizer: str) -> None:
    torch.manual_seed(0)
    config = make_config(optimizer=optimizer)

    def make_training() -> tuple[nn.Module, list[torch.optim.Optimizer]]:
        torch.manual_seed(1)
        model = make_model(config, VOCAB_SIZE)
        optimizers = make_optimizers(model, config, device=CPU)
        for each in optimizers:
            allocate_state(each)
        return model, optimizers

    gradients = [[torch.randn(p.shape) for p in make_training()[0].parameters()] for _ in range(3)]

    def train(*, with_bad_update: bool) -> list[torch.Tensor]:
        model, optimizers = make_training()
        for number, step_gradients in enumerate(gradients):
            if with_bad_update and number == 1:
                for p, value in zip(model.parameters(), itertools.cycle([torch.nan, torch.inf])):
                    p.grad = torch.full_like(p, value)
                update(optimizers, torch.tensor(False))
            for p, gradient in zip(model.parameters(), step_gradients, strict=True):
                p.grad = gradient.clone()
            update(optimizers, torch.tensor(True))
        return [*model.parameters(), *(v for each in optimizers for s in each.state.values() for v in s.values())]

    tensors = zip(train(with_bad_update=False), train(with_bad_update=True), strict=True)
    assert all(torch.equal(a, b) for a, b in tensors)


def test_allocated_state_equals_the_state_of_a_first_step() -> None:
    def train(*, allocated: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = make_model(make_config(), VOCAB_SIZE)
        (optimizer,) = make_optimizers(model, make_config(), device=CPU)
        if allocated:
            allocate_state(optimizer)
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.1)
        optimizer.step()
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(train(allocated=True), train(allocated=False), strict=True))


def test_settings_of_muon_have_no_effect_on_adamw() -> None:
    """A config that sets them for AdamW is rejected."""
    model = make_model(make_config(), VOCAB_SIZE)
    found = [
        str(make_optimizers(model, make_config(**settings), device=CPU))
        for settings in ({}, {"muon_learning_rate": 0.5, "muon_momentum": 0.1})
    ]
    assert found[0] == found[1] and "AdamW" in found[0]


# Schedules


def factors_of(config: Config) -> list[float]:
    """Return the factor of each update of a run."""
    return [schedule_factor(step, config) for step in range(config.max_steps)]


def test_cosine_schedule_warms_up_and_falls_along_a_cosine() -> None:
    factors = factors_of(make_config(learning_rate=1.0, min_lr=0.1, warmup_steps=10, max_steps=111))
    assert factors[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert (factors[10], factors[60], factors[110]) == pytest.approx((1.0, 0.55, 0.1))
    assert factors.count(max(factors)) == 1 and all(a > b for a, b in itertools.pairwise(factors[10:]))


def test_schedule_may_consist_of_warmup_only() -> None:
    factors = factors_of(make_config(learning_rate=1.0, min_lr=0.1, warmup_steps=5, max_steps=5))
    assert (factors[0], factors[4]) == pytest.approx((1 / 6, 5 / 6))


def test_linear_schedule_falls_by_the_same_amount_each_step() -> None:
    config = make_config(schedule="linear", learning_rate=1.0, min_lr=0.1, warmup_steps=10, max_steps=111)
    factors = factors_of(config)
    assert (factors[10], factors[60], factors[110]) == pytest.approx((1.0, 0.55, 0.1))
    assert all(a - b == pytest.approx(0.009) for a, b in itertools.pairwise(factors[10:]))


def test_wsd_schedule_is_constant_until_the_decay() -> None:
    config = make_config(schedule="wsd", learning_rate=2.0, min_lr=0.0, warmup_steps=10, max_steps=101, decay_steps=40)
    factors = factors_of(config)
    assert factors[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert set(factors[10:61]) == {1.0}
    assert (factors[80], factors[100]) == pytest.approx((0.5, 0.0))


def test_wsd_schedule_decays_over_the_last_fifth_by_default() -> None:
    factors = factors_of(make_config(schedule="wsd", learning_rate=1.0, min_lr=0.1, warmup_steps=0, max_steps=101))
    assert factors[80] == 1.0 and factors[81] < 1.0 and factors[100] == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decay_steps_have_no_effect_on_other_schedules(schedule: str) -> None:
    """A config that sets them is rejected."""
    config = make_config(schedule=schedule, warmup_steps=0, max_steps=50)
    assert factors_of(dataclasses.replace(config, decay_steps=5)) == factors_of(config)


@pytest.mark.parametrize(
    ("arch", "rate", "expected"),
    [("gpt2", 0.3, None), ("gpt2", 0.05, 0.05), ("gpt2", None, None), ("modern", 0.3, 0.3)],
)
def test_rate_of_an_untied_embedding_is_not_used_for_a_tied_head(
    arch: str, rate: float | None, expected: float | None
) -> None:
    given = make_config(arch=arch, embedding_learning_rate=rate, learning_rate=6e-3)
    config, lines = correct_rates(given)
    assert config == dataclasses.replace(given, embedding_learning_rate=expected)
    assert len(lines) == (config != given) and all("is also its head, and may diverge with" in line for line in lines)


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
@pytest.mark.parametrize("name", ["small", "shakespeare_char_cpu", "gpt2_124m"])
def test_rate_of_the_head_beside_muon_is_not_used_for_matrices_by_adamw(name: str, arch: str) -> None:
    muon = {"muon_learning_rate": 0.02, "muon_momentum": 0.95}
    recipe = load_config(ROOT / "configs" / f"{name}.py", {})
    given = dataclasses.replace(recipe, arch=arch, optimizer="adamw", token_shift=False, **muon)
    assert correct_rates(recipe) == (recipe, [])
    for width in (64, recipe.n_embd, 1536):
        config, lines = correct_rates(dataclasses.replace(given, n_embd=width, n_head=1))
        assert 0.3 <= config.learning_rate * recipe.n_embd <= 0.6 and len(lines) == 1 + (arch == "gpt2")
        assert f"it is lowered to {config.learning_rate:g} (or set --optimizer=muon)" in lines[0]
        assert config.embedding_learning_rate == (None if arch == "gpt2" else 0.3)
        assert correct_rates(config) == (config, [])


@pytest.mark.parametrize(("rate", "is_high"), [(0.03, False), (0.04, True)])
def test_high_rate_of_adamw_is_reported_and_not_changed(rate: float, is_high: bool) -> None:
    given = make_config(learning_rate=rate)  # width 32
    config, lines = correct_rates(given)
    expected = "with the learning_rate 0.04, AdamW may diverge at width 32; set --learning_rate=0.02 or lower"
    assert config == given and lines == [expected] * is_high
    assert correct_rates(dataclasses.replace(given, optimizer="muon"))[1] == []


# Rates by width

RATES = ("learning_rate", "min_lr", "embedding_learning_rate", "muon_learning_rate")
TUNED = {
    "learning_rate": 0.01, "min_lr": 0.001, "embedding_learning_rate": 0.08, "muon_learning_rate": 0.02,
    "base_width": 64, "optimizer": "muon",
}  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "optimizer", "width", "expected"),
    [
        ("modern", "muon", 64, (0.01, 0.001, 0.08, 0.02)),
        ("modern", "muon", 256, (0.005, 0.0005, 0.08, 0.02)),
        ("modern", "muon", 16, (0.02, 0.002, 0.08, 0.02)),
        ("modern", "adamw", 256, (0.0025, 0.00025, 0.08, 0.02)),
        ("gpt2", "adamw", 256, (0.0025, 0.00025, 0.02, 0.02)),  # its embedding is also the head
        ("gpt2", "muon", 256, (0.005, 0.0005, 0.04, 0.02)),
    ],
)
def test_rates_follow_the_width(arch: str, optimizer: str, width: int, expected: tuple[float, ...]) -> None:
    given = make_config(arch=arch, n_embd=width, **TUNED | {"optimizer": optimizer})
    config, lines = scale_rates(given)
    assert tuple(getattr(config, key) for key in RATES) == pytest.approx(expected)
    changed = [key for key in RATES if getattr(config, key) != getattr(given, key)]
    assert [line.split()[0] for line in lines] == changed
    assert config == dataclasses.replace(given, base_width=width, **{key: getattr(config, key) for key in changed})
    assert scale_rates(config) == (config, [])


def test_rates_are_not_scaled_without_base_width() -> None:
    config = make_config(n_embd=256, **TUNED | {"base_width": None})
    assert scale_rates(config) == (config, [])


def test_doubled_width_has_the_same_rates_as_a_halved_base_width() -> None:
    for arch, width in itertools.product(("gpt2", "modern"), (32, 48, 128)):
        wide, _ = scale_rates(make_config(arch=arch, n_embd=2 * width, **TUNED))
        narrow, _ = scale_rates(make_config(arch=arch, n_embd=width, **TUNED | {"base_width": 32}))
        assert [getattr(wide, key) for key in RATES] == pytest.approx([getattr(narrow, key) for key in RATES])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_rates_of_a_config_are_not_scaled_at_its_own_width(path: Path) -> None:
    if path.stem == "modern_recipe":  # has no width
        return
    config = load_config(path, {})
    assert scale_rates(config) == (config, [])


def test_optimizers_have_the_scaled_rates() -> None:
    config, _ = scale_rates(make_config(arch="modern", n_embd=128, **TUNED))
    model = make_model(config, VOCAB_SIZE)
    rates = {
        p: group["max_lr"]
        for optimizer in make_optimizers(model, config, device=CPU)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert rates[model.head_weight] == pytest.approx(0.01 / 2**0.5) and rates[model.wte.weight] == 0.08
    assert {rates[p] for p in model.h.parameters()} == {0.02}
