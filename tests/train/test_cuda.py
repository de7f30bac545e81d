"""Training on a GPU. The tests are skipped on a machine without one."""

from __future__ import annotations

import itertools
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.helpers.processes import train_in_processes
from tests.helpers.runs import invoke, make_build, read_metric_rows, read_train_losses, read_val_losses, write_config
from tests.helpers.steps import make_captured_step, one_process_group, prepare_steps
from train.config import load_config
from train.core.device import choose_device
from train.core.distributed import World
from train.core.memory import peak_memory_bytes
from train.data.batches import Prefetcher
from train.model import kernels
from train.model.kernels import chunked_cross_entropy
from train.run.captured_step import can_capture_step
from train.run.checkpoint import list_checkpoints
from train.run.context import Run, open_run
from train.run.preflight import preflight
from train.run.state import TrainingState, new_state
from train.train import optimizer_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
VARIANTS = list(itertools.product(("gpt2", "modern"), ("adamw", "muon"), ("fp32", "tf32", "bf16", "fp16")))


@pytest.mark.parametrize(("arch", "optimizer", "precision"), VARIANTS)
def test_run_learns_and_resumes(folder: Path, arch: str, optimizer: str, precision: str) -> None:
    name = f"{arch}_{optimizer}_{precision}"
    settings = {"arch": arch, "optimizer": optimizer, "precision": precision, "device": "cuda", "max_steps": 60}
    config = write_config(
        folder / f"{name}.py", folder / "tiny", **settings, checkpoint_interval=20, keep_checkpoints=9
    )
    assert invoke("train.py", config).returncode == 0
    before = read_train_losses(folder / name)
    assert read_metric_rows(folder / name)[-1]["val_loss"] < 1.5
    assert all(row["peak_memory_bytes"] > 0 for row in read_metric_rows(folder / name) if "train_loss" in row)
    for checkpoint in list_checkpoints(folder / name)[1:]:
        shutil.rmtree(checkpoint)
    assert invoke("train.py", config).returncode == 0
    assert read_train_losses(folder / name) == pytest.approx(before, rel=0.05)


def prepare(path: Path, **settings: object) -> tuple[Run, TrainingState, Prefetcher]:
    return prepare_steps(write_config(path, path.parent / "tiny", device="cuda", **settings))


@pytest.mark.parametrize(
    "settings", [{}, {"optimizer": "muon", "arch": "modern", "mask_documents": True}, {"precision": "fp16"}], ids=str
)
def test_optimizer_step_does_not_wait_for_the_gpu(folder: Path, settings: dict[str, object]) -> None:
    run, state, prefetcher = prepare(folder / "waits.py", **{"precision": "bf16"} | settings)
    optimizer_step(run, state, state.model, prefetcher)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [optimizer_step(run, state, state.model, prefetcher) for _ in range(3)]
        with pytest.raises(RuntimeError, match="synchronizing"):  # what the steps would raise if they waited
            results[-1].loss.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(math.isfinite(result.loss.item()) for result in results)


