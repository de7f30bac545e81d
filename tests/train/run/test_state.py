"""The training state in a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.helpers.runs import train_run, write_config
from train.config import load_config
from train.data.batches import TrainingData
from train.data.builds import open_builds
from train.run.checkpoint import list_checkpoints, open_checkpoint, restore
from train.run.save_checkpoint import origin_of, save
from train.run.state import TrainingState, new_state


def test_gradient_scaler_is_restored(folder: Path, tmp_path: Path) -> None:
    path, device = write_config(folder / "scaler.py", folder / "tiny", precision="fp16"), torch.device("cpu")
    config, builds = load_config(path, {}), open_builds(str(folder / "tiny"))

    def make_state() -> TrainingState:
        return new_state(config, builds.vocab_size, device=device)

    saved, restored = make_state(), make_state()
    infinite_loss = saved.model(*TrainingData(builds, config, device=device).batch(0, 4))[0] * math.inf
    saved.scaler.scale(infinite_loss).backward()
    saved.scaler.unscale_(saved.optimizers[0])
    saved.scaler.update()
    saved.step, saved.num_samples = 1, 8
    restore(open_checkpoint(save(saved, tmp_path, origin=origin_of(config, builds), keep=1)), restored)
    assert restored.scaler.get_scale() == saved.scaler.get_scale() == 32768.0


def test_checkpoint_has_no_state_of_random_generators(folder: Path) -> None:
    """Dropout follows from the sample number, on any device and with any number of processes."""
    run = train_run(folder, "stateless", max_steps=2, warmup_steps=0, checkpoint_interval=1)
    names = load_file(list_checkpoints(run)[-1] / "training.safetensors").keys()
    assert {name.rsplit(".", 1)[1] for name in names} == {"step", "exp_avg", "exp_avg_sq", "reference"}
