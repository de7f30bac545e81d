"""Several processes train what one would: the same samples, the same losses, one run on the disk. CPU and Gloo."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocess.errors import MisuseError
from tests.helpers.runs import REPO, environment, invoke, make_build, rows, write_config
from train.config import load_config
from train.core.distributed import World
from train.data.batches import Prefetcher, TrainingData, largest_micro_batch, share_of_step
from train.data.builds import open_builds
from train.run.checkpoint import find_newest_checkpoint, list_checkpoints

LONG = {"max_steps": 20, "checkpoint_interval": 5, "eval_interval": 5, "dropout": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    make_build(folder / "tiny")
    return folder


def torchrun(*arguments: object, num_processes: int = 2) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    return [*launcher, str(REPO / "train" / "train.py"), *map(str, arguments)]


def run(*arguments: object, num_processes: int = 2) -> subprocess.CompletedProcess[str]:
    line = torchrun(*arguments, num_processes=num_processes)
    return subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=240)


def values(out_dir: Path) -> dict[tuple[int, str], float]:
    keys = ("train_loss", "val_loss", "grad_norm", "val_loss_stderr")
    return {(row["step"], key): row[key] for row in rows(out_dir) for key in keys if key in row}


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 1, "optimizer": "muon", "arch": "modern", "data_order": "epochs"},
    ],
    ids=["two micro-batches", "one batch, shared"],
)
def test_two_processes_are_one_with_accumulation(
    folder: Path, settings: dict[str, object], request: pytest.FixtureRequest
) -> None:
    name = f"two{len(settings)}"
    config = write_config(folder / f"{name}.py", folder / "tiny", **LONG, **settings)
    result = run(config)
    assert result.returncode == 0, result.stderr
    assert (
        "in fp32, 2 processes" in result.stdout
        and "in each of 2 processes: " in result.stdout
        and result.stdout.count("val loss") == 5
    )
    assert invoke("train.py", config, f"--out_dir={folder / name}_alone").returncode == 0
    together, alone = values(folder / name), values(folder / f"{name}_alone")
    assert together.keys() == alone.keys()
    # One loss is the mean of two means; the gradients after it differ in the last bit, and the weights by what that grows to.
    assert together[1, "train_loss"] == pytest.approx(alone[1, "train_loss"], rel=1e-6)
    assert together == pytest.approx(alone, rel=2e-5 if "optimizer" in settings else 1e-6)


def test_a_run_moves_between_numbers_of_processes(folder: Path) -> None:
    config = write_config(folder / "moves.py", folder / "tiny", **LONG, keep_checkpoints=9)
    assert invoke("train.py", config).returncode == 0
    copy = folder / "moved"
    shutil.copytree(folder / "moves", copy)
    for checkpoint in list_checkpoints(copy)[1:]:
        shutil.rmtree(checkpoint)
    result = run(config, f"--out_dir={copy}")
    assert result.returncode == 0 and "continuing after step 5" in result.stdout, result.stderr
    assert values(copy) == pytest.approx(values(folder / "moves"), rel=1e-5)
    for checkpoint in list_checkpoints(copy)[2:]:
        shutil.rmtree(checkpoint)
    assert "continuing after step 10" in invoke("train.py", config, f"--out_dir={copy}").stdout
    assert values(copy) == pytest.approx(values(folder / "moves"), rel=1e-5)


def test_a_signal_stops_all_of_them_after_the_same_step(folder: Path) -> None:
    config = write_config(folder / "signal.py", folder / "tiny", **LONG | {"max_steps": 100_000})
    with subprocess.Popen(
        torchrun(config),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    ) as process:
        assert process.stdout
        while not process.stdout.readline().startswith("step 7/"):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to the launcher and all that it started
        out, _ = process.communicate(timeout=60)
    assert "stopped after step " in out and ", saved; " in out
    last = find_newest_checkpoint(folder / "signal", pytest.fail)
    assert last is not None and last.step == max(row["step"] for row in rows(folder / "signal"))


def test_what_one_process_refuses_ends_all(folder: Path) -> None:
    odd = write_config(folder / "odd.py", folder / "tiny", **LONG | {"batch_size": 3, "gradient_accumulation_steps": 1})
    result = run(odd)
    assert result.returncode != 0
    assert "steps is 3, which 2 processes cannot share evenly; make it a multiple of 2" in result.stderr


def test_what_the_main_process_alone_refuses_is_said_once(folder: Path) -> None:
    config = write_config(folder / "refused.py", folder / "tiny", **LONG)
    assert invoke("train.py", config).returncode == 0
    result = run(config, "--learning_rate=0.5")
    assert result.returncode != 0 and result.stderr.count("error: ") == 1, result.stderr
    assert (
        "holds a run with other settings (learning_rate 0.01 → 0.5)" in result.stderr
        and "Connection" not in result.stderr
    )
    finished = run(config)
    assert finished.returncode == 0 and finished.stdout.count("is finished: all 20 steps are done") == 1


BY_HAND = """
import os, sys
sys.path[:0] = [sys.argv[1]]
import torch
from train import train
from train.core.cli import run_command
from train.model.gpt2 import GPT2
from train.model import ARCHITECTURES

