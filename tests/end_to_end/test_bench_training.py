"""The training benches run and print their tables.

nanoGPT's half runs with the checkout that NANOGPT_DIR names, or with tests/helpers/stand_in_nanogpt.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch

from bench import step_time, time_to_loss
from bench.lib.trainers import Snapshot, TrainingRun, parse_settings, write_data
from bench.lib.training_options import NANOGPT_FILES
from bench.time_to_loss import Curve, choose_target, format_speedup
from preprocess.shards.format import Build
from train.config import Config, load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build") / "chars"
    options = ["--corpus", "synthetic", "--tokenizer", "char", "--output", folder, "--quiet"]
    run_python("-m", "preprocess", "build", *options, nanogpt=None)
    return folder


@pytest.fixture(scope="module")
def nanogpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout that NANOGPT_DIR names, or else the stand-in."""
    if folder := os.environ.get("NANOGPT_DIR"):
        return Path(folder)
    folder = tmp_path_factory.mktemp("nanogpt")
    shutil.copyfile(ROOT / "tests" / "helpers" / "stand_in_nanogpt.py", folder / "train.py")
    (folder / "config").mkdir()
    for name in NANOGPT_FILES[1:]:
        (folder / name).write_text("")
    return folder


def make_environment(nanogpt: Path | str | None) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "NANOGPT_DIR"} | {"FOLIO_ROOT": str(ROOT)}
    return environment | ({"NANOGPT_DIR": str(nanogpt)} if nanogpt else {})


def start_python(*arguments: object, nanogpt: Path | str | None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=make_environment(nanogpt), capture_output=True, text=True, check=False)


def run_python(*arguments: object, nanogpt: Path | None) -> str:
    """Return the standard output of a command that must succeed."""
    process = start_python(*arguments, nanogpt=nanogpt)
    assert process.returncode == 0, process.stderr
    return process.stdout


