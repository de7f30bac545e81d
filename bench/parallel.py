"""Measure several processes with a whole model each (ddp) and with a divided one (fsdp).

    python bench/parallel.py BUILD [--processes N] [--steps N] [--results FILE] [--smoke] [--SETTING=VALUE ...]

torchrun trains the same steps with each value of the setting `parallel`. Prints, for each, the tokens
per second and the peak memory of the main process, the bytes of a checkpoint that a process writes at
most, and how far its losses are from those of ddp. The processes use all GPUs, or the CPU if there is
none; one GPU is not enough. Settings are those of train.py. `--smoke` trains a tiny model on a CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from bench.lib.measure import ROOT, fresh_folder
from bench.lib.options import add_scratch_option, parse_positive
from bench.lib.training_options import run_bench
from preprocess.errors import FolioError
from train.run.checkpoint import find_newest_checkpoint
from train.run.metrics import METRICS_FILE, open_rows

CONFIG = "configs/gpt2_124m.py"
TINY = (
    "--n_layer=2", "--n_head=2", "--n_embd=64", "--block_size=32", "--batch_size=4", "--gradient_accumulation_steps=2",
    "--eval_tokens=512", "--device=cpu",
)  # fmt: skip
WARM_UP_STEPS = 5  # whose speed is not counted
EVAL_TOKENS = 1 << 16  # a run ends with an evaluation, which is not measured


def train(arguments: argparse.Namespace, settings: Sequence[str], parallel: str, out_dir: Path) -> dict[str, Any]:
    """Train with the value `parallel`, and return what was measured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={arguments.processes}"]
    command += ["train/train.py", CONFIG, f"--data={Path(arguments.build).absolute()}", f"--out_dir={out_dir}"]
    command += [f"--max_steps={arguments.steps}", "--warmup_steps=0", "--decay_steps=none", "--log_interval=1"]
    command += ["--eval_interval=100000", f"--eval_tokens={EVAL_TOKENS}", "--checkpoint_interval=100000"]
    command += ["--completion_tokens=1", "--compile=false", *settings, f"--parallel={parallel}"]
    done = subprocess.run(command, cwd=ROOT, env={"OMP_NUM_THREADS": "1", **os.environ})
    if done.returncode:
        raise FolioError(f"the run with {parallel} failed with exit status {done.returncode}; read its message above")
    rows = [row for row in open_rows(out_dir / METRICS_FILE) if "train_loss" in row.values]
    checkpoint = find_newest_checkpoint(out_dir, print)
    assert checkpoint is not None
    sizes = checkpoint.info.size_bytes
    by_process = [
        sum(size for name, size in sizes.items() if checkpoint.info.num_parts == 1 or f"-{number:05d}-of-" in name)
        for number in range(1, checkpoint.info.num_parts + 1)
    ]
    return {
        "parallel": parallel,
        "processes": arguments.processes,
        "tokens_per_s": round(median(row.values["tokens_per_s"] for row in rows if row.step > WARM_UP_STEPS)),
        "peak_memory_mb": round(max(row.values["peak_memory_bytes"] for row in rows) / 1e6),
        "written_mb": round(max(by_process) / 1e6, 1),
        "losses": [row.values["train_loss"] for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", help="a build's folder")
    parser.add_argument("--processes", type=parse_positive, help="how many (default: one for each GPU, or 2 on a CPU)")
    parser.add_argument("--steps", type=parse_positive, default=30, help="of each run (default: 30)")
    parser.add_argument("--results", type=Path, help="a file to which results are appended")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on a CPU")
    add_scratch_option(parser)
    arguments, settings = parser.parse_known_args()
    if arguments.steps <= WARM_UP_STEPS:
        parser.error(f"--steps must be above {WARM_UP_STEPS}, because the first {WARM_UP_STEPS} are not counted")
    num_gpus = 0 if arguments.smoke or "--device=cpu" in settings else torch.cuda.device_count()
    if num_gpus == 1:
        print("parallel: not measured, because fsdp needs two GPUs and there is one")
        return
    arguments.processes = arguments.processes or num_gpus or 2
    settings = [*(TINY if arguments.smoke else ()), *settings]
    expected: list[float] = []
    for parallel in ("ddp", "fsdp"):
        with fresh_folder(arguments.scratch) as scratch:
            row = train(arguments, settings, parallel, scratch / parallel)
        losses = row.pop("losses")
        expected = expected or losses
        row["max_deviation"] = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        print(row, flush=True)
        if arguments.results:
            with open(arguments.results, "a") as file:
                file.write(json.dumps({"part": "parallel", **row}) + "\n")


if __name__ == "__main__":
    run_bench(main)
