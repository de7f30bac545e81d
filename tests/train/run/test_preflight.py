"""What is found out before the first step, and that looking changes nothing."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from preprocess.errors import MisuseError
from tests.helpers.runs import REPO, environment, invoke, make_build, rows, write_config
from train.config import Config, load_config
from train.core.device import choose_device, choose_precision, peak_flops
from train.core.distributed import World
from train.core.memory import PeakMemory, available_bytes
from train.data.batches import Data, open_data
from train.data.builds import open_builds
from train.run.metrics import Work, format_speed
from train.run.preflight import TRIED_TOKENS, USABLE_FRACTION, Preflight, Trial, _trial, preflight, windows_that_fit
from train.run.state import Training, new_training, training_numbers, training_tensors

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preflight")
    make_build(folder / "tiny")
    return folder


def prepared(folder: Path, **settings: object) -> tuple[Config, Training, Data]:
    config = load_config(write_config(folder / "run.py", folder / "tiny", **settings), {})
    builds = open_builds(config.data)
    return config, new_training(config, builds.vocab_size, device=CPU), open_data(builds, config, device=CPU)


def look(config: Config, training: Training, data: Data) -> Preflight:
    builds = open_builds(config.data)
    return preflight(config, builds, training, data, wrapped=training.model, world=World())


@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon", "arch": "modern", "precision": "fp16"}])
def test_it_leaves_no_trace(folder: Path, settings: dict[str, object]) -> None:
    config, training, data = prepared(folder, **settings)
    before = {name: t.clone() for name, t in (training.model.state_dict() | training_tensors(training)).items()}
    numbers = training_numbers(training)
    assert look(config, training, data).micro_batch == 4
    after = training.model.state_dict() | training_tensors(training)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert training_numbers(training) == numbers | {"micro_batch": 4}
    assert all(p.grad is None for p in training.model.parameters()) and training.model.training


def test_what_a_first_pass_takes_longer_is_compilation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, training, data = prepared(folder)
    seconds = iter([5.0, 1.0, 0.5, 0.25])
    monkeypatch.setattr("train.run.preflight._timed", lambda _, work: (work(), next(seconds))[1])
    trial = _trial(config, training, data, micro_batch=4, wrapped=training.model, world=World())
    assert trial == Trial(pass_s=0.5, window_evaluation_s=0.25 / 4, compilation_s=4.5 + 0.75)


def test_what_it_says(folder: Path) -> None:
    config, training, data = prepared(folder, max_steps=1000, eval_interval=100)
    found = look(config, training, data)
    assert found.micro_batch == 4
    builds, steps, disk, batch, time = found.lines
    assert builds == "preflight: tiny: 2 shards are there in full size, the highest id is 29 of 31"
    assert (
        steps
        == "preflight: 1,000 steps read 128,000 tokens, 69.57 times the training tokens; the learning rate rises for 4 of them"
    )
    assert disk == "preflight: 4 checkpoints of 0.3 MB and one in the making fit the disk"
    assert batch == "preflight: forward passes a step: 2, of 4 windows"
    assert time.startswith("preflight: about ") and "1,000 steps of 0.0" in time and "11 evaluations of 0.0" in time


@pytest.mark.parametrize(
    ("max_steps", "step", "evaluations"), [(15, 0, 3), (20, 0, 3), (20, 10, 1), (15, 12, 1), (5, 0, 2)]
)
def test_evaluations_are_counted(folder: Path, max_steps: int, step: int, evaluations: int) -> None:
    config, training, data = prepared(folder, max_steps=max_steps, eval_interval=10)
    training.step = step
    assert f", {evaluations} evaluations of " in look(config, training, data).lines[-1]


def test_too_large_a_batch_is_cut_into_more_passes_with_the_same_tokens(folder: Path) -> None:
    """Under a real limit: this process may take no more address space than it has, and 160 MB."""
    settings = {
        "block_size": 128,
        "batch_size": 512,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "warmup_steps": 0,
    }
    config = write_config(
        folder / "large.py", folder / "tiny", **settings, dropout=0.0, eval_interval=10, checkpoint_interval=10
    )
    limited = (
        "import resource, sys, pathlib; sys.path[:0] = [sys.argv[1]]\n"
        "import torch; from train import train; from train.core.cli import run_command\n"
        "torch.set_num_threads(1); torch.ones(64, 64).requires_grad_().mm(torch.ones(64, 64)).sum().backward()\n"
        "pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages + 160_000_000,) * 2)\n"
        "sys.exit(run_command(train.main, [sys.argv[2]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, str(REPO), str(config)], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert "memory holds no batch of 512 windows: they are cut smaller, with the same tokens a step" in done.stdout
    passes, windows = map(int, re.findall(r"passes a step: (\d+), of (\d+) windows", done.stdout)[0])
    assert passes * windows == 512 and windows < 512
    assert "65,536 tokens a step" in done.stdout
    assert invoke("train.py", config, f"--out_dir={folder / 'unlimited'}").returncode == 0
    ours, theirs = (
        [row["train_loss"] for row in rows(folder / name) if "train_loss" in row] for name in ("large", "unlimited")
    )
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_batch_beyond_this_machines_memory_is_not_even_tried(folder: Path) -> None:
    """A system that promises more memory than it has would end the process without a word."""
    config, training, data = prepared(folder)
    few = TRIED_TOKENS // config.block_size
    with PeakMemory() as memory:
        training.model(*data.train.batch(0, few))[0].backward()
    fitting = windows_that_fit(config, training, data, world=World())
    assert 0.3 * available_bytes() < fitting * memory.peak_bytes / few < available_bytes()
    assert windows_that_fit(config, training, data, world=World(num_local=4)) == pytest.approx(fitting / 4, rel=0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "settings", [{}, {"gradient_checkpointing": True}, {"arch": "modern", "optimizer": "muon"}], ids=str
)
def test_what_is_counted_is_what_a_process_takes(settings: dict[str, object], tmp_path: Path) -> None:
    """The peak of a pass, of activations and logits, against the process' own memory."""
    measured = (
        "import pathlib, sys; sys.path[:0] = [sys.argv[1]]\n"
        "import torch; from train.config import Config; from train.core.memory import PeakMemory; from train.model import make_model\n"
        "torch.set_num_threads(1); torch.manual_seed(0)\n"
        f"model = make_model(Config(data='x', out_dir='y', n_layer=4, n_head=2, n_embd=64, block_size=256, **{settings!r}), 20_000)\n"
        "ids = torch.randint(20_000, (32, 257))\n"
        "model(ids[:1, :-1], ids[:1, 1:])[0].backward(); model.zero_grad()\n"
        "def highest(): return int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before = highest()\n"
        "with PeakMemory() as memory: model(ids[:, :-1], ids[:, 1:])[0].backward()\n"
        "print(memory.peak_bytes, (highest() - before) * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", measured, str(REPO)], capture_output=True, text=True, env=environment(), check=True
    )
    counted, grown = map(int, done.stdout.split())
    taken_once = 30e6  # by libraries, and the first holes in the heap
    assert counted > 20e6 and 0.4 * counted < grown < counted / USABLE_FRACTION + taken_once


