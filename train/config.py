"""Every setting of a run: type, default, range and documentation; and how a config is loaded.

The value of a setting is its default below, unless a config file (or its `base`) assigns another,
and `--key=value` on the command line overrides both. A misspelled name is an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.errors import MisuseError, shorten
from preprocess.shards.files import JsonObject
from train.core.config_file import BASE, read_assignments
from train.core.paths import expand_home
from train.core.settings import (
    NONE,
    Need,
    check,
    check_effects,
    check_known,
    check_range,
    convert,
    convert_text,
    effective_values,
    format_value,
    setting,
    suggest,
)
from train.model import ARCHITECTURES

FSDP = "fsdp"  # the value of `parallel` with which the processes divide the model
# Name of a setting in earlier versions of Folio → its name now. Config files and checkpoints with
# the earlier names can still be read.
RENAMED = {
    "sampling": "data_order",
    "sample_interval": "completion_interval",
    "sample_tokens": "completion_tokens",
    "sample_prompt": "completion_prompt",
    "sample_author": "completion_author",
    "sample_city": "completion_city",
    "sample_year": "completion_year",
}
CHOICES = {
    "arch": tuple(ARCHITECTURES),
    "data_order": ("random", "epochs", "documents"),
    "optimizer": ("adamw", "muon"),
    "schedule": ("cosine", "linear", "wsd"),
    "precision": ("auto", "fp32", "tf32", "bf16", "fp16"),
    "parallel": ("ddp", FSDP),
}
MAX_MINUTES = 525_600  # a year
MAX_STEPS = 10**12
# With `minutes`, the values of these settings until they are planned. Any others are valid with them.
BEFORE_PLAN = {"n_head": 1, "block_size": 1, "max_steps": MAX_STEPS}
DOCUMENTS = "documents"  # the data_order of packed rows
TRACKERS = ("tensorboard", "mlflow", "wandb")
SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?s")  # of `log_interval`
STREAM_PREFIX = "stream:"  # of `data`: what follows is a recipe instead of a build
# Conditions under which some settings have an effect.
URL_MARK = "://"  # of `data`: a build at a URL
URL = Need("data", lambda data: URL_MARK in data, "a build at a URL")
STREAM = Need("data", lambda data: STREAM_PREFIX in data, "stream:RECIPE")  # a stream in a mixture is rejected later
MODERN = Need("arch", lambda arch: arch == "modern", "modern")
MUON = Need("optimizer", lambda optimizer: optimizer == "muon", "muon")
WSD = Need("schedule", lambda schedule: schedule == "wsd", "wsd")
RANDOM_DRAW = Need("temperature", lambda temperature: temperature > 0, "above 0")
TIME = Need("minutes", lambda minutes: minutes is not None, "a number of minutes")
NEW_WEIGHTS = Need("resume", lambda resume: resume in ("auto", "never"), "auto or never")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run.

    The documentation of a setting that can be None says what None means, unless that is plain, as
    for `completion_author`. Raises MisuseError for a value that is out of range or does not fit the
    other settings.
    """

    # Free, because the build_id is compared instead when a run continues.
    data: str = setting(
        doc="the build to train on, by name, path or URL; several by weight: one:0.7,other:0.3; or stream:RECIPE",
        free=True,
    )
    out_dir: str = setting(doc="the run directory [runs/<name of the config file>]", free=True)
    init_from: str | None = setting(
        None,
        "weights to start with: a run, a checkpoint, a Hugging Face folder of GPT-2 or NanoChat, or such a model of "
        "the hub as hf:OWNER/NAME[@REVISION]; none: random weights",
        needs=NEW_WEIGHTS,
    )
    device: str = setting(
        "auto", "auto, cpu, mps, cuda or cuda:N; auto is the first available of cuda, mps and cpu", free=True
    )
    num_threads: int | None = setting(
        None,
        "threads on a CPU; none: chosen by a measurement at the start, and kept when the run continues",
        min=1,
        max=1_024,
        free=True,
    )
    seed: int = setting(1337, "determines the initial weights, the dropout and the data order", min=0)

    arch: str = setting(
        "gpt2",
        "gpt2, or modern: rotary positions, RMS norm of activations, queries and keys, ReLU², zero-initialized "
        "projections, an untied head with capped logits",
    )
    token_shift: bool = setting(
        False,
        "add the previous token's embedding, times learned weights, to each embedding; learns characters faster, but "
        "to load the exported model, transformers needs trust_remote_code=True",
        needs=MODERN,
    )
    n_layer: int = setting(12, "transformer blocks", min=1, max=1_000)
    n_head: int = setting(12, "attention heads per block", min=1, max=10_000)
    n_embd: int = setting(768, "width; a multiple of n_head", min=1, max=1 << 16)
    block_size: int = setting(1024, "context length in tokens", min=1, max=1 << 24)
    dropout: float = setting(0.0, "fraction of activations dropped in training", min=0)
    mask_documents: bool = setting(False, "restrict attention to the token's own document")

    data_order: str = setting(
        "random",
        "random: windows from anywhere; epochs: every window once per epoch, in another order each time; documents: "
        "every document once per epoch, whole documents packed into rows of block_size tokens",
    )
    stream_buffer: int = setting(
        10_000, "windows that a stream shuffles together; 0: no shuffling", min=0, max=1 << 24, needs=STREAM
    )
    stream_shards: bool = setting(
        False,
        "begin while the build at a URL is still being copied; its tokens are checked when a file is whole",
        free=True,
        needs=URL,
    )
    # These two are free, because their product is compared instead when a run continues.
    batch_size: int = setting(12, "windows per forward pass", min=1, max=1 << 24, free=True)
    gradient_accumulation_steps: int = setting(
        1, "forward passes per optimizer step, of all processes together", min=1, max=1 << 24, free=True
    )
    gradient_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, a third more time", free=True
    )

    max_steps: int = setting(5_000, "optimizer steps of the whole run", min=1, max=MAX_STEPS)
    minutes: float | None = setting(
        None,
        "time of the whole run, from which sizes, dropout, learning rates, intervals and max_steps are chosen, except "
        "those that the command line or the config file itself sets; none: all are set",
        min=0,
        max=MAX_MINUTES,
    )
    max_params: int | None = setting(None, "maximum number of parameters of the model", min=1, needs=TIME)
    num_epochs: float | None = setting(
        None, "passes over the training data, from which max_steps is computed; none: max_steps counts", min=0
    )
    optimizer: str = setting("adamw", "adamw, or muon: Muon for the matrices of the blocks, AdamW for the rest")
    learning_rate: float = setting(6e-4, "maximum learning rate of AdamW, reached after warmup_steps", min=0)
    embedding_learning_rate: float | None = setting(
        None, "maximum for the token embedding, which is also the head of gpt2; none: learning_rate", min=0
    )
    muon_learning_rate: float = setting(0.02, "maximum learning rate of Muon; scheduled as AdamW's", min=0, needs=MUON)
    base_width: int | None = setting(
        None,
        "the n_embd for which the learning rates were tuned; at another one they are scaled; none: no scaling",
        min=1,
        max=1 << 16,
    )
    min_lr: float = setting(6e-5, "final learning rate of AdamW, reached at max_steps", min=0)
    schedule: str = setting(
        "cosine",
        "decay from the maximum to the final learning rate: cosine, linear, or wsd: constant until decay_steps before "
        "the end, then linear",
    )
    warmup_steps: int = setting(100, "steps of linear warmup", min=0)
    decay_steps: int | None = setting(
        None, "steps of decay with the schedule wsd; none: a fifth of max_steps", min=1, needs=WSD
    )
    weight_decay: float = setting(0.1, "weight decay of matrices and embeddings; biases and norms have none", min=0)
    beta1: float = setting(0.9, "AdamW's decay rate of the gradient average", min=0)
    beta2: float = setting(0.95, "AdamW's decay rate of the squared gradient average", min=0)
    muon_momentum: float = setting(0.95, "Muon's momentum", min=0, needs=MUON)
    grad_clip: float | None = setting(1.0, "maximum gradient norm; none: no clipping", min=0)

    precision: str = setting(
        "auto",
        "auto, fp32, tf32, bf16 or fp16; auto is bf16 on cuda if the GPU supports it, else fp16; on a CPU, bf16 if a "
        "measurement at the start shows that it is clearly faster, else fp32; on other devices, fp32",
        free=True,
    )
    compile: bool = setting(
        False,
        "compile the model with torch.compile: about a minute of start-up, then faster steps",
        free=True,
    )

    parallel: str = setting(
        "ddp",
        "what each process of torchrun holds. ddp: the whole model; fsdp: a part of all weights, gradients and "
        "optimizer state, which it also saves as its part of a checkpoint",
        free=True,
    )

    log_interval: int | str = setting(
        10, "steps between logged training losses, or the minimum time between them, in seconds, such as 10s", min=1
    )
    eval_interval: int = setting(250, "steps between evaluations", min=1)
    eval_tokens: int | None = setting(None, "validation tokens per evaluation; none: the whole split", min=1)
    patience: int | None = setting(
        None,
        "stop after this many evaluations without an improvement beyond noise; none: no early stopping",
        min=1,
        free=True,
    )
    checkpoint_interval: int = setting(250, "steps between checkpoints", min=1, free=True)
    keep_checkpoints: int = setting(3, "how many of the last checkpoints to keep, beside the best", min=1, free=True)
    completion_interval: int | None = setting(
        None, "steps between completions of the prompt; none: one at the end", min=1, free=True
    )
    completion_tokens: int = setting(200, "maximum number of tokens per completion", min=1, max=1_000_000, free=True)
    completion_prompt: str = setting("", "text that a completion continues", free=True)
    completion_author: str | None = setting(None, "author token before the prompt", free=True)
    completion_city: str | None = setting(None, "city token before the prompt", free=True)
    completion_year: int | None = setting(None, "year token before the prompt", min=0, free=True)
    temperature: float = setting(0.8, "temperature of sampling; 0 takes the most likely token", min=0, free=True)
    top_k: int | None = setting(
        200, "sample from this many most likely tokens; none: from all", min=1, free=True, needs=RANDOM_DRAW
    )
    top_p: float | None = setting(
        None,
        "sample from the fewest most likely tokens that together have this probability; none: from all",
        min=0,
        free=True,
        needs=RANDOM_DRAW,
    )
    track: tuple[str, ...] = setting(
        (),
        "trackers that receive the metrics: any of tensorboard, mlflow, wandb, as a list or separated by commas",
        free=True,
    )
    resume: str = setting(
        "auto",
        "auto: continue the run in out_dir; never: start in an empty one; or a run or checkpoint to start from",
        free=True,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_range(field.name, getattr(self, field.name), min=field.metadata["min"], max=field.metadata["max"])
        for key, choices in CHOICES.items():
            value = getattr(self, key)
            check(value in choices, f"{key} must be one of {', '.join(choices)}, got {value!r:.80}")
        for key in (
            "learning_rate",
            "embedding_learning_rate",
            "muon_learning_rate",
            "grad_clip",
            "top_p",
            "num_epochs",
            "minutes",
        ):
            check(getattr(self, key) != 0, f"{key} must be > 0, got 0; set --{key}=…")
        for key in ("dropout", "beta1", "beta2", "muon_momentum"):
            value = getattr(self, key)
            check(value < 1, f"{key} must be at least 0 and less than 1, got {value}")
        self._check_names()
        self._check_model()
        self._check_steps()

    def _check_names(self) -> None:
        check(self.data != "", "data is empty; name a build (`preprocess list` shows them)")
        check(self.out_dir != "", "out_dir is empty; name a folder")
        check(
            self.init_from != "", "init_from is empty; name a run, a checkpoint or a Hugging Face folder, or set none"
        )
        check(self.resume != "", "resume is empty; set auto, never, or name a run or checkpoint")
        for name in self.track:
            check(name not in NONE, f"track contains {name}, which switches all off; write it alone, or remove it")
            known = f"{suggest(name, TRACKERS)}expected any of {', '.join(TRACKERS)}"
            check(name in TRACKERS, f"track contains {name!r:.80}; {known}")
        is_unique = len({*self.track}) == len(self.track)
        check(is_unique, f"track is {', '.join(self.track):.80}, which names a tracker twice; name each once")

    def _check_model(self) -> None:
        is_divisible = self.n_embd % self.n_head == 0
        check(is_divisible, f"n_embd must be a multiple of n_head {self.n_head}, got {self.n_embd}; change one of them")
        check(
            self.data_order != DOCUMENTS or self.mask_documents,
            "mask_documents must be True if data_order is documents, so that the documents of a row do not attend to "
            "each other; set --mask_documents=True",
        )
        check(self.top_p is None or self.top_p <= 1, f"top_p must be > 0 and at most 1, got {self.top_p}")
        check(
            self.eval_tokens is None or self.eval_tokens >= self.block_size,
            f"eval_tokens must be at least block_size {self.block_size}, got {self.eval_tokens}; raise it, or set none",
        )

    def _check_steps(self) -> None:
        check(
            not isinstance(self.log_interval, str) or bool(SECONDS.fullmatch(self.log_interval)),
            f"log_interval must be a whole number of steps, or seconds such as 10s, got {self.log_interval!r:.80}",
        )
        check(
            self.min_lr <= self.learning_rate,
            f"min_lr must be at most learning_rate {self.learning_rate}, got {self.min_lr}; lower it",
        )
        if self.num_epochs is not None:  # max_steps is not known yet
            return
        check(
            self.warmup_steps <= self.max_steps,
            f"warmup_steps must be at most max_steps {self.max_steps:,}, got {self.warmup_steps:,}; lower it",
        )
        check(
            (self.decay_steps or 0) + self.warmup_steps <= self.max_steps,
            f"warmup_steps + decay_steps must be at most max_steps {self.max_steps:,}, got {self.warmup_steps:,} + "
            f"{self.decay_steps}; lower them",
        )

    @property
    def log_interval_s(self) -> float | None:
        """The minimum number of seconds between logged steps; None if log_interval counts steps."""
        return float(self.log_interval.removesuffix("s")) if isinstance(self.log_interval, str) else None

    @property
    def windows_per_step(self) -> int:
        """Windows per optimizer step, of all processes and forward passes together."""
        return self.batch_size * self.gradient_accumulation_steps

    def as_dict(self) -> JsonObject:
        """Return all settings as a JSON object."""
        return dataclasses.asdict(self) | {"track": list(self.track)}

    def describe_changes(self) -> list[str]:
        """Return a line `key  value`, aligned, for each setting that differs from its default."""
        fields = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        width = max(len(field.name) for field in fields)
        return [f"{field.name:<{width}}  {format_value(getattr(self, field.name))}" for field in fields]


def load_config(path: Path, overrides: Mapping[str, str]) -> Config:
    """Return the settings of the config file `path`, with `overrides` from the command line.

    `overrides` has values as text, by the current names of the settings. Raises MisuseError if the
    file cannot be read or contains anything but assignments of settings, for a bad value, and for a
    setting that differs from its default but has no effect.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, assignment in read_assignments(path, rename=current_name).items():
        check_known(Config, key, assignment.where, others=[BASE])
        values[key], sources[key] = convert(Config, key, assignment.value, where=assignment.where), assignment.where
    values |= {key: convert_text(Config, key, text) for key, text in overrides.items()}
    sources |= dict.fromkeys(overrides, "the command line")
    _choose_length(values, [*(key for key in values if key not in overrides), *overrides])
    values.setdefault("out_dir", f"runs/{path.stem}")
    if "data" not in values:
        raise MisuseError(f"{path} does not set data; name a build in it, data = 'NAME', or add --data=NAME")
    if values.get("minutes") is not None:
        given = list_given(path, overrides)
        values |= {key: value for key, value in BEFORE_PLAN.items() if key not in given}
    with _name_source(sources):
        config = Config(**values)
        check_effects(config)
        return _expand_paths(config)


def list_given(path: Path, overrides: Mapping[str, str]) -> set[str]:
    """Return the settings that `minutes` must not change: those of the command line and of `path` itself.

    The settings of its bases are replaced by a plan.
    """
    assignments = read_assignments(path, rename=current_name)
    return set(overrides) | {key for key, assignment in assignments.items() if assignment.path == path}


def _choose_length(values: dict[str, Any], order: Sequence[str]) -> None:
    """Remove max_steps or num_epochs from `values` if both are there: the one that was assigned last counts.

    `order`: the keys of `values` in the order of their assignments.
    """
    if values.get("num_epochs") is not None and "max_steps" in values:
        is_first = order.index("max_steps") < order.index("num_epochs")
        del values["max_steps" if is_first else "num_epochs"]


@contextmanager
def _name_source(sources: Mapping[str, str]) -> Iterator[None]:
    """Put in front of the message of a MisuseError in the block where its setting was assigned.

    `sources`: name of a setting → where it was assigned. The setting is the first word of the
    message.
    """
    try:
        yield
    except MisuseError as e:
        key = re.split(r"\W", str(e), maxsplit=1)[0]
        if key in sources:
            raise MisuseError(f"{sources[key]}: {e}") from e
        raise


def _expand_paths(config: Config) -> Config:
    """Return `config` with home directories in place of `~` and `~USER` in its paths.

    Raises MisuseError for a value that cannot be a path.
    """
    paths: dict[str, Any] = {"out_dir": str(Path(expand_home(config.out_dir, "out_dir")))}
    if config.init_from is not None:
        paths["init_from"] = expand_home(config.init_from, "init_from")
    if config.resume not in ("auto", "never"):
        paths["resume"] = expand_home(config.resume, "resume")
    return dataclasses.replace(config, **paths, data=expand_data(config.data, "data"))


def expand_data(data: str, name: str) -> str:
    """Return the setting `data` with `~` and `~USER` replaced by home directories.

    `name` is the option or the setting, for messages. Raises MisuseError for a value that cannot be
    a path.
    """
    prefix = STREAM_PREFIX if data.startswith(STREAM_PREFIX) else ""
    parts = data.removeprefix(prefix).split(",")
    return prefix + ",".join(expand_home(part, name) if part else part for part in parts)


def config_from_saved(settings: Any, where: str) -> Config:
    """Return the Config of `settings`, which should be what `as_dict` returned.

    `settings` is parsed JSON from a file, and `where` is that file, for messages. Raises
    MisuseError if it is not the settings of a run, or for a bad value.
    """
    if not isinstance(settings, dict):
        raise MisuseError(f"{where} has no settings; it was not written by Folio")
    for key in ("data", "out_dir"):
        if key not in settings:
            raise MisuseError(f"{where} does not set {key}; it was not written by this Folio")
    renamed = {current_name(key): value for key, value in settings.items()}
    renamed.setdefault("token_shift", renamed.get("arch") == "modern")  # before there was this setting
    values = {key: convert(Config, key, value, where=where) for key, value in renamed.items()}
    try:
        return Config(**values)
    except MisuseError as e:  # it names the setting; say where it was read
        raise MisuseError(f"{where}: {e}") from e


def changed_settings(old: Config, new: Config) -> list[str]:
    """Return `key old → new` for each setting that differs, except the free ones.

    A run can be continued with other values of the free settings. Settings that have no effect are
    not compared. batch_size × gradient_accumulation_steps is compared as if it were a setting. Both
    configs have the rates of their width (`scale_rates`), so base_width matters only if the rates
    differ: runs of earlier versions do not have it.
    """
    before, after = effective_values(old), effective_values(new)
    if all(before[key] == after[key] for key in ("learning_rate", "embedding_learning_rate", "min_lr")):
        before["base_width"] = after["base_width"]
    fixed = [field.name for field in dataclasses.fields(Config) if not field.metadata["free"]]
    changes = [
        f"{key} {shorten(format_value(before[key]))} → {shorten(format_value(after[key]))}"
        for key in fixed
        if before[key] != after[key]
    ]
    if old.windows_per_step != new.windows_per_step:
        changes.append(f"batch_size × gradient_accumulation_steps {old.windows_per_step:,} → {new.windows_per_step:,}")
    return changes


def current_name(key: str) -> str:
    """Return the current name of the setting that an earlier version called `key`, else `key`."""
    return RENAMED.get(key, key)
