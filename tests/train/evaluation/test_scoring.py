"""Log-probabilities of continuations: windows, batches, and continuations that share an input."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

from preprocess.errors import FolioError
from tests.helpers.runs import VOCAB_SIZE, make_config
from train.evaluation import scoring
from train.evaluation.scoring import Request, Score, ScoringSettings, cut_windows, score
from train.model import make_model
from train.model.base import LanguageModel

BLOCK = 16


def make_random_model(arch: str = "gpt2", **settings: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = make_model(make_config(arch=arch, block_size=BLOCK, dropout=0.1, **settings), VOCAB_SIZE)
    for parameter in model.parameters():  # some start at 0, which would make all logits equal
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def make_requests(*lengths: tuple[int, int]) -> list[Request]:
    rng = np.random.default_rng(0)
    draw = lambda count: rng.integers(0, VOCAB_SIZE, count).tolist()  # noqa: E731
    return [(draw(first), draw(second)) for first, second in lengths]


def run(model: LanguageModel, requests: list[Request], **settings: Any) -> list[Score]:
    return score(
        model, requests, ScoringSettings(**({"batch_size": 2, "autocast": contextlib.nullcontext()} | settings))
    )


@torch.no_grad()
def score_naively(model: LanguageModel, context: list[int], continuation: list[int]) -> Score:
    """Score each token by a forward pass of its own, if all fit the context."""
    total, is_greedy = 0.0, True
    for number, target in enumerate(continuation):
        ids = torch.tensor([context + continuation[:number]])
        logits = model.logits(model.features(ids))[0, -1]
        total += logits.log_softmax(0)[target].item()
        is_greedy &= int(logits.argmax()) == target
    return Score(total, is_greedy)


def test_windows_predict_each_id_once_with_as_many_before_it_as_fit() -> None:
    context, continuation = [100], list(range(10))
    windows = list(cut_windows(context, continuation, block_size=4))
    assert windows == [([100, 0, 1, 2], 4), ([3, 4, 5, 6], 4), ([5, 6, 7, 8], 2)]
    assert list(cut_windows([1, 2, 3, 4, 5], [6, 7], block_size=4)) == [([3, 4, 5, 6], 2)]
    assert list(cut_windows([1], [], block_size=4)) == []


@pytest.mark.parametrize(("arch", "token_shift"), [("gpt2", False), ("modern", False), ("modern", True)])
def test_scores_equal_those_of_single_forward_passes(arch: str, token_shift: bool) -> None:
    model = make_random_model(arch, token_shift=token_shift).eval()
    requests = make_requests((1, 1), (9, 4), (3, 0), (12, 5), (1, BLOCK), (5, 2))
    found = run(model, requests)
    for request, each in zip(requests, found, strict=True):
        expected = score_naively(model, *request)
        assert each.log_probability == pytest.approx(expected.log_probability, abs=1e-4)
        assert each.is_greedy == expected.is_greedy


def test_most_likely_continuation_is_greedy() -> None:
    model = make_random_model().eval()
    ids = [3, 1, 4]
    for _ in range(5):
        ids.append(int(model.logits(model.features(torch.tensor([ids])))[0, -1].argmax()))
    likeliest, other = run(model, [(ids[:3], ids[3:]), (ids[:3], [*ids[3:-1], (ids[-1] + 1) % VOCAB_SIZE])])
    assert likeliest.is_greedy and not other.is_greedy


def test_batch_size_and_order_do_not_change_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model, requests = make_random_model(), make_requests((4, 3), (40, 20), (1, 50), (7, 1), (2, 9))
    expected = [each.log_probability for each in run(model, requests)]
    assert [each.log_probability for each in run(model, requests, batch_size=64)] == pytest.approx(expected, abs=1e-4)
    backwards = run(model, requests[::-1], batch_size=1)[::-1]
    assert [each.log_probability for each in backwards] == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr(scoring, "MAX_LOGITS", 1)
    assert [each.log_probability for each in run(model, requests)] == pytest.approx(expected, abs=1e-4)
    assert model.training  # its mode is restored


def test_choices_of_one_token_share_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ((context, _),) = make_random_model(), make_requests((9, 0))
    shapes = []
    original = model.features
    monkeypatch.setattr(model, "features", lambda ids: shapes.append(tuple(ids.shape)) or original(ids))
    scores = run(model, [(context, [choice]) for choice in range(VOCAB_SIZE)], batch_size=100)
    assert shapes == [(1, 9)]
    assert sum(np.exp(each.log_probability) for each in scores) == pytest.approx(1, abs=1e-5)


def test_less_memory_means_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, requests = make_random_model(), make_requests(*[(5, 3)] * 9)
    expected, original, sizes = run(model, requests), model.features, []

    def features(ids: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        if len(ids) > 2:
            raise MemoryError
        return original(ids)

    monkeypatch.setattr(model, "features", features)
    found = run(model, requests, batch_size=100)
    assert [each.log_probability for each in found] == pytest.approx([e.log_probability for e in expected], abs=1e-4)
    assert sizes == [9, 4, 2, 2, 2, 2, 1]


def test_output_that_is_not_finite_is_an_error() -> None:
    model = make_random_model()
    torch.nn.init.constant_(model.wte.weight, float("nan"))
    with pytest.raises(FolioError, match="not finite"):
        run(model, make_requests((2, 2)))
