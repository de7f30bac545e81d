"""The benches of training run to their tables. nanoGPT's half runs with the checkout that NANOGPT_DIR names, or with a stand-in."""

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
from bench.lib.trainers import NANOGPT_FILES, Mark, Trained, settings_of, write_data
from bench.time_to_loss import Curve, choose_target
from preprocess.shards.format import Build
from train.config import Config, load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build") / "chars"
    run(
        "-m",
        "preprocess",
        "build",
        "--corpus",
        "synthetic",
        "--tokenizer",
        "char",
        "--output",
        folder,
        "--quiet",
        nanogpt=None,
    )
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


def environment(nanogpt: Path | str | None) -> dict[str, str]:
    others = {key: value for key, value in os.environ.items() if key != "NANOGPT_DIR"} | {"FOLIO_ROOT": str(ROOT)}
    return others | ({"NANOGPT_DIR": str(nanogpt)} if nanogpt else {})


def invoke(*arguments: object, nanogpt: Path | str | None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment(nanogpt), capture_output=True, text=True, check=False)


def run(*arguments: object, nanogpt: Path | None) -> str:
    result = invoke(*arguments, nanogpt=nanogpt)
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows(output: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line.startswith("| ")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("with_nanogpt", [False, True])
def test_time_to_loss(build: Path, nanogpt: Path, tmp_path: Path, with_nanogpt: bool) -> None:
    target = [] if with_nanogpt else ["--target=9"]
    options = ["--preset=smoke", "--seeds=2", f"--scratch={tmp_path}"]
    table = rows(run("bench/time_to_loss.py", build, *options, *target, nanogpt=nanogpt if with_nanogpt else None))
    assert [row[0] for row in table] == ["trainer", "Folio", *(["nanoGPT"] if with_nanogpt else [])]
    for row in table[1:]:
        of_trainer = dict(zip(table[0], row, strict=True))
        numbers = {
            key: float(of_trainer[key].split(" ± ")[0])
            for key in ("start s", "compile s", "with both, s", "seconds to target")
        }
        assert 1 < numbers["start s"] < 60 and numbers["compile s"] == 0
        assert numbers["with both, s"] == pytest.approx(numbers["start s"] + numbers["seconds to target"], abs=0.11)
        assert (
            of_trainer["steps"] in ("4 ± 0", "8 ± 0", "6 ± 3") and 1 < float(of_trainer["lowest loss"].split()[0]) < 6
        )
    ours = dict(zip(table[0], table[1], strict=True))
    assert (ours["times sooner than nanoGPT"] == "not measured") is not with_nanogpt
    assert not list(tmp_path.iterdir()), "what a bench makes, it deletes"


SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}


@pytest.mark.parametrize(
    ("rejects", "step"),
    [
        ([3.0, 1.9, 1.8], 20),
        ([1.9, 2.1, 1.9, 1.8], 30),
        ([3.0, 2.5, 2.0], 30),
        ([3.0, 2.5, 2.1], None),
        ([1.0, 3.0], None),
    ],
)
def test_a_target_is_reached_where_the_next_mark_confirms_it(rejects: list[float], step: int | None) -> None:
    marks = [Mark(step=10 * (i + 1), elapsed_s=i + 5.0, weights=Path()) for i in range(len(rejects))]
    run = Trained(
        name="x", seed=1, config=Config(data="x", out_dir="y", **SIZES), start_s=1.0, compiled_before_s=2.0, marks=marks,  # type: ignore[arg-type]
        is_compiled=True, tokens_per_step=8, num_parameters=1, peak_memory_bytes=1,
    )  # fmt: skip
    mark = Curve(run=run, rejects=rejects, num_windows=1).reached(2.0)
    assert (mark and mark.step) == step
    assert (run.step_s, run.compiled_in_steps_s, run.compilation_s) == (0.1, 4.0, 6.0)


@pytest.mark.parametrize(
    ("rejects", "target"),
    [
        ([[3.0, 2.0, 1.5]], 1.5),
        ([[3.0, 2.0, 2.5]], 2.5),  # its lowest has no mark that confirms it
        ([[3.0, 1.4, 1.5, 1.7], [3.0, 1.6, 1.45, 1.8]], 1.6),
    ],
)
def test_the_target_is_one_that_every_run_reaches(rejects: list[list[float]], target: float) -> None:
    assert choose_target(rejects) == target
    marks = [Mark(step=10 * (i + 1), elapsed_s=i + 5.0, weights=Path()) for i in range(len(rejects[0]))]
    run = Trained(
        name="x", seed=1, config=Config(data="x", out_dir="y", **SIZES), start_s=1.0, compiled_before_s=2.0, marks=marks,  # type: ignore[arg-type]
        is_compiled=False, tokens_per_step=8, num_parameters=1, peak_memory_bytes=None,
    )  # fmt: skip
    curves = [Curve(run=run, rejects=of_run, num_windows=1) for of_run in rejects]
    assert all(curve.reached(target) and not curve.reached(target - 0.3) for curve in curves)
    assert [curve.all_seconds_to(target) for curve in curves] == [curve.seconds_to(target) + 3.0 for curve in curves]  # type: ignore[operator]
    assert time_to_loss.times_sooner(curves, curves, target) == "1.0 (1.0 to 1.0)"
    assert time_to_loss.times_sooner(curves, curves, target - 0.3) == "n/a"


@pytest.mark.parametrize("bench", [time_to_loss, step_time])
def test_every_preset_is_one_that_the_trainer_takes(bench: ModuleType) -> None:
    for preset in bench.PRESETS.values():
        for path, *settings in preset.folio.values():
            steps = [f"--max_steps={preset.steps}", "--warmup_steps=0"] if bench is step_time else []
            config = load_config(ROOT / path, settings_of([*settings, *steps]))
            assert config.device in ("cpu", "cuda")


