"""Several processes compute what one would: the same samples, the same losses, one run directory.

CPU and Gloo.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import (
    REPO,
    delete_checkpoints_after,
    invoke,
    make_build,
    make_environment,
    read_metric_rows,
    write_config,
)
from train.run.checkpoint import find_newest_checkpoint, list_checkpoints

LONG = {"max_steps": 20, "checkpoint_interval": 5, "eval_interval": 5, "dropout": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    make_build(folder / "tiny")
    return folder


def torchrun(*arguments: object) -> list[str]:
    """Return the command line that runs a script with `arguments` in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [*launcher, *map(str, arguments)]


def train_in_two_processes(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = torchrun(REPO / "train" / "train.py", *arguments)
    return subprocess.run(line, capture_output=True, text=True, env=make_environment(), timeout=240)


def read_values(out_dir: Path) -> dict[tuple[int, str], float]:
    keys = ("train_loss", "val_loss", "grad_norm", "val_loss_stderr")
    return {(row["step"], key): row[key] for row in read_metric_rows(out_dir) for key in keys if key in row}


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2, "data_order": "documents", "mask_documents": True},
        {"gradient_accumulation_steps": 1, "optimizer": "muon", "arch": "modern", "data_order": "epochs"},
    ],
    ids=["two micro-batches", "one batch, shared"],
)
def test_two_processes_have_the_losses_of_one(folder: Path, settings: dict[str, object]) -> None:
    name = f"two{len(settings)}"
    config = write_config(folder / f"{name}.py", folder / "tiny", **LONG, **settings)
    result = train_in_two_processes(config)
    assert result.returncode == 0, result.stderr
    assert (
        "in fp32, 2 processes" in result.stdout
        and "1 forward pass per step in each of 2 processes, of " in result.stdout
        and result.stdout.count("val loss") == 5
    )
    assert invoke("train.py", config, f"--out_dir={folder / name}_alone").returncode == 0
    together, alone = read_values(folder / name), read_values(folder / f"{name}_alone")
    assert together.keys() == alone.keys()
    # The first loss is the mean of two means. Later gradients differ in the last bit, and this
    # difference grows.
    assert together[1, "train_loss"] == pytest.approx(alone[1, "train_loss"], rel=1e-6)
    assert together == pytest.approx(alone, rel=2e-5 if "optimizer" in settings else 1e-6)


def test_run_resumes_with_another_number_of_processes(folder: Path) -> None:
    config = write_config(folder / "moves.py", folder / "tiny", **LONG, keep_checkpoints=9)
    assert invoke("train.py", config).returncode == 0
    copy = folder / "moved"
    shutil.copytree(folder / "moves", copy)
    delete_checkpoints_after(copy, 5)
    result = train_in_two_processes(config, f"--out_dir={copy}")
    assert result.returncode == 0 and "continuing after step 5" in result.stdout, result.stderr
    assert read_values(copy) == pytest.approx(read_values(folder / "moves"), rel=1e-5)
    delete_checkpoints_after(copy, 10)
    assert "continuing after step 10" in invoke("train.py", config, f"--out_dir={copy}").stdout
    assert read_values(copy) == pytest.approx(read_values(folder / "moves"), rel=1e-5)


