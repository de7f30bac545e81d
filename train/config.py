"""The settings of a run: typed, documented, and read from assignments that are parsed, never executed."""

from __future__ import annotations

import dataclasses
import difflib
import shutil
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.errors import MisuseError, printable
from train.core.config_file import LARGEST_NUMBER, read_assignments

USAGE = "python train/train.py CONFIG.py [--key=value ...] [--restart]"
# Names that earlier versions gave to settings. Config files and checkpoints that use them are still read.
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
    "arch": ("gpt2", "modern"),
    "data_order": ("random", "epochs"),
    "optimizer": ("adamw", "muon"),
    "schedule": ("cosine", "linear", "wsd"),
    "precision": ("auto", "fp32", "tf32", "bf16", "fp16"),
}
TRACKERS = ("tensorboard", "mlflow", "wandb")
HELP_INDENT = 31
NONE, TRUE, FALSE = ("none", "None"), ("true", "True", "1"), ("false", "False", "0")


def setting(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    *,
    least: float | None = None,
    most: float = LARGEST_NUMBER,
    free: bool = False,
) -> Any:
    """A field of Config. `least`, `most`: the values allowed. `free`: a run may be continued with another value."""
    return dataclasses.field(default=default, metadata={"doc": doc, "least": least, "most": most, "free": free})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a run. `None` means off. Raises MisuseError for a value out of its range."""

    # Not compared between restarts: what it names has a build_id, which is.
    data: str = setting(
        doc="the build to train on: its name, or its folder if it holds a '/'; several by weight: one:0.7,other:0.3; or stream:RECIPE",
        free=True,
    )
    out_dir: str = setting(doc="where the run is kept; by default runs/<name of the config file>", free=True)
    init_from: str | None = setting(
        None, "weights to begin with: a run, a checkpoint, or a Hugging Face gpt2 folder; none: new ones"
    )
    device: str = setting(
        "auto", "auto, cpu, mps, cuda or cuda:N; auto takes the first there is of cuda, mps, cpu", free=True
    )
    seed: int = setting(1337, "decides the first weights, the dropout and the order of the data", least=0)

    arch: str = setting(
        "gpt2",
        "gpt2, or modern: rotary positions, RMS and QK norm, ReLU², zero-initialised projections, untied capped head",
    )
    n_layer: int = setting(12, "transformer blocks", least=1, most=1_000)
    n_head: int = setting(12, "attention heads of a block", least=1, most=10_000)
    n_embd: int = setting(768, "width; a multiple of n_head", least=1)
    block_size: int = setting(1024, "tokens a window, the longest context", least=1, most=1 << 24)
    dropout: float = setting(0.0, "share of activations dropped in training", least=0)
    mask_documents: bool = setting(False, "no token attends to another document's")

    data_order: str = setting(
        "random", "random: windows anywhere; epochs: every window once, in another order and place each epoch"
    )
    stream_buffer: int = setting(
        10_000, "windows that a stream shuffles together; 0: as they come", least=0, most=1 << 24
    )
    batch_size: int = setting(
        12, "windows a forward pass", least=1, free=True
    )  # its product with the next is compared instead
    gradient_accumulation_steps: int = setting(
        1, "forward passes an optimizer step, of all processes together", least=1, free=True
    )
    gradient_checkpointing: bool = setting(
        False, "compute activations twice instead of keeping them: less memory, a third more time", free=True
    )

    max_steps: int = setting(5_000, "optimizer steps of the whole run", least=1)
    optimizer: str = setting("adamw", "adamw, or muon: Muon for the blocks' matrices, AdamW for the rest")
    learning_rate: float = setting(6e-4, "AdamW's highest, reached after warmup_steps", least=0)
    embedding_learning_rate: float | None = setting(
        None, "AdamW's highest for the token embedding, which is also gpt2's head; none: learning_rate", least=0
    )
    muon_learning_rate: float = setting(0.02, "Muon's highest; it rises and falls as AdamW's does", least=0)
    min_lr: float = setting(6e-5, "AdamW's last, reached at max_steps", least=0)
    schedule: str = setting(
        "cosine",
        "from the highest to the last: cosine; linear; or wsd: highest until decay_steps before the end, then linear",
    )
    warmup_steps: int = setting(100, "steps of linear warmup", least=0)
    decay_steps: int | None = setting(None, "of the schedule wsd; none: a fifth of max_steps", least=1)
    weight_decay: float = setting(0.1, "of matrices and embeddings; biases and norms have none", least=0)
    beta1: float = setting(0.9, "AdamW's memory of the gradient", least=0)
    beta2: float = setting(0.95, "AdamW's memory of its square", least=0)
    muon_momentum: float = setting(0.95, "Muon's memory of the gradient", least=0)
    grad_clip: float | None = setting(1.0, "the largest gradient norm; none leaves gradients as they are", least=0)

    precision: str = setting(
        "auto",
        "auto, fp32, tf32, bf16 or fp16; auto is fp32 but on cuda, and there bf16 if it can, else fp16",
        free=True,
    )
    compile: bool = setting(False, "torch.compile: faster steps for a minute at the start", free=True)

    log_interval: int = setting(10, "steps between rows of training loss", least=1)
    eval_interval: int = setting(250, "steps between evaluations", least=1)
    eval_tokens: int | None = setting(None, "validation tokens an evaluation reads; none: the whole split", least=1)
    patience: int | None = setting(
        None, "stop after this many evaluations without an improvement beyond noise; none: never", least=1, free=True
    )
    checkpoint_interval: int = setting(250, "steps between checkpoints", least=1, free=True)
    keep_checkpoints: int = setting(
        3, "how many of the last checkpoints stay on the disk, beside the best", least=1, free=True
    )
    completion_interval: int | None = setting(
        None, "steps between samples of text; none: one at the end", least=1, free=True
    )
    completion_tokens: int = setting(200, "tokens a sample", least=1, free=True)
    completion_prompt: str = setting("", "text that a sample continues", free=True)
    completion_author: str | None = setting(
        None, "author of a sample, as the build's control tokens name them", free=True
    )
    completion_city: str | None = setting(None, "city of a sample", free=True)
    completion_year: int | None = setting(None, "year of a sample", least=0, free=True)
    temperature: float = setting(0.8, "of sampling: 0 always takes the likeliest token", least=0, free=True)
    top_k: int | None = setting(
        200, "sampling chooses among this many likeliest tokens; none: among all", least=1, free=True
    )
    top_p: float | None = setting(
        None,
        "sampling chooses among the likeliest tokens that together have this probability; none: all",
        least=0,
        free=True,
    )
    track: tuple[str, ...] = setting(
        (),
        "where metrics go beside metrics.jsonl: any of tensorboard, mlflow, wandb, as a list or separated by commas",
        free=True,
    )
    resume: str = setting(
        "auto",
        "auto: the run in out_dir; never: begin in an empty one; or a run or checkpoint to begin from",
        free=True,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_range(
                field.name, getattr(self, field.name), least=field.metadata["least"], most=field.metadata["most"]
            )
        for key, choices in CHOICES.items():
            _demand(
                getattr(self, key) in choices, f"{key} is {getattr(self, key)!r}, wanted one of {', '.join(choices)}"
            )
        for name in self.track:
            _demand(name not in NONE, f"track holds {name}, which switches all off; write it alone, or leave it out")
            _demand(name in TRACKERS, f"track holds {name!r:.80}; {_nearest_tracker(name)}")
        _demand(
            len({*self.track}) == len(self.track),
            f"track is {', '.join(self.track):.80}, in which one stands twice; name each once",
        )
        for key in ("learning_rate", "embedding_learning_rate", "muon_learning_rate", "grad_clip", "top_p"):
            _demand(getattr(self, key) != 0, f"{key} is 0, wanted more")
        for key in ("dropout", "beta1", "beta2", "muon_momentum"):
            _demand(getattr(self, key) < 1, f"{key} is {getattr(self, key)}, wanted at least 0 and less than 1")
        _demand(self.data != "", "data is empty, wanted the name of a build; `preprocess list` shows what is there")
        _demand(self.out_dir != "", "out_dir is empty, wanted a folder")
        _demand(
            self.init_from != "", "init_from is empty, wanted a run, a checkpoint or a Hugging Face folder, or none"
        )
        _demand(self.resume != "", "resume is empty, wanted auto, never, or a run or checkpoint")
        _demand(
            self.resume in ("auto", "never") or self.init_from is None,
            f"resume={self.resume} brings weights of its own, so that init_from={self.init_from} would do nothing; leave one of them out",
        )
        _demand(
            self.n_embd % self.n_head == 0,
            f"n_embd {self.n_embd} is no multiple of n_head {self.n_head}; change one of them",
        )
        _demand(
            self.arch == "gpt2" or self.n_embd // self.n_head % 2 == 0,
            f"n_embd / n_head is {self.n_embd // self.n_head}, the modern architecture wants an even number; change one of them",
        )
        _demand(self.top_p is None or self.top_p <= 1, f"top_p is {self.top_p}, wanted more than 0 and at most 1")
        _demand(
            self.min_lr <= self.learning_rate,
            f"min_lr {self.min_lr} is above learning_rate {self.learning_rate}; lower it",
        )
        _demand(
            self.warmup_steps <= self.max_steps,
            f"warmup_steps {self.warmup_steps:,} is more than max_steps {self.max_steps:,}; lower it",
        )
        _demand(
            self.decay_steps is None or self.schedule == "wsd",
            f"decay_steps is {self.decay_steps}, schedule {self.schedule}: only wsd has such steps; set decay_steps none, or schedule wsd",
        )
        _demand(
            (self.decay_steps or 0) + self.warmup_steps <= self.max_steps,
            f"warmup_steps {self.warmup_steps:,} and decay_steps {self.decay_steps} are more than max_steps {self.max_steps:,}; lower them",
        )
        _demand(
            self.eval_tokens is None or self.eval_tokens >= self.block_size,
            f"eval_tokens {self.eval_tokens} holds no window of block_size {self.block_size}; raise it, or set none",
        )

    @property
    def windows_per_step(self) -> int:
        """Of all processes and forward passes together."""
        return self.batch_size * self.gradient_accumulation_steps

    def as_dict(self) -> dict[str, Any]:
        """Every setting by name, as JSON holds it."""
        return dataclasses.asdict(self) | {"track": list(self.track)}

    def lines(self) -> list[str]:
        """`key  value` for each setting, aligned."""
        settings = self.as_dict()
        width = max(map(len, settings))
        return [f"{key:<{width}}  {_format(value)}" for key, value in settings.items()]


def _format(value: Any) -> str:
    if value is None or value in ([], ()):
        return "none"
    if isinstance(value, list):
        return ", ".join(value)
    return repr(value) if value == "" or not str(value).isprintable() else str(value)


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise MisuseError(message)


def _nearest_tracker(name: str) -> str:
    close = difflib.get_close_matches(name, TRACKERS, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"wanted any of {', '.join(TRACKERS)}"


def _check_range(key: str, value: Any, *, least: float | None, most: float) -> None:
    if isinstance(value, str):
        _demand(
            printable(value) == value and _is_utf8(value),
            f"{key} is {value!r:.80}, wanted text without control characters that is UTF-8",
        )
    if least is None or value is None:
        return
    # Compared as it is: a whole number of 400 digits is no float.
    _demand(
        abs(value) <= most,
        f"{key} is {str(value)[:40]}, wanted a number up to {most:{'.0e' if most == LARGEST_NUMBER else ',d'}}",
    )
    _demand(value >= least, f"{key} is {value}, wanted {least} or more")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a command line asks for."""

    config_path: Path | None
    overrides: dict[str, str]
    restart: bool
    help: bool


