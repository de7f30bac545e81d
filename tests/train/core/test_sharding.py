"""What the processes of a sharded model hold. tests/train/run/test_sharded_training.py trains one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import MisuseError
from tests.helpers.runs import make_config
from train.core.distributed import World
from train.core.sharding import _rows_by_process, first_row, is_sharded, local_rows, shard_model, whole
from train.model import make_model
from train.run.context import _check_parallel


@given(st.integers(1, 200), st.integers(1, 9))
def test_rows_are_divided_as_torch_divides_them(num_rows: int, size: int) -> None:
    chunks = [len(chunk) for chunk in torch.arange(num_rows).chunk(size)]
    assert _rows_by_process(num_rows, size) == chunks + [0] * (size - len(chunks))


def test_plain_tensor_is_held_whole() -> None:
    tensor = torch.ones(3)
    assert not is_sharded(tensor) and local_rows(tensor) is tensor and whole(tensor) is tensor


def test_parameters_of_a_sharded_model_are_divided_and_named_as_before() -> None:
    config = make_config()
    names = [name for name, _ in make_model(config, 29).named_parameters()]
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = make_model(config, 29)
        num_parameters = model.num_parameters
        shard_model(model, model.h, device=torch.device("cpu"))
        assert [name for name, _ in model.named_parameters()] == names and model.num_parameters == num_parameters
        assert all(is_sharded(p) and first_row(p) == 0 for p in model.parameters())
        weight = model.wte.weight
        assert local_rows(weight).data_ptr() == local_rows(weight).data_ptr() and whole(weight).shape == weight.shape
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp16"}, "precision is fp16, which parallel = fsdp does not support; set precision to bf16"),
        ({"compile": True}, "compile is True, which parallel = fsdp does not support; set compile to false, or"),
    ],
    ids=["fp16", "compile"],
)
def test_settings_that_do_not_work_with_a_sharded_model_are_refused(settings: dict[str, object], message: str) -> None:
    config = make_config(parallel="fsdp", **settings)
    with pytest.raises(MisuseError, match=message):
        _check_parallel(config, World(size=2))
    assert _check_parallel(make_config(**settings), World(size=2)) == []
    assert "there is one process" in _check_parallel(config, World())[0]