def train_on_two_machines(config: Path, arguments: list[list[object]], before: list[str]) -> list[tuple[int, str, str]]:
    """Start a launcher with one process as on each of two machines. Return what each exits with and prints.

    `arguments` are those of each machine. `before` is a command that starts the launcher of the second.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launchers = []
    for node, options in enumerate(arguments):
        line = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={node}"]
        line += ["--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
        line += [str(REPO / "train" / "train.py"), *map(str, [config, *options])]
        line = before + line if node == 1 else line
        pipe = subprocess.PIPE
        launchers.append(subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, env=make_environment()))
    try:
        outputs = [launcher.communicate(timeout=240) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    return [(launcher.returncode, *output) for launcher, output in zip(launchers, outputs, strict=True)]


@pytest.mark.slow
def test_two_machines_have_the_losses_of_one_process(folder: Path) -> None:
    """The second machine has a copy of the build, and with ddp no folder of the run."""
    config = write_config(folder / "machines.py", folder / "tiny", **LONG)
    shutil.copytree(folder / "tiny", folder / "copy")
    assert invoke("train.py", config).returncode == 0
    for parallel in ("ddp", "fsdp"):
        out_dir, option = folder / parallel, f"--parallel={parallel}"
        other = ["--out_dir=/nowhere/run"] if parallel == "ddp" else [f"--out_dir={out_dir}"]
        first, second = [option, f"--out_dir={out_dir}"], [option, *other, f"--data={folder / 'copy'}"]
        (status, stdout, stderr), (other_status, other_stdout, _) = train_on_two_machines(config, [first, second], [])
        assert (status, other_status, other_stdout) == (0, 0, ""), stderr
        assert "finished after step 20" in stdout
        assert read_values(out_dir) == pytest.approx(read_values(folder / "machines"), rel=1e-5)
    checkpoint = find_newest_checkpoint(folder / "fsdp", pytest.fail)
    assert checkpoint is not None and checkpoint.info.num_parts == 2


@pytest.mark.slow
def test_sharded_run_needs_a_folder_that_the_machines_share(folder: Path) -> None:
    """On the second machine, another disk is at the path of the run."""
    config = write_config(folder / "unshared.py", folder / "tiny", **LONG)
    out_dir = folder / "unshared"
    out_dir.mkdir()
    mount = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs "{out_dir}" && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("mounting a disk for one process is not permitted here")
    first, second = train_on_two_machines(config, [["--parallel=fsdp"]] * 2, mount)
    assert first[0] != 0 and second[0] != 0 and "error: " not in first[2]
    assert f"error: process 1 cannot write to {out_dir}, where the main process writes; with parallel = " in second[2]
    assert not [path for path in out_dir.iterdir() if path.name != ".lock"]


def test_signal_stops_all_processes_after_the_same_step(folder: Path) -> None:
    config = write_config(folder / "signal.py", folder / "tiny", **LONG | {"max_steps": 100_000})
    with subprocess.Popen(
        torchrun(REPO / "train" / "train.py", config),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=make_environment(),
        start_new_session=True,
    ) as process:
        assert process.stdout
        while not process.stdout.readline().startswith("step 7/"):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to the launcher and all that it started
        out, _ = process.communicate(timeout=60)
    assert "stopped after step " in out and ", saved; " in out
    last = find_newest_checkpoint(folder / "signal", pytest.fail)
    assert last is not None and last.info.step == max(row["step"] for row in read_metric_rows(folder / "signal"))


def test_error_of_one_process_ends_all(folder: Path) -> None:
    odd = write_config(folder / "odd.py", folder / "tiny", **LONG | {"batch_size": 3, "gradient_accumulation_steps": 1})
    result = train_in_two_processes(odd)
    assert result.returncode != 0
    assert "steps must be a multiple of the 2 processes, got 3; change one of them" in result.stderr


def test_error_of_the_main_process_is_printed_once(folder: Path) -> None:
    config = write_config(folder / "refused.py", folder / "tiny", **LONG)
    assert invoke("train.py", config).returncode == 0
    result = train_in_two_processes(config, "--learning_rate=0.5")
    assert result.returncode != 0 and result.stderr.count("error: ") == 1, result.stderr
    assert (
        "holds a run with other settings (learning_rate 0.01 → 0.5)" in result.stderr
        and "Connection" not in result.stderr
    )
    finished = train_in_two_processes(config)
    assert finished.returncode == 0 and finished.stdout.count("is finished: all 20 steps are done") == 1


# Trains with a loss that is NaN in the forward passes number FIRST to LAST - 1 of each process.
POISONED_TRAINING = """
import os, sys
sys.path[:0] = [sys.argv[1]]
import torch
from train import train
from train.core.cli import run_command
from train.model import gpt2
from train.model.gpt2 import GPT2

class Poisoned(GPT2):
    calls = 0
    def forward(self, ids, targets, documents=None):
        loss, row_losses = super().forward(ids, targets, documents)
        Poisoned.calls += self.training
        is_bad = self.training and int(sys.argv[3]) <= Poisoned.calls < int(sys.argv[4])
        return loss * (float("nan") if is_bad else 1), row_losses

gpt2.GPT2 = Poisoned
sys.exit(run_command(train.main, [sys.argv[2], *sys.argv[5].replace("RANK", os.environ["RANK"]).split()]))
"""


def train_poisoned(
    tmp_path: Path, config: Path, poisoned_passes: range, arguments: str
) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "poisoned_training.py"
    script.write_text(POISONED_TRAINING)
    line = torchrun(script, REPO, config, poisoned_passes.start, poisoned_passes.stop, arguments)
    return subprocess.run(line, capture_output=True, text=True, env=make_environment(), timeout=120)


def test_all_processes_roll_back_together_also_after_resuming(folder: Path, tmp_path: Path) -> None:
    """A decision of the main process, such as which loss is the best so far, reaches the others."""
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
    # After four passes of the preflight there is one per step, so these are the steps 12 to 19.
    result = train_poisoned(tmp_path, config, range(8, 16), "")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (
        "continuing after step 8" in result.stdout
        and "rolled back from step " in result.stdout
        and "finished after step 24" in result.stdout
    )
    endless = train_poisoned(tmp_path, config, range(6, 10_000), "--restart")
    assert (
        endless.returncode != 0 and endless.stderr.count("error: ") == 1 and "training has diverged" in endless.stderr
    )


def test_processes_with_different_settings_are_rejected(folder: Path, tmp_path: Path) -> None:
    """As on two machines, if one has an older config file."""
    config = write_config(folder / "apart.py", folder / "tiny", **LONG)
    result = train_poisoned(tmp_path, config, range(0), "--seed=1RANK")
    assert result.returncode != 0
    assert (
        "has other settings, another build or another torch than the others; start all with the same" in result.stderr
    )
