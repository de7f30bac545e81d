"""A step on a build with a loss mask: the mean over all its counted tokens, for any number of micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.runs import delete_checkpoints_after, invoke, make_build, read_losses, read_metric_rows, write_config
from train.config import load_config
from train.core.distributed import World
from train.data.batches import Prefetcher
from train.run.checkpoint import list_checkpoints
from train.run.context import open_run
from train.run.state import new_state
from train.train import optimizer_step


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_build(tmp_path_factory.mktemp("masked_training") / "tiny", learnt=slice(30, 46))


@pytest.mark.parametrize(("arch", "data_order"), [("gpt2", "random"), ("modern", "random"), ("gpt2", "documents")])
def test_step_is_the_same_for_any_number_of_micro_batches(chats: Path, arch: str, data_order: str) -> None:
    results = []
    for micro_batch in (8, 2, 1):
        settings = {"arch": arch, "data_order": data_order, "dropout": 0.0, "mask_documents": True}
        path = write_config(chats.parent / "micro.py", chats, **settings)
        run = open_run(load_config(path, {}), World())
        state = new_state(run.config, run.source.vocab_size, device=run.device)
        prefetcher = Prefetcher(run.data.train, windows_per_step=8, micro_batch=micro_batch, world=run.world)
        losses = [optimizer_step(run, state, state.model, prefetcher) for _ in range(3)]
        results.append([*(x for step in losses for x in (step.loss, step.grad_norm)), *state.model.parameters()])
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


@pytest.mark.parametrize("num_epochs", [2.0, 0.5])
def test_num_epochs_of_documents_is_a_number_of_steps_and_resumes_in_mid_epoch(chats: Path, num_epochs: float) -> None:
    """An epoch has 40 rows of one document; a step has 8."""
    settings: dict[str, Any] = {"data_order": "documents", "mask_documents": True, "block_size": 48}
    config = chats.parent / f"epochs{num_epochs:g}.py"
    write_config(
        config, chats, num_epochs=num_epochs, warmup_steps=1, checkpoint_interval=2, keep_checkpoints=9, **settings
    )
    config.write_text(config.read_text().replace("max_steps = 24\n", ""))
    result = invoke("train.py", config)
    num_steps = 5 * num_epochs if num_epochs == 2 else 3  # the third is completed by the second epoch
    assert result.returncode == 0, result.stderr
    line = (
        f"{num_steps:.0f} steps read {num_steps / 5:.2f} epochs of 40 rows with whole documents and 6.2% padding; the "
    )
    assert f"{line}loss counts 34.8% of the training tokens; " in result.stdout
    assert f"\nmax_steps                    {num_steps:.0f}\n" in result.stdout
    out_dir = config.with_suffix("")
    before = read_losses(out_dir)
    delete_checkpoints_after(out_dir, 2)
    again = invoke("train.py", config)
    assert again.returncode == 0 and "continuing after step 2" in again.stdout and read_losses(out_dir) == before
    finished = invoke("train.py", config)
    assert f"is finished: all {num_steps:.0f} steps are done" in finished.stdout + finished.stderr
    shorter = invoke("train.py", config, "--num_epochs=0.4")
    assert shorter.returncode == 2 and f"max_steps {num_steps:.0f} → 2" in shorter.stderr
    longer = invoke("train.py", config, f"--num_epochs={num_epochs + 1}")
    assert longer.returncode == 0 and f"continuing after step {num_steps:.0f}" in longer.stdout


def test_num_epochs_of_a_mixture_is_rejected(chats: Path) -> None:
    make_build(chats.parent / "other")
    config = write_config(chats.parent / "mixture.py", chats, data=f"{chats}:1,{chats.parent / 'other'}:1")
    result = invoke("train.py", config, "--num_epochs=2")
    assert result.returncode == 2
    assert result.stderr == (
        "error: num_epochs is 2, but a mixture of builds has no epochs; set max_steps, or train on one build\n"
    )
    short = invoke("train.py", config, f"--data={chats}", "--num_epochs=0.1", "--warmup_steps=60")
    assert short.returncode == 2 and "warmup_steps must be at most max_steps 2, got 60; lower it" in short.stderr


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
