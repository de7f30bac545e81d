"""A baseline: nanoGPT's unmodified train.py with a clock around it.

    python bench/baselines/nanogpt_train.py NANOGPT_DIR FOLDER --seed 1 config/train_shakespeare_char.py --max_iters=100

FOLDER/data has a build in nanoGPT's format (see `write_data` in bench/lib/trainers.py). `--seed` is
added to the seed in nanoGPT's source. The clock is stopped while nanoGPT evaluates and saves. Each
checkpoint is written as FOLDER/STEP.safetensors, and everything else that the bench needs as
FOLDER/result.json.
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
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.lib.measure import read_peak_memory, reset_peak_memory

RESULT_FILE = "result.json"
PROBE_WINDOWS = 32  # validation windows on which nanoGPT's model and its conversion must have the same loss


class Clock:
    """Seconds of training: the time between each `start` and the next `stop`.

    nanoGPT evaluates before its first step. `start_up_s` is the time from the start of the process
    to the end of that evaluation, and `first_evaluation_s` is the evaluation's part of it, in which
    a compiled model is compiled.
    """

    def __init__(self) -> None:
        self.elapsed_s, self.cpu_s, self.start_up_s, self.first_evaluation_s = 0.0, 0.0, 0.0, 0.0
        self._started_at: float | None = None
        self._cpu_started_at = 0.0
        self._first_stop: float | None = None

    def start(self) -> None:
        _synchronize()
        now = time.perf_counter()
        if not self.start_up_s:
            self.start_up_s = time.time() - psutil.Process().create_time()
            self.first_evaluation_s = now - (self._first_stop or now)
            reset_peak_memory(os.getpid())
        self._started_at, self._cpu_started_at = now, time.process_time()

    def stop(self) -> None:
        _synchronize()
        now = time.perf_counter()
        self._first_stop = self._first_stop or now
        if self._started_at is not None:
            self.elapsed_s += now - self._started_at
            self.cpu_s += time.process_time() - self._cpu_started_at
        self._started_at = None


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Hooks:
    """Replacements of three functions that nanoGPT calls, which add the seed and control the clock.

    nanoGPT evaluates between `model.eval()`, which calls `train(False)`, and `model.train()`, and it
    saves with `torch.save`.
    """

    def __init__(self, clock: Clock, folder: Path, *, seed: int) -> None:
        self.snapshots: list[dict[str, Any]] = []
        self.model_args: dict[str, Any] = {}
        self._clock, self._folder, self._seed = clock, folder, seed
        self._manual_seed, self._set_mode = torch.manual_seed, nn.Module.train
        self._is_inside = False  # train() calls itself for the children

    def install(self) -> None:
        """Replace the functions of torch in this process."""
        torch.manual_seed = lambda seed: self._manual_seed(seed + self._seed)
        nn.Module.train = lambda model, mode=True: self._train(model, mode)  # type: ignore
        torch.save = self._save  # type: ignore[assignment]

    def _train(self, model: nn.Module, mode: bool) -> nn.Module:
        if self._is_inside:
            return self._set_mode(model, mode)
        self._is_inside = True
        try:
            if not mode:
                self._clock.stop()
            self._set_mode(model, mode)
            if mode:
                self._clock.start()
        finally:
            self._is_inside = False
        return model

    def _save(self, checkpoint: dict[str, Any], _: str) -> None:
        self._clock.stop()
        step = checkpoint["iter_num"]
        # Clones, because the head and the token embedding are one tensor, which safetensors rejects.
        weights = {
            name.removeprefix("_orig_mod."): tensor.detach().cpu().clone()
            for name, tensor in checkpoint["model"].items()
        }
        save_file(weights, self._folder / f"{step}.safetensors")
        self.snapshots.append({"step": step, "elapsed_s": self._clock.elapsed_s})
        self.model_args = checkpoint["model_args"]
        self._clock.start()


def compute_probe_loss(variables: dict[str, Any], folder: Path) -> float:
    """Return the mean loss of the first validation windows, by nanoGPT's model with its last checkpoint.

    `variables`: the globals of nanoGPT's train.py after it has ended.
    """
    model = getattr(variables["raw_model"], "_orig_mod", variables["raw_model"])  # the model before compilation
    last_weights = max(folder.glob("*.safetensors"), key=lambda path: int(path.stem))
    model.load_state_dict(load_file(last_weights))
    block_size = variables["block_size"]
    val_ids = np.fromfile(folder / "data" / "val.bin", dtype=np.uint16).astype(np.int64)
    num_windows = min(PROBE_WINDOWS, (len(val_ids) - 1) // block_size)
    tokens = torch.from_numpy(val_ids[: num_windows * block_size + 1]).to(variables["device"])
    ids, targets = tokens[:-1].view(-1, block_size), tokens[1:].view(-1, block_size)  # (num_windows, block_size)
    model.eval()
    with torch.no_grad():
        loss: float = model(ids, targets)[1].item()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nanogpt", type=Path, help="nanoGPT's checkout")
    parser.add_argument("folder", type=Path, help="folder with the data, and for the results")
    parser.add_argument("--seed", type=int, default=0, help="added to nanoGPT's seed (default: 0)")
    arguments, settings = parser.parse_known_args()
    folder = arguments.folder.absolute()
    # nanoGPT reads its configurator from the current folder and imports its model from sys.path[0].
    os.chdir(arguments.nanogpt)
    sys.path[0] = str(Path.cwd())
    forced_settings = [f"--dataset={folder / 'data'}", f"--out_dir={folder}", "--always_save_checkpoint=True"]
    sys.argv = ["train.py", *settings, *forced_settings]
    clock = Clock()
    hooks = Hooks(clock, folder, seed=arguments.seed)
    hooks.install()
    variables = runpy.run_path("train.py", run_name="__main__")
    # Read before the probe, which needs memory too.
    peak_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else read_peak_memory(os.getpid())
    compiled_before_s = clock.first_evaluation_s if variables["compile"] else 0.0
    result = {
        "snapshots": hooks.snapshots,
        "model_args": hooks.model_args,
        "start_up_s": clock.start_up_s - compiled_before_s,
        "cpu_s": clock.cpu_s,
        "compiled_before_s": compiled_before_s,
        "is_compiled": variables["compile"],
        "tokens_per_step": variables["tokens_per_iter"],
        "num_parameters": sum(p.numel() for p in variables["raw_model"].parameters()),
        "peak_memory_bytes": peak_bytes,
        "probe_loss": compute_probe_loss(variables, folder),
    }
    (folder / RESULT_FILE).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
