"""What the benches of training share: both trainers in processes of their own, on a clock that leaves out evaluating and saving."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from measure import ROOT, TAIL_CHARACTERS, TRAINING_LIBRARIES, absolute, add_scratch, describe_machine, versions
from peer_nanogpt_train import RESULT

sys.path.insert(0, str(ROOT / "train"))
from safetensors.torch import load_file

from checkpoint import load_model, newest, open_checkpoint, step_folder
from config import Config, load_config
from language_model import LanguageModel
from model import make_model
from preprocess.errors import FolioError
from tracking import METRICS_FILE, read_rows

NANOGPT = "nanoGPT"
BEGINS = re.compile(r" tokens a step, on ")  # the last line before the first step
COMPILED = re.compile(r"^preflight: compiled in ([\d.]+) s")
MORE_THAN_A_RUN_HAS = 10**6
# nanoGPT's README: what a laptop trains, in settings of both trainers, and its config.
SMALL = ("--n_layer=4", "--n_head=4", "--n_embd=128", "--block_size=64", "--batch_size=12", "--dropout=0.0")
NANOGPT_CPU = ("config/train_shakespeare_char.py", "--device=cpu", "--compile=False")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a run stood: seconds of training since its first step, and the weights it had then."""

    step: int
    elapsed_s: float
    weights: Path


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run that has ended; `config` has the shape of its model.

    `start_s`: from the start of its process to the first step, without `compiled_before_s`, what it compiled for in that time.
    `peak_memory_bytes`: on a GPU of the tensors at once, else of the process.
    """

    name: str
    seed: int
    config: Config
    start_s: float
    compiled_before_s: float
    marks: list[Mark]
    is_compiled: bool
    tokens_per_step: int
    num_parameters: int
    peak_memory_bytes: int
    probe_loss: float | None = None  # of nanoGPT, by its own model

    @property
    def step_s(self) -> float:
        """Of a step: the median over the stretches between marks. The first, with the compilation, counts only where it is alone."""
        first = self.marks[0].elapsed_s / self.marks[0].step
        stretches = [(b.elapsed_s - a.elapsed_s) / (b.step - a.step) for a, b in itertools.pairwise(self.marks)]
        return statistics.median(stretches or [first])

    @property
    def compiled_in_steps_s(self) -> float:
        """What the first stretch took longer than a later one; of what is not compiled, nothing."""
        return 0.0 if not self.is_compiled else max(self.marks[0].elapsed_s - self.step_s * self.marks[0].step, 0.0)

    @property
    def compilation_s(self) -> float:
        return self.compiled_before_s + self.compiled_in_steps_s


@dataclass(frozen=True, kw_only=True)
class _Process:
    """One that has ended well. `began_s`: from its start until it said BEGINS; what it said of COMPILED; its largest resident set."""

    began_s: float | None
    compiled_s: float
    peak_bytes: int


def parse(description: str | None, preset_names: Sequence[str], add: Callable[[argparse.ArgumentParser], None]) -> argparse.Namespace:
    """The arguments of both benches of training; `add` adds a bench's own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=absolute)
    parser.add_argument("--preset", choices=sorted(preset_names), default="shakespeare-cpu")
    add(parser)
    add_scratch(parser)
    return parser.parse_args()


def print_place(preset: str, nanogpt: Path | None) -> None:
    """Machine, date and versions; nanoGPT's by the sha256 of its files, as a checkout need not know its commit."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{describe_machine()}, {gpu}\n{versions(TRAINING_LIBRARIES)}, {torch.get_num_threads()} threads; preset {preset}")
    files = [nanogpt / name for name in ("train.py", "model.py")] if nanogpt else []
    if files:
        print("nanoGPT: " + ", ".join(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}" for file in files))
    print(flush=True)


def in_rotation(names: Sequence[str], turn: int) -> list[str]:
    """Another one first in each turn: what a run leaves a machine in meets each of the others."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def run_folio(name: str, arguments: Sequence[str], *, build: Path, folder: Path, seed: int, interval: int) -> Trained:
    """`arguments`: a config file and settings. Marks every `interval` steps."""
    settings = [
        f"--data={build}",
        f"--out_dir={folder}",
        f"--seed={seed}",
        f"--log_interval={interval}",
        f"--checkpoint_interval={interval}",
    ]
    settings = [*arguments[1:], *settings, f"--eval_interval={MORE_THAN_A_RUN_HAS}", "--eval_tokens=8192", "--sample_tokens=1"]
    config = load_config(ROOT / arguments[0], settings_of(settings))
    keep = f"--keep_checkpoints={config.max_steps // interval + 1}"
    process = _run([sys.executable, "train/train.py", arguments[0], *settings, keep], folder.with_suffix(".log"))
    if process.began_s is None:
        raise FolioError("train.py never said that it begins; trainers.BEGINS must match its line")
    tokens_per_step = config.windows_per_step * config.block_size
    marks, elapsed_s, last_step, peak = [], 0.0, 0, None
    for row in read_rows(folder / METRICS_FILE):
        if "tokens_per_s" in row:
            elapsed_s += (row["step"] - last_step) * tokens_per_step / row["tokens_per_s"]
            last_step, peak = row["step"], row["peak_memory_bytes"]
            marks.append(Mark(step=last_step, elapsed_s=elapsed_s, weights=step_folder(folder, last_step)))
    checkpoint = newest(folder, warn=print)
    assert checkpoint is not None
    model = make_model(config, checkpoint.vocab_size)
    return Trained(
        name=name, seed=seed, config=config, start_s=process.began_s - process.compiled_s, compiled_before_s=process.compiled_s,
        marks=marks, is_compiled=config.compile, tokens_per_step=tokens_per_step, num_parameters=model.num_parameters,
        peak_memory_bytes=peak or process.peak_bytes,
    )  # fmt: skip