@pytest.mark.parametrize(
    ("bench", "arguments", "nanogpt_dir", "complaint"),
    [
        ("time_to_loss", ["--preset=smoke"], None, "NANOGPT_DIR is not set, wanted nanoGPT's checkout, or --target"),
        ("time_to_loss", ["--target=nan"], None, "--target is nan, wanted a validation loss in nats such as 1.9"),
        ("time_to_loss", ["--target=2", "--seeds=0"], None, "'0', wanted a whole number, 1 or more"),
        ("time_to_loss", ["--target=2"], "nowhere", "NANOGPT_DIR is nowhere, which holds no train.py; wanted a checkout of nanoGPT"),
        ("step_time", ["--num-tokens=300"], None, "--num-tokens is 300, a batch wants 1,025 or more"),
        ("step_time", ["--num-tokens=999999999999999"], None, "give another --scratch, or fewer --num-tokens"),
        ("step_time", ["--scratch=/dev/null/x"], None, "Not a directory"),
        pytest.param(
            "step_time", ["--preset=gpt2-gpu"], None, "--preset gpt2-gpu wants a CUDA GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_runs(
    build: Path, bench: str, arguments: list[str], nanogpt_dir: str | None, complaint: str
) -> None:
    result = invoke(f"bench/{bench}.py", build, *arguments, nanogpt=nanogpt_dir)
    assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith(f"{bench}.py: error: ")
    assert complaint in result.stderr and result.stdout == ""


def test_a_missing_build_is_a_line(tmp_path: Path) -> None:
    result = invoke("bench/step_time.py", tmp_path / "none", nanogpt=None)
    assert result.returncode == 2 and "no build" in result.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_bench_that_is_stopped_leaves_nothing(build: Path, tmp_path: Path, signum: signal.Signals) -> None:
    """Its trainer is ended with it, though the signal is for the bench alone."""
    command = [
        sys.executable,
        "bench/time_to_loss.py",
        str(build),
        "--preset=shakespeare-cpu",
        "--target=1",
        f"--scratch={tmp_path}",
    ]
    with subprocess.Popen(command, cwd=ROOT, env=environment(None), stderr=subprocess.PIPE, text=True) as bench:
        assert_soon(lambda: list(tmp_path.rglob("metrics.jsonl")))
        bench.send_signal(signum)
        _, stderr = bench.communicate(timeout=60)
    assert bench.returncode == 128 + signum and "Traceback" not in stderr
    assert not list(tmp_path.iterdir()) and not trainers_in(tmp_path)


def assert_soon(holds: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def trainers_in(folder: Path) -> list[int]:
    """Processes whose command line names `folder`, the bench itself not among them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any("train/train.py" in word for word in words) and any(str(folder) in word for word in words):
            found.append(process.pid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("with_nanogpt", [False, True])
def test_step_time(build: Path, nanogpt: Path, tmp_path: Path, with_nanogpt: bool) -> None:
    options = ["--preset=smoke", "--repeat=1", "--num-tokens=200000", f"--scratch={tmp_path}"]
    table = rows(run("bench/step_time.py", build, *options, nanogpt=nanogpt if with_nanogpt else None))
    heads, shapes = [row[0] for row in table], [shape for shape in ("8×256", "12×1024", "64×1024") for _ in range(2)]
    assert heads == [
        "trainer",
        "Folio",
        *(["nanoGPT"] if with_nanogpt else []),
        "trainer",
        "Folio",
        *(["nanoGPT"] if with_nanogpt else []),
        "batch",
        *shapes,
    ]
    second = heads.index("trainer", 1)
    parts = dict(zip(table[second], table[second + 1], strict=True))
    assert float(parts["sum"]) == pytest.approx(
        sum(float(value) for name, value in parts.items() if name.endswith("ms")), abs=0.1
    )
    speeds = dict(zip(table[0], table[1], strict=True))
    assert float(speeds["median"].replace(",", "")) > 100 and 100 < float(speeds["peak MB"].replace(",", "")) < 3000
    for row in table[heads.index("batch") + 1 :]:
        assert float(row[2]) > 1 and (float(row[4]) > 0.1 if with_nanogpt else row[4] == "not measured")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_the_clock_around_nanogpt(build: Path, nanogpt: Path, tmp_path: Path, compiled: bool) -> None:
    sizes = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=2"]
    settings = [*sizes, "--max_iters=8", "--eval_interval=4", "--eval_iters=1", f"--compile={compiled}", "--device=cpu"]
    if compiled and "NANOGPT_DIR" in os.environ:
        pytest.skip("compiling the real one takes minutes")
    for number, seed in enumerate((0, 0, 1)):
        write_data(Build(str(build)), tmp_path / str(number) / "data")
        run(
            "bench/baselines/nanogpt_train.py",
            nanogpt,
            tmp_path / str(number),
            "--seed",
            seed,
            *settings,
            nanogpt=nanogpt,
        )
    first, again, other = (json.loads((tmp_path / str(n) / "result.json").read_text()) for n in range(3))
    assert [mark["step"] for mark in first["marks"]] == [4, 8]
    assert 0 < first["marks"][0]["elapsed_s"] < first["marks"][1]["elapsed_s"] and first["start_s"] > 0
    assert (first["tokens_per_step"], first["is_compiled"]) == (16, compiled)
    assert (first["compiled_before_s"] > 0) is compiled  # what it evaluated before its first step
    assert first["probe_loss"] == again["probe_loss"] != other["probe_loss"]
