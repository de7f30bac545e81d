"""parallel = "fsdp": the losses of one process, and checkpoints that any number of processes continue.

CPU and Gloo. The tests of a module share their processes and runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.helpers.processes import Outcome, train_in_processes
from tests.helpers.runs import (
    delete_checkpoints_after,
    invoke,
    list_steps,
    make_build,
    read_metric_rows,
    small_disk,
    write_config,
)
from train.model import make_model
from train.run.checkpoint import load_model, open_checkpoint, step_folder
from train.run.checkpoint_info import CheckpointInfo, read_info

pytestmark = pytest.mark.slow
# Steps of 12 windows, which 2 and 3 processes can divide. 17 windows are validated, which they cannot.
RUN = {
    "max_steps": 12, "checkpoint_interval": 4, "eval_interval": 4, "keep_checkpoints": 9, "dropout": 0.0,
    "batch_size": 4, "gradient_accumulation_steps": 3, "patience": 9,
}  # fmt: skip
VARIANTS: dict[str, dict[str, object]] = {
    "adamw": {},
    "muon": {"arch": "modern", "optimizer": "muon", "token_shift": True, "mask_documents": True,
             "data_order": "documents", "gradient_checkpointing": True},
}  # fmt: skip
FSDP = "--parallel=fsdp"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a build, the configs of VARIANTS, and runs of them in 1, 2 and 3 processes.

    `NAME-1` is a run in one process. `NAME-2` and `NAME-3` are runs with fsdp, and `adamw-ddp` is one
    of 3 processes without. `adamw-moved` has been continued from step 4 of `adamw-2` in 3 processes,
    with fsdp, and then from step 8 in one.
    """
    folder = tmp_path_factory.mktemp("sharded")
    make_build(folder / "tiny")
    for name, settings in VARIANTS.items():
        config = write_config(folder / f"{name}.py", folder / "tiny", **RUN | settings)
        assert invoke("train.py", config, f"--out_dir={folder / name}-1").returncode == 0
    configs = {name: folder / f"{name}.py" for name in VARIANTS}
    two = [[config, FSDP, f"--out_dir={folder / name}-2"] for name, config in configs.items()]
    check(train_in_processes(2, folder / "two", *two))
    copy_run(folder / "adamw-2", folder / "adamw-moved", step=4)
    three = [[config, FSDP, f"--out_dir={folder / name}-3"] for name, config in configs.items()]
    three.append([configs["adamw"], f"--out_dir={folder / 'adamw-ddp'}"])
    three.append([configs["adamw"], FSDP, f"--out_dir={folder / 'adamw-moved'}"])
    *_, moved = check(train_in_processes(3, folder / "three", *three))
    assert f"continuing after step 4, from {folder / 'adamw-moved'}" in moved.stdout
    delete_checkpoints_after(folder / "adamw-moved", 8)
    alone = invoke("train.py", configs["adamw"], FSDP, f"--out_dir={folder / 'adamw-moved'}")
    assert alone.returncode == 0 and "continuing after step 8" in alone.stdout, alone.stderr
    assert "parallel is fsdp, but there is one process" in alone.stdout
    return folder


def check(outcomes: list[Outcome]) -> list[Outcome]:
    for outcome in outcomes:
        assert set(outcome.statuses) == {0}, (outcome.statuses, outcome.errors)
    return outcomes


def copy_run(source: Path, target: Path, *, step: int) -> Path:
    """Copy a run as if it had been killed after `step`."""
    shutil.copytree(source, target)
    delete_checkpoints_after(target, step)
    return target


def read_values(out_dir: Path) -> dict[tuple[int, str], float]:
    keys = ("train_loss", "val_loss", "grad_norm", "val_loss_stderr")
    return {(row["step"], key): row[key] for row in read_metric_rows(out_dir) for key in keys if key in row}


def read_state(out_dir: Path, step: int) -> Mapping[str, torch.Tensor]:
    """Return the weights of a checkpoint, by Folio's reader."""
    checkpoint = open_checkpoint(step_folder(out_dir, step))
    model = make_model(checkpoint.info.config, checkpoint.info.vocab_size)
    load_model(checkpoint, model)
    return model.state_dict()


def info_of(out_dir: Path, step: int) -> CheckpointInfo:
    return read_info(step_folder(out_dir, step))


