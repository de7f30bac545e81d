"""Device and precision of a run: what is available, what `auto` selects, and peak FLOP/s of GPUs."""

from __future__ import annotations

import re

import torch

from preprocess.errors import MisuseError

DEVICE = re.compile(r"cpu|mps|cuda(:(0|[1-9]\d?))?")
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Peak TFLOP/s of dense bf16 and fp16 matrix products, from the vendors' data sheets. The first key
# that occurs in the device's name applies. The peak of tf32 is half as high.
PEAK_TFLOPS = {
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200 NVL": 835, "H200": 989, "H20": 148,
    "GH200": 989, "B200": 2250, "GB200": 2500, "A100": 312, "A800": 312, "A40": 150, "A10G": 70,
    "A10": 125, "A30": 165, "A6000": 155, "L40S": 362, "L40": 181, "L4": 121,
    "T4": 65, "V100-SXM2": 125, "V100-PCIE": 112, "RTX 5090": 210, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip
HALF_RATE = ("tf32",)


def choose_device(setting: str, *, local_rank: int = 0, num_local: int = 1) -> torch.device:
    """Return the device that the setting `device` selects.

    `auto` is the first available of cuda, mps and cpu. With several processes on a machine, `cuda`
    is the GPU whose index is the process's local rank. Raises MisuseError if the device does not
    exist or its name is not valid.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if setting == "auto":
        setting = next(name for name, is_available in available.items() if is_available)
    if not DEVICE.fullmatch(setting):
        raise MisuseError(f"device must be auto, cpu, mps, cuda or cuda:N such as cuda:1, got {setting!r:.80}")
    device = torch.device(setting)
    if not available[device.type]:
        names = ", ".join(name for name, is_available in available.items() if is_available)
        raise MisuseError(f"device {setting!r} is not available, this machine has {names}; set --device=auto")
    if device.type != "cuda":
        return device
    if device.index is None:
        device = torch.device("cuda", local_rank if num_local > 1 else 0)
    elif num_local > 1:
        raise MisuseError(
            f"device is {setting!r}, but {num_local} processes run on this machine; set --device=cuda: each "
            "takes its GPU"
        )
    if device.index >= torch.cuda.device_count():
        raise MisuseError(
            f"device {str(device)!r} is not available, the last GPU is cuda:{torch.cuda.device_count() - 1}; "
            "set --device=auto"
        )
    return device


def choose_precision(setting: str, device: torch.device) -> str:
    """Return the precision that the setting `precision` selects: fp32, tf32, bf16 or fp16.

    `auto` selects, on CUDA, bf16 if the GPU supports it and else fp16; on other devices, fp32.
    Raises MisuseError if `device` does not support the precision.
    """
    is_cpu, is_cuda = device.type == "cpu", device.type == "cuda"
    has_bf16 = is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    if setting == "auto":
        return "fp32" if not is_cuda else "bf16" if has_bf16 else "fp16"
    has_tf32 = is_cuda and torch.cuda.get_device_capability(device) >= (8, 0)
    supported = {"fp32": True, "tf32": has_tf32, "bf16": is_cpu or has_bf16, "fp16": is_cpu or is_cuda}
    if not supported[setting]:
        names = ", ".join(name for name, is_supported in supported.items() if is_supported)
        raise MisuseError(f"device {device} does not support precision {setting}, only {names}; set --precision=auto")
    return setting


def set_matmul_precision(precision: str) -> None:
    """Allow TF32 in float32 matrix products, which rounds their inputs to 10 bits, unless fp32 is set."""
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")


def make_autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context for forward passes, disabled for fp32 and tf32."""
    dtype = AUTOCAST_DTYPES.get(precision, torch.bfloat16)
    return torch.autocast(device.type, dtype, enabled=precision in AUTOCAST_DTYPES)


def describe_device(device: torch.device) -> str:
    """Return the device as the console shows it, such as `cuda:0 (NVIDIA H100 80GB HBM3)`."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def peak_flops(name: str, precision: str) -> float | None:
    """Return the peak dense FLOP/s of the GPU called `name` in `precision`.

    It is None for fp32 and for GPUs whose peak is not known.
    """
    if re.search(r"\b(Laptop|Max-Q)\b", name):  # each laptop model has a different power limit
        return None
    tflops = next((peak for words, peak in PEAK_TFLOPS.items() if re.search(rf"\b{words}\b", name)), None)
    if tflops is None or precision == "fp32":
        return None
    return tflops * 1e12 / (2 if precision in HALF_RATE else 1)


def device_peak_flops(device: torch.device, precision: str) -> float | None:
    """Return `peak_flops` of `device`, or None if it is not a CUDA GPU."""
    return peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all that was started on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()
