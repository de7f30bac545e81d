"""GPT-2: names, sizes, initial weights and padding."""

from __future__ import annotations

import math

import pytest
import torch

from tests.train.model.helpers import VOCAB_SIZE, make_config, random_ids
from train.config import Config
from train.model.gpt2 import GPT2, INIT_STD


def make_gpt2(vocab_size: int = VOCAB_SIZE) -> GPT2:
    torch.manual_seed(0)
    return GPT2(make_config(dropout=0.1), vocab_size).eval()


def test_padded_ids_have_no_gradient() -> None:
    model, ids = make_gpt2(), random_ids(3, 17)
    model(ids[:, :-1], ids[:, 1:])[0].backward()
    assert model.wte.weight.grad is not None and model.wte.weight.grad.shape[0] == 64
    assert (model.wte.weight.grad[VOCAB_SIZE:] == 0).all()
    assert (model.wte.weight.grad[:VOCAB_SIZE] != 0).any(dim=1).all()


def test_vocabulary_of_a_full_multiple_is_not_padded() -> None:
    model = make_gpt2(128)
    assert model.wte.weight.shape[0] == 128
    assert torch.isfinite(model.logits(model.features(random_ids(1, 4)))).all()


def test_first_loss_is_that_of_a_uniform_guess() -> None:
    ids = random_ids(8, 17)
    assert make_gpt2()(ids[:, :-1], ids[:, 1:])[0].item() == pytest.approx(math.log(VOCAB_SIZE), abs=0.1)


def test_parameters_have_the_names_of_hugging_face() -> None:
    block = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    modules = [f"h.{n}.{name}" for n in range(2) for name in block] + ["ln_f"]
    expected = {"wte.weight", "wpe.weight"} | {f"{m}.{kind}" for m in modules for kind in ("weight", "bias")}
    assert set(make_gpt2().state_dict()) == expected


def test_gpt2_has_124_million_parameters() -> None:
    with torch.device("meta"):
        model = GPT2(Config(data="x", out_dir="y"), 50_257)
    assert model.num_parameters == 124_439_808


def test_residual_projections_start_smaller() -> None:
    weights = dict(make_gpt2().named_parameters())
    assert weights["h.0.mlp.c_fc.weight"].std().item() == pytest.approx(INIT_STD, rel=0.1)
    assert weights["h.0.mlp.c_proj.weight"].std().item() == pytest.approx(INIT_STD / 2, rel=0.1)
