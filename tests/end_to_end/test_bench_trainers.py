"""bench/trainers.py: the evaluation that all trainers have in common, the table, and a run."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.lib.peers import Point, Recorder, Result, Task, TokenWindows, compute_loss, digest, read_result, write_task
from bench.trainers import choose_target, make_row

ROOT = Path(__file__).resolve().parents[2]
TASK = Task(
    vocab_size=5, n_layer=1, n_head=1, n_embd=8, block_size=4, batch_size=2, steps=20, warmup_steps=2, interval=10,
    num_windows=3, seed=1,
)  # fmt: skip
TOKENS = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3], np.uint16)


def make_result(losses: list[float]) -> Result:
    points = [Point(step=10 * (i + 1), elapsed_s=2.0 * (i + 1), loss=loss) for i, loss in enumerate(losses)]
    return Result(num_parameters=7, points=points, start_up_s=1.5, cpu_s=4.0, peak_bytes=3_000_000, digests={})


def test_token_windows_overlap_by_the_target_of_the_last_token() -> None:
    windows = TokenWindows(TOKENS, 4)
    assert len(windows) == 3
    assert [window.tolist() for window in (windows[0], windows[1])] == [[0, 1, 2, 3, 4], [4, 0, 1, 2, 3]]


def test_compute_loss_ignores_the_logits_of_padded_ids() -> None:
    loss = compute_loss(
        lambda ids: torch.cat([torch.zeros(*ids.shape, 5), torch.full((*ids.shape, 3), 9.0)], 2), TOKENS, TASK
    )
    assert loss == pytest.approx(math.log(5))


def test_compute_loss_is_zero_for_a_model_that_knows_the_text() -> None:
    def next_id(ids: Tensor) -> Tensor:
        return torch.nn.functional.one_hot((ids + 1) % 5, 5) * 100.0

    assert compute_loss(next_id, TOKENS, TASK) == pytest.approx(0, abs=1e-6)


def test_recorder_stops_the_clock_while_it_evaluates(tmp_path: Path) -> None:
    write_task(TASK, tmp_path)
    for split in ("train", "val"):
        TOKENS.tofile(tmp_path / f"{split}.bin")
    recorder = Recorder(tmp_path)
    clock = iter([10.0, 13.0, 100.0, 104.0, 200.0])
    recorder._clock = lambda: next(clock)
    recorder.start()
    for _ in range(2):
        recorder.record(lambda ids: torch.zeros(*ids.shape, 5))
    recorder.write_result(torch.nn.Linear(2, 3))
    result = read_result(tmp_path)
    assert [(point.step, point.elapsed_s) for point in result.points] == [(10, 3.0), (20, 7.0)]
    assert result.num_parameters == 9
    assert result.digests["val"] == digest(TOKENS)


def test_make_row_adds_the_start_up_to_the_time_of_the_first_point_at_the_target() -> None:
    row = make_row("a", [make_result([3.0, 2.0])], TASK, 2.5)
    assert row["training to 2.5000, s"] == "4.0"
    assert row["total, s"] == "5.5"
    assert row["tokens/s"] == "40"
    assert row["CPU ms per step"] == "200.0"


def test_make_row_says_that_a_target_is_not_reached() -> None:
    row = make_row("a", [make_result([3.0, 2.0]), make_result([3.0, 2.6])], TASK, 2.5)
    assert row["total, s"] == "not reached"


def test_choose_target_is_reached_by_nanogpt_in_every_turn() -> None:
    results = {"other": [make_result([1.0])], "nanoGPT": [make_result([3.0, 2.0]), make_result([2.2, 2.4])]}
    assert choose_target(results) == 2.2


@pytest.mark.slow
def test_trainers_prints_a_row_for_each_trainer(tmp_path: Path) -> None:
    build = tmp_path / "chars"
    options = ["--corpus", "synthetic", "--tokenizer", "char", "--output", build, "--quiet"]
    run_python("-m", "preprocess", "build", *options)
    peers = [
        "--peers",
        "Folio,Hugging Face",
        "--steps",
        10,
        "--eval-windows",
        4,
        "--threads",
        1,
        "--scratch",
        tmp_path / "scratch",
    ]
    lines = run_python("bench/trainers.py", build, *peers).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    cells = {name: values for name, *values in rows}
    assert cells["litgpt"][0] == "not measured"
    for name in ("Folio, plain", "Folio, modern", "Hugging Face Trainer"):
        assert 2 < float(cells[name][4]) < 6, cells[name]  # the final loss, of text with about 100 characters


def run_python(*arguments: object) -> str:
    """Return the standard output of a command that must succeed."""
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout
