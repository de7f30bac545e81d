"""Measure training on one GPU. bench/gpu.sh runs the parts of this script, each in a process.

    python bench/gpu.py environment --results FILE
    python bench/gpu.py steps BUILD --results FILE --trainers plain,plain+graph,nanogpt [--compile] [--profile]
    python bench/gpu.py precision BUILD --results FILE
    python bench/gpu.py resume BUILD --results FILE

- `environment`: the device, its rate of matrix products, versions, and libraries that are missing.
- `steps`: tokens per second, MFU and memory of each trainer, and with `--profile` its kernels.
- `precision`: how far the losses of each precision are from those of fp32.
- `resume`: the losses of a run that is killed and continued, beside a run that is not interrupted.

Every result is appended to the results as a line of JSON as soon as it is known, so an error in a
later measurement does not lose it. `--smoke` runs a part with tiny models on a CPU, in seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import gc
import importlib
import json
import os
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean, median
from time import perf_counter
from typing import Any, Protocol

import torch

from bench.lib.measure import ROOT, fresh_folder
from bench.lib.trainers import parse_settings, write_data
from bench.lib.training_options import find_nanogpt, run_bench
from bench.step_time import count_flops_per_token, measure_matrix_rate, run_until_training
from preprocess.errors import FolioError
from preprocess.shards.format import Build
from train.config import Config, load_config
from train.core.device import device_peak_flops
from train.core.distributed import World
from train.data.batches import Prefetcher
from train.run.captured_step import CapturedStep, can_capture_step
from train.run.context import open_run
from train.run.metrics import METRICS_FILE, open_rows
from train.run.state import new_state
from train.train import clip_and_update, forward_backward, optimizer_step

LIBRARIES = (
    "numpy", "click", "filelock", "gigatoken", "orjson", "platformdirs", "psutil", "pyarrow", "requests", "safetensors",
    "sentencepiece", "tiktoken", "tqdm", "xxhash", "pytest", "xdist", "pytest_timeout", "hypothesis", "triton",
)  # fmt: skip
GPT2_SIZES = ("--n_layer=12", "--n_head=12", "--n_embd=768")
TINY_SIZES = ("--n_layer=2", "--n_head=2", "--n_embd=64")
TINY_BATCH_SIZE, TINY_BLOCK_SIZE = 4, 32
SHAKESPEARE_SIZES = ("--n_layer=6", "--n_head=6", "--n_embd=384")
GPT2_CONFIGS = {"plain": "configs/plain_gpt2_124m.py", "modern": "configs/gpt2_124m.py"}
SHAKESPEARE_CONFIGS = {"plain": "configs/plain_shakespeare_char.py", "modern": "configs/shakespeare_char.py"}
NANOGPT, GRAPH = "nanogpt", "graph"  # in --trainers
LEARNING_RATE = 1e-4  # of nanoGPT's steps
WARM_UP_STEPS, CONSECUTIVE_STEPS, NUM_TURNS, PROFILED_STEPS, NUM_BATCHES = 4, 10, 3, 3, 20
NUM_PRINTED_KERNELS, NUM_STORED_KERNELS, MAX_KERNEL_NAME = 25, 50, 110
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
NUM_PRECISION_STEPS, NUM_SMOKE_PRECISION_STEPS = 50, 5
MAX_ERROR_CHARACTERS = 600
NOT_PRINTED = ("kernels", "calls", "losses")  # keys of a result


def write_result(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Append `result` to the results, and print it without its long lists."""
    row = {"part": arguments.label or arguments.part, **result}
    with open(arguments.results, "a") as file:
        file.write(json.dumps(row) + "\n")
    print({key: value for key, value in row.items() if key not in NOT_PRINTED}, flush=True)


def describe_error(error: Exception) -> str:
    """Print the traceback of the current exception, and return its message for the results."""
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# The environment


