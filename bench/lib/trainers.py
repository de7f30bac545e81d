"""Run Folio's trainer and nanoGPT's in processes of their own, and collect times, memory and weights.

Both are timed without evaluations and without saving: Folio from the token rates in its
metrics.jsonl, nanoGPT by the clock in baselines/nanogpt_train.py. Each run leaves snapshots of its
weights, which the benches evaluate afterwards.
"""

from __future__ import annotations

import itertools
import json
import pickle
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from bench.baselines.nanogpt_train import RESULT_FILE
from bench.lib.measure import ROOT
from bench.lib.trainer_process import run_trainer
from bench.lib.training_options import Options
from preprocess.errors import FolioError
from preprocess.shards.format import Build
from train.config import Config, load_config
from train.model import make_model
from train.model.base import LanguageModel
from train.run.checkpoint import find_newest_checkpoint, load_model, open_checkpoint, step_folder
from train.run.metrics import METRICS_FILE, open_rows

NANOGPT = "nanoGPT"
NEVER = 10**6  # an interval of more steps than any run has
GPT2_VOCAB_SIZE, PADDED_GPT2_VOCAB_SIZE = 50_257, 50_304
MAX_PROBE_DIFFERENCE = 1e-3  # nats
# The model that nanoGPT's README trains on a laptop, in settings of both trainers, and nanoGPT's config.
SMALL = ("--n_layer=4", "--n_head=4", "--n_embd=128", "--block_size=64", "--batch_size=12", "--dropout=0.0")
NANOGPT_CPU = ("config/train_shakespeare_char.py", "--device=cpu", "--compile=False")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The weights of a run after a step, and the seconds of training until then."""

    step: int
    elapsed_s: float
    weights: Path


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A finished run of one of the trainers."""

    name: str
    seed: int
    config: Config  # has the shape of the model
    start_up_s: float  # from the start of the process to the first step, without compilation
    compiled_before_s: float  # compilation before the first step
    snapshots: list[Snapshot]
    is_compiled: bool
    tokens_per_step: int
    num_parameters: int  # without the rows that pad the vocabulary
    peak_memory_bytes: int | None  # from the first step on: tensors on a GPU, else the process; None if not known
    probe_loss: float | None = None  # nanoGPT's only, by its model
    cpu_s: float | None = None  # of training; Folio's includes saving

    @property
    def step_s(self) -> float:
        """Seconds per step: the median over the intervals between snapshots.

        The interval before the first snapshot, which may include compilation, counts only if there is
        no other.
        """
        first = self.snapshots[0].elapsed_s / self.snapshots[0].step
        intervals = [(b.elapsed_s - a.elapsed_s) / (b.step - a.step) for a, b in itertools.pairwise(self.snapshots)]
        return statistics.median(intervals or [first])

    @property
    def compiled_in_steps_s(self) -> float:
        """Seconds by which the first interval took longer than later ones; 0 if nothing is compiled."""
        first = self.snapshots[0]
        return max(first.elapsed_s - self.step_s * first.step, 0.0) if self.is_compiled else 0.0

    @property
    def compilation_s(self) -> float:
        return self.compiled_before_s + self.compiled_in_steps_s


def run_all(
    folio_recipes: Mapping[str, Sequence[str]],
    nanogpt_arguments: Sequence[str],
    options: Options,
    scratch: Path,
    *,
    num_turns: int,
    intervals: Mapping[str, int],
) -> dict[str, list[TrainingRun]]:
    """Run every recipe of Folio, and nanoGPT if there is a checkout, in turn with the seeds 1, 2, …

    `intervals`: steps between the snapshots of each.
    """
    names = [*folio_recipes, *([NANOGPT] if options.nanogpt else [])]
    runs: dict[str, list[TrainingRun]] = {name: [] for name in names}
    for turn in range(num_turns):
        for name in rotate(names, turn):
            start = (
                partial(run_folio, name, folio_recipes[name])
                if name in folio_recipes
                else partial(run_nanogpt, options.nanogpt or Path(), nanogpt_arguments)
            )
            folder = scratch / f"{names.index(name)}-{turn}"
            run = start(build=options.build, folder=folder, seed=turn + 1, interval=intervals[name])
            runs[name].append(run)
            last = run.snapshots[-1]
            line = f"  {name}, seed {turn + 1}: {last.elapsed_s:.1f} s for {last.step:,} steps"
            print(line, file=sys.stderr, flush=True)
    return runs