def read_tables(output: str) -> list[list[str]]:
    """Return the rows of all Markdown tables in `output`, heads included."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line.startswith("| ")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("with_nanogpt", [False, True])
def test_time_to_loss_prints_a_row_per_trainer(build: Path, nanogpt: Path, tmp_path: Path, with_nanogpt: bool) -> None:
    target = [] if with_nanogpt else ["--target=9"]
    options = ["--preset=smoke", "--seeds=2", f"--scratch={tmp_path}", *target]
    output = run_python("bench/time_to_loss.py", build, *options, nanogpt=nanogpt if with_nanogpt else None)
    head, *rows = read_tables(output)
    assert [head[0], *(row[0] for row in rows)] == ["trainer", "Folio", *(["nanoGPT"] if with_nanogpt else [])]
    for row in rows:
        cells = dict(zip(head, row, strict=True))
        keys = ("start-up, s", "compilation, s", "total to target, s", "training to target, s")
        start_up_s, compilation_s, total_s, training_s = (float(cells[key].split(" ± ")[0]) for key in keys)
        assert 1 < start_up_s < 60 and compilation_s == 0
        assert total_s == pytest.approx(start_up_s + training_s, abs=0.11)
        assert cells["steps to target"] in ("4 ± 0", "8 ± 0", "6 ± 3")
        assert 1 < float(cells["lowest loss"].split()[0]) < 6
    folio = dict(zip(head, rows[0], strict=True))
    assert (folio["speed-up"] == "not measured") is not with_nanogpt
    assert not list(tmp_path.iterdir()), "a bench must delete its temporary files"


@pytest.mark.slow
def test_width_prints_a_loss_for_each_multiplier(build: Path) -> None:
    options = ["--widths", 8, 128, "--multipliers", 1, 2, "--steps", 2, "--threads", 1]
    output = run_python("bench/width.py", build, *options, nanogpt=None)
    head, *rows = read_tables(output)
    assert head == ["recipe", "width", "× 1", "× 2", "best", "× 1 − best"]
    assert [row[:2] for row in rows] == [["modern", "8"], ["modern", "128"], ["gpt2", "8"], ["gpt2", "128"]]
    for row in rows:
        losses = dict(zip(("1", "2"), map(float, row[2:4]), strict=True))
        assert 1 < min(losses.values()) < 8 and row[4] == min(losses, key=losses.__getitem__)
        assert float(row[5]) == pytest.approx(losses["1"] - losses[row[4]], abs=2e-3)


@pytest.mark.slow
def test_parallel_measures_two_runs_with_equal_losses(build: Path, tmp_path: Path) -> None:
    results, scratch = tmp_path / "results.jsonl", tmp_path / "scratch"
    options = ["--smoke", "--steps=6", f"--results={results}", f"--scratch={scratch}"]
    run_python("bench/parallel.py", build, *options, nanogpt=None)
    ddp, fsdp = (json.loads(line) for line in results.read_text().splitlines())
    assert (ddp["parallel"], fsdp["parallel"]) == ("ddp", "fsdp") and fsdp["processes"] == 2
    assert fsdp["max_deviation"] < 1e-4 and min(ddp["tokens_per_s"], fsdp["tokens_per_s"]) > 0
    assert 0.4 < fsdp["written_mb"] / ddp["written_mb"] < 0.7
    assert not list(scratch.iterdir()), "a bench must delete its temporary files"
    too_few = start_python("bench/parallel.py", build, "--smoke", "--steps=5", nanogpt=None)
    assert too_few.returncode == 2 and "--steps must be above 5" in too_few.stderr


SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}


def make_run(num_snapshots: int, *, is_compiled: bool) -> TrainingRun:
    """Return a run with a snapshot every 10 steps; the first takes 5 s, each later one 1 s."""
    snapshots = [Snapshot(step=10 * (i + 1), elapsed_s=i + 5.0, weights=Path()) for i in range(num_snapshots)]
    return TrainingRun(
        name="x", seed=1, config=Config(data="x", out_dir="y", **SIZES), start_up_s=1.0, compiled_before_s=2.0,  # type: ignore[arg-type]
        snapshots=snapshots, is_compiled=is_compiled, tokens_per_step=8, num_parameters=1, peak_memory_bytes=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([3.0, 1.9, 1.8], 20),
        ([1.9, 2.1, 1.9, 1.8], 30),
        ([3.0, 2.5, 2.0], 30),
        ([3.0, 2.5, 2.1], None),
        ([1.0, 3.0], None),
    ],
)
def test_find_target_needs_the_next_snapshot_to_confirm_it(losses: list[float], step: int | None) -> None:
    run = make_run(len(losses), is_compiled=True)
    snapshot = Curve(run=run, losses=losses, num_windows=1).find_target(2.0)
    assert (snapshot and snapshot.step) == step
    assert (run.step_s, run.compiled_in_steps_s, run.compilation_s) == (0.1, 4.0, 6.0)


@pytest.mark.parametrize(
    ("losses", "target"),
    [
        ([[3.0, 2.0, 1.5]], 1.5),
        ([[3.0, 2.0, 2.5]], 2.5),  # no snapshot confirms the lowest loss
        ([[3.0, 1.4, 1.5, 1.7], [3.0, 1.6, 1.45, 1.8]], 1.6),
    ],
)
def test_choose_target_returns_a_loss_that_every_run_reaches(losses: list[list[float]], target: float) -> None:
    assert choose_target(losses) == target
    run = make_run(len(losses[0]), is_compiled=False)
    curves = [Curve(run=run, losses=of_run, num_windows=1) for of_run in losses]
    assert all(curve.find_target(target) and not curve.find_target(target - 0.3) for curve in curves)
    training_s = [curve.training_s_to(target) for curve in curves]
    assert [curve.total_s_to(target) for curve in curves] == [seconds + 3.0 for seconds in training_s]  # type: ignore[operator]
    assert format_speedup(training_s, training_s) == "1.0 (1.0 to 1.0)"
    not_reached = [curve.training_s_to(target - 0.3) for curve in curves]
    assert format_speedup(not_reached, not_reached) == "n/a"


def test_format_speedup_needs_both_trainers_to_reach_the_target() -> None:
    assert format_speedup([2.0, 4.0], [8.0, 8.0]) == "2.7 (2.0 to 4.0)"
    assert format_speedup([2.0, None], [8.0, 8.0]) == format_speedup([2.0, 4.0], [None, 8.0]) == "n/a"
    assert format_speedup([2.0, 4.0], []) == "not measured"


@pytest.mark.parametrize("bench", [time_to_loss, step_time])
def test_presets_have_valid_settings(bench: ModuleType) -> None:
    for preset in bench.PRESETS.values():
        for config_file, *settings in preset.folio.values():
            steps = [f"--max_steps={preset.steps}", "--warmup_steps=0"] if bench is step_time else []
            config = load_config(ROOT / config_file, parse_settings([*settings, *steps]))
            assert config.device in ("cpu", "cuda")


@pytest.mark.parametrize(
    ("bench", "arguments", "nanogpt_dir", "message"),
    [
        (
            "time_to_loss", ["--preset=smoke"], None,
            "there is no target: NANOGPT_DIR is not set; set it to nanoGPT's checkout, or pass --target",
        ),
        ("time_to_loss", ["--target=nan"], None, "--target must be a validation loss in nats such as 1.9, got nan"),
        ("time_to_loss", ["--target=2", "--seeds=0"], None, "expected a whole number that is 1 or more, got '0'"),
        (
            "time_to_loss", ["--target=2"], "nowhere",
            "NANOGPT_DIR is nowhere, which has no train.py; name a checkout of nanoGPT, or unset it",
        ),
        ("step_time", ["--num-tokens=300"], None, "--num-tokens must be at least 1,025 for a batch, got 300"),
        ("step_time", ["--num-tokens=999999999999999"], None, "choose another --scratch, or fewer --num-tokens"),
        ("step_time", ["--scratch=/dev/null/x"], None, "Not a directory"),
        pytest.param(
            "step_time", ["--preset=gpt2-gpu"], None, "--preset gpt2-gpu needs a CUDA GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)  # fmt: skip
def test_bench_rejects_wrong_options_before_anything_runs(
    build: Path, bench: str, arguments: list[str], nanogpt_dir: str | None, message: str
) -> None:
    process = start_python(f"bench/{bench}.py", build, *arguments, nanogpt=nanogpt_dir)
    assert process.returncode == 2 and process.stderr.splitlines()[-1].startswith(f"{bench}.py: error: ")
    assert message in process.stderr and process.stdout == ""


def test_bench_reports_a_missing_build_in_one_line(tmp_path: Path) -> None:
    process = start_python("bench/step_time.py", tmp_path / "none", nanogpt=None)
    assert process.returncode == 2 and "no build" in process.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_bench_ends_its_trainer_and_deletes_its_files(
    build: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    """The signal is sent to the bench only."""
    options = ["--preset=shakespeare-cpu", "--target=1", f"--scratch={tmp_path}"]
    command = [sys.executable, "bench/time_to_loss.py", str(build), *options]
    with subprocess.Popen(command, cwd=ROOT, env=make_environment(None), stderr=subprocess.PIPE, text=True) as bench:
        wait_until(lambda: list(tmp_path.rglob("metrics.jsonl")) or bench.poll() is not None)
        bench.send_signal(signum)  # does nothing if the bench has failed
        _, stderr = bench.communicate(timeout=60)
    assert bench.returncode == 128 + signum and "Traceback" not in stderr, stderr
    assert not list(tmp_path.iterdir()) and not find_trainers(tmp_path)


def wait_until(condition: Callable[[], object], max_seconds: float = 120) -> None:
    deadline = time.monotonic() + max_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def find_trainers(folder: Path) -> list[int]:
    """Return the ids of processes that run train.py in `folder`."""
    pids = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any("train/train.py" in word for word in words) and any(str(folder) in word for word in words):
            pids.append(process.pid)
    return pids


@pytest.mark.slow
@pytest.mark.parametrize("with_nanogpt", [False, True])
def test_step_time_prints_three_tables(build: Path, nanogpt: Path, tmp_path: Path, with_nanogpt: bool) -> None:
    options = ["--preset=smoke", "--repeat=1", "--num-tokens=200000", f"--scratch={tmp_path}"]
    output = run_python("bench/step_time.py", build, *options, nanogpt=nanogpt if with_nanogpt else None)
    table = read_tables(output)
    first_column = [row[0] for row in table]
    trainers = ["trainer", "Folio", *(["nanoGPT"] if with_nanogpt else [])]
    shapes = [shape for shape in ("8×256", "12×1024", "64×1024") for _ in range(2)]
    assert first_column == [*trainers, *trainers, "batch", *shapes]
    second = first_column.index("trainer", 1)
    parts = dict(zip(table[second], table[second + 1], strict=True))
    parts_ms = [float(value) for name, value in parts.items() if name.endswith("ms")]
    assert len(parts_ms) == 5 and float(parts["sum"]) == pytest.approx(sum(parts_ms), abs=0.1)
    rates = dict(zip(table[0], table[1], strict=True))
    assert float(rates["median"].replace(",", "")) > 100 and 100 < float(rates["peak MB"].replace(",", "")) < 3000
    for row in table[first_column.index("batch") + 1 :]:
        assert float(row[2]) > 1 and (float(row[4]) > 0.1 if with_nanogpt else row[4] == "not measured")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("is_compiled", [False, True])
def test_nanogpt_train_measures_training_without_evaluations(
    build: Path, nanogpt: Path, tmp_path: Path, is_compiled: bool
) -> None:
    if is_compiled and "NANOGPT_DIR" in os.environ:
        pytest.skip("compiling nanoGPT takes minutes")
    sizes = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=2"]
    steps = ["--max_iters=8", "--eval_interval=4", "--eval_iters=1"]
    settings = [*sizes, *steps, f"--compile={is_compiled}", "--device=cpu"]
    results = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        write_data(Build(str(build)), folder / "data")
        command = ["bench/baselines/nanogpt_train.py", nanogpt, folder, "--seed", seed, *settings]
        run_python(*command, nanogpt=nanogpt)
        results.append(json.loads((folder / "result.json").read_text()))
    first, same_seed, other_seed = results
    assert [snapshot["step"] for snapshot in first["snapshots"]] == [4, 8]
    assert 0 < first["snapshots"][0]["elapsed_s"] < first["snapshots"][1]["elapsed_s"] and first["start_up_s"] > 0
    assert (first["tokens_per_step"], first["is_compiled"]) == (16, is_compiled)
    assert (first["compiled_before_s"] > 0) is is_compiled  # compiled in the evaluation before the first step
    assert first["probe_loss"] == same_seed["probe_loss"] != other_seed["probe_loss"]


@pytest.mark.slow
def test_size_ladder_prints_a_table_and_does_not_repeat_a_run(build: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    arguments = ["bench/size_ladder.py", build, "--seconds", 1, "--widths", 32, "--results", results]
    first = run_python(*arguments, "--scratch", tmp_path, nanogpt=None)
    assert "| text  | variant | seconds |" in first and "| chars |         |       1 | **" in first
    measured = results.read_text()
    assert run_python(*arguments, "--scratch", tmp_path, nanogpt=None).splitlines()[1:] == first.splitlines()[1:]
    assert results.read_text() == measured and measured.count("\n") == 1
