"""The precision of a run on a CPU: chosen by timing a pass in each, and kept when the run continues."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.runs import invoke, write_config
from train.config import load_config
from train.core.distributed import World
from train.run import choose_precision
from train.run.checkpoint import find_newest_checkpoint
from train.run.choose_precision import choose_cpu_precision, keep_precision
from train.run.context import Run, open_run


def prepare(folder: Path, **settings: object) -> Run:
    return open_run(load_config(write_config(folder / "run.py", folder / "tiny", **settings), {}), World())


def make_clock(pass_s: dict[str, float], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pass of `run` take `pass_s` seconds by its precision."""

    def ticks() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += pass_s["bf16" if run.autocast._enabled else "fp32"]
            yield now

    clock = ticks()
    monkeypatch.setattr(choose_precision.time, "monotonic", lambda: next(clock))


@pytest.mark.parametrize(
    ("bf16_s", "bf16_loss", "chosen"),
    [(0.5, 3.001, "bf16"), (0.9, 3.0, "fp32"), (0.5, 3.1, "fp32"), (2.0, 3.0, "fp32")],
)
def test_bf16_is_chosen_if_it_is_clearly_faster_with_the_same_loss(
    bf16_s: float, bf16_loss: float, chosen: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(folder, precision="auto")
    assert run.can_choose_precision and run.config.precision == "fp32"
    make_clock({"fp32": 1.0, "bf16": bf16_s}, run, monkeypatch)
    line = choose_cpu_precision(run, lambda: bf16_loss if run.autocast._enabled else 3.0)
    assert line.startswith(f"precision {chosen}: a pass in bf16 is {1 / bf16_s:.2f} times as fast as the 1 s in fp32")
    assert run.config.precision == chosen and run.autocast._enabled is (chosen == "bf16")
    assert ("its loss is 3.100 instead of 3.000" in line) is (bf16_loss == 3.1)


def test_a_small_model_stays_in_fp32(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepare(folder, precision="auto")
    make_clock({"fp32": 0.2, "bf16": 0.05}, run, monkeypatch)
    choose_cpu_precision(run, lambda: 3.0)
    assert run.config.precision == "fp32"


@pytest.mark.parametrize(
    "settings", [{"precision": "fp32"}, {"precision": "bf16"}, {"compile": True, "precision": "auto"}]
)
def test_precision_is_not_chosen_if_it_is_set_or_the_model_is_compiled(
    folder: Path, settings: dict[str, object]
) -> None:
    assert not prepare(folder, **settings).can_choose_precision


def test_run_that_continues_keeps_its_precision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.run.preflight.has_fast_bfloat16", lambda: True)
    monkeypatch.setattr(choose_precision, "MIN_SPEEDUP", 0.0)
    monkeypatch.setattr(choose_precision, "MIN_PASS_S", 0.0)
    monkeypatch.setattr(choose_precision, "MAX_DIFFERENCE", 1.0)
    path = write_config(folder / "run.py", folder / "tiny", max_steps=8, precision="auto")
    first = invoke("train.py", path, "--max_steps=4")
    assert first.returncode == 0 and "preflight: precision bf16: a pass" in first.stdout
    monkeypatch.setattr(choose_precision, "MIN_SPEEDUP", 1e9)
    second = invoke("train.py", path)
    assert second.returncode == 0 and "precision fp32" not in second.stdout
    checkpoint = find_newest_checkpoint(folder / "run", print)
    assert checkpoint is not None and checkpoint.info.step == 8 and checkpoint.info.config.precision == "bf16"
    third = invoke("train.py", path, "--restart")
    assert third.returncode == 0 and "preflight: precision fp32: a pass" in third.stdout


@pytest.mark.parametrize(
    ("device", "precision", "kept"), [("cpu", "bf16", "bf16"), ("cuda:0", "fp16", "fp32"), ("cuda:0", "tf32", "fp32")]
)
def test_keep_precision_does_not_take_that_of_a_gpu(folder: Path, device: str, precision: str, kept: str) -> None:
    run = prepare(folder, precision="auto")
    keep_precision(run, replace(run.config, device=device, precision=precision))
    assert run.config.precision == kept and run.autocast._enabled == (kept == "bf16")
