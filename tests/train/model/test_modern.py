"""The parts of the modern architecture: rotation, norm, initial weights, capped logits."""

from __future__ import annotations

import math

import pytest
import torch

from preprocess.errors import MisuseError
from tests.train.model.helpers import VOCAB_SIZE, make_config, make_new_model, make_random_model, random_ids
from train.model import make_model
from train.model.modern import LOGIT_CAP, norm, rotary_table, rotate


def test_new_model_gives_every_id_the_same_probability() -> None:
    ids = random_ids(2, 17)
    losses = make_new_model("modern")(ids[:, :-1], ids[:, 1:])[1]
    assert losses.tolist() == pytest.approx([math.log(VOCAB_SIZE)] * 2, abs=1e-5)


def test_new_weights_keep_the_scale_of_their_input() -> None:
    model = make_new_model("modern", n_layer=1, n_embd=64)
    weight = model.get_parameter("h.0.attn.c_attn.weight")
    assert weight.std().item() == pytest.approx(64**-0.5, rel=0.03) and weight.abs().max() <= (3 / 64) ** 0.5


def test_logits_are_capped() -> None:
    model = make_random_model("modern")
    with torch.no_grad():
        model.get_parameter("lm_head.weight").mul_(1e4)
    logits = model.logits(model.features(random_ids(2, 16)))[..., :VOCAB_SIZE]
    assert logits.abs().max().item() == pytest.approx(LOGIT_CAP, abs=1e-3)


def test_rotation_depends_only_on_distance() -> None:
    table = rotary_table(64, 8)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(i: int, j: int) -> float:
        return float((rotate(q, table[:, i : i + 1]) * rotate(k, table[:, j : j + 1])).sum())

    assert product(7, 3) == pytest.approx(product(44, 40), abs=1e-5)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-3)
    torch.testing.assert_close(rotate(q, table[:, :1]), q)


def test_norm_has_unit_mean_square() -> None:
    torch.testing.assert_close(norm(torch.randn(5, 64) * 30).square().mean(dim=1), torch.ones(5))


def test_head_of_odd_size_is_rejected() -> None:
    config = make_config(arch="modern", n_embd=30)
    with pytest.raises(MisuseError, match="n_embd / n_head must be even with arch=modern, got 15; change one of them"):
        make_model(config, VOCAB_SIZE)
    make_model(make_config(arch="gpt2", n_embd=30), VOCAB_SIZE)