def report_environment(arguments: argparse.Namespace) -> None:
    missing = {}
    for library in LIBRARIES:
        try:
            importlib.import_module(library)
        except Exception as e:
            missing[library] = repr(e)
    row: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0], "cpus": os.cpu_count()}
    row |= {"missing": missing, "device": "cpu"}
    if torch.cuda.is_available():
        flops_per_s = measure_matrix_rate(torch.device("cuda"), "bf16")
        row |= {"device": torch.cuda.get_device_name(), "matrix_tflops": flops_per_s / 1e12}
    write_result(arguments, row)


# The trainers


def load_bench_config(arguments: argparse.Namespace, config_file: str, *settings: str) -> Config:
    """Return the config with the build and the batch of the command line, and tiny sizes for `--smoke`."""
    values = [f"--data={Path(arguments.build).absolute()}", "--out_dir=none", "--compile=false", *settings]
    if arguments.smoke:
        values += [*TINY_SIZES, "--device=cpu"]
    else:
        values.append("--device=cuda")
    return load_config(ROOT / config_file, parse_settings(values))


def batch_settings(arguments: argparse.Namespace) -> list[str]:
    sizes = [f"--batch_size={arguments.batch_size}", f"--block_size={arguments.block_size}"]
    return [*sizes, "--gradient_accumulation_steps=1"]


class Trainer(Protocol):
    """A training loop without logging, evaluation and checkpoints."""

    config: Config  # has the shape of the model and of a batch
    device: torch.device
    precision: str
    num_parameters: int
    vocab_size: int

    def step(self) -> torch.Tensor:
        """Run an optimizer step, and return its loss, (), without waiting for the device."""

    def read_batch(self) -> None:
        """Read a batch as a step does."""


class FolioTrainer:
    """Folio's training loop; with `with_graph` its step is a CUDA graph if it can be, as in train.py."""

    def __init__(self, config: Config, *, with_graph: bool) -> None:
        run = open_run(config, World())
        state = new_state(run.config, run.source.vocab_size, device=run.device)
        prefetcher = Prefetcher(
            run.data.train, windows_per_step=config.windows_per_step, micro_batch=config.batch_size, world=run.world
        )
        if config.compile:
            state.model.compile()
        self._run, self._state = run, state
        self.config, self.device, self.precision = run.config, run.device, run.config.precision
        self.num_parameters, self.vocab_size = state.model.num_parameters, run.source.vocab_size
        self._step = partial(optimizer_step, run, state, state.model, prefetcher)
        if with_graph and can_capture_step(run, state, prefetcher):
            self._step = CapturedStep(
                run,
                state,
                prefetcher,
                forward_backward=partial(forward_backward, run, state, state.model),
                clip_and_update=partial(clip_and_update, run, state),
            ).take

    def step(self) -> torch.Tensor:
        return self._step().loss

    def read_batch(self) -> None:
        self._run.data.train.batch(self._state.num_samples, self.config.batch_size)


class NanoGPTTrainer:
    """nanoGPT's training loop, with its model, optimizer and batches."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        """`folder` receives the build in nanoGPT's format."""
        nanogpt = find_nanogpt()
        if nanogpt is None:
            raise FolioError("NANOGPT_DIR is not set; set it to nanoGPT's checkout")
        build = Build(arguments.build)
        write_data(build, folder / "data")
        sizes = [*GPT2_SIZES, *batch_settings(arguments), "--dropout=0.0", f"--compile={arguments.compile}"]
        if arguments.smoke:
            sizes += [*TINY_SIZES, "--device=cpu", "--dtype=float32"]
        self._variables = run_until_training(nanogpt, folder / "data", sizes)
        self._batch = self._variables["get_batch"]("train")
        self.device = torch.device(self._variables["device"])
        self.precision = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[self._variables["dtype"]]
        self.num_parameters = sum(p.numel() for p in self._variables["raw_model"].parameters())
        self.vocab_size = build.vocab_size
        self.config = load_bench_config(
            arguments, GPT2_CONFIGS["plain"], *GPT2_SIZES, *batch_settings(arguments), "--dropout=0"
        )

    def step(self) -> torch.Tensor:
        variables = self._variables
        optimizer, scaler = variables["optimizer"], variables["scaler"]
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE
        with variables["ctx"]:
            _, loss = variables["model"](*self._batch)
        self.read_batch()  # while the device computes
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(variables["model"].parameters(), variables["grad_clip"])
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        detached: torch.Tensor = loss.detach()
        return detached

    def read_batch(self) -> None:
        self._batch = self._variables["get_batch"]("train")


