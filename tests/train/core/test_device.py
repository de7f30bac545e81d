"""Device and precision: what auto selects, what is refused, and the peak rates of known GPUs."""

from __future__ import annotations

import pytest
import torch

from preprocess.errors import MisuseError
from train.core.device import choose_device, choose_precision, peak_flops

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA H100 80GB HBM3", "fp16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA GeForce RTX 4090", "bf16", 165),
        ("NVIDIA A100-SXM4-80GB", "fp32", None),
        ("NVIDIA RTX A4000", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA H200 NVL", "bf16", 835),
        ("Some GPU 9000", "bf16", None),
    ],
)
def test_peak_flops_of_known_devices(name: str, precision: str, tflops: float | None) -> None:
    assert peak_flops(name, precision) == (None if tflops is None else tflops * 1e12)


def test_choose_precision_auto_uses_what_the_device_supports() -> None:
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    for precision in ("fp32", "bf16", "fp16"):
        assert choose_precision(precision, CPU) == precision
    with pytest.raises(MisuseError, match="device cpu does not support precision tf32, only fp32, bf16, fp16"):
        choose_precision("tf32", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_choose_device_rejects_missing_gpu() -> None:
    assert choose_device("auto").type in ("cpu", "mps")
    with pytest.raises(MisuseError, match="device 'cuda' is not available"):
        choose_device("cuda")


def test_choose_device_returns_gpu_with_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda.set_device does not accept a device without an index."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(choose_device(setting)) for setting in ("auto", "cuda", "cuda:1")] == ["cuda:0", "cuda:0", "cuda:1"]
    assert [str(choose_device("auto", local_rank=rank, num_local=2)) for rank in (0, 1)] == ["cuda:0", "cuda:1"]
    with pytest.raises(MisuseError, match="device 'cuda:2' is not available, the last GPU is cuda:1"):
        choose_device("cuda:2")
    with pytest.raises(MisuseError, match="2 processes run on this machine; set --device=cuda: each takes its GPU"):
        choose_device("cuda:0", local_rank=0, num_local=2)
