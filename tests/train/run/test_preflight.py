"""The preflight: what it reports and leaves unchanged, and what it does with too little memory."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from preprocess.errors import FolioError
from tests.helpers.runs import REPO, invoke, make_environment, read_train_losses, small_disk, write_config
from train.config import load_config
from train.core.distributed import World
from train.core.memory import PeakMemory, available_bytes
from train.run.context import Run, open_run
from train.run.preflight import PROBE_TOKENS, Trial, _run_trial, estimate_max_windows, preflight
from train.run.state import TrainingState, new_state, state_numbers, state_tensors

CPU = torch.device("cpu")


def prepare(folder: Path, **settings: object) -> tuple[Run, TrainingState]:
    run = open_run(load_config(write_config(folder / "run.py", folder / "tiny", **settings), {}), World())
    return run, new_state(run.config, run.source.vocab_size, device=CPU)


@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon", "arch": "modern", "precision": "fp16"}])
def test_preflight_leaves_state_unchanged(folder: Path, settings: dict[str, object]) -> None:
    run, state = prepare(folder, **settings)
    before = {name: t.clone() for name, t in (state.model.state_dict() | state_tensors(state)).items()}
    numbers = state_numbers(state)
    preflight(run, state, state.model)
    assert state.micro_batch == 4
    after = state.model.state_dict() | state_tensors(state)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert state_numbers(state) == numbers | {"micro_batch": 4, "num_threads": torch.get_num_threads()}
    assert all(p.grad is None for p in state.model.parameters()) and state.model.training


def test_trial_counts_extra_time_of_first_pass_as_compilation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, state = prepare(folder)
    seconds = iter([5.0, 1.0, 0.5, 0.25])
    monkeypatch.setattr("train.run.preflight._time", lambda _, work: (work(), next(seconds))[1])
    trial = _run_trial(run, state, state.model, micro_batch=4)
    assert trial == Trial(pass_s=0.5, window_evaluation_s=0.25 / 4, compilation_s=4.5 + 0.75)


def test_preflight_reports_data_steps_disk_batch_and_time(folder: Path) -> None:
    run, state = prepare(folder, max_steps=1000, eval_interval=100)
    builds, steps, disk, batch, time = preflight(run, state, state.model)
    assert state.micro_batch == 4
    assert builds == "preflight: tiny: 2 shards, all complete; the highest id is 29 of 31"
    tokens = "1,000 steps read 128,000 tokens, 69.57 times the training tokens"
    assert steps == f"preflight: {tokens}; 4 steps of warmup"
    assert disk == "preflight: 4 checkpoints of 0.3 MB and one being written fit the disk"
    assert batch == "preflight: 2 forward passes per step, of 4 windows each"
    seconds = r"[\d.e-]+ s"
    assert re.match(rf"preflight: about .*: 1,000 steps of {seconds}, 11 evaluations of {seconds} \(", time)


@pytest.mark.parametrize(
    ("max_steps", "step", "evaluations"), [(15, 0, 3), (20, 0, 3), (20, 10, 1), (15, 12, 1), (5, 0, 2)]
)
def test_preflight_counts_remaining_evaluations(folder: Path, max_steps: int, step: int, evaluations: int) -> None:
    run, state = prepare(folder, max_steps=max_steps, eval_interval=10)
    state.step = step
    assert f", {evaluations} evaluations of " in preflight(run, state, state.model)[-1]


def test_preflight_divides_batch_that_does_not_fit_memory(folder: Path) -> None:
    """A real limit: the process gets 160 MB of address space in addition to what it has.

    It has the address space of the thread that shows the progress. The losses are the same.
    """
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
    program = (
        "import resource, sys, pathlib, time; sys.path[:0] = [sys.argv[1]]\n"
        "import torch; from train import train; from train.core.cli import run_command\n"
        "torch.set_num_threads(1); torch.ones(64, 64).requires_grad_().mm(torch.ones(64, 64)).sum().backward()\n"
        "from preprocess.console import Console\nwith Console().activity('a'): time.sleep(0.5)\n"
        "pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages + 160_000_000,) * 2)\n"
        "sys.exit(run_command(train.main, [sys.argv[2]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(REPO), str(config)], capture_output=True, text=True, env=make_environment()
    )
    assert done.returncode == 0, done.stderr
    assert (
        "memory does not hold a batch of 512 windows: smaller ones are used, with the same tokens per step"
        in done.stdout
    )
    passes, windows = map(int, re.findall(r"(\d+) forward passes per step, of (\d+) windows", done.stdout)[0])
    assert passes * windows == 512 and windows < 512
    assert "65,536 tokens per step" in done.stdout
    assert invoke("train.py", config, f"--out_dir={folder / 'unlimited'}").returncode == 0
    assert read_train_losses(folder / "large") == pytest.approx(read_train_losses(folder / "unlimited"), rel=1e-5)


def test_estimate_max_windows_follows_available_memory(folder: Path) -> None:
    """Too large a batch must not be tried on a CPU: the system would end the process."""
    run, state = prepare(folder)
    num_windows = PROBE_TOKENS // run.config.block_size
    with PeakMemory() as memory:
        state.model(*run.data.train.batch(0, num_windows))[0].backward()
    max_windows = estimate_max_windows(run, state)
    assert 0.3 * available_bytes() < max_windows * memory.peak_bytes / num_windows < available_bytes()
    quarter = replace(run, world=World(num_local=4))
    assert estimate_max_windows(quarter, state) == pytest.approx(max_windows / 4, rel=0.2)


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
@pytest.mark.parametrize("vocab_size", [200, 4096])
def test_estimate_max_windows_is_safe_where_the_loss_switches_to_its_kernel(
    folder: Path, arch: str, vocab_size: int
) -> None:
    run, _ = prepare(folder, arch=arch, n_embd=64, block_size=64)
    state = new_state(run.config, vocab_size, device=CPU)
    max_windows = estimate_max_windows(run, state)
    with PeakMemory() as memory:
        state.model(*run.data.train.batch(0, 256))[0].backward()
    assert max_windows * memory.peak_bytes / 256 < 0.7 * available_bytes()


def test_model_that_does_not_fit_memory_is_one_line(folder: Path) -> None:
    config = write_config(folder / "huge.py", folder / "tiny", learning_rate=1e-11, min_lr=0.0)  # no warning about it
    result = invoke("train.py", config, "--n_embd=65536", "--n_layer=1000")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    advice = "use a smaller model or block_size, or --gradient_checkpointing=true"
    assert f"do not fit the memory of cpu; {advice}" in result.stderr


def test_disk_that_cannot_hold_the_checkpoints_is_reported_before_the_first_step(
    long_run: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        result = invoke("train.py", long_run.with_suffix(".py"), f"--out_dir={disk / 'run'}")
        assert (result.returncode, result.stderr.count("\n")) == (1, 1) and "preflight" not in result.stdout
        needed = "will need 7.4 MB more, but 1.0 MB are free; free some, lower keep_checkpoints (now 20)"
        assert needed in result.stderr
        assert not (disk / "run" / "metrics.jsonl").exists()


def test_pass_of_a_sharded_model_that_does_not_fit_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No smaller one is tried: the other processes would wait for this one in the middle of their pass."""
    run, state = prepare(folder)
    passes = []

    def fail(*_: object, micro_batch: int) -> float:
        passes.append(micro_batch)
        raise MemoryError

    monkeypatch.setattr("train.run.preflight._trial_pass", fail)
    state.is_sharded = True
    with pytest.raises(FolioError, match="process 0 has too little memory on cpu for a pass of 4 windows; with"):
        preflight(run, state, state.model)
    assert passes == [4]