def test_the_count_follows_what_is_freed() -> None:
    with PeakMemory() as memory:
        for _ in range(10):
            tensor = torch.zeros(1000)
            tensor.view(10, 100).add_(1)
        kept = [torch.zeros(500) for _ in range(2)]
    assert len(kept) == 2 and 4000 <= memory.peak_bytes <= 8000


def test_a_model_that_does_not_fit_at_all_is_one_line(folder: Path) -> None:
    result = invoke("train.py", write_config(folder / "huge.py", folder / "tiny"), "--n_embd=10000000000")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert (
        "do not fit the memory of cpu; take a smaller model or block_size, or --gradient_checkpointing=true"
        in result.stderr
    )


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
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA H200 NVL", "bf16", 835),
        ("Some GPU 9000", "bf16", None),
    ],
)
def test_peaks_of_known_devices(name: str, precision: str, tflops: float | None) -> None:
    assert peak_flops(name, precision) == (None if tflops is None else tflops * 1e12)


def test_speed_in_words() -> None:
    work = Work(tokens_per_step=1, flops_per_token=1e9, peak_flops=1e12, memory_bytes=lambda: 3_210_000_000)
    assert format_speed(work.speed(500.0)) == ["500 tokens/s", "MFU 50.0%", "3.2 GB"]
    unknown = Work(tokens_per_step=1, flops_per_token=1e9, peak_flops=None, memory_bytes=lambda: None)
    assert format_speed(unknown.speed(500.0)) == ["500 tokens/s"]


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


def test_a_gpu_is_always_named_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda.set_device refuses one without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(choose_device(wanted)) for wanted in ("auto", "cuda", "cuda:1")] == ["cuda:0", "cuda:0", "cuda:1"]
    assert [str(choose_device("auto", local_rank=rank, num_local=2)) for rank in (0, 1)] == ["cuda:0", "cuda:1"]
    with pytest.raises(MisuseError, match="device 'cuda:2' is not there, the last is cuda:1"):
        choose_device("cuda:2")
    with pytest.raises(MisuseError, match="2 processes run on this machine; set --device=cuda, each takes its own"):
        choose_device("cuda:0", local_rank=0, num_local=2)


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    program = (
        "import resource, sys; sys.path[:0] = [sys.argv[1]]\n"
        "import torch; from train.core.memory import keep_freed_memory\n"
        "def faults():\n"
        "    begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20):\n"
        "        blocks = [torch.zeros(1 << 20) for _ in range(4)]; del blocks\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin\n"
        "before = faults(); keep_freed_memory(); faults(); print(before, faults())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(REPO)], env=environment(), capture_output=True, text=True, check=True
    )
    before, after = map(int, result.stdout.split())
    if before < 1_000:
        pytest.skip(f"{before} page faults: this allocator, or huge pages, have them kept already")
    assert after < before / 10
