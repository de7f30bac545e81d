"""Which device a run computes on, and in which precision."""

from __future__ import annotations

import re

import torch

from preprocess.errors import MisuseError

DEVICE = re.compile(r"cpu|mps|cuda(:(0|[1-9]\d?))?")
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(wanted: str) -> torch.device:
    """The device that the setting `device` names; auto is the first there is of cuda, mps, cpu. Raises MisuseError."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, is_there in there.items() if is_there))
    if not DEVICE.fullmatch(wanted):
        raise MisuseError(f"device is {wanted!r}, wanted auto, cpu, mps, cuda or cuda:N such as cuda:1")
    device = torch.device(wanted)
    if not there[device.type]:
        raise MisuseError(f"device {wanted!r} is not there, only {', '.join(n for n, t in there.items() if t)}; set --device=auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MisuseError(f"device {wanted!r} is not there, the last is cuda:{torch.cuda.device_count() - 1}; set --device=auto")
    return device


def choose_precision(wanted: str, device: torch.device) -> str:
    """fp32, bf16 or fp16, as the setting `precision` asks and `device` can. Raises MisuseError."""
    cuda_has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return "fp32" if device.type != "cuda" else "bf16" if cuda_has_bf16 else "fp16"
    able = {"fp32": True, "bf16": device.type == "cpu" or cuda_has_bf16, "fp16": device.type == "cuda"}
    if not able[wanted]:
        can = ", ".join(name for name, is_able in able.items() if is_able)
        raise MisuseError(f"precision {wanted} does not go with device {device}, which can do {can}; set --precision=auto")
    return wanted


def make_autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context that a forward pass runs in; under fp32 it changes nothing."""
    return torch.autocast(device.type, AUTOCAST_DTYPES.get(precision, torch.bfloat16), enabled=precision in AUTOCAST_DTYPES)


def describe_device(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
