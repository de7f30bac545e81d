"""Which model to train, and for how many steps, so that a text and a time give the lowest loss.

A larger model learns more from each token but reads fewer tokens in the same time. The loss that N
parameters reach after D tokens is about

    loss = E + A · (N^-EXPONENT + (PARAMETERS_PER_TOKEN · D)^-EXPONENT)

(Hoffmann et al. 2022, arXiv 2203.15556, with one exponent for both), and a plan takes the size with
the lowest sum in brackets; E and A are not needed for that. Here N is a sixth of the FLOPs per token,
which also counts the head and the attention (as DeepSeek LLM does, arXiv 2401.02954), because they
take most of the time of a small model. Tokens that repeat a text count for less than new ones
(Muennighoff et al. 2023, arXiv 2305.16264).

The other settings follow from the number of tokens: the tokens per step grow with its square root
(as the critical batch size does: McCandlish et al. 2018, arXiv 1812.06162; Zhang et al. 2024, arXiv
2410.21676), the context with its fourth root, and dropout with the parameters per token of the text.
bench/README.md has the runs that the constants were fitted to.

Everything here is arithmetic: the same text, time and speeds give the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preprocess.errors import FolioError, MisuseError

HEAD_SIZE = 64
WIDTHS = (32, 48, 64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048)
VOCAB_MULTIPLE = 64  # the vocabulary is padded to a multiple of it (train/model/base.py)
# Of the loss, fitted to bench/size_ladder.py. Hoffmann et al. found exponents of 0.34 and 0.28, and 20
# tokens per parameter, for models that are a thousand times as large.
EXPONENT, PARAMETERS_PER_TOKEN = 0.3, 1 / 12
# After so many further passes, a repeated text is worth 1 - 1/e of as much new text.
REPEAT_DECAY = 15.4
MAX_EPOCHS = 40  # further passes are worth almost nothing (Muennighoff et al. 2023)
MAX_PARAMETERS_PER_UNIQUE_TOKEN = 10  # nanoGPT's model for the characters of Shakespeare, which has dropout 0.2
BATCH_FACTOR = 1.8  # tokens per step = BATCH_FACTOR · sqrt(tokens)
CONTEXT_FACTOR, CONTEXT_EXPONENT = 1.8, 0.25  # context = CONTEXT_FACTOR · tokens^CONTEXT_EXPONENT
MIN_CONTEXT, MAX_CONTEXT = 16, 1024
MIN_DROPOUT_EPOCHS = 4  # so often a text can be read as if it were new (Muennighoff et al. 2023)
DROPOUT = ((1, 0.0), (3, 0.1), (math.inf, 0.2))  # (fewer parameters per token of the text than this, dropout)
MIN_RATE_WIDTH = 64  # narrower models have the learning rates of this width
SHORT_RUN_STEPS = 500  # too few for a momentum of 0.95
MIN_STEPS = 10
# Evaluations besides the one before the first step.
SECONDS_PER_EVALUATION, MIN_EVALUATIONS, MAX_EVALUATIONS = 120, 4, 20
MAX_ROUNDED_FRACTION = 0.05
EVALUATION_SHARE, MIN_EVAL_TOKENS = 0.03, 4_096  # of the time; of an evaluation
MAX_CHECKPOINT_S = 600.0  # seconds of training between two checkpoints
MIN_TRAINING_SHARE = 0.2  # of the time, if it is too short for evaluations and checkpoints
BYTES_SAVED_PER_PARAMETER, SAVED_BYTES_PER_S = 12, 4e8
BYTES_PER_PARAMETER = 20  # of memory: weight, gradient, moments, and temporary copies of the optimizer
UPWARD_EXPONENT = 0.7  # time grows with this power of the FLOPs, until a larger model is measured
MAX_EXTRAPOLATION = 8.0
# Settings that a plan chooses, unless the user has.
PLANNED = (
    "n_layer", "n_head", "n_embd", "block_size", "dropout", "batch_size", "gradient_accumulation_steps", "max_steps",
    "learning_rate", "muon_learning_rate", "base_width", "muon_momentum", "eval_interval", "eval_tokens",
    "checkpoint_interval",
)  # fmt: skip
Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Text:
    """The size of the data of a run."""

    train_tokens: int | None  # None if the number is not known, as for a stream
    val_tokens: int | None
    consecutive_tokens: int | None  # of every build and split; a window, with its last target, must not be longer
    vocab_size: int
    name: str  # for messages


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run may use."""

    seconds: float  # for everything that is still to be done
    memory_bytes: float  # for the model and its optimizers
    max_params: int | None = None
    has_muon: bool = True  # whether the learning rates are those of the recipe with Muon
    world_size: int = 1  # processes, which divide the windows of a step among them


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The measured time of a step of a model."""

    settings: Settings  # of the model that was measured
    flops_per_token: float
    tokens_per_s: float  # of training
    evaluation_tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The chosen settings, and what the choice is based on."""

    settings: Settings  # a value for every name in PLANNED
    num_parameters: int
    flops_per_token: float
    tokens: int
    epochs: float | None  # tokens as a multiple of the text; None if its size is not known
    tokens_per_s: float
    is_limited_by_text: bool  # whether more time would only repeat the text further
    relative_loss: float  # the part of the loss that depends on the choice


