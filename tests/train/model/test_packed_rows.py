"""A model reads each document of a packed row as if it were alone, and what is not learnt has no gradient."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.chats import CHAT_VOCAB_SIZE, make_chat_build, make_packed_builds
from tests.train.model.test_kernels import PADDED
from train.config import Config
from train.core.distributed import World
from train.core.targets import IGNORE_INDEX
from train.data.batches import Prefetcher, TrainingData
from train.data.builds import open_builds
from train.data.mixed_split import Batch
from train.model import kernels, make_model
from train.model.base import LanguageModel

CPU = torch.device("cpu")
SETTINGS = {
    "data": "x", "out_dir": "y", "data_order": "documents", "mask_documents": True, "block_size": 60,
    "n_layer": 2, "n_head": 2, "n_embd": 16, "batch_size": 6,
}  # fmt: skip
both_archs = pytest.mark.parametrize("arch", ["gpt2", "modern"])
both_losses = pytest.mark.parametrize("is_chunked", [False, True])


@pytest.fixture(autouse=True)
def choose_loss(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all models of a test compute their loss in chunks of 64 tokens, if it asks for that."""
    if "is_chunked" in request.fixturenames and request.getfixturevalue("is_chunked"):
        monkeypatch.setitem(kernels.MAX_LOGITS, "cpu", 64 * PADDED)
        monkeypatch.setattr(kernels, "MAX_PLAIN_LOGITS_ON_CPU", 1)


def make_random_model(arch: str, **others: object) -> LanguageModel:
    """Return a model whose predictions depend on all its tokens."""
    torch.manual_seed(0)
    model = make_model(Config(**(SETTINGS | {"arch": arch} | others)), CHAT_VOCAB_SIZE)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packed_builds(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def data(folder: Path) -> TrainingData:
    return TrainingData(open_builds(str(folder / "chats")), Config(**SETTINGS), device=CPU)  # type: ignore[arg-type]


def split_documents(batch: Batch) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """Return the row, the positions, the inputs and the targets of each document, (1, L) each."""
    ids, targets, documents = batch
    assert documents is not None
    found = []
    for row in range(len(ids)):
        for number in range(int(documents[row].max())):  # the last one is padding
            at = torch.nonzero(documents[row] == number).flatten()
            found.append((row, at, ids[row, at][None], targets[row, at][None]))
    return found


@pytest.mark.parametrize(
    "others", [{"arch": "gpt2"}, {"arch": "modern"}, {"arch": "modern", "token_shift": True}], ids=str
)
def test_logits_of_a_document_in_a_row_are_those_of_the_document_alone(
    data: TrainingData, others: dict[str, object]
) -> None:
    model = make_random_model(**others)  # type: ignore[arg-type]
    batch = data.batch(0, 6)
    with torch.no_grad():
        packed = model.logits(model.features(batch[0], batch[2]))[..., :CHAT_VOCAB_SIZE]
        documents = split_documents(batch)
        assert len(documents) == 12
        for row, at, ids, _ in documents:
            alone = model.logits(model.features(ids))[..., :CHAT_VOCAB_SIZE]
            torch.testing.assert_close(packed[row, at], alone[0], atol=1e-5, rtol=1e-5)


@both_losses
@both_archs
def test_losses_and_gradients_of_rows_are_those_of_their_documents(
    data: TrainingData, arch: str, is_chunked: bool
) -> None:
    model, batch = make_random_model(arch), data.batch(0, 6)
    parameters = list(model.parameters())
    loss, _ = model(*batch)
    num_counted = int((batch[1] != IGNORE_INDEX).sum())
    losses = []
    for _, _, ids, targets in split_documents(batch):
        mean, _ = model(ids, targets)
        losses.append(mean * ids.numel() / num_counted)
    packed, alone = loss * batch[0].numel() / num_counted, torch.stack(losses).sum()
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    both = (torch.autograd.grad(each, parameters) for each in (packed, alone))
    for ours, expected in zip(*both, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@both_losses
@both_archs
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chance=st.randoms(use_true_random=False))
def test_targets_that_do_not_count_change_no_gradient(
    data: TrainingData, arch: str, is_chunked: bool, chance: random.Random
) -> None:
    """The features where a target does not count have a gradient of exactly zero."""
    model = make_random_model(arch)
    ids, _, documents = data.batch(chance.randrange(100), 3)
    is_counted = torch.tensor([[chance.random() < 0.3 for _ in row] for row in ids])
    captured: list[Tensor] = []
    final_norm = model.final_norm

    def keep(x: Tensor) -> Tensor:
        captured.append(final_norm(x))
        captured[-1].retain_grad()
        return captured[-1]

    model.final_norm = keep  # type: ignore[method-assign]
    counted_ids = ids.masked_fill(~is_counted, IGNORE_INDEX)  # any id can be a target
    loss, _ = model(ids, counted_ids, documents)
    loss.backward()
    grad = captured[0].grad
    assert grad is not None and (grad[~is_counted] == 0).all()
    assert not is_counted.any() or (grad[is_counted] != 0).any()


@both_losses
@both_archs
def test_last_token_that_is_not_learnt_changes_no_gradient_at_all(tmp_path: Path, arch: str, is_chunked: bool) -> None:
    """The last token of each chat, <|endoftext|>, is a target only, and it is not learnt."""
    build = make_chat_build(tmp_path / "chats")
    results = []
    for is_changed in (False, True):
        if is_changed:
            shard = build / "train-00000.bin"
            tokens, ends = np.fromfile(shard, "<u2"), np.fromfile(shard.with_suffix(".ends"), "<u8")
            tokens[ends.astype(int) - 1] = 5
            tokens.tofile(shard)
        data = TrainingData(open_builds(str(build)), Config(**SETTINGS), device=CPU)  # type: ignore[arg-type]
        model = make_random_model(arch)
        loss, _ = model(*data.batch(0, 8))
        results.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert any(gradient.abs().sum() > 0 for gradient in results[0][1:])


@both_losses
@both_archs
def test_accumulated_gradient_is_that_of_the_mean_over_all_learnt_tokens(
    folder: Path, arch: str, is_chunked: bool
) -> None:
    """A row has 45 learnt tokens or 16, depending on its build."""
    mixture = open_builds(f"{folder / 'plain'}:1,{folder / 'masked'}:1")
    data, model = TrainingData(mixture, Config(**SETTINGS), device=CPU), make_random_model(arch)  # type: ignore[arg-type]
    ids, targets, documents = data.batch(0, 6)
    logits = model.logits(model.features(ids, documents)).flatten(0, 1)
    mean = torch.nn.functional.cross_entropy(logits, targets.flatten())  # over the targets that are not ignored
    expected = torch.autograd.grad(mean, list(model.parameters()))
    counts = set()
    for micro_batch in (6, 2, 1):
        prefetcher = Prefetcher(data, windows_per_step=6, micro_batch=micro_batch, world=World())
        model.zero_grad(set_to_none=True)
        for micro in range(prefetcher.num_micro_batches):
            batch = prefetcher.take(prefetcher.first_sample(0, micro))
            counts.add(int((batch[1] != IGNORE_INDEX).sum()))
            (model(*batch)[0] / prefetcher.loss_divisor(0)).backward()
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
    assert len(counts) > 4, "micro-batches have different numbers of learnt tokens"
