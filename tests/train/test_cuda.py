"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import invoke, losses, make_build, rows, write_config
from train.config import load_config
from train.core.device import choose_device, choose_precision, make_autocast, peak_memory_bytes
from train.core.distributed import World
from train.data.batches import Prefetcher, open_data
from train.data.builds import open_builds
from train.run.after_step import take_step
from train.run.checkpoint import list_checkpoints
from train.run.preflight import preflight
from train.run.state import new_training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
KINDS = list(itertools.product(("gpt2", "modern"), ("adamw", "muon"), ("fp32", "tf32", "bf16", "fp16")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    make_build(folder / "tiny")
    return folder


@pytest.mark.parametrize(("arch", "optimizer", "precision"), KINDS)
def test_each_kind_learns_and_resumes(folder: Path, arch: str, optimizer: str, precision: str) -> None:
    name = f"{arch}_{optimizer}_{precision}"
    settings = {"arch": arch, "optimizer": optimizer, "precision": precision, "device": "cuda", "max_steps": 60}
    config = write_config(
        folder / f"{name}.py", folder / "tiny", **settings, checkpoint_interval=20, keep_checkpoints=9
    )
    assert invoke("train.py", config).returncode == 0
    before = [row["train_loss"] for row in rows(folder / name) if "train_loss" in row]
    assert rows(folder / name)[-1]["val_loss"] < 1.5
    assert all(row["peak_memory_bytes"] > 0 for row in rows(folder / name) if "train_loss" in row)
    for checkpoint in list_checkpoints(folder / name)[1:]:
        shutil.rmtree(checkpoint)
    assert invoke("train.py", config).returncode == 0
    after = [row["train_loss"] for row in rows(folder / name) if "train_loss" in row]
    assert after == pytest.approx(before, rel=0.05)


@pytest.mark.parametrize(
    "settings", [{}, {"optimizer": "muon", "arch": "modern", "mask_documents": True}, {"precision": "fp16"}], ids=str
)
def test_a_step_waits_for_nothing(folder: Path, settings: dict[str, object]) -> None:
    path = write_config(folder / "waits.py", folder / "tiny", **{"device": "cuda", "precision": "bf16"} | settings)
    config = load_config(path, {})
    device, builds, world = choose_device("cuda"), open_builds(config.data), World()
    training, data = new_training(config, builds.vocab_size, device=device), open_data(builds, config, device=device)
    prefetcher = Prefetcher(
        data.train, windows_per_step=config.windows_per_step, micro_batch=config.batch_size, world=world
    )
    autocast = make_autocast(choose_precision(config.precision, device), device)
    take_step(training, training.model, prefetcher, config, autocast=autocast, world=world)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            take_step(training, training.model, prefetcher, config, autocast=autocast, world=world)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_moves_between_gpu_and_cpu(folder: Path) -> None:
    config = write_config(folder / "moves.py", folder / "tiny", device="cuda", precision="fp32", checkpoint_interval=6)
    assert invoke("train.py", config, "--checkpoint_interval=6").returncode == 0
    whole = [row for row in losses(folder / "moves") if "val_loss" in row]
    for checkpoint in list_checkpoints(folder / "moves")[1:]:
        shutil.rmtree(checkpoint)
    assert invoke("train.py", config, "--device=cpu").returncode == 0
    moved = [row for row in losses(folder / "moves") if "val_loss" in row]
    assert [row["val_loss"] for row in moved] == pytest.approx([row["val_loss"] for row in whole], rel=0.05)


def test_too_large_a_batch_is_halved(folder: Path) -> None:
    settings = {
        "device": "cuda",
        "batch_size": 4096,
        "block_size": 128,
        "n_layer": 12,
        "n_embd": 256,
        "gradient_accumulation_steps": 1,
    }
    path = write_config(folder / "halved.py", folder / "tiny", **settings)
    config = load_config(path, {})
    device, builds = choose_device("cuda"), open_builds(config.data)
    torch.cuda.set_per_process_memory_fraction(4e9 / torch.cuda.get_device_properties(device).total_memory, device)
    try:
        training, data = (
            new_training(config, builds.vocab_size, device=device),
            open_data(builds, config, device=device),
        )
        found = preflight(config, builds, training, data, wrapped=training.model, world=World())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert found.micro_batch < 4096 and 4096 % found.micro_batch == 0
    assert (peak_memory_bytes(device) or 0) < 1e9, "the run's own peak, not that of the attempts"
