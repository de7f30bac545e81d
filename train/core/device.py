"""Which device a run computes on, in which precision, and what it can do."""

from __future__ import annotations

import re

import torch

from preprocess.errors import MisuseError

DEVICE = re.compile(r"cpu|mps|cuda(:(0|[1-9]\d?))?")
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Dense matrix products of bf16 and fp16, in 10¹² operations a second, as the makers' data sheets give them;
# the first whose words are part of the device's name. tf32 has half of it.
PEAK_TFLOPS = {
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200 NVL": 835, "H200": 989, "H20": 148, "GH200": 989, "B200": 2250, "GB200": 2500,
    "A100": 312, "A800": 312, "A40": 150, "A10G": 70, "A10": 125, "A30": 165, "A6000": 155, "L40S": 362, "L40": 181, "L4": 121,
    "T4": 65, "V100-SXM2": 125, "V100-PCIE": 112, "RTX 5090": 210, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip
HALF_OF_PEAK = ("tf32",)


def choose_device(wanted: str, *, local_rank: int = 0, num_local: int = 1) -> torch.device:
    """The device that the setting `device` names; auto is the first there is of cuda, mps, cpu. Raises MisuseError.

    Of several processes on a machine, each takes the GPU of its own number.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, is_there in there.items() if is_there)
    if not DEVICE.fullmatch(wanted):
        raise MisuseError(f"device is {wanted!r}, wanted auto, cpu, mps, cuda or cuda:N such as cuda:1")
    device = torch.device(wanted)
    if not there[device.type]:
        raise MisuseError(
            f"device {wanted!r} is not there, only {', '.join(n for n, t in there.items() if t)}; set --device=auto"
        )
    if device.type != "cuda":
        return device
    if device.index is None:
        device = torch.device("cuda", local_rank if num_local > 1 else 0)
    elif num_local > 1:
        raise MisuseError(
            f"device is {wanted!r}, but {num_local} processes run on this machine; set --device=cuda, each takes its own"
        )
    if device.index >= torch.cuda.device_count():
        raise MisuseError(
            f"device {str(device)!r} is not there, the last is cuda:{torch.cuda.device_count() - 1}; set --device=auto"
        )
    return device


def choose_precision(wanted: str, device: torch.device) -> str:
    """fp32, tf32, bf16 or fp16, as the setting `precision` asks and `device` can. Raises MisuseError."""
    is_cuda = device.type == "cuda"
    cuda_has_bf16 = is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return "fp32" if not is_cuda else "bf16" if cuda_has_bf16 else "fp16"
    cuda_has_tf32 = is_cuda and torch.cuda.get_device_capability(device) >= (8, 0)
    is_cpu = device.type == "cpu"
    able = {"fp32": True, "tf32": cuda_has_tf32, "bf16": is_cpu or cuda_has_bf16, "fp16": is_cpu or is_cuda}
    if not able[wanted]:
        can = ", ".join(name for name, is_able in able.items() if is_able)
        raise MisuseError(
            f"precision {wanted} does not go with device {device}, which can do {can}; set --precision=auto"
        )
    return wanted


def set_matmul_precision(precision: str) -> None:
    """fp32 is kept exact; elsewhere float32 products, of which autocast leaves few, may round their inputs to tf32's 10 bits."""
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")


def make_autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context that a forward pass runs in; under fp32 and tf32 it changes nothing."""
    return torch.autocast(
        device.type, AUTOCAST_DTYPES.get(precision, torch.bfloat16), enabled=precision in AUTOCAST_DTYPES
    )


def describe_device(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def peak_flops(name: str, precision: str) -> float | None:
    """Operations a second that the GPU called `name` can do at most in `precision`; None where that is not known."""
    if re.search(r"\b(Laptop|Max-Q)\b", name):  # of which there are many, each with a limit of its own
        return None
    tflops = next((peak for words, peak in PEAK_TFLOPS.items() if re.search(rf"\b{words}\b", name)), None)
    if tflops is None or precision == "fp32":
        return None
    return tflops * 1e12 / (2 if precision in HALF_OF_PEAK else 1)


def device_peak_flops(device: torch.device, precision: str) -> float | None:
    """As peak_flops, of `device`."""
    return peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most that tensors have held of a GPU's memory; None elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