def rotate(names: Sequence[str], turn: int) -> list[str]:
    """Return `names` beginning with another one in each turn, so that no trainer always runs after the same one."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def run_folio(
    name: str, arguments: Sequence[str], *, build: Build, folder: Path, seed: int, interval: int
) -> TrainingRun:
    """Run train.py with `arguments`, a config file and settings, and a snapshot every `interval` steps."""
    config_file, *settings = arguments
    settings += [
        f"--data={build.folder.absolute()}",
        f"--out_dir={folder}",
        f"--seed={seed}",
        f"--log_interval={interval}",
        f"--checkpoint_interval={interval}",
        f"--eval_interval={NEVER}",
        "--eval_tokens=8192",
        "--completion_tokens=1",
    ]
    config = load_config(ROOT / config_file, parse_settings(settings))
    settings.append(f"--keep_checkpoints={config.max_steps // interval + 1}")
    process = run_trainer([sys.executable, "train/train.py", config_file, *settings], folder.with_suffix(".log"))
    if process.start_up_s is None:
        raise FolioError(
            "train.py did not print the line that precedes its first step; update START_LINE in trainer_process.py"
        )
    tokens_per_step = config.windows_per_step * config.block_size
    snapshots, elapsed_s, last_step, peak_bytes = [], 0.0, 0, None
    for row in open_rows(folder / METRICS_FILE):
        if "tokens_per_s" in row.values:
            elapsed_s += (row.step - last_step) * tokens_per_step / row.values["tokens_per_s"]
            last_step, peak_bytes = row.step, row.values["peak_memory_bytes"]
            snapshots.append(Snapshot(step=last_step, elapsed_s=elapsed_s, weights=step_folder(folder, last_step)))
    checkpoint = find_newest_checkpoint(folder, warn=print)
    assert checkpoint is not None
    return TrainingRun(
        name=name,
        seed=seed,
        config=config,
        start_up_s=process.start_up_s - process.compilation_s,
        compiled_before_s=process.compilation_s,
        snapshots=snapshots,
        is_compiled=config.compile,
        tokens_per_step=tokens_per_step,
        num_parameters=make_model(config, checkpoint.info.vocab_size).num_parameters,
        peak_memory_bytes=peak_bytes if checkpoint.info.config.device.startswith("cuda") else process.peak_bytes,
        cpu_s=process.cpu_s,
    )


def parse_settings(arguments: Sequence[str]) -> dict[str, str]:
    """Return the `--key=value` arguments as a dict."""
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


def run_nanogpt(
    nanogpt: Path, arguments: Sequence[str], *, build: Build, folder: Path, seed: int, interval: int
) -> TrainingRun:
    """Run nanoGPT's train.py with `arguments`, a config file and settings, and a snapshot every `interval` steps."""
    settings = [*arguments, f"--eval_interval={interval}", "--eval_iters=1", f"--log_interval={interval}"]
    write_data(build, folder / "data")
    command = [sys.executable, "bench/baselines/nanogpt_train.py", str(nanogpt), str(folder), "--seed", str(seed)]
    run_trainer([*command, *settings], folder.with_suffix(".log"))
    result: dict[str, Any] = json.loads((folder / RESULT_FILE).read_bytes())
    model_args = result["model_args"]
    sizes = {key: model_args[key] for key in ("n_layer", "n_head", "n_embd", "block_size", "dropout")}
    num_padding = (model_args["vocab_size"] - build.vocab_size) * sizes["n_embd"]
    return TrainingRun(
        name=NANOGPT,
        seed=seed,
        config=Config(data=str(build.folder), out_dir=str(folder), arch="gpt2", **sizes),
        snapshots=[
            Snapshot(**snapshot, weights=folder / f"{snapshot['step']}.safetensors") for snapshot in result["snapshots"]
        ],
        num_parameters=result["num_parameters"] - num_padding,
        start_up_s=result["start_up_s"],
        compiled_before_s=result["compiled_before_s"],
        is_compiled=result["is_compiled"],
        tokens_per_step=result["tokens_per_step"],
        peak_memory_bytes=result["peak_memory_bytes"],
        probe_loss=result["probe_loss"],
        cpu_s=result["cpu_s"],
    )


def write_data(build: Build, folder: Path) -> None:
    """Write the tokens of `build` in nanoGPT's format, and the size of its vocabulary."""
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        with open(folder / f"{split}.bin", "wb") as file:
            for shard in build.shards(split):
                shard.tokens.astype(np.uint16).tofile(file)
    # Without the file nanoGPT uses the padded size of GPT-2's vocabulary, which is faster.
    if not GPT2_VOCAB_SIZE <= build.vocab_size <= PADDED_GPT2_VOCAB_SIZE:
        (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": build.vocab_size}))


def load_snapshot(run: TrainingRun, snapshot: Snapshot, vocab_size: int) -> LanguageModel:
    """Return the model with the weights of `snapshot`.

    nanoGPT's weights are loaded into Folio's GPT2; the biases that nanoGPT leaves out are 0.
    """
    model = make_model(run.config, vocab_size)
    if run.name != NANOGPT:
        load_model(open_checkpoint(snapshot.weights), model)
        return model
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(snapshot.weights).items()}
    for name, parameter in model.named_parameters():
        parameter.data.zero_()
        if name in tensors:
            parameter.data[: len(tensors[name])] = tensors[name]
    return model


def check_probe_loss(run: TrainingRun, loss: float) -> None:
    """Raise FolioError unless `loss`, of the converted model on the probe, equals that of nanoGPT's model."""
    if run.probe_loss is not None and abs(loss - run.probe_loss) > MAX_PROBE_DIFFERENCE:
        raise FolioError(
            f"nanoGPT's model has a loss of {run.probe_loss:.5f} on the probe, but {loss:.5f} after conversion to "
            "Folio's GPT2; check load_snapshot"
        )
