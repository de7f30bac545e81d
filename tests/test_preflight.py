"""What is found out before the first step, and that looking changes nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from builds import open_builds
from config import Config, load_config
from data import TrainingData, ValidationData
from device import choose_device, choose_precision, peak_flops
from distributed import World
from memory import available_bytes, kept_bytes
from preflight import preflight, windows_that_fit
from preprocess.errors import FolioError, MisuseError
from state import Training, new_training, training_numbers, training_tensors
from tracking import Work, spell_speed
from train_helpers import REPO, environment, invoke, make_build, rows, write_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preflight")
    make_build(folder / "tiny")
    return folder


def prepared(folder: Path, **settings: object) -> tuple[Config, Training, tuple[TrainingData, ValidationData]]:
    config = load_config(write_config(folder / "run.py", folder / "tiny", **settings), {})
    builds = open_builds(config.data)
    data = TrainingData(builds, config, device=CPU), ValidationData(builds, config, device=CPU)
    return config, new_training(config, builds.vocab_size, device=CPU), data


@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon", "arch": "modern", "precision": "fp16"}])
def test_it_leaves_no_trace(folder: Path, settings: dict[str, object]) -> None:
    config, training, data = prepared(folder, **settings)
    before = {name: t.clone() for name, t in (training.model.state_dict() | training_tensors(training)).items()}
    numbers = training_numbers(training)
    preflight(config, open_builds(config.data), training, data, world=World())
    after = training.model.state_dict() | training_tensors(training)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert training_numbers(training) == numbers
    assert all(p.grad is None for p in training.model.parameters()) and training.model.training


def test_what_it_says(folder: Path) -> None:
    config, training, data = prepared(folder, max_steps=1000, eval_interval=100)
    found = preflight(config, open_builds(config.data), training, data, world=World())
    assert found.micro_batch == 4
    builds, steps, disk, batch, time = found.lines
    assert builds == "preflight: tiny: 2 shards are there in full size, the highest id is 29 of 31"
    assert steps == "preflight: 1,000 steps read 128,000 tokens, 69.57 times the training tokens; the learning rate rises for 4 of them"
    assert disk == "preflight: 4 checkpoints of 0.3 MB and one in the making fit the disk"
    assert batch == "preflight: forward passes a step: 2, of 4 windows"
    assert time.startswith("preflight: about ") and "1,000 steps of 0.0" in time and "11 evaluations of 0.0" in time


def test_too_large_a_batch_is_cut_into_more_passes_with_the_same_tokens(folder: Path) -> None:
    """Under a real limit: this process may take no more address space than it has, and 160 MB."""
    settings = {"block_size": 128, "batch_size": 512, "gradient_accumulation_steps": 1, "max_steps": 2, "warmup_steps": 0}
    config = write_config(folder / "large.py", folder / "tiny", **settings, dropout=0.0, eval_interval=10, checkpoint_interval=10)
    limited = (
        "import resource, sys, pathlib; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/train']\n"
        "import torch, train; from command import run_command\n"
        "torch.set_num_threads(1); torch.ones(64, 64).requires_grad_().mm(torch.ones(64, 64)).sum().backward()\n"
        "pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages + 160_000_000,) * 2)\n"
        "sys.exit(run_command(train.main, [sys.argv[2]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", limited, str(REPO), str(config)], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    said = next(line for line in done.stdout.splitlines() if "memory holds no batch of 512 windows" in line)
    passes, windows = map(int, re.findall(r": (\d+), of (\d+) windows", said)[0])
    assert passes * windows == 512 and windows < 512
    assert "65,536 tokens a step" in done.stdout
    assert invoke("train.py", config, f"--out_dir={folder / 'unlimited'}").returncode == 0
    ours, theirs = ([row["train_loss"] for row in rows(folder / name) if "train_loss" in row] for name in ("large", "unlimited"))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_batch_beyond_this_machines_memory_is_not_even_tried(folder: Path) -> None:
    """A system that promises more memory than it has would end the process without a word."""
    config, training, data = prepared(folder)
    one = kept_bytes(training.model, data[0].batch(0, 1))
    before, fitting, after = available_bytes(), windows_that_fit(config, training, data[0]), available_bytes()
    assert 0.5 * min(before, after) < fitting * one < max(before, after)


def test_what_a_forward_pass_keeps_grows_with_the_batch(folder: Path) -> None:
    config, training, data = prepared(folder)
    one, eight = (kept_bytes(training.model, data[0].batch(0, size)) for size in (1, 8))
    assert one > config.n_layer * config.block_size * config.n_embd * 4 * 10
    assert eight == pytest.approx(8 * one, rel=0.1)


def test_a_model_that_does_not_fit_at_all_is_one_line(folder: Path) -> None:
    result = invoke("train.py", write_config(folder / "huge.py", folder / "tiny"), "--n_embd=100000000")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "do not fit the memory of cpu; take a smaller model or block_size, or --gradient_checkpointing=true" in result.stderr


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA H100 80GB HBM3", "fp16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA GeForce RTX 4090", "bf16", 165),
        ("NVIDIA A100-SXM4-80GB", "fp32", None),
        ("NVIDIA RTX A4000", "bf16", None),
        ("Some GPU 9000", "bf16", None),
    ],
)
def test_peaks_of_known_devices(name: str, precision: str, tflops: float | None) -> None:
    assert peak_flops(name, precision) == (None if tflops is None else tflops * 1e12)


def test_speed_in_words() -> None:
    work = Work(tokens_per_step=1, flops_per_token=1e9, peak_flops=1e12, memory_bytes=lambda: 3_210_000_000)
    assert spell_speed(work.speed(500.0)) == ["500 tokens/s", "MFU 50.0%", "3.2 GB"]
    unknown = Work(tokens_per_step=1, flops_per_token=1e9, peak_flops=None, memory_bytes=lambda: None)
    assert spell_speed(unknown.speed(500.0)) == ["500 tokens/s"]


def test_auto_takes_what_the_device_can() -> None:
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    for precision in ("fp32", "bf16", "fp16"):
        assert choose_precision(precision, CPU) == precision
    with pytest.raises(MisuseError, match="precision tf32 does not go with device cpu, which can do fp32, bf16, fp16"):
        choose_precision("tf32", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_a_gpu_that_is_not_there() -> None:
    assert choose_device("auto").type in ("cpu", "mps")
    with pytest.raises(MisuseError, match="device 'cuda' is not there"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_each_of_several_processes_takes_its_gpu() -> None:
    assert choose_device("auto", local_rank=0, num_local=2) == torch.device("cuda", 0)
    with pytest.raises(MisuseError, match="each takes its own"):
        choose_device("cuda:0", local_rank=0, num_local=2)


def test_a_step_that_processes_cannot_share(folder: Path) -> None:
    config, training, data = prepared(folder, batch_size=3, gradient_accumulation_steps=1)
    with pytest.raises(FolioError, match="which 2 processes cannot share evenly"):
        preflight(config, open_builds(config.data), training, data, world=World(rank=1, size=2))