def parse_command_line(arguments: Sequence[str]) -> Command:
    """One config file, `--key=value` any number of times, `--restart`, `--help`. Raises MisuseError for anything else."""
    paths = [a for a in arguments if not a.startswith("-")]
    overrides: dict[str, str] = {}
    for argument in (a for a in arguments if a.startswith("-") and a not in ("--restart", "--help", "-h")):
        key, equals, value = argument.removeprefix("--").partition("=")
        if key in ("restart", "help"):
            raise MisuseError(f"cannot read {argument!r}, wanted --{key} alone; usage: {USAGE}")
        if not argument.startswith("--") or not equals:
            raise MisuseError(f"cannot read {argument!r}, wanted --key=value such as --max_steps=100; usage: {USAGE}")
        key = current_name(key)
        _check_known(key, "the command line")
        overrides[key] = value
    wants_help = "--help" in arguments or "-h" in arguments
    if len(paths) != 1 and not wants_help:
        raise MisuseError(f"got {len(paths)} config files ({' '.join(paths) or 'none'}), wanted one; usage: {USAGE}")
    return Command(
        config_path=Path(paths[0]) if paths else None,
        overrides=overrides,
        restart="--restart" in arguments,
        help=wants_help,
    )


def load_config(path: Path, overrides: Mapping[str, str]) -> Config:
    """The settings of a config file with `overrides`, text as typed on a command line, in their place.

    Raises MisuseError for a file that cannot be read, anything in it but assignments, an unknown key or a bad value.
    """
    values = {
        current_name(key): coerce(current_name(key), value, where=f"{path}, line {line}")
        for key, (value, line) in read_assignments(path).items()
    }
    values |= {key: coerce_text(key, text) for key, text in overrides.items()}
    values["out_dir"] = str(Path(values.get("out_dir", f"runs/{path.stem}")).expanduser())
    if "data" not in values:
        raise MisuseError(f"{path} does not set data; name a build in it, data = 'NAME', or add --data=NAME")
    return Config(**values)


