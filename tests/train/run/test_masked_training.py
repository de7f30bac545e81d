"""A step on a build with a loss mask: the mean over all its counted tokens, for any number of micro-batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.runs import invoke, make_build, read_losses, read_metric_rows, write_config
from train.config import load_config
from train.core.distributed import World
from train.data.batches import Prefetcher
from train.run.captured_step import can_capture_step
from train.run.checkpoint import list_checkpoints
from train.run.context import open_run
from train.run.state import new_state
from train.train import optimizer_step


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_build(tmp_path_factory.mktemp("masked_training") / "tiny", learnt=slice(30, 46))


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_step_is_the_same_for_any_number_of_micro_batches(chats: Path, arch: str) -> None:
    results = []
    for micro_batch in (8, 2, 1):
        path = write_config(chats.parent / "micro.py", chats, arch=arch, dropout=0.0, mask_documents=True)
        run = open_run(load_config(path, {}), World())
        state = new_state(run.config, run.source.vocab_size, device=run.device)
        prefetcher = Prefetcher(run.data.train, windows_per_step=8, micro_batch=micro_batch, world=run.world)
        losses = [optimizer_step(run, state, state.model, prefetcher) for _ in range(3)]
        results.append([*(x for step in losses for x in (step.loss, step.grad_norm)), *state.model.parameters()])
        assert not can_capture_step(run, state, prefetcher)
    for other in results[1:]:
        for ours, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_loss_of_a_step_is_the_mean_over_its_counted_tokens(chats: Path) -> None:
    run = open_run(load_config(write_config(chats.parent / "mean.py", chats, dropout=0.0), {}), World())
    state = new_state(run.config, run.source.vocab_size, device=run.device)
    ids, targets, _ = run.data.train.batch(0, 8)
    logits = state.model.logits(state.model.features(ids)).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, targets.flatten())  # of the targets that are not ignored
    result = optimizer_step(
        run, state, state.model, Prefetcher(run.data.train, windows_per_step=8, micro_batch=2, world=run.world)
    )
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_run_on_chats_learns_and_resumes_bit_for_bit(chats: Path) -> None:
    config = write_config(chats.parent / "resumed.py", chats, mask_documents=True, data_order="epochs")
    result = invoke("train.py", config)
    assert result.returncode == 0, result.stderr
    assert "; the loss counts 34.8% of them; " in result.stdout
    assert "bits per byte n/a" in result.stdout
    out_dir = config.with_suffix("")
    rows = read_metric_rows(out_dir)
    assert rows[-1]["val_loss"] < 0.8 * rows[0]["val_loss"] and rows[-1]["bits_per_byte"] is None
    before = read_losses(out_dir)
    for checkpoint in list_checkpoints(out_dir):
        if not checkpoint.name.endswith("12"):
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()
    assert invoke("train.py", config).returncode == 0
    assert read_losses(out_dir) == before
