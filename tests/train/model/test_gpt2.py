"""The model, its optimizer and its learning rate."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from train.config import Config
from train.model.gpt2 import GPT2, INIT_STD, gelu
from train.optim import make_optimizers, schedule_factor

CONFIG = Config(data="x", out_dir="y", n_layer=2, n_head=2, n_embd=32, block_size=16, dropout=0.1)
VOCAB_SIZE = 31


def make_model(vocab_size: int = VOCAB_SIZE) -> GPT2:
    torch.manual_seed(0)
    return GPT2(CONFIG, vocab_size).eval()


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(1))


def test_padded_ids_take_no_part_in_training() -> None:
    model, ids = make_model(), random_ids(3, 17)
    model(ids[:, :-1], ids[:, 1:])[0].backward()
    assert model.wte.weight.grad is not None and model.wte.weight.grad.shape[0] == 64
    assert (model.wte.weight.grad[VOCAB_SIZE:] == 0).all()
    assert (model.wte.weight.grad[:VOCAB_SIZE] != 0).any(dim=1).all()


def test_a_vocabulary_of_a_full_multiple_has_no_padding() -> None:
    model = make_model(128)
    assert model.wte.weight.shape[0] == 128
    assert torch.isfinite(model.logits(model.features(random_ids(1, 4)))).all()


def test_gelu_and_its_derivative_are_those_of_torch() -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e4, -1e4, 1e8, -1e8])])
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    y = gelu(ours)
    y.mul(torch.linspace(-2, 2, len(x))).sum().backward()
    wanted = F.gelu(theirs, approximate="tanh")
    wanted.mul(torch.linspace(-2, 2, len(x))).sum().backward()
    torch.testing.assert_close(y, wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-6, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(gelu(x), wanted)


def test_first_loss_is_that_of_guessing() -> None:
    ids = random_ids(8, 17)
    assert make_model()(ids[:, :-1], ids[:, 1:])[0].item() == pytest.approx(math.log(VOCAB_SIZE), abs=0.1)


def test_names_are_those_of_hugging_face() -> None:
    block = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    modules = [f"h.{n}.{name}" for n in range(2) for name in block] + ["ln_f"]
    expected = {"wte.weight", "wpe.weight"} | {f"{m}.{kind}" for m in modules for kind in ("weight", "bias")}
    assert set(make_model().state_dict()) == expected


def test_gpt2_has_124_million_parameters() -> None:
    with torch.device("meta"):
        model = GPT2(Config(data="x", out_dir="y"), 50_257)
    assert model.num_parameters == 124_439_808


def test_residual_projections_start_smaller() -> None:
    weights = dict(make_model().named_parameters())
    assert weights["h.0.mlp.c_fc.weight"].std().item() == pytest.approx(INIT_STD, rel=0.1)
    assert weights["h.0.mlp.c_proj.weight"].std().item() == pytest.approx(INIT_STD / 2, rel=0.1)


def test_only_matrices_decay() -> None:
    model = make_model()
    decaying, still = make_optimizers(model, CONFIG, device=torch.device("cpu"))[0].param_groups
    assert (decaying["weight_decay"], still["weight_decay"]) == (CONFIG.weight_decay, 0.0)
    assert all(p.dim() == 2 for p in decaying["params"])
    assert all(p.dim() == 1 for p in still["params"])
    assert len(decaying["params"]) + len(still["params"]) == len(list(model.parameters()))


def test_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    config = Config(data="x", out_dir="y", learning_rate=1.0, min_lr=0.1, warmup_steps=10, max_steps=111)
    rates = [schedule_factor(step, config) for step in range(111)]  # one for each update of the run
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert (rates[10], rates[60], rates[110]) == pytest.approx((1.0, 0.55, 0.1))
    assert rates.count(max(rates)) == 1 and all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_learning_rate_of_a_run_that_is_all_warmup() -> None:
    config = Config(data="x", out_dir="y", learning_rate=1.0, min_lr=0.1, warmup_steps=5, max_steps=5)
    assert [schedule_factor(step, config) for step in (0, 4)] == pytest.approx([1 / 6, 5 / 6])