def make_trainer(arguments: argparse.Namespace, name: str, folder: Path) -> Trainer:
    """Return the trainer that `name` names in `--trainers`."""
    recipe, _, variant = name.partition("+")
    if recipe == NANOGPT:
        return NanoGPTTrainer(arguments, folder)
    settings = [f"--compile={str(arguments.compile).lower()}"]
    if not arguments.config or arguments.smoke:
        settings += [*GPT2_SIZES, *batch_settings(arguments), "--dropout=0"]
    config = load_bench_config(arguments, arguments.config or GPT2_CONFIGS[recipe], *settings)
    return FolioTrainer(config, with_graph=variant == GRAPH)


# Steps


def measure_trainers(arguments: argparse.Namespace) -> None:
    for name in arguments.trainers.split(","):
        row: dict[str, Any] = {
            "trainer": name,
            "compiled": arguments.compile,
            "batch_size": arguments.batch_size,
            "block_size": arguments.block_size,
        }
        try:
            with tempfile.TemporaryDirectory() as folder:
                row |= measure_trainer(arguments, make_trainer(arguments, name, Path(folder)))
        except Exception as e:  # the other trainers are still measured
            row["error"] = describe_error(e)
        write_result(arguments, row)
        gc.collect()
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure_trainer(arguments: argparse.Namespace, trainer: Trainer) -> dict[str, Any]:
    """Return the rate, the memory and the losses of `trainer`, and with `--profile` its kernels."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begin = perf_counter()
    first_loss = trainer.step().item()
    first_step_s = perf_counter() - begin
    if arguments.warm_up_only:
        return {"first_step_s": first_step_s}
    for _ in range(WARM_UP_STEPS):
        trainer.step()
    synchronize()
    turns_s, host_s = [], []
    for _ in range(NUM_TURNS):
        begin = perf_counter()
        for _ in range(CONSECUTIVE_STEPS):
            step_begin = perf_counter()
            loss = trainer.step()
            host_s.append(perf_counter() - step_begin)
        last_loss = loss.item()  # waits, as a loop that logs every ten steps does
        turns_s.append((perf_counter() - begin) / CONSECUTIVE_STEPS)
    batches_s = []
    for _ in range(NUM_BATCHES):
        begin = perf_counter()
        trainer.read_batch()
        batches_s.append(perf_counter() - begin)
    step_s = median(turns_s)
    tokens_per_s = trainer.config.batch_size * trainer.config.block_size / step_s
    flops_per_s = tokens_per_s * count_flops_per_token(trainer.config, trainer.vocab_size)
    peak_flops_per_s = device_peak_flops(trainer.device, trainer.precision)
    row = {
        "parameters": trainer.num_parameters,
        "step_ms": step_s * 1e3,
        "turns_ms": [turn_s * 1e3 for turn_s in turns_s],
        "tokens_per_s": tokens_per_s,
        "mfu": None if peak_flops_per_s is None else flops_per_s / peak_flops_per_s,
        "host_ms_per_step": min(host_s) * 1e3,
        "host_ms_per_batch": median(batches_s) * 1e3,
        "first_step_s": first_step_s,
        "first_loss": first_loss,
        "last_loss": last_loss,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
    }
    return row | (profile_steps(trainer.step, step_s) if arguments.profile else {})


def profile_steps(step: Callable[[], Any], step_s: float) -> dict[str, Any]:
    """Return the kernels of a step by duration, the share of time in which the GPU is idle, and the calls that wait."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED_STEPS):
            step()
        synchronize()
    events = profile.key_averages()
    gpu_events = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]

    def total_ms(event: Any) -> float:
        us: float = event.self_device_time_total if gpu_events else event.self_cpu_time_total
        return us / PROFILED_STEPS / 1e3

    kernels = [  # name, milliseconds per step, calls per step
        (event.key[:MAX_KERNEL_NAME], round(total_ms(event), 3), event.count / PROFILED_STEPS)
        for event in sorted(gpu_events or events, key=total_ms, reverse=True)
    ]
    wait_calls = ("cudaStreamSync", "cudaDeviceSync", "cudaEventSync")
    busy_ms = sum(ms for _, ms, _ in kernels) if gpu_events else None
    print(f"{'ms per step':>11} {'calls':>7}  kernel")
    for name, ms, num_calls in kernels[:NUM_PRINTED_KERNELS]:
        print(f"{ms:11.3f} {num_calls:7.1f}  {name}")
    return {
        "gpu_busy_ms": busy_ms,
        "gpu_idle_share": None if busy_ms is None else max(1 - busy_ms / step_s / 1e3, 0.0),
        "copies_to_gpu_ms": sum(ms for name, ms, _ in kernels if "HtoD" in name),
        "kernels_per_step": sum(num_calls for *_, num_calls in kernels),
        "launches_per_step": sum(event.count for event in events if "LaunchKernel" in event.key) / PROFILED_STEPS,
        "calls": {event.key: event.count / PROFILED_STEPS for event in events if event.key.startswith(wait_calls)},
        "kernels": kernels[:NUM_STORED_KERNELS],
    }


