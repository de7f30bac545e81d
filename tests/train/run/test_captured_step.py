"""CapturedStep on a CPU: everything except the CUDA graph, which tests/train/test_cuda.py tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import write_config
from tests.helpers.steps import make_captured_step, prepare_steps
from train.core.distributed import World
from train.data.batches import Prefetcher
from train.run.captured_step import CapturedStep, can_capture_step
from train.run.context import Run
from train.run.state import TrainingState, state_tensors
from train.train import optimizer_step


def prepare(folder: Path, **settings: object) -> tuple[Run, TrainingState, Prefetcher]:
    path = write_config(folder / "captured.py", folder / "tiny", **{"gradient_accumulation_steps": 1} | settings)
    return prepare_steps(path)


@pytest.mark.parametrize(
    "settings",
    [{}, {"arch": "modern", "optimizer": "muon"}, {"data_order": "documents", "mask_documents": True}],
    ids=str,
)
def test_captured_step_agrees_with_optimizer_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    """The kernels run at once instead of from a graph.

    Warmup and dropout depend on the step and the sample number.
    """
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(CapturedStep, "_replay", CapturedStep._compute)
    plain_run, plain_state, plain_prefetcher = prepare(folder, **settings)
    run, state, prefetcher = prepare(folder, **settings)
    captured_step = make_captured_step(run, state, prefetcher)
    for step in range(1, 8):
        plain = optimizer_step(plain_run, plain_state, plain_state.model, plain_prefetcher)
        captured = captured_step.take()
        assert (captured.loss, captured.grad_norm) == (plain.loss, plain.grad_norm)
        assert captured.learning_rate_factor == plain.learning_rate_factor
        assert state.step == plain_state.step == step
        assert state.num_samples == plain_state.num_samples == 4 * step
    plain_tensors = plain_state.model.state_dict() | state_tensors(plain_state)
    tensors = state.model.state_dict() | state_tensors(state)
    assert plain_tensors.keys() == tensors.keys()
    assert all(torch.equal(tensors[name], plain_tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"dropout": 0.0, "precision": "bf16"}, True),
        ({"data_order": "documents", "mask_documents": True}, True),
        ({"gradient_accumulation_steps": 2}, False),
        ({"precision": "fp16"}, False),
        ({"compile": True}, False),
        ({"gradient_checkpointing": True}, False),
    ],
    ids=str,
)
def test_can_capture_step_depends_on_the_settings(
    folder: Path, settings: dict[str, object], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (90, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 10)
    run, state, prefetcher = prepare(folder, **settings)
    assert not can_capture_step(run, state, prefetcher), "a CPU has no CUDA graphs"
    on_cuda = replace(run, device=torch.device("cuda"))
    assert can_capture_step(on_cuda, state, prefetcher) is expected
    assert not can_capture_step(replace(on_cuda, world=World(size=2)), state, prefetcher)


def test_can_capture_step_leaves_memory_for_evaluations(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, state, prefetcher = prepare(folder)
    on_cuda = replace(run, device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (40, 100))
    for reserved, expected in ((50, True), (51, False)):
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _, reserved=reserved: reserved)
        assert can_capture_step(on_cuda, state, prefetcher) is expected
