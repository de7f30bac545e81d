"""Fixtures of the tests of trackers: a clean environment, a build, and runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.runs import invoke, make_build, write_config
from train.config import load_config
from train.data.batches import TrainingData
from train.data.builds import open_builds
from train.model import gpt2
from train.trackers import client


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the user's settings, change to an empty folder, and wait longer for slow workers."""
    for key in [key for key in os.environ if key.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)
    # On a busy machine MLflow takes half a minute to start.
    monkeypatch.setattr(client, "MAX_CALL_S", 120.0)
    monkeypatch.setattr(client, "MAX_CLOSE_S", 120.0)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the build `tiny`."""
    folder = tmp_path_factory.mktemp("trackers")
    make_build(folder / "tiny")
    return folder


@pytest.fixture(scope="session")
def untracked(folder: Path) -> Path:
    """A finished run without trackers."""
    result = invoke("train.py", write_config(folder / "untracked.py", folder / "tiny"))
    assert (result.returncode, result.stderr) == (0, "")
    return folder / "untracked"


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, range], None]:
    """A function that makes the loss of some steps' samples NaN, so that the run rolls back."""

    def poison_steps(config: Path, steps: range) -> None:
        settings = load_config(config, {})
        data = TrainingData(open_builds(settings.data), settings, device=torch.device("cpu"))
        size, micro = settings.windows_per_step, settings.batch_size
        bad = {
            data.batch(sample, micro)[0].numpy().tobytes()
            for step in steps
            for sample in range(step * size, (step + 1) * size, micro)
        }

        class Poisoned(gpt2.GPT2):
            def forward(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
                loss, losses = super().forward(ids, targets, documents)
                return loss * (torch.nan if self.training and ids.numpy().tobytes() in bad else 1), losses

        monkeypatch.setattr(gpt2, "GPT2", Poisoned)

    return poison_steps