# Precisions


def compare_precisions(arguments: argparse.Namespace) -> None:
    """Compare the losses of the first steps from one seed with those of fp32."""
    num_steps = NUM_SMOKE_PRECISION_STEPS if arguments.smoke else NUM_PRECISION_STEPS
    for recipe, config_file in SHAKESPEARE_CONFIGS.items():
        losses: dict[str, list[float]] = {}
        for precision in PRECISIONS[:1] if arguments.smoke else PRECISIONS:
            settings = [*SHAKESPEARE_SIZES, *batch_settings(arguments), "--dropout=0", f"--precision={precision}"]
            try:
                trainer = FolioTrainer(load_bench_config(arguments, config_file, *settings), with_graph=False)
                losses[precision] = torch.stack([trainer.step() for _ in range(num_steps)]).tolist()
            except Exception as e:  # the other precisions are still measured
                write_result(arguments, {"recipe": recipe, "precision": precision, "error": describe_error(e)})
        for precision, of_precision in losses.items():
            deviations = [abs(a - b) / b for a, b in zip(of_precision, losses[PRECISIONS[0]], strict=True)]
            row = {
                "recipe": recipe,
                "precision": precision,
                "first_loss": of_precision[0],
                "last_loss": of_precision[-1],
                "mean_deviation": mean(deviations),
                "max_deviation": max(deviations),
                "losses": of_precision,
            }
            write_result(arguments, row)


# Resuming


