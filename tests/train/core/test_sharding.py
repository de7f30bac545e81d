"""What the processes of a sharded model hold. tests/train/run/test_sharded_training.py trains one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import MisuseError
from tests.helpers.runs import make_build, make_config, write_config
from tests.helpers.steps import one_process_group, prepare_steps
from train.core.distributed import World
from train.core.sharding import _rows_by_process, first_row, is_sharded, local_rows, shard_model, whole
from train.model import make_model
from train.run.context import _check_parallel
from train.train import optimizer_step


@given(st.integers(1, 200), st.integers(1, 9))
def test_rows_are_divided_as_torch_divides_them(num_rows: int, size: int) -> None:
    chunks = [len(chunk) for chunk in torch.arange(num_rows).chunk(size)]
    assert _rows_by_process(num_rows, size) == chunks + [0] * (size - len(chunks))


def test_plain_tensor_is_held_whole() -> None:
    tensor = torch.ones(3)
    assert not is_sharded(tensor) and local_rows(tensor) is tensor and whole(tensor) is tensor
    assert first_row(tensor) == 0


def test_parameters_of_a_sharded_model_are_divided_and_named_as_before() -> None:
    config = make_config()
    plain = make_model(config, 29)
    with one_process_group("gloo"):
        model = make_model(config, 29)
        shard_model(model, model.h, device=torch.device("cpu"))
        assert all(is_sharded(p) and first_row(p) == 0 for p in model.parameters())
        shapes = {name: whole(p).shape for name, p in model.named_parameters()}
        assert model.num_parameters == plain.num_parameters
        del model
    assert shapes == {name: p.shape for name, p in plain.named_parameters()}


@pytest.mark.parametrize(("arch", "optimizer"), [("gpt2", "adamw"), ("modern", "muon")])
def test_steps_of_a_sharded_model_are_those_of_a_plain_one(tmp_path: Path, arch: str, optimizer: str) -> None:
    """With one process, all but the exchange of rows."""
    make_build(tmp_path / "tiny")
    config = write_config(tmp_path / "run.py", tmp_path / "tiny", arch=arch, optimizer=optimizer)
    results = []
    with one_process_group("gloo"):
        for divided in (False, True):
            run, state, prefetcher = prepare_steps(config, is_sharded=divided)
            steps = [optimizer_step(run, state, state.model, prefetcher) for _ in range(6)]
            results.append([(step.loss.item(), step.grad_norm.item()) for step in steps])
            del run, state
    for sharded, plain in zip(*reversed(results), strict=True):
        assert sharded == pytest.approx(plain, rel=1e-5)


def test_fp16_is_refused_with_a_sharded_model() -> None:
    config = make_config(parallel="fsdp", precision="fp16")
    with pytest.raises(MisuseError, match="precision is fp16, which parallel = fsdp does not support; set"):
        _check_parallel(config, World(size=2))
    assert _check_parallel(make_config(precision="fp16"), World(size=2)) == []
    assert "there is one process" in _check_parallel(config, World())[0]