@pytest.mark.parametrize("other", ["2", "3", "ddp", "moved"])
@pytest.mark.parametrize("name", VARIANTS)
def test_processes_have_the_losses_of_one(folder: Path, name: str, other: str) -> None:
    if not (folder / f"{name}-{other}").exists():
        assert name == "muon"
        pytest.skip("muon has no such run")
    alone, together = read_values(folder / f"{name}-1"), read_values(folder / f"{name}-{other}")
    assert alone.keys() == together.keys()
    # Sums in another order differ in the last bit, and the difference grows.
    assert together == pytest.approx(alone, rel=2e-5, abs=1e-7)
    expected = read_state(folder / f"{name}-1", 12)
    for key, tensor in read_state(folder / f"{name}-{other}", 12).items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-4)


def test_each_process_saves_a_part(folder: Path) -> None:
    num_parts = {"1": 1, "2": 2, "3": 3, "ddp": 1, "moved": 1}
    assert {name: info_of(folder / f"adamw-{name}", 12).num_parts for name in num_parts} == num_parts
    assert [info_of(folder / "adamw-moved", step).num_parts for step in (4, 8, 12)] == [2, 3, 1]
    sizes = info_of(folder / "adamw-3", 12).size_bytes
    whole = info_of(folder / "adamw-1", 12).size_bytes
    for kind in ("model", "training"):
        parts = [size for name, size in sizes.items() if name.startswith(kind)]
        assert len(parts) == 3 and max(parts) < 0.5 * whole[f"{kind}.safetensors"]


def test_torch_reads_the_parts(folder: Path) -> None:
    """The files have the format of torch.distributed.checkpoint's own writer of safetensors."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    expected = read_state(folder / "muon-3", 8)
    found = {name: torch.full_like(tensor, torch.nan) for name, tensor in expected.items()}
    load(found, storage_reader=HuggingFaceStorageReader(str(step_folder(folder / "muon-3", 8))), no_dist=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_other_commands_read_a_sharded_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = folder / "muon-2"
    sampled, expected = (invoke("sample.py", path, "--tokens=8", "--seed=1") for path in (run, folder / "muon-1"))
    assert (sampled.returncode, sampled.stdout) == (0, expected.stdout), sampled.stderr
    evaluated = invoke("evaluate.py", run, "--all")
    assert evaluated.returncode == 0 and evaluated.stdout.count("val loss") == 3, evaluated.stderr
    exported = invoke("export.py", run, "--output", tmp_path / "exported")
    assert exported.returncode == 0 and (tmp_path / "exported" / "model.safetensors").exists(), exported.stderr


# In the process number RANK, ends the process after it has written its part of the checkpoint of step 8.
KILL_WHILE_SAVING = """
import os, signal
from train.run import save_checkpoint

def kill(folder, state, rank, num_parts, write=save_checkpoint._write):
    files = write(folder, state, rank, num_parts)
    if state.step == 8 and rank == RANK:
        os.kill(os.getpid(), signal.SIGKILL)
    return files

save_checkpoint._write = kill
"""


def test_run_continues_after_a_process_was_killed_while_saving(folder: Path, tmp_path: Path) -> None:
    runs = []
    for rank in (0, 1):
        out_dir = tmp_path / f"killed-{rank}"
        killing = KILL_WHILE_SAVING.replace("RANK", str(rank))
        command = [folder / "adamw.py", FSDP, f"--out_dir={out_dir}"]
        (outcome,) = train_in_processes(2, tmp_path / f"print-{rank}", command, before=killing)
        assert outcome.statuses[rank] is None and outcome.statuses[1 - rank] == 1
        assert "another process of the run has ended" in outcome.errors[1 - rank]
        assert list_steps(out_dir) == [4]
        # Nobody is left to delete the checkpoint that the main process had begun.
        assert len(list((out_dir / "checkpoints").glob(".step-00000008.*.partial"))) == (rank == 0)
        runs.append(out_dir)
    commands = [[folder / "adamw.py", FSDP, f"--out_dir={out_dir}"] for out_dir in runs]
    for out_dir, outcome in zip(runs, check(train_in_processes(3, tmp_path / "again", *commands)), strict=True):
        assert "continuing after step 4" in outcome.stdout
        assert sorted(os.listdir(out_dir / "checkpoints")) == [f"step-{step:08d}" for step in (4, 8, 12)]
        assert read_values(out_dir) == pytest.approx(read_values(folder / "adamw-1"), rel=2e-5, abs=1e-7)


# Makes the loss of the process number 1 not finite in its passes number 20 to 29: two of the preflight, and two of
# each step, so this begins with step 9 and is over soon after the run has returned to a checkpoint.
POISON = """
import os
from train.model.gpt2 import GPT2

calls = 0
def forward(self, ids, targets, documents=None, forward=GPT2.forward):
    global calls
    loss, row_losses = forward(self, ids, targets, documents)
    calls += self.training
    is_bad = self.training and os.environ["RANK"] == "1" and 20 <= calls < 30
    return loss * (float("nan") if is_bad else 1), row_losses