def compare_resumed_run(arguments: argparse.Namespace) -> None:
    """Compare the metrics of a run that is killed and continued with those of an uninterrupted run."""
    with fresh_folder(arguments.scratch) as scratch:
        num_steps, interval, kill_step = (20, 5, 7) if arguments.smoke else (200, 50, 130)
        settings = [
            f"--data={Path(arguments.build).absolute()}",
            f"--max_steps={num_steps}",
            f"--checkpoint_interval={interval}",
            f"--eval_interval={interval}",
            "--log_interval=1",
            "--completion_tokens=1",
            "--device=cuda",
        ]
        if arguments.smoke:  # more layers, or it would end before it is killed
            sizes = [f"--batch_size={TINY_BATCH_SIZE}", f"--block_size={TINY_BLOCK_SIZE}", "--n_layer=4"]
            settings += [*TINY_SIZES, *sizes, "--device=cpu"]
        command = [sys.executable, "train/train.py", SHAKESPEARE_CONFIGS["modern"], *settings]
        uninterrupted, resumed = scratch / "uninterrupted", scratch / "resumed"
        _check_exit_status(_start_run(command, uninterrupted), "the uninterrupted run")
        process = _start_run(command, resumed)
        while process.poll() is None and max((step for step, _ in _read_losses(resumed)), default=0) < kill_step:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = _read_losses(resumed)
        _check_exit_status(_start_run(command, resumed), "the continued run")
        losses, expected = _read_losses(resumed), _read_losses(uninterrupted)
    # The steps between the last checkpoint and the kill ran twice.
    repeated = {key: abs(losses[key] - before[key]) for key in before.keys() & losses.keys()}
    deviations = {key: abs(losses[key] - expected[key]) for key in expected.keys() & losses.keys()}
    row = {
        "killed_after": max(step for step, _ in before),
        "rows": len(expected),
        "rows_missing": len(expected.keys() - losses.keys()),
        "max_deviation_of_repeated_steps": max(repeated.values()),
        "rows_that_differ": sum(deviation > 0 for deviation in deviations.values()),
        "max_deviation": max(deviations.values()),
        "first_step_that_differs": min((step for (step, _), d in deviations.items() if d > 0), default=None),
        "last_val_loss": losses[num_steps, "val_loss"],
        "last_val_loss_uninterrupted": expected[num_steps, "val_loss"],
    }
    write_result(arguments, row)


def _start_run(command: Sequence[str], out_dir: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*command, f"--out_dir={out_dir}"], cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"})


def _check_exit_status(process: subprocess.Popen[bytes], name: str) -> None:
    """Wait for `process`. Raises FolioError if it failed."""
    if status := process.wait():
        raise FolioError(f"{name} failed with exit status {status}; read its message above")


def _read_losses(out_dir: Path) -> dict[tuple[int, str], float]:
    """Return the training and validation losses that a run has logged so far, by step and key."""
    rows = open_rows(out_dir / METRICS_FILE)
    return {(row.step, key): row.values[key] for row in rows for key in ("train_loss", "val_loss") if key in row.values}


PARTS = {
    "environment": report_environment,
    "steps": measure_trainers,
    "precision": compare_precisions,
    "resume": compare_resumed_run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("build", nargs="?", help="a build's folder; required by all parts except environment")
    parser.add_argument("--results", type=Path, required=True, help="the file to which results are appended")
    parser.add_argument("--label", help="the name of the part in the results (default: the part)")
    parser.add_argument(
        "--trainers",
        default="plain,modern,nanogpt",
        help="any of plain, plain+graph, modern, modern+graph, nanogpt (default: plain,modern,nanogpt)",
    )
    parser.add_argument("--config", help="use this config with its sizes instead of a model of 124M parameters")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--block-size", type=int, default=1024)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print and store the kernels of a step")
    parser.add_argument(
        "--warm-up-only", action="store_true", help="run one step, which leaves compiled code in the compiler's cache"
    )
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "folio-bench")
    parser.add_argument("--smoke", action="store_true", help="tiny models on a CPU")
    arguments = parser.parse_args()
    if arguments.part != "environment" and arguments.build is None:
        parser.error(f"{arguments.part} needs a build")
    if arguments.smoke:
        arguments.batch_size, arguments.block_size = TINY_BATCH_SIZE, TINY_BLOCK_SIZE
    PARTS[arguments.part](arguments)


if __name__ == "__main__":
    run_bench(main)