def make_plan(text: Text, limits: Limits, speeds: Sequence[Speed], given: Mapping[str, Any]) -> Plan:
    """Return the plan with the lowest loss. `given` are the settings that the user has chosen.

    `speeds` has at least one measurement. The speed of other sizes is interpolated, or extrapolated
    to at most MAX_EXTRAPOLATION times the work. Raises FolioError if the text is too short, and
    MisuseError if no size meets the limits.
    """
    check_text(text)
    plans = [_plan_width(width, text, limits, speeds, given) for width in list_widths(given)]
    max_params = limits.max_params or math.inf
    smallest = min(plan.num_parameters for plan in plans)
    if smallest > max_params:
        raise MisuseError(
            f"max_params is {max_params:,}, but the smallest model for the {text.vocab_size:,} ids of {text.name} "
            f"has {smallest:,} parameters; raise --max_params, or build with a smaller vocabulary"
        )
    plans = [plan for plan in plans if plan.num_parameters <= max_params]
    max_flops = MAX_EXTRAPOLATION * max(speed.flops_per_token for speed in speeds)
    if text.train_tokens is not None:
        max_flops = min(max_flops, 6 * MAX_PARAMETERS_PER_UNIQUE_TOKEN * text.train_tokens)
    suitable = [plan for plan in plans if plan.flops_per_token <= max_flops]
    fitting = [plan for plan in suitable if plan.num_parameters * BYTES_PER_PARAMETER <= limits.memory_bytes]
    return min(fitting or plans[:1], key=lambda plan: plan.relative_loss)


def check_text(text: Text) -> None:
    """Raise FolioError if the text is too short for the shortest context."""
    if text.consecutive_tokens is not None and text.consecutive_tokens <= MIN_CONTEXT:
        raise FolioError(
            f"{text.name} has {text.consecutive_tokens:,} consecutive tokens in a split, but a run with minutes needs "
            f"more than {MIN_CONTEXT}; build more text"
        )


def list_widths(given: Mapping[str, Any]) -> list[int]:
    """Return the widths to choose from, ascending: those that fit the number of heads, if it is given."""
    if "n_embd" in given:
        return [given["n_embd"]]
    num_heads = given.get("n_head", 1)
    fitting = [width for width in WIDTHS if width % (2 * num_heads) == 0]  # rotary positions need an even head size
    return fitting or [HEAD_SIZE * num_heads]


