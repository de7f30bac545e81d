"""What the benches of training share: both trainers in processes of their own, on a clock that leaves out evaluation_mode and saving."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import pickle
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from bench.baselines.nanogpt_train import RESULT
from bench.lib.measure import (
    ROOT,
    TAIL_CHARACTERS,
    TRAINING_LIBRARIES,
    absolute,
    add_scratch,
    describe_machine,
    forget_peak,
    peak_bytes,
    versions,
)
from preprocess.errors import FolioError
from preprocess.shards.format import Build
from train.config import Config, load_config
from train.model import make_model
from train.model.base import LanguageModel
from train.run.checkpoint import find_newest_checkpoint, load_model, open_checkpoint, step_folder
from train.run.metrics import METRICS_FILE, read_rows

NANOGPT = "nanoGPT"
BEGINS = re.compile(r" tokens a step, on ")  # the last line before the first step
COMPILED = re.compile(r"^preflight: compiled in ([\d.]+) s")
MORE_THAN_A_RUN_HAS = 10**6
IDS_OF_16_BITS = 1 << 16
GPT2_IDS, PADDED_GPT2_IDS = 50_257, 50_304
NANOGPT_FILES = ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py")
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
    `num_parameters`: without the rows that pad a vocabulary. `peak_memory_bytes`, from the first step on: on a GPU of the tensors, else of
    the process, where the system tells.
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
    peak_memory_bytes: int | None
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
    """One that has ended well. `began_s`: from its start until it said BEGINS; what it said of COMPILED; its memory from there on."""

    began_s: float | None
    compiled_s: float
    peak_bytes: int | None


def run_bench(main: Callable[[], None]) -> None:
    """`main`; a signal, a full disk or bad input ends it in a line, after what it had under way was ended and what it made deleted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; what was made is deleted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (FolioError, OSError) as e:
        sys.exit(f"error: {e}")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What both benches of training are told. `nanogpt`: its checkout, None where only ours run."""

    own: argparse.Namespace  # with `preset` among the bench's own
    build: Build
    nanogpt: Path | None
    scratch: Path


def parse(
    description: str | None,
    presets: dict[str, Any],
    add: Callable[[argparse.ArgumentParser], None],
    require: Callable[[argparse.Namespace, Path | None], None],
) -> Options:
    """What the command line says, all of it looked at before anything runs. `add` adds a bench's own options, `require` looks at them.

    Ends the process with status 2 where it asks for what cannot be.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", help="a folder, or the name of a build")
    parser.add_argument("--preset", choices=sorted(presets), default="shakespeare-cpu")
    add(parser)
    add_scratch(parser)
    own = parser.parse_args()
    try:
        build, nanogpt = Build(own.build), nanogpt_checkout()
        if build.vocab_size > IDS_OF_16_BITS:
            raise FolioError(
                f"{own.build} has {build.vocab_size:,} ids, nanoGPT reads 16 bits; take a build of up to {IDS_OF_16_BITS:,} ids"
            )
        arguments = [a for recipe in presets[own.preset].folio.values() for a in recipe]
        if "--device=cuda" in arguments and not torch.cuda.is_available():
            raise FolioError(f"--preset {own.preset} wants a CUDA GPU, which torch does not find; take one for the CPU")
        own.scratch.mkdir(parents=True, exist_ok=True)
        require(own, nanogpt)
    except (FolioError, OSError) as e:
        parser.error(str(e))
    return Options(own=own, build=build, nanogpt=nanogpt, scratch=own.scratch)


def print_place(preset: str, nanogpt: Path | None) -> None:
    """Machine, date and versions; nanoGPT's by its files, as a checkout need not know its commit."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(
        f"{describe_machine()}, {gpu}\n{versions(TRAINING_LIBRARIES)}, {torch.get_num_threads()} threads; preset {preset}"
    )
    if nanogpt:
        names = [
            *NANOGPT_FILES[:-1],
            *sorted(str(file.relative_to(nanogpt)) for file in (nanogpt / "config").glob("*.py")),
        ]
        digest = hashlib.sha256(b"".join((nanogpt / name).read_bytes() for name in names)).hexdigest()
        print(f"nanoGPT: sha256 {digest[:12]} of {', '.join(NANOGPT_FILES[:-1])} and config/*.py, one after the other")
    print(flush=True)


def in_rotation(names: Sequence[str], turn: int) -> list[str]:
    """Another one first in each turn: what a run leaves a machine in meets each of the others."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def run_folio(name: str, arguments: Sequence[str], *, build: Build, folder: Path, seed: int, interval: int) -> Trained:
    """`arguments`: a config file and settings. Marks every `interval` steps."""
    settings = [
        f"--data={build.folder.absolute()}",
        f"--out_dir={folder}",
        f"--seed={seed}",
        f"--log_interval={interval}",
        f"--checkpoint_interval={interval}",
    ]
    settings = [
        *arguments[1:],
        *settings,
        f"--eval_interval={MORE_THAN_A_RUN_HAS}",
        "--eval_tokens=8192",
        "--completion_tokens=1",
    ]
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
    checkpoint = find_newest_checkpoint(folder, warn=print)
    assert checkpoint is not None
    model = make_model(config, checkpoint.vocab_size)
    return Trained(
        name=name, seed=seed, config=config, start_s=process.began_s - process.compiled_s, compiled_before_s=process.compiled_s,
        marks=marks, is_compiled=config.compile, tokens_per_step=tokens_per_step, num_parameters=model.num_parameters,
        peak_memory_bytes=peak or process.peak_bytes,
    )  # fmt: skip