class Poisoned(GPT2):
    calls = 0
    def forward(self, ids, targets, documents=None):
        loss, losses = super().forward(ids, targets, documents)
        Poisoned.calls += self.training
        return loss * (float("nan") if self.training and int(sys.argv[3]) <= Poisoned.calls < int(sys.argv[4]) else 1), losses

ARCHITECTURES["gpt2"] = Poisoned
sys.exit(run_command(train.main, [sys.argv[2], *sys.argv[5].replace("RANK", os.environ["RANK"]).split()]))
"""


def run_by_hand(tmp_path: Path, config: Path, poisoned: range, arguments: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "by_hand.py"
    script.write_text(BY_HAND)
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(script),
        str(REPO),
        str(config),
    ]
    line = [*launcher, str(poisoned.start), str(poisoned.stop), arguments]
    return subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=120)


def test_all_go_back_together_also_after_a_restart(folder: Path, tmp_path: Path) -> None:
    """What only the main process knows, such as the best so far, must not lead it another way than the others."""
    settings = LONG | {
        "eval_interval": 4,
        "log_interval": 1000,
        "checkpoint_interval": 8,
        "gradient_accumulation_steps": 2,
        "max_steps": 24,
        "keep_checkpoints": 9,
    }
    config = write_config(folder / "together.py", folder / "tiny", **settings)
    assert invoke("train.py", config, "--max_steps=24").returncode == 0
    for checkpoint in list_checkpoints(folder / "together"):
        if checkpoint.name != "step-00000008":
            shutil.rmtree(checkpoint)
    # Of four passes of the preflight and one a step: those of the steps 12 to 19.
    result = run_by_hand(tmp_path, config, range(8, 16), "")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (
        "continuing after step 8" in result.stdout
        and "back from step " in result.stdout
        and "finished after step 24" in result.stdout
    )
    endless = run_by_hand(tmp_path, config, range(6, 10_000), "--restart")
    assert (
        endless.returncode != 0 and endless.stderr.count("error: ") == 1 and "training has diverged" in endless.stderr
    )


def test_processes_with_other_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    """As of two machines of which one has an older config file."""
    config = write_config(folder / "apart.py", folder / "tiny", **LONG)
    result = run_by_hand(tmp_path, config, range(0), "--seed=1RANK")
    assert result.returncode != 0 and "was started with settings, a build or a torch of its own" in result.stderr


@pytest.mark.parametrize("data_order", ["random", "epochs"])
def test_the_samples_of_a_step_are_the_same_for_any_world(folder: Path, data_order: str) -> None:
    config = load_config(write_config(folder / "samples.py", folder / "tiny", data_order=data_order), {})
    data = TrainingData(open_builds(config.data), config, device=torch.device("cpu"))
    steps = []
    for size in (1, 2, 4):
        for most in (1, 2, 8):
            share = share_of_step(16, World(size=size))
            micro_batch = largest_micro_batch(share, most)
            seen = []
            for rank in range(size):
                prefetcher = Prefetcher(
                    data, windows_per_step=16, micro_batch=micro_batch, world=World(rank=rank, size=size)
                )
                assert prefetcher.accumulation == share // micro_batch
                for micro in range(prefetcher.accumulation):
                    first = prefetcher.first_sample(48, micro)
                    assert prefetcher.first_sample(48, prefetcher.accumulation) == prefetcher.first_sample(64, 0)
                    seen += list(
                        zip(range(first, first + micro_batch), prefetcher.take(first)[0].tolist(), strict=True)
                    )
            steps.append(sorted(seen))
    assert all(step == steps[0] for step in steps)
    assert [number for number, _ in steps[0]] == list(range(48, 64))


@pytest.mark.parametrize(
    ("share", "most", "found"),
    [(12, 12, 12), (12, 11, 6), (12, 5, 4), (7, 6, 1), (1, 100, 1), (10**15, 10**15, 64_000)],
)
def test_the_largest_micro_batch(share: int, most: int, found: int) -> None:
    assert largest_micro_batch(share, most) == found


def test_a_step_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(MisuseError, match="make it a multiple of 4"):
        share_of_step(6, World(size=4))


def test_a_feed_goes_where_training_goes(folder: Path) -> None:
    """What was prepared is used if it is what is asked for, and only then."""
    config = load_config(write_config(folder / "prefetcher.py", folder / "tiny"), {})
    data = TrainingData(open_builds(config.data), config, device=torch.device("cpu"))
    prefetcher = Prefetcher(data, windows_per_step=4, micro_batch=4, world=World())
    prefetcher.prepare(8)
    for first in (0, 8, 4):
        assert np.array_equal(prefetcher.take(first)[0], data.batch(first, 4)[0])