def config_from_saved(settings: Any, where: str) -> Config:
    """The Config that `as_dict` gave, from parsed JSON of unknown origin. Raises MisuseError."""
    if not isinstance(settings, dict):
        raise MisuseError(f"{where} has no settings; it was not written by Folio")
    for key in ("data", "out_dir"):
        if key not in settings:
            raise MisuseError(f"{where} does not set {key}; it was not written by this Folio")
    renamed = {current_name(key): value for key, value in settings.items()}
    return Config(**{key: coerce(key, value, where=where) for key, value in renamed.items()})


def changed_settings(old: Config, new: Config) -> list[str]:
    """`key old → new` for each setting that a loss depends on and that differs."""
    before, now = old.as_dict(), new.as_dict()
    bound = [f.name for f in dataclasses.fields(Config) if not f.metadata["free"]]
    changes = [f"{key} {_format(before[key])} → {_format(now[key])}" for key in bound if before[key] != now[key]]
    if old.windows_per_step != new.windows_per_step:
        changes.append(f"batch_size × gradient_accumulation_steps {old.windows_per_step:,} → {new.windows_per_step:,}")
    return changes


def print_help(_: Sequence[str]) -> int:
    print(describe_settings())
    return 0


def describe_settings() -> str:
    """The settings with their defaults and what they mean, for `--help`."""
    lines = [
        f"usage: {USAGE}",
        "",
        "  --restart  forget the run in out_dir and begin again",
        "",
        "settings, in CONFIG.py or as --key=value:",
    ]
    width = max(shutil.get_terminal_size().columns - 1, 2 * HELP_INDENT)
    for field in dataclasses.fields(Config):
        default = "" if field.default is dataclasses.MISSING else f" [{_format(field.default)}]"
        name = f"  {field.name:<{HELP_INDENT - 3}} "
        text = f"{field.metadata['doc']}{default}"
        lines.append(
            textwrap.fill(text, width, initial_indent=name, subsequent_indent=" " * HELP_INDENT, break_on_hyphens=False)
        )
    return "\n".join(lines)