def nanogpt_checkout() -> Path | None:
    """The folder that NANOGPT_DIR names; None where it names nothing. Raises FolioError where it is no checkout."""
    folder = os.environ.get("NANOGPT_DIR")
    if not folder:
        return None
    missing = [name for name in NANOGPT_FILES if not (Path(folder) / name).is_file()]
    if missing:
        raise FolioError(
            f"NANOGPT_DIR is {folder}, which holds no {missing[0]}; wanted a checkout of nanoGPT, or unset it"
        )
    return absolute(folder)


def write_data(build: Build, folder: Path) -> None:
    """The build's tokens as nanoGPT reads them, and the size of its vocabulary."""
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        with open(folder / f"{split}.bin", "wb") as file:
            for shard in build.shards(split):
                shard.tokens.astype(np.uint16).tofile(file)
    if not GPT2_IDS <= build.vocab_size <= PADDED_GPT2_IDS:  # else it takes the latter by itself, which is faster
        (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": build.vocab_size}))


def settings_of(arguments: Sequence[str]) -> dict[str, str]:
    """`--key=value` of a command line, by key."""
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


def run_nanogpt(
    nanogpt: Path, arguments: Sequence[str], *, build: Build, folder: Path, seed: int, interval: int
) -> Trained:
    """`arguments`: a config file and settings of nanoGPT's train.py. Marks every `interval` steps."""
    settings = [*arguments, f"--eval_interval={interval}", "--eval_iters=1", f"--log_interval={interval}"]
    write_data(build, folder / "data")
    command = [sys.executable, "bench/baselines/nanogpt_train.py", str(nanogpt), str(folder), "--seed", str(seed)]
    _run([*command, *settings], folder.with_suffix(".log"))
    result: dict[str, Any] = json.loads((folder / RESULT).read_bytes())
    sizes = {key: result["model_args"][key] for key in ("n_layer", "n_head", "n_embd", "block_size", "dropout")}
    padding = (result["model_args"]["vocab_size"] - build.vocab_size) * sizes["n_embd"]
    return Trained(
        name=NANOGPT, seed=seed, config=Config(data=str(build.folder), out_dir=str(folder), arch="gpt2", **sizes),
        marks=[Mark(**mark, weights=folder / f"{mark['step']}.safetensors") for mark in result["marks"]],
        num_parameters=result["num_parameters"] - padding,
        **{key: result[key] for key in ("start_s", "compiled_before_s", "tokens_per_step", "peak_memory_bytes")},
        **{key: result[key] for key in ("probe_loss", "is_compiled")},
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


def check_same_loss(trained: Trained, loss: float) -> None:
    """Raise FolioError unless `loss`, of our model on the probe, is nanoGPT's own."""
    if trained.probe_loss is not None and abs(loss - trained.probe_loss) > 1e-3:
        raise FolioError(
            f"nanoGPT's model has a loss of {trained.probe_loss:.5f} on the probe, its weights in ours {loss:.5f}"
        )


def run_all(
    folio: dict[str, Sequence[str]],
    nanogpt: Sequence[str],
    options: Options,
    scratch: Path,
    *,
    turns: int,
    intervals: dict[str, int],
) -> dict[str, list[Trained]]:
    """Every recipe of ours, and nanoGPT where it is there, `turns` times in turn, with the seeds 1, 2, …; `intervals`: between marks."""
    runs: dict[str, list[Trained]] = {name: [] for name in [*folio, *([NANOGPT] if options.nanogpt else [])]}
    for turn in range(turns):
        for name in in_rotation(list(runs), turn):
            run = (
                partial(run_folio, name, folio[name])
                if name in folio
                else partial(run_nanogpt, options.nanogpt or Path(), nanogpt)
            )
            folder = scratch / f"{list(runs).index(name)}-{turn}"
            trained = run(build=options.build, folder=folder, seed=turn + 1, interval=intervals[name])
            runs[name].append(trained)
            last = trained.marks[-1]
            print(
                f"  {name}, seed {turn + 1}: {last.elapsed_s:.1f} s for {last.step:,} steps",
                file=sys.stderr,
                flush=True,
            )
    return runs


def _run(command: list[str], log: Path) -> _Process:
    """Runs `command` in the repository's root; raises FolioError where it fails, and leaves nothing running where it is broken off."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    began, began_s, compiled_s, peak = perf_counter(), None, 0.0, None
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(log, "w") as file,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if began_s is None and BEGINS.search(line):
                    began_s = perf_counter() - began
                    forget_peak(process.pid)
                elif began_s is not None:
                    peak = peak_bytes(process.pid) or peak
                if said := COMPILED.match(line):
                    compiled_s = float(said[1])
                file.write(line)
        except BaseException:
            process.kill()  # what it would still save is deleted anyway
            raise
    if process.returncode:
        raise FolioError(f"exit status {process.returncode} of {' '.join(command)}\n{_last_words(log)}")
    return _Process(began_s=began_s, compiled_s=compiled_s, peak_bytes=peak)


def _last_words(log: Path) -> str:
    """The error that a trainer ended with, or else the log's end."""
    text = log.read_text(errors="replace")
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    return errors[-1] if errors else text[-TAIL_CHARACTERS:]
