"""Losses that are not finite: an update is skipped, then the run rolls back, then it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.runs import (
    delete_checkpoints_after,
    invoke,
    list_steps,
    read_losses,
    read_metric_rows,
    train_run,
    write_config,
)
from train.config import load_config
from train.data.batches import TrainingData
from train.data.builds import open_builds
from train.model.gpt2 import GPT2
from train.run.checkpoint import list_checkpoints

SETTINGS = {
    "max_steps": 30,
    "checkpoint_interval": 5,
    "eval_interval": 10,
    "dropout": 0.0,
    "gradient_accumulation_steps": 1,
}
Poison = Callable[..., None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Return a function that multiplies the loss of some steps, as a broken kernel might."""

    def poison_samples(config: Path, steps: range, value: float = torch.nan) -> None:
        settings = load_config(config, {})
        data = TrainingData(open_builds(settings.data), settings, device=torch.device("cpu"))
        size = settings.windows_per_step
        bad = {data.batch(step * size, size)[0].numpy().tobytes() for step in steps}

        class Poisoned(GPT2):
            def forward(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
                loss, row_losses = super().forward(ids, targets, documents)
                is_bad = self.training and ids.numpy().tobytes() in bad
                return loss * (value if is_bad else 1), row_losses

        monkeypatch.setattr("train.model.gpt2.GPT2", Poisoned)

    return poison_samples


# Skipped updates


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_update_that_is_not_finite_is_skipped(folder: Path, poison: Poison, value: float, optimizer: str) -> None:
    name = f"skip_{optimizer}_{value}"
    config = write_config(folder / f"{name}.py", folder / "tiny", **SETTINGS, optimizer=optimizer)
    poison(config, range(7, 9), value)
    result = invoke("train.py", config)
    assert result.returncode == 0, result.stderr
    rows = {row["step"]: row for row in read_metric_rows(folder / name) if "train_loss" in row}
    assert [rows[step]["skipped_updates"] for step in (7, 8, 9, 30)] == [0, 1, 2, 2]
    assert rows[8]["train_loss"] is None and rows[10]["train_loss"] < rows[1]["train_loss"]
    assert read_metric_rows(folder / name)[-1]["val_loss"] < 2.5


def test_number_of_skipped_updates_survives_resuming(folder: Path, poison: Poison) -> None:
    config = write_config(folder / "known.py", folder / "tiny", **SETTINGS, keep_checkpoints=99)
    poison(config, range(7, 9))
    assert invoke("train.py", config).returncode == 0
    before = read_losses(folder / "known")
    delete_checkpoints_after(folder / "known", 10)
    assert invoke("train.py", config).returncode == 0
    assert read_losses(folder / "known") == before


def test_no_checkpoint_is_saved_while_updates_are_skipped(folder: Path, poison: Poison) -> None:
    config = write_config(folder / "postponed.py", folder / "tiny", **SETTINGS, keep_checkpoints=99)
    poison(config, range(8, 11))  # steps 9, 10 and 11; a checkpoint is due after step 10
    assert invoke("train.py", config).returncode == 0
    assert list_steps(folder / "postponed") == [5, 12, 15, 20, 25, 30]


def test_overflow_of_the_fp16_scale_is_not_divergence(folder: Path) -> None:
    """The gradient scale starts at 65,536. Each overflow skips an update and halves it."""
    run = train_run(folder, "scaled", **SETTINGS, precision="fp16")
    assert read_metric_rows(run)[-1]["val_loss"] < 2.5


# Rollbacks


def test_several_skipped_updates_roll_the_run_back_and_skip_their_samples(folder: Path, poison: Poison) -> None:
    config = write_config(folder / "back.py", folder / "tiny", **SETTINGS)
    poison(config, range(11, 16))  # steps 12 to 16
    result = invoke("train.py", config)
    assert result.returncode == 0, result.stderr
    num_samples = (16 - 10) * 4
    message = (
        "5 updates in a row were not finite: rolled back from step 16 to the checkpoint of step 10, "
        f"skipping the {num_samples} samples between them"
    )
    assert message in result.stdout
    (event,) = [row for row in read_metric_rows(folder / "back") if "went_back_from_step" in row]
    assert event == {"step": 10, "went_back_from_step": 16, "skipped_samples": num_samples}
    steps = [row["step"] for row in read_metric_rows(folder / "back") if "train_loss" in row]
    assert steps == list(range(1, 31)), "each step once: the rows of the steps that were undone are removed"
    assert read_metric_rows(folder / "back")[-1]["val_loss"] < 2.5


def test_run_resumes_after_a_rollback_with_the_same_samples(folder: Path, poison: Poison) -> None:
    """A checkpoint stores the number of samples: after a rollback it does not follow from the step."""
    config = write_config(folder / "back_again.py", folder / "tiny", **SETTINGS, keep_checkpoints=99)
    poison(config, range(11, 16))
    assert invoke("train.py", config).returncode == 0
    before = read_losses(folder / "back_again")
    delete_checkpoints_after(folder / "back_again", 20)
    assert invoke("train.py", config).returncode == 0
    assert read_losses(folder / "back_again") == before


# Failures


def test_second_rollback_to_the_same_checkpoint_fails(folder: Path, poison: Poison) -> None:
    config = write_config(folder / "stops.py", folder / "tiny", **SETTINGS)
    poison(config, range(11, 200))
    result = invoke("train.py", config)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert (
        "5 updates in a row were not finite, again since the rollback to step 10 at step 15: training has diverged"
        in result.stderr
    )
    assert list_steps(folder / "stops") == [5, 10]


def test_divergence_without_a_checkpoint_fails_at_once(folder: Path, poison: Poison) -> None:
    config = write_config(folder / "at_once.py", folder / "tiny", **SETTINGS)
    poison(config, range(0, 200))
    result = invoke("train.py", config)
    assert result.returncode == 1
    assert "5 updates in a row were not finite at step 5: training has diverged" in result.stderr
    assert list_checkpoints(folder / "at_once") == []


def test_divergence_is_detected_between_long_intervals(folder: Path, poison: Poison) -> None:
    settings = SETTINGS | {"max_steps": 10_000, "eval_interval": 10_000}
    config = write_config(folder / "seldom.py", folder / "tiny", **settings)
    poison(config, range(6, 200))
    result = invoke("train.py", config, "--log_interval=10000", "--checkpoint_interval=10000")
    assert result.returncode == 1 and "updates in a row were not finite at step 20" in result.stderr


def test_divergence_by_the_learning_rate_names_step_and_setting(folder: Path) -> None:
    config = write_config(
        folder / "diverges.py", folder / "tiny", learning_rate=1e18, min_lr=1e17, warmup_steps=0, grad_clip=None
    )
    result = invoke("train.py", config)
    assert result.returncode == 1
    assert " at step " in result.stderr and "lower learning_rate (now 1e+18)" in result.stderr
    assert not (folder / "diverges" / "checkpoints").exists()


@pytest.mark.parametrize(
    "intervals",
    [
        {"checkpoint_interval": 3, "eval_interval": 1000, "log_interval": 1000},
        {"checkpoint_interval": 1, "eval_interval": 1000},
        {"checkpoint_interval": 1, "eval_interval": 1},
        {"checkpoint_interval": 1000, "eval_interval": 1},
    ],
    ids=str,
)
def test_weights_ruined_by_a_finite_update_are_not_saved(folder: Path, intervals: dict[str, int]) -> None:
    """The first update is finite and ruins the weights. No gradient shows it before the next step."""
    name = "nan" + "_".join(map(str, intervals.values()))
    settings = {"learning_rate": 1e18, "min_lr": 0.0, "warmup_steps": 0, **intervals}
    done = invoke("train.py", write_config(folder / f"{name}.py", folder / "tiny", **settings))
    assert done.returncode == 1 and "training has diverged; lower learning_rate" in done.stderr
    assert list_checkpoints(folder / name) == []