def current_name(key: str) -> str:
    """Return the name of a setting that configs, checkpoints and commands of earlier versions call `key`."""
    return RENAMED.get(key, key)


def _check_known(key: str, where: str) -> None:
    known = [f.name for f in dataclasses.fields(Config)]
    if key in known:
        return
    close = difflib.get_close_matches(key, known, n=1)
    nearest = f"did you mean {close[0]!r}? " if close else ""
    raise MisuseError(f"{where}: no setting is called {key!r}; {nearest}`python train/train.py --help` lists them")


def _type_of(key: str) -> tuple[type, bool]:
    """The type of a setting without its None, and whether it may be None; a tuple holds texts, and None is an empty one."""
    hint = typing.get_type_hints(Config)[key]
    if typing.get_origin(hint) is tuple:
        return tuple, True
    options = typing.get_args(hint) or (hint,)
    return next(t for t in options if t is not type(None)), type(None) in options


def _bad_value(key: str, value: Any, *, where: str) -> MisuseError:
    kind, optional = _type_of(key)
    kinds = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        tuple: "a list of texts such as ['tensorboard']",
    }
    wanted = kinds[kind] + (" or none" if optional else "")
    return MisuseError(f"{where}: {key} is {value!r:.80}, wanted {wanted}")


def coerce(key: str, value: Any, *, where: str) -> Any:
    """`value`, of a file, as the type of the setting `key`: an int may stand for a float. Raises MisuseError."""
    _check_known(key, where)
    kind, optional = _type_of(key)
    if value is None and optional:
        return () if kind is tuple else None
    if kind is tuple and type(value) is list and all(type(item) is str for item in value):
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER:
        return float(value)
    if type(value) is not kind:
        raise _bad_value(key, value, where=where)
    return value


def coerce_text(key: str, text: str) -> Any:
    """`text`, of a command line, as the type of the setting `key`. Raises MisuseError."""
    kind, optional = _type_of(key)
    if kind is tuple:
        inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text  # as a config file spells it
        return () if inner.strip() in ("", *NONE) else tuple(part.strip().strip("'\"") for part in inner.split(","))
    if optional and text in NONE:
        return None
    if kind is bool:
        if text not in TRUE + FALSE:
            raise _bad_value(key, text, where="the command line")
        return text in TRUE
    try:
        return kind(text)
    except ValueError as e:
        raise _bad_value(key, text, where="the command line") from e
