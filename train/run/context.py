"""The dataclass `Run`: what all parts of training use and training does not change."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from preprocess.console import Console
from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import canonical_json, sha256_bytes
from preprocess.shards.replaced import MAX_READS, ReplacedError
from train.config import FSDP, Config
from train.core.cli import warn
from train.core.device import choose_device, choose_precision, make_autocast, set_matmul_precision
from train.core.distributed import World
from train.core.memory import keep_freed_memory
from train.data.batches import Data
from train.data.streams import DataSource, StreamedText, open_data_source, open_data_splits
from train.model.sampler import control_tokens, encode_text, load_text_tokenizer
from train.optim import correct_rates, scale_rates
from train.run.choose_threads import set_initial_threads
from train.run.logger import RunInfo
from train.trackers.check import check_trackers

PER_PROCESS_SETTINGS = ("data", "out_dir", "device")  # may differ between processes on several machines


@dataclass
class TimeLimit:
    """When a run must end, and how often its number of steps was corrected for that."""

    deadline: float  # on the clock of time.monotonic()
    num_corrections: int = 0


@dataclass(kw_only=True)
class Run:
    """Configuration, data, device, processes and precision of a run."""

    # With `device`, `precision` and `num_epochs` resolved, and the learning rates of its width. time_limit.py
    # may replace it during the run.
    config: Config
    source: DataSource  # the builds or the stream that config.data names
    data: Data  # training samples and validation windows of `source`
    device: torch.device
    world: World
    autocast: torch.autocast  # the context of forward passes
    notes: tuple[str, ...] = ()  # lines to print below the settings
    # Whether the preflight may replace fp32 by bf16: on a CPU with precision = auto, in one process, without `compile`,
    # unless a run continues.
    can_choose_precision: bool = False
    console: Console = field(default_factory=lambda: Console(quiet=True))  # quiet except in the main process
    time_limit: TimeLimit | None = None  # None if the number of steps is fixed

    @property
    def out_dir(self) -> Path:
        return Path(self.config.out_dir)

    @property
    def is_sharded(self) -> bool:
        """Whether the model is divided among the processes."""
        return self.config.parallel == FSDP and self.world.size > 1

    @property
    def has_validation(self) -> bool:
        """Whether there are windows to evaluate. A build with val_fraction 0 has none."""
        return self.data.val.num_windows > 0

    @property
    def info(self) -> RunInfo:
        return RunInfo(config=self.config, build_id=self.source.build_id, build_name=self.source.name)


def open_run(config: Config, world: World, *, quiet: bool = False, time_limit: TimeLimit | None = None) -> Run:
    """Choose device and precision, and open the data, without writing a file.

    With `quiet`, the run prints warnings only. Raises MisuseError if settings do not fit the device,
    the data or the other processes, and FolioError if the data is damaged or too short.
    """
    is_precision_free = config.precision == "auto" and not config.compile and world.size == 1
    config, device = prepare_device(config, world)
    notes = _check_parallel(config, world)
    config, corrections = correct_rates(config)
    for line in corrections if world.is_main else []:
        warn(line)
    config, scaled_rates = scale_rates(config)
    console = Console(quiet=quiet or not world.is_main)
    with console.activity("opening the data"):
        source, data = _open_data(config, device=device, world=world)
    config = _resolve_epochs(config, source, data)
    run = Run(
        config=config,
        source=source,
        data=data,
        device=device,
        world=world,
        autocast=make_autocast(config.precision, device),
        notes=(*scaled_rates, *notes),
        can_choose_precision=is_precision_free and device.type == "cpu",
        console=console,
        time_limit=time_limit,
    )
    _check_same_in_all_processes(run)
    if config.patience is not None and not run.has_validation:
        raise MisuseError(
            f"patience is {config.patience}, but {source.name} has no validation documents, so training cannot stop "
            "early; set patience to none, or build with --val-fraction above 0"
        )
    world.run_on_main(lambda: check_trackers(config.track))
    world.run_on_main(lambda: _check_prompt(source, config))
    return run


def _check_parallel(config: Config, world: World) -> list[str]:
    """Return a line that says what the setting `parallel` changes besides, if anything.

    Raises MisuseError for a setting that is not possible with it.
    """
    if config.parallel != FSDP:
        return []
    if world.size == 1:
        return ["parallel is fsdp, but there is one process: it holds the whole model, and saves it as one part"]
    if config.precision == "fp16":
        raise MisuseError(
            "precision is fp16, which parallel = fsdp does not support; set precision to bf16, tf32 or fp32, or "
            "--parallel=ddp"
        )
    return ["with parallel = fsdp no process has the whole model, so no completions are written; use folio sample"]


def prepare_device(config: Config, world: World) -> tuple[Config, torch.device]:
    """Choose device and precision and set torch up for them. Return `config` with them, and the device.

    Raises MisuseError if they are not available.
    """
    device = choose_device(config.device, local_rank=world.local_rank, num_local=world.num_local)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type == "cpu":
        keep_freed_memory()
        set_initial_threads(config)
    precision = choose_precision(config.precision, device)
    set_matmul_precision(precision)
    return dataclasses.replace(config, device=str(device), precision=precision), device


def _resolve_epochs(config: Config, source: DataSource, data: Data) -> Config:
    """Return `config` with max_steps in place of num_epochs.

    If the last step would be incomplete, the first samples of the next epoch complete it. Raises
    MisuseError if `source` has no epochs, or if the other settings do not fit max_steps.
    """
    if config.num_epochs is None:
        return config
    if data.train.windows_per_epoch is None:
        kind = "stream" if isinstance(source, StreamedText) else "mixture of builds"
        raise MisuseError(
            f"num_epochs is {config.num_epochs:g}, but a {kind} has no epochs; set max_steps, or train on one build"
        )
    num_steps = math.ceil(config.num_epochs * data.train.windows_per_epoch / config.windows_per_step)
    return dataclasses.replace(config, max_steps=num_steps, num_epochs=None)


def _check_prompt(source: DataSource, config: Config) -> None:
    """Raise MisuseError if completion_prompt cannot be encoded, which may else be noticed hours later.

    If the tokenizer cannot be loaded, only warn, because training does not need it.
    """
    if not config.completion_prompt:
        return
    if isinstance(source, StreamedText):
        tokenizer = source.tokenizer
    else:
        try:
            tokenizer = load_text_tokenizer(source.vocabulary.folder, source.manifest)
        except FolioError as e:
            warn(f"there will be no completions: {e}")
            return
    encode_text(tokenizer, config.completion_prompt, "completion_prompt")


def _open_data(config: Config, *, device: torch.device, world: World) -> tuple[DataSource, Data]:
    """Open the data. If a build is replaced between opening and mapping its files, try again."""

    def open_once() -> tuple[DataSource, Data]:
        source = open_data_source(config.data, world=world, stream_shards=config.stream_shards)
        control_tokens(source.manifest, config)  # raises if a completion's author is not in the build
        return source, open_data_splits(source, config, device=device, world=world)

    for _ in range(MAX_READS - 1):
        with contextlib.suppress(ReplacedError):
            return open_once()
    return open_once()


def _check_same_in_all_processes(run: Run) -> None:
    """Raise MisuseError if the processes have different settings, builds or versions of torch."""
    settings = {key: value for key, value in run.config.as_dict().items() if key not in PER_PROCESS_SETTINGS}
    fingerprint = sha256_bytes(canonical_json([settings, run.source.build_id, torch.__version__]))
    if not run.world.all_equal(int(fingerprint[:12], 16)):
        raise MisuseError(
            f"process {run.world.rank} has other settings, another build or another torch than the others; "
            f"start all with the same (here build_id {run.source.build_id[:12]}, torch {torch.__version__})"
        )
