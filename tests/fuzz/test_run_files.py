"""Damaged files of a run: resuming uses what was saved or refuses it in one line, like the other commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preprocess.errors import FolioError
from preprocess.shards.files import canonical_json, sha256_bytes
from tests.fuzz.harness import assert_no_failure, fuzz
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_json_lines
from tests.fuzz.test_model_files import mutate_safetensors
from tests.helpers.runs import invoke, list_checkpoints, make_build, train_run
from train.config import load_config
from train.core.distributed import World
from train.plotting.curves import read_curves
from train.run.checkpoint import restore
from train.run.context import open_run
from train.run.run_dir import find_start
from train.run.state import new_state, state_numbers

EXPECTED = "expected.txt"  # beside the run: a hash of what each checkpoint contains


def describe_start(folder: Path) -> str:
    """Return a hash of the checkpoint that the run in `folder` resumes from, and of its origin."""
    run = open_run(load_config(folder / "run.py", {}), World())
    state = new_state(run.config, run.source.vocab_size, device=run.device)
    checkpoint = find_start(run.config, run.source, restart=False, warn=list[str]().append)
    assert checkpoint is not None
    restore(checkpoint, state)
    info = checkpoint.info
    parts = [state_numbers(state), info.best_step, info.num_since, info.vocab_size, dataclasses.asdict(info.origin)]
    weights = [parameter.sum().item() for parameter in state.model.parameters()]
    return sha256_bytes(canonical_json([parts, weights]))


def resume(path: Path) -> None:
    """Resume the run that contains `path`; what it resumes from must be one of its checkpoints."""
    folder = _find_folder(path)
    found = describe_start(folder)
    assert found in (folder / EXPECTED).read_text().split(), "the run resumes from something that was never saved"


def continue_without_checkpoints(path: Path) -> None:
    """Start where a run without checkpoints would continue: only then are its settings read from `path`."""
    folder = _find_folder(path)
    run = open_run(load_config(folder / "run.py", {}), World())
    checkpoints = folder / "run/checkpoints"
    checkpoints.rename(folder / "hidden")
    try:
        find_start(run.config, run.source, restart=False, warn=list[str]().append)
    finally:
        if checkpoints.exists():
            checkpoints.rmdir()
        (folder / "hidden").rename(checkpoints)


def sample(path: Path) -> None:
    _check(invoke("sample.py", _find_folder(path) / "run", "--tokens=1", "--device=cpu"))


def print_evaluations(path: Path) -> None:
    _check(invoke("evaluate.py", _find_folder(path) / "run", "--device=cpu", "--quiet"))


def plot_losses(path: Path) -> None:
    read_curves(_find_folder(path) / "run", "run", warn=list[str]().append)


def _find_folder(path: Path) -> Path:
    return next(parent for parent in path.parents if (parent / "run.py").exists())


def _check(result: Any) -> None:
    """Raise what a command printed as its error."""
    if result.returncode:
        *_, line = result.stderr.splitlines()
        assert line.startswith("error: "), result.stderr
        raise FolioError(line)


def make_run(folder: Path) -> None:
    """Train a run with two checkpoints, and write what each contains beside it."""
    make_build(folder / "tiny")
    train_run(folder, "run", n_layer=1, n_embd=8, n_head=1, max_steps=8, checkpoint_interval=4, eval_interval=4)
    assert invoke("evaluate.py", folder / "run", "--device=cpu").returncode == 0
    newest = list_checkpoints(folder / "run")[-1]
    descriptions = [describe_start(folder)]
    newest.rename(folder / "hidden")
    descriptions.append(describe_start(folder))
    (folder / "hidden").rename(newest)
    (folder / EXPECTED).write_text("\n".join(descriptions))


CHECKPOINT = "checkpoints/step-00000008"
KINDS: dict[str, tuple[str, Callable[[Path], None], Any]] = {
    "checkpoint.json": (f"{CHECKPOINT}/checkpoint.json", resume, mutate_json),
    "checkpoint.json, bytes": (f"{CHECKPOINT}/checkpoint.json", resume, mutate_bytes),
    "model.safetensors": (f"{CHECKPOINT}/model.safetensors", resume, mutate_safetensors),
    "training.safetensors": (f"{CHECKPOINT}/training.safetensors", resume, mutate_safetensors),
    "settings.json": ("settings.json", continue_without_checkpoints, mutate_json),
    "metrics.jsonl": ("metrics.jsonl", plot_losses, mutate_json_lines),
    "evaluations.jsonl": ("evaluations.jsonl", print_evaluations, mutate_json_lines),
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_runs_are_resumed_exactly_or_refused_in_one_line(
    kind: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    make_run(tmp_path)
    name, reader, mutate = KINDS[kind]
    path = tmp_path / "run" / name
    # A damaged checkpoint is not refused: the run resumes from the one before it.
    outcome = fuzz(reader, path, [path.read_bytes()], mutate)
    assert_no_failure(outcome, record_property, must_refuse=reader is not resume)


def test_the_undamaged_run_is_used_in_every_way(tmp_path: Path) -> None:
    make_run(tmp_path)
    run, path = tmp_path / "run", tmp_path / "run/settings.json"
    assert describe_start(tmp_path) == (tmp_path / EXPECTED).read_text().split()[0], "it resumes from the last step"
    resume(path)
    continue_without_checkpoints(path)
    assert [checkpoint.name for checkpoint in list_checkpoints(run)] == ["step-00000004", "step-00000008"]
    sampled = invoke("sample.py", run, "--tokens=1", "--device=cpu")
    assert sampled.returncode == 0 and sampled.stdout, sampled.stderr
    warnings: list[str] = []
    curves = read_curves(run, "run", warn=warnings.append)
    assert curves.points["train_loss"] and curves.points["val_loss"] and warnings == []
    evaluated = invoke("evaluate.py", run, "--device=cpu", "--quiet")
    assert evaluated.returncode == 0 and "loss" in evaluated.stdout, evaluated.stderr
