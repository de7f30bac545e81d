"""A peer: nanoGPT's train.py as it stands, with a clock around it.

    python bench/baselines/nanogpt_train.py NANOGPT_DIR FOLDER --seed 1 config/train_shakespeare_char.py --max_iters=100

FOLDER/data holds a build as nanoGPT reads it (trainers.py::write_data). Its seed stands in its source; `--seed` is added to it. The clock
stands still while it evaluates and while it saves; where it would save, its weights go to FOLDER/STEP.safetensors. FOLDER/result.json
says the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import json
import os
import runpy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.torch import save_file
from torch import nn

from bench.lib.measure import forget_peak, peak_bytes

RESULT = "result.json"
PROBE_WINDOWS = 32  # whose loss by its own model shows that its weights were read rightly


class Clock:
    """Seconds of training: it runs but for what lies between `stop` and `go`.

    nanoGPT evaluates before its first step: `start_s` is the time until then, and `first_evaluation_s` of that what the evaluation took,
    for which it also compiles.
    """

    def __init__(self) -> None:
        self.elapsed_s, self.start_s, self.first_evaluation_s = 0.0, 0.0, 0.0
        self._since: float | None = None
        self._first_stop: float | None = None

    def go(self) -> None:
        _wait_for_device()
        now = time.perf_counter()
        if not self.start_s:
            self.start_s = time.time() - psutil.Process().create_time()
            self.first_evaluation_s = now - (self._first_stop or now)
            forget_peak(os.getpid())
        self._since = now

    def stop(self) -> None:
        _wait_for_device()
        now = time.perf_counter()
        self._first_stop = self._first_stop or now
        self.elapsed_s += 0.0 if self._since is None else now - self._since
        self._since = None


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def hook(clock: Clock, folder: Path, *, seed: int) -> dict[str, Any]:
    """Put the clock and the seed where nanoGPT passes by. Returns what becomes the result."""
    result: dict[str, Any] = {"marks": []}
    manual_seed, set_mode = torch.manual_seed, nn.Module.train

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        # It evaluates between model.eval(), which is train(False), and model.train(); children follow their parent.
        if not train.is_inside:  # type: ignore[attr-defined] # a function's own attribute
            train.is_inside = True  # type: ignore[attr-defined]
            try:
                return clocked(self, mode)
            finally:
                train.is_inside = False  # type: ignore[attr-defined]
        return set_mode(self, mode)

    def clocked(self: nn.Module, mode: bool) -> nn.Module:
        if mode:
            set_mode(self, mode)
            clock.go()
        else:
            clock.stop()
            set_mode(self, mode)
        return self

    def save(checkpoint: dict[str, Any], _: str) -> None:
        clock.stop()
        step = checkpoint["iter_num"]
        # Clones: the head and the token embedding are one tensor, which the format refuses.
        weights = {
            name.removeprefix("_orig_mod."): tensor.detach().cpu().clone()
            for name, tensor in checkpoint["model"].items()
        }
        save_file(weights, folder / f"{step}.safetensors")
        result["marks"].append({"step": step, "elapsed_s": clock.elapsed_s})
        result["model_args"] = checkpoint["model_args"]
        clock.go()

    train.is_inside = False  # type: ignore[attr-defined]
    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (torch, "manual_seed", lambda number: manual_seed(number + seed)), (nn.Module, "train", train), (torch, "save", save),
    ]  # fmt: skip
    for owner, name, function in replaced:
        setattr(owner, name, function)
    return result


def probe_loss(variables: dict[str, Any], folder: Path) -> float:
    """The mean loss on the first validation windows, by nanoGPT's own model as it was when it last saved."""
    from safetensors.torch import load_file

    model = getattr(variables["raw_model"], "_orig_mod", variables["raw_model"])  # as it was before it was compiled
    last = max(folder.glob("*.safetensors"), key=lambda path: int(path.stem))
    model.load_state_dict(load_file(last))
    size = variables["block_size"]
    tokens = np.fromfile(folder / "data" / "val.bin", dtype=np.uint16).astype(np.int64)
    num_windows = min(PROBE_WINDOWS, (len(tokens) - 1) // size)
    windows = torch.from_numpy(tokens[: num_windows * size + 1].copy())
    ids, targets = (part.view(-1, size).to(variables["device"]) for part in (windows[:-1], windows[1:]))
    model.eval()
    with torch.no_grad():
        return model(ids, targets)[1].item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nanogpt", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments, settings = parser.parse_known_args()
    folder = arguments.folder.absolute()
    # It reads its configurator, and imports its model, from where it lies.
    os.chdir(arguments.nanogpt)
    sys.path[0] = str(Path.cwd())
    sys.argv = [
        "train.py",
        *settings,
        f"--dataset={folder / 'data'}",
        f"--out_dir={folder}",
        "--always_save_checkpoint=True",
    ]
    clock = Clock()
    result = hook(clock, folder, seed=arguments.seed)
    variables = runpy.run_path("train.py", run_name="__main__")
    memory_bytes = (
        torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes(os.getpid())
    )  # before the probe
    compiled_s = clock.first_evaluation_s if variables["compile"] else 0.0
    result |= {
        "start_s": clock.start_s - compiled_s,
        "compiled_before_s": compiled_s,
        "is_compiled": variables["compile"],
        "tokens_per_step": variables["tokens_per_iter"],
        "num_parameters": sum(p.numel() for p in variables["raw_model"].parameters()),
        "peak_memory_bytes": memory_bytes,
        "probe_loss": probe_loss(variables, folder),
    }
    (folder / RESULT).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
