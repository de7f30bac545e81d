"""Numbers that are not finite: an update is skipped, then the run goes back, then it stops; nothing bad is ever saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.runs import invoke, losses, make_build, rows, write_config
from train.config import load_config
from train.data.batches import TrainingData
from train.data.builds import open_builds
from train.model import ARCHITECTURES
from train.model.gpt2 import GPT2
from train.run.checkpoint import list_checkpoints

SETTINGS = {
    "max_steps": 30,
    "checkpoint_interval": 5,
    "eval_interval": 10,
    "dropout": 0.0,
    "gradient_accumulation_steps": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("divergence")
    make_build(folder / "tiny")
    return folder


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., None]:
    """Makes the loss of the samples of some steps what no loss should be, as a broken kernel or a wild batch would."""

    def spoil(config: Path, steps: range, value: float = torch.nan) -> None:
        settings = load_config(config, {})
        data = TrainingData(open_builds(settings.data), settings, device=torch.device("cpu"))
        size = settings.windows_per_step
        bad = {data.batch(step * size, size)[0].numpy().tobytes() for step in steps}

        class Poisoned(GPT2):
            def forward(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
                loss, losses = super().forward(ids, targets, documents)
                return loss * (value if self.training and ids.numpy().tobytes() in bad else 1), losses

        monkeypatch.setitem(ARCHITECTURES, "gpt2", Poisoned)

    return spoil


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_update_that_is_not_finite_is_skipped(
    folder: Path, poison: Callable[..., None], value: float, optimizer: str
) -> None:
    name = f"skip_{optimizer}_{value}"
    config = write_config(folder / f"{name}.py", folder / "tiny", **SETTINGS, optimizer=optimizer)
    poison(config, range(7, 9), value)
    result = invoke("train.py", config)
    assert result.returncode == 0, result.stderr
    train = {row["step"]: row for row in rows(folder / name) if "train_loss" in row}
    assert [train[step]["skipped_updates"] for step in (7, 8, 9, 30)] == [0, 1, 2, 2]
    assert train[8]["train_loss"] is None and train[10]["train_loss"] < train[1]["train_loss"]
    assert rows(folder / name)[-1]["val_loss"] < 2.5


def test_what_was_skipped_is_still_known_after_a_restart(folder: Path, poison: Callable[..., None]) -> None:
    config = write_config(folder / "known.py", folder / "tiny", **SETTINGS, keep_checkpoints=99)
    poison(config, range(7, 9))
    assert invoke("train.py", config).returncode == 0
    before = losses(folder / "known")
    for checkpoint in list_checkpoints(folder / "known"):
        if int(checkpoint.name[-8:]) > 10:
            shutil.rmtree(checkpoint)
    assert invoke("train.py", config).returncode == 0
    assert losses(folder / "known") == before


def test_nothing_is_saved_while_updates_are_skipped(folder: Path, poison: Callable[..., None]) -> None:
    config = write_config(folder / "postponed.py", folder / "tiny", **SETTINGS, keep_checkpoints=99)
    poison(config, range(8, 11))  # of the steps 9, 10 and 11: 10 is one that saves
    assert invoke("train.py", config).returncode == 0
    assert [int(p.name[-8:]) for p in list_checkpoints(folder / "postponed")] == [5, 12, 15, 20, 25, 30]


def test_after_several_the_run_goes_back_and_leaves_those_samples_out(
    folder: Path, poison: Callable[..., None]
) -> None:
    config = write_config(folder / "back.py", folder / "tiny", **SETTINGS)
    poison(config, range(11, 16))  # the steps 12 to 16
    result = invoke("train.py", config)
    assert result.returncode == 0, result.stderr
    samples = (16 - 10) * 4
    said = f"5 updates in a row were not finite: back from step 16 to the checkpoint of step 10, without the {samples} samples between"
    assert said in result.stdout
    (event,) = [row for row in rows(folder / "back") if "went_back_from_step" in row]
    assert event == {"step": 10, "went_back_from_step": 16, "skipped_samples": samples}
    steps = [row["step"] for row in rows(folder / "back") if "train_loss" in row]
    assert steps == list(range(1, 31)), "each step is there once: the rows of those that were undone are gone"
    assert rows(folder / "back")[-1]["val_loss"] < 2.5


def test_what_comes_after_going_back_is_resumed_alike(folder: Path, poison: Callable[..., None]) -> None:
    """The samples left out stay left out: a checkpoint knows how many samples were drawn, not only the step."""
    config = write_config(folder / "back_again.py", folder / "tiny", **SETTINGS, keep_checkpoints=99)
    poison(config, range(11, 16))
    assert invoke("train.py", config).returncode == 0
    before = losses(folder / "back_again")
    for checkpoint in list_checkpoints(folder / "back_again"):
        if int(checkpoint.name[-8:]) > 20:
            shutil.rmtree(checkpoint)
    assert invoke("train.py", config).returncode == 0
    assert losses(folder / "back_again") == before


def test_when_going_back_does_not_help_it_stops(folder: Path, poison: Callable[..., None]) -> None:
    config = write_config(folder / "stops.py", folder / "tiny", **SETTINGS)
    poison(config, range(11, 200))
    result = invoke("train.py", config)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert (
        "5 updates in a row were not finite, again since the return to step 10 at step 15: training has diverged"
        in result.stderr
    )
    assert [int(p.name[-8:]) for p in list_checkpoints(folder / "stops")] == [5, 10]


def test_without_a_checkpoint_it_stops_at_once(folder: Path, poison: Callable[..., None]) -> None:
    config = write_config(folder / "at_once.py", folder / "tiny", **SETTINGS)
    poison(config, range(0, 200))
    result = invoke("train.py", config)
    assert (
        result.returncode == 1
        and "5 updates in a row were not finite at step 5: training has diverged" in result.stderr
    )
    assert list_checkpoints(folder / "at_once") == []


def test_it_is_noticed_however_seldom_the_run_reports(folder: Path, poison: Callable[..., None]) -> None:
    config = write_config(
        folder / "seldom.py", folder / "tiny", **SETTINGS | {"max_steps": 10_000, "eval_interval": 10_000}
    )
    poison(config, range(6, 200))
    result = invoke("train.py", config, "--log_interval=10000", "--checkpoint_interval=10000")
    assert result.returncode == 1 and "updates in a row were not finite at step 20" in result.stderr


def test_a_high_loss_scale_of_fp16_is_no_divergence(folder: Path) -> None:
    """The scaler begins at 65,536 and finds its place by overflowing: those updates are skipped, and training goes on."""
    config = write_config(folder / "scaled.py", folder / "tiny", **SETTINGS, precision="fp16")
    assert invoke("train.py", config).returncode == 0
    assert rows(folder / "scaled")[-1]["val_loss"] < 2.5