def _plan_width(width: int, text: Text, limits: Limits, speeds: Sequence[Speed], given: Mapping[str, Any]) -> Plan:
    """Return the plan for models of `width`."""
    shape = choose_shape(width) | {key: given[key] for key in ("n_layer", "n_head", "n_embd") if key in given}
    num_parameters = count_parameters(shape, text.vocab_size)
    context, max_tokens = MIN_CONTEXT, math.inf if text.train_tokens is None else MAX_EPOCHS * text.train_tokens
    for _ in range(3):  # the context depends on the number of tokens, and this on the speed with that context
        flops = flops_per_token(shape, context, text.vocab_size)
        rate = interpolate(speeds, flops, of=lambda speed: speed.tokens_per_s)
        evaluation_rate = interpolate(speeds, flops, of=lambda speed: speed.evaluation_tokens_per_s)
        evaluations = _plan_evaluations(text, limits.seconds, evaluation_rate, context)
        saves_s = evaluations["num"] * num_parameters * BYTES_SAVED_PER_PARAMETER / SAVED_BYTES_PER_S
        training_s = max(limits.seconds - evaluations["seconds"] - saves_s, MIN_TRAINING_SHARE * limits.seconds)
        tokens = min(training_s * rate, max_tokens)
        context = given.get("block_size") or choose_context(tokens, text)
    batch = _plan_batch(tokens, context, limits, given)
    windows = batch["batch_size"] * batch["gradient_accumulation_steps"]
    max_steps = max(int(tokens / (windows * context)), MIN_STEPS)
    epochs = None if text.train_tokens is None else tokens / text.train_tokens
    interval = math.ceil(max_steps / evaluations["num"])
    settings = {
        **shape,
        **batch,
        "block_size": context,
        "max_steps": max_steps,
        "dropout": choose_dropout(flops / 6, text, epochs),
        **(choose_rates(width, max_steps) if limits.has_muon else {}),
        "eval_interval": interval,
        "eval_tokens": evaluations["tokens"],
        "checkpoint_interval": min(interval, max(int(MAX_CHECKPOINT_S * rate / (windows * context)), 1)),
    }
    return Plan(
        settings=settings | {key: value for key, value in given.items() if key in settings},
        num_parameters=num_parameters,
        flops_per_token=flops,
        tokens=max_steps * windows * context,
        epochs=epochs,
        tokens_per_s=rate,
        is_limited_by_text=training_s * rate > max_tokens,
        relative_loss=relative_loss(flops / 6, tokens, text.train_tokens),
    )