@pytest.mark.parametrize(("arch", "optimizer"), [("gpt2", "adamw"), ("modern", "muon")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_step_agrees_with_optimizer_step(folder: Path, arch: str, optimizer: str, precision: str) -> None:
    settings = {"arch": arch, "optimizer": optimizer, "precision": precision, "gradient_accumulation_steps": 1}
    results = []
    for is_captured in (False, True):
        run, state, prefetcher = prepare(folder / "captured.py", **settings)
        assert can_capture_step(run, state, prefetcher)
        step = partial(optimizer_step, run, state, state.model, prefetcher)
        if is_captured:
            step = make_captured_step(run, state, prefetcher).take
        steps = [step() for _ in range(20)]
        results.append([(result.loss.item(), result.grad_norm.item()) for result in steps])
    assert results[0] == results[1]


@pytest.mark.parametrize(("arch", "optimizer"), [("gpt2", "adamw"), ("modern", "muon")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sharded_step_agrees_with_optimizer_step(folder: Path, arch: str, optimizer: str, precision: str) -> None:
    """One process with NCCL: all but the exchange of rows. In bf16, the blocks are gathered in bf16."""
    settings = {"arch": arch, "optimizer": optimizer, "precision": precision, "device": "cuda"}
    config = write_config(folder / "sharded.py", folder / "tiny", **settings)
    losses = []
    with one_process_group("nccl"):
        for is_sharded in (False, True):
            run, state, prefetcher = prepare_steps(config, is_sharded=is_sharded)
            steps = [optimizer_step(run, state, state.model, prefetcher) for _ in range(20)]
            losses.append([step.loss.item() for step in steps])
            del run, state
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if precision == "fp32" else 0.03)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
@pytest.mark.parametrize(("arch", "optimizer"), [("gpt2", "adamw"), ("modern", "muon")])
def test_sharded_run_on_two_gpus_has_the_losses_of_ddp(folder: Path, tmp_path: Path, arch: str, optimizer: str) -> None:
    settings = {"arch": arch, "optimizer": optimizer, "device": "cuda", "gradient_accumulation_steps": 2}
    for precision, tolerance in (("fp32", 1e-3), ("bf16", 0.03)):
        config = write_config(tmp_path / f"{precision}.py", folder / "tiny", **settings | {"precision": precision})
        commands = [[config, f"--parallel={p}", f"--out_dir={tmp_path / precision}-{p}"] for p in ("ddp", "fsdp")]
        outcomes = train_in_processes(2, tmp_path / f"print-{precision}", *commands)
        assert [outcome.statuses for outcome in outcomes] == [[0, 0], [0, 0]], outcomes
        losses, expected = (read_train_losses(tmp_path / f"{precision}-{p}") for p in ("fsdp", "ddp"))
        assert losses == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("data_order", ["random", "documents"])
def test_captured_step_on_masked_builds_agrees_with_optimizer_step(folder: Path, data_order: str) -> None:
    """Each step has another divisor of the loss, and with packed rows other documents."""
    build = folder / f"masked_{data_order}"
    make_build(build, learnt=slice(30, 46))
    settings = {
        "data": str(build), "data_order": data_order, "mask_documents": True, "precision": "fp32",
        "gradient_accumulation_steps": 1,
    }  # fmt: skip
    results, divisors = [], set()
    for is_captured in (False, True):
        run, state, prefetcher = prepare(folder / "captured_masks.py", **settings)
        assert can_capture_step(run, state, prefetcher)
        step = partial(optimizer_step, run, state, state.model, prefetcher)
        if is_captured:
            step = make_captured_step(run, state, prefetcher).take
        values = []
        for _ in range(20):
            divisors.add(prefetcher.loss_divisor(state.num_samples))
            result = step()
            values += [result.loss.item(), result.grad_norm.item()]
        results.append(values)
    assert len(divisors) > 1
    assert results[1] == pytest.approx(results[0], rel=1e-4)  # a division by a tensor is rounded in another way


@pytest.mark.parametrize("cap", [None, 15.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_cross_entropy_agrees_with_torch(
    monkeypatch: pytest.MonkeyPatch, cap: float | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    features, weight = torch.randn(300, 64).to("cuda", dtype), torch.randn(1088, 64).to("cuda", dtype)
    targets = torch.randint(1080, (300,), device="cuda")
    monkeypatch.setattr(kernels, "MAX_LOGITS_ELSEWHERE", 128 * 1088)
    results = []
    for has_triton in (False, True):
        monkeypatch.setattr(kernels, "HAS_TRITON", has_triton)
        x, w = features.clone().requires_grad_(), weight.clone().requires_grad_()
        loss, token_losses = chunked_cross_entropy(x, w, targets, logit_cap=cap, vocab_size=1080)
        loss.backward()
        assert x.grad is not None and w.grad is not None
        results.append([token_losses, x.grad.float(), w.grad.float()])
    for ours, expected in zip(*reversed(results), strict=True):
        assert (ours - expected).norm() < (1e-5 if dtype == torch.float32 else 1e-2) * expected.norm()


def test_run_continues_on_another_device(folder: Path) -> None:
    config = write_config(folder / "moves.py", folder / "tiny", device="cuda", precision="fp32", checkpoint_interval=6)
    assert invoke("train.py", config, "--checkpoint_interval=6").returncode == 0
    on_gpu = read_val_losses(folder / "moves")
    for checkpoint in list_checkpoints(folder / "moves")[1:]:
        shutil.rmtree(checkpoint)
    assert invoke("train.py", config, "--device=cpu").returncode == 0
    assert read_val_losses(folder / "moves") == pytest.approx(on_gpu, rel=0.05)


def test_batch_that_does_not_fit_is_halved(folder: Path) -> None:
    settings = {
        "device": "cuda",
        "batch_size": 4096,
        "block_size": 128,
        "n_layer": 12,
        "n_embd": 256,
        "gradient_accumulation_steps": 1,
    }
    path = write_config(folder / "halved.py", folder / "tiny", **settings)
    device = choose_device("cuda")
    torch.cuda.set_per_process_memory_fraction(4e9 / torch.cuda.get_device_properties(device).total_memory, device)
    try:
        run = open_run(load_config(path, {}), World())
        state = new_state(run.config, run.source.vocab_size, device=device)
        preflight(run, state, state.model)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert state.micro_batch is not None and state.micro_batch < 4096 and 4096 % state.micro_batch == 0
    assert (peak_memory_bytes(device) or 0) < 1e9, "the peak of the run, without that of the attempts"
