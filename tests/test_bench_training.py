"""The benches of training run to their tables. nanoGPT's half runs with the checkout that NANOGPT_DIR names, or with a stand-in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import step_time
import time_to_loss
from time_to_loss import Curve
from trainers import Mark, Trained, settings_of

from config import Config, load_config

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build") / "chars"
    run("-m", "preprocess", "build", "--corpus", "synthetic", "--tokenizer", "char", "--output", folder, "--quiet", nanogpt=None)
    return folder


@pytest.fixture(scope="module")
def nanogpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout that NANOGPT_DIR names, or else the stand-in."""
    if folder := os.environ.get("NANOGPT_DIR"):
        return Path(folder)
    folder = tmp_path_factory.mktemp("nanogpt")
    shutil.copyfile(ROOT / "tests" / "stand_in_nanogpt.py", folder / "train.py")
    (folder / "model.py").write_text("")
    return folder


def run(*arguments: object, nanogpt: Path | None) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "NANOGPT_DIR"} | {"FOLIO_TRAIN": str(ROOT / "train")}
    command = [sys.executable, *map(str, arguments)]
    environment |= {"NANOGPT_DIR": str(nanogpt)} if nanogpt else {}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows(output: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line.startswith("| ")]


@pytest.mark.slow
@pytest.mark.parametrize("with_nanogpt", [False, True])
def test_time_to_loss(build: Path, nanogpt: Path, tmp_path: Path, with_nanogpt: bool) -> None:
    target = [] if with_nanogpt else ["--target=9"]
    options = ["--preset=smoke", "--seeds=2", f"--scratch={tmp_path}"]
    table = rows(run("bench/time_to_loss.py", build, *options, *target, nanogpt=nanogpt if with_nanogpt else None))
    assert [row[0] for row in table] == ["trainer", "Folio", *(["nanoGPT"] if with_nanogpt else [])]
    ours = dict(zip(table[0], table[1], strict=True))
    assert ours["steps"] == "4 ± 0" and float(ours["seconds to target"].split()[0]) >= 0 and "±" in ours["loss at its end"]
    assert (ours["times sooner than nanoGPT"] == "not measured") is not with_nanogpt
    assert not list(tmp_path.iterdir()), "what a bench makes, it deletes"


SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}


@pytest.mark.parametrize(
    ("losses", "step"),
    [([3.0, 1.9, 1.8], 20), ([1.9, 2.1, 1.9, 1.8], 30), ([3.0, 2.5, 2.0], 30), ([3.0, 2.5, 2.1], None), ([1.0, 3.0], None)],
)
def test_a_target_is_reached_where_the_next_mark_confirms_it(losses: list[float], step: int | None) -> None:
    marks = [Mark(step=10 * (i + 1), elapsed_s=i + 5.0, weights=Path()) for i in range(len(losses))]
    run = Trained(
        name="x", seed=1, config=Config(data="x", out_dir="y", **SIZES), start_s=1.0, compiled_before_s=2.0, marks=marks,  # type: ignore[arg-type]
        is_compiled=True, tokens_per_step=8, num_parameters=1, peak_memory_bytes=1,
    )  # fmt: skip
    mark = Curve(run=run, losses=losses, num_windows=1).reached(2.0)
    assert (mark and mark.step) == step
    assert (run.step_s, run.compiled_in_steps_s, run.compilation_s) == (0.1, 4.0, 6.0)


@pytest.mark.parametrize("bench", [time_to_loss, step_time])
def test_every_preset_is_one_that_the_trainer_takes(bench: ModuleType) -> None:
    for preset in bench.PRESETS.values():
        for path, *settings in preset.folio.values():
            steps = [f"--max_steps={preset.steps}", "--warmup_steps=0"] if bench is step_time else []
            config = load_config(ROOT / path, settings_of([*settings, *steps]))
            assert config.device in ("cpu", "cuda")


def test_a_target_is_wanted_without_nanogpt(build: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "NANOGPT_DIR"}
    command = [sys.executable, "bench/time_to_loss.py", str(build), "--preset=smoke"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "NANOGPT_DIR is not set, wanted nanoGPT's checkout, or --target" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("with_nanogpt", [False, True])
def test_step_time(build: Path, nanogpt: Path, tmp_path: Path, with_nanogpt: bool) -> None:
    options = ["--preset=smoke", "--repeat=1", "--num-tokens=200000", f"--scratch={tmp_path}"]
    table = rows(run("bench/step_time.py", build, *options, nanogpt=nanogpt if with_nanogpt else None))
    heads, shapes = [row[0] for row in table], [shape for shape in ("8×256", "12×1024", "64×1024") for _ in range(2)]
    assert heads == ["trainer", "Folio", *(["nanoGPT"] if with_nanogpt else []), "recipe", "Folio", "batch", *shapes]
    parts = dict(zip(table[heads.index("recipe")], table[heads.index("recipe") + 1], strict=True))
    assert float(parts["sum"]) == pytest.approx(sum(float(value) for name, value in parts.items() if name.endswith("ms")), abs=0.1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_the_clock_around_nanogpt(build: Path, nanogpt: Path, tmp_path: Path, compiled: bool) -> None:
    sizes = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=2"]
    settings = [*sizes, "--max_iters=8", "--eval_interval=4", "--eval_iters=1", f"--compile={compiled}", "--device=cpu"]
    if compiled and "NANOGPT_DIR" in os.environ:
        pytest.skip("compiling the real one takes minutes")
    for seed in (0, 0, 1):
        options = ["--output", tmp_path / str(len(list(tmp_path.iterdir()))), "--seed", seed, *settings]
        run("bench/peer_nanogpt_train.py", nanogpt, build, *options, nanogpt=nanogpt)
    first, again, other = (json.loads((tmp_path / str(n) / "result.json").read_text()) for n in range(3))
    assert [mark["step"] for mark in first["marks"]] == [4, 8]
    assert 0 < first["marks"][0]["elapsed_s"] < first["marks"][1]["elapsed_s"] and first["start_s"] > 0
    assert (first["tokens_per_step"], first["is_compiled"]) == (16, compiled)
    assert first["probe_loss"] == again["probe_loss"] != other["probe_loss"]