def choose_shape(width: int) -> Settings:
    """Return the layers and heads of a model of `width`: a layer per 64 units, at least four from 128 on."""
    num_layers = max(round(width / HEAD_SIZE), 4 if width >= 2 * HEAD_SIZE else 3)
    heads = [number for number in range(1, max(width // HEAD_SIZE, 1) + 1) if width % (2 * number) == 0]
    return {"n_layer": num_layers, "n_head": max(heads, default=1), "n_embd": width}


def choose_context(tokens: float, text: Text) -> int:
    """Return the context for a run of `tokens` tokens: a power of two that fits the text."""
    wanted = CONTEXT_FACTOR * tokens**CONTEXT_EXPONENT
    limit = MAX_CONTEXT if text.consecutive_tokens is None else min(text.consecutive_tokens - 1, MAX_CONTEXT)
    largest = 2 ** int(math.log2(limit))
    return max(min(2 ** round(math.log2(max(wanted, 1))), largest), MIN_CONTEXT)


def choose_dropout(parameters: float, text: Text, epochs: float | None) -> float:
    """Return the dropout for a text that a model of `parameters` parameters reads `epochs` times."""
    if epochs is None or text.train_tokens is None or epochs < MIN_DROPOUT_EPOCHS:
        return 0.0
    ratio = parameters / text.train_tokens
    return next(dropout for max_ratio, dropout in DROPOUT if ratio < max_ratio)


def choose_rates(width: int, max_steps: int) -> Settings:
    """Return the learning rates of the recipe with Muon: those of the configs at widths 128, 384 and 768."""
    narrowing = 128 / max(width, MIN_RATE_WIDTH)
    return {
        "muon_learning_rate": round(max(0.03 * narrowing**0.37, 0.02), 4),
        "learning_rate": round(0.015 * narrowing**0.75, 5),
        "base_width": width,
        "muon_momentum": 0.9 if max_steps < SHORT_RUN_STEPS else 0.95,
    }


def _plan_batch(tokens: float, context: int, limits: Limits, given: Mapping[str, Any]) -> Settings:
    """Return batch_size and gradient_accumulation_steps, whose product the processes can divide."""
    num_passes = given.get("gradient_accumulation_steps", 1)
    num_windows = BATCH_FACTOR * tokens**0.5 / context
    unit = limits.world_size if num_windows < 16 * limits.world_size else 8 * limits.world_size
    num_windows = max(round(num_windows / unit), 1) * unit
    batch_size = given.get("batch_size") or math.ceil(num_windows / num_passes)
    if "gradient_accumulation_steps" not in given:
        num_passes = max(round(num_windows / batch_size), 1)
    return {"batch_size": batch_size, "gradient_accumulation_steps": num_passes}


def _plan_evaluations(text: Text, seconds: float, tokens_per_s: float, context: int) -> dict[str, Any]:
    """Return the number of evaluations after the first, the tokens of each, and the seconds of all."""
    num = round(min(max(seconds / SECONDS_PER_EVALUATION, MIN_EVALUATIONS), MAX_EVALUATIONS))
    if text.val_tokens == 0:
        return {"num": num, "tokens": None, "seconds": 0.0}
    affordable = int(max(EVALUATION_SHARE * seconds * tokens_per_s / (num + 1), MIN_EVAL_TOKENS, context))
    is_whole = text.val_tokens is not None and text.val_tokens <= affordable
    read = text.val_tokens if is_whole and text.val_tokens else affordable
    return {"num": num, "tokens": None if is_whole else affordable, "seconds": (num + 1) * read / tokens_per_s}


def relative_loss(parameters: float, tokens: float, unique_tokens: int | None) -> float:
    """Return the part of the loss that depends on size and tokens, in units of A (see above)."""
    if unique_tokens is not None and tokens > unique_tokens:
        num_repeats = tokens / unique_tokens - 1
        tokens = unique_tokens * (1 + REPEAT_DECAY * (1 - math.exp(-num_repeats / REPEAT_DECAY)))
    return float(parameters**-EXPONENT + (PARAMETERS_PER_TOKEN * tokens) ** -EXPONENT)


def flops_per_token(shape: Mapping[str, int], context: int, vocab_size: int) -> float:
    """Return the FLOPs per token of training, as LanguageModel.flops_per_token does."""
    width, num_layers = shape["n_embd"], shape["n_layer"]
    padded = math.ceil(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return 6.0 * (12 * num_layers * width**2 + padded * width) + 12.0 * num_layers * width * context


def count_parameters(shape: Mapping[str, int], vocab_size: int) -> int:
    """Return the number of weights of the architecture `modern`."""
    return 12 * shape["n_layer"] * shape["n_embd"] ** 2 + 2 * vocab_size * shape["n_embd"]


def interpolate(speeds: Sequence[Speed], flops: float, *, of: Callable[[Speed], float]) -> float:
    """Return a rate for a model of `flops` FLOPs per token from the measured ones.

    Between two measurements it is a power of the FLOPs. Larger models than the largest, and smaller
    ones than the smallest, are expected to be fast, so that they are measured rather than missed.
    """
    points = sorted({speed.flops_per_token: of(speed) for speed in speeds}.items())
    below = [point for point in points if point[0] <= flops]
    above = [point for point in points if point[0] >= flops]
    if not below:
        return above[0][1] * above[0][0] / flops
    if not above:
        return below[-1][1] * (below[-1][0] / flops) ** UPWARD_EXPONENT
    (low, low_rate), (high, high_rate) = below[-1], above[0]
    fraction = 0.0 if high == low else math.log(flops / low) / math.log(high / low)
    return float(low_rate ** (1 - fraction) * high_rate**fraction)


def correct_steps(step: int, *, seconds_left: float, step_s: float, interval: int) -> int:
    """Return how many steps a run has that has taken `step` steps and ends after `seconds_left` seconds.

    A further step takes `step_s`, including its part of evaluations and checkpoints. The run ends
    with one of the evaluations that follow every `interval` steps, if that is at most
    MAX_ROUNDED_FRACTION of an interval earlier.
    """
    max_steps = step + max(int(seconds_left / max(step_s, 1e-9)), 1)
    rounded = max_steps - max_steps % interval
    return rounded if step < rounded and max_steps - rounded <= MAX_ROUNDED_FRACTION * interval else max_steps