GPT2.forward = forward
"""


# With bf16, the blocks of a model without LayerNorm are gathered in bf16 as on CUDA.
GATHER_AS_ON_CUDA = """
import torch
from train.run import state

def shard_model(model, blocks, *, device, gather_dtype, shard=state.shard_model):
    has_norms = any(isinstance(module, torch.nn.LayerNorm) for module in model.modules())
    shard(model, blocks, device=device, gather_dtype=None if has_norms else torch.bfloat16)

state.shard_model = shard_model
"""


def test_other_starts_and_ends(folder: Path, tmp_path: Path) -> None:
    """Weights of another run, another run's state, a rollback, and a disk that becomes full."""
    config = folder / "adamw.py"
    longer = "--max_steps=16"
    commands = {
        "from": [config, FSDP, f"--init_from={folder / 'adamw-3'}", f"--out_dir={tmp_path / 'from'}", "--max_steps=4"],
        "resumed": [config, FSDP, f"--resume={folder / 'adamw-1'}", f"--out_dir={tmp_path / 'resumed'}", longer],
        "gathered": [config, f"--resume={folder / 'adamw-2'}", f"--out_dir={tmp_path / 'gathered'}", longer],
        "bf16": [folder / "muon.py", FSDP, "--precision=bf16", f"--out_dir={tmp_path / 'bf16'}"],
    }
    found = check(train_in_processes(2, tmp_path / "prints", *commands.values(), before=GATHER_AS_ON_CUDA))
    outcomes = dict(zip(commands, found, strict=True))
    expected = read_values(folder / "adamw-1")
    assert read_values(tmp_path / "from")[0, "val_loss"] == pytest.approx(expected[12, "val_loss"], rel=1e-5)
    assert info_of(tmp_path / "resumed", 12).num_parts == 2 and info_of(tmp_path / "gathered", 12).num_parts == 1
    assert read_values(tmp_path / "resumed") == pytest.approx(read_values(tmp_path / "gathered"), rel=1e-5)
    assert outcomes["bf16"].stdout.count("no process has the whole model, so no completions are written") == 1
    rounded, exact = read_values(tmp_path / "bf16")[12, "val_loss"], read_values(folder / "muon-1")[12, "val_loss"]
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)


# More blocks than torch.compile compiles the same code for, in case that they do not share it.
FAIL_ON_RECOMPILATION = """
import torch

torch._dynamo.config.fail_on_recompile_limit_hit = True
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_blocks_have_the_losses_of_one_process(folder: Path, tmp_path: Path) -> None:
    deep = [folder / "muon.py", "--n_layer=10", "--max_steps=4"]
    assert invoke("train.py", *deep, f"--out_dir={tmp_path / 'alone'}").returncode == 0
    compiled = [*deep, FSDP, "--compile=true", f"--out_dir={tmp_path / 'compiled'}"]
    [outcome] = check(train_in_processes(2, tmp_path / "prints", compiled, before=FAIL_ON_RECOMPILATION))
    assert "preflight: compiled in " in outcome.stdout
    assert read_values(tmp_path / "compiled") == pytest.approx(read_values(tmp_path / "alone"), rel=1e-3)


# Fills the folder DISK before the process number 1 writes its part of the checkpoint of step 8.
FILL_DISK = """
import contextlib
from train.run import save_checkpoint

def fill(folder, state, rank, num_parts, write=save_checkpoint._write):
    if state.step == 8 and rank == 1 and str(folder).startswith("DISK"):
        with contextlib.suppress(OSError), open("DISK/filler", "wb", 0) as file:
            while file.write(bytes(512)):
                pass
    return write(folder, state, rank, num_parts)

save_checkpoint._write = fill
"""


def test_rollback_and_a_full_disk(folder: Path, tmp_path: Path) -> None:
    config = folder / "adamw.py"
    with small_disk(tmp_path / "disk") as disk:
        commands = [
            [config, FSDP, f"--out_dir={tmp_path / 'poisoned'}", "--checkpoint_interval=6", "--max_steps=20"],
            [config, FSDP, f"--out_dir={disk / 'full'}", "--keep_checkpoints=1", "--max_steps=99"],
        ]
        fill = FILL_DISK.replace("DISK", str(disk))
        poisoned, full = train_in_processes(2, tmp_path / "prints", *commands, before=POISON + fill)
        assert list_steps(disk / "full") == [4] and len(list((disk / "full" / "checkpoints").iterdir())) == 1
    check([poisoned])
    assert "rolled back from step 13 to the checkpoint of step 8" in poisoned.stdout
    assert full.statuses == [1, 1] and "cannot save the checkpoint of step 8" in full.errors[1]