def nanogpt_checkout() -> Path | None:
    """The folder that NANOGPT_DIR names; None where it names nothing. Ends the process where train.py is not in it."""
    folder = os.environ.get("NANOGPT_DIR")
    if folder and not (Path(folder) / "train.py").is_file():
        sys.exit(f"error: NANOGPT_DIR is {folder}, which holds no train.py; wanted a checkout of nanoGPT, or unset it")
    return absolute(folder) if folder else None


def settings_of(arguments: Sequence[str]) -> dict[str, str]:
    """`--key=value` of a command line, by key."""
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


def run_nanogpt(nanogpt: Path, arguments: Sequence[str], *, build: Path, folder: Path, seed: int, interval: int) -> Trained:
    """`arguments`: a config file and settings of nanoGPT's train.py. Marks every `interval` steps."""
    settings = [*arguments, f"--eval_interval={interval}", "--eval_iters=1", f"--log_interval={interval}"]
    command = [sys.executable, "bench/peer_nanogpt_train.py", str(nanogpt), str(build), "--output", str(folder), "--seed", str(seed)]
    process = _run([*command, *settings], folder.with_suffix(".log"))
    result: dict[str, Any] = json.loads((folder / RESULT).read_bytes())
    sizes = {key: result["model_args"][key] for key in ("n_layer", "n_head", "n_embd", "block_size", "dropout")}
    return Trained(
        name=NANOGPT, seed=seed, config=Config(data=str(build), out_dir=str(folder), arch="gpt2", **sizes), start_s=result["start_s"],
        compiled_before_s=0.0, peak_memory_bytes=result["peak_memory_bytes"] or process.peak_bytes,
        marks=[Mark(**mark, weights=folder / f"{mark['step']}.safetensors") for mark in result["marks"]],
        **{key: result[key] for key in ("tokens_per_step", "num_parameters", "probe_loss", "is_compiled")},
    )  # fmt: skip


def load(trained: Trained, mark: Mark, vocab_size: int) -> LanguageModel:
    """The model as it was at `mark`; nanoGPT's as our GPT-2, with zeros for the biases it leaves out."""
    model = make_model(trained.config, vocab_size)
    if trained.name != NANOGPT:
        load_model(open_checkpoint(mark.weights), model)
        return model
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in load_file(mark.weights).items()}
    for name, parameter in model.named_parameters():
        parameter.data.zero_()
        if name in theirs:
            parameter.data[: len(theirs[name])] = theirs[name]
    return model


def require_same_loss(trained: Trained, loss: float) -> None:
    """Raise FolioError unless `loss`, of our model on the probe, is nanoGPT's own."""
    if trained.probe_loss is not None and abs(loss - trained.probe_loss) > 1e-3:
        raise FolioError(f"nanoGPT's model has a loss of {trained.probe_loss:.5f} on the probe, its weights in ours {loss:.5f}")


def _run(command: list[str], log: Path) -> _Process:
    """Runs `command` in the repository's root; exits with the log's end where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    began, began_s, compiled_s = perf_counter(), None, 0.0
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(log, "w") as file,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if began_s is None and BEGINS.search(line):
                began_s = perf_counter() - began
            if said := COMPILED.match(line):
                compiled_s = float(said[1])
            file.write(line)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"exit status {process.returncode}: {' '.join(command)}\n{log.read_text(errors='replace')[-TAIL_CHARACTERS:]}")
    return _Process(began_s=began_s, compiled_s=compiled_s, peak_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
