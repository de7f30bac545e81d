"""The options and the loading that `folio sample` and `folio chat` share."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.errors import MisuseError
from preprocess.shards.manifest import Manifest
from train.config import Config
from train.core.arguments import parse_number, parse_whole_number
from train.core.device import choose_device
from train.model import make_model
from train.model.base import LanguageModel
from train.run.checkpoint import Checkpoint, check_shapes, load_model
from train.run.run_dir import vocabulary_of

RANDOM_SETTINGS = ("top_k", "top_p", "seed")  # these have no effect if the temperature is 0


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with the weights of a checkpoint, and the vocabulary that turns its ids into text."""

    model: LanguageModel
    config: Config
    folder: Path  # of the manifest and the tokenizer
    manifest: Manifest


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that replace the sampling settings of a run; each has the name of its setting."""
    add, whole = parser.add_argument, parse_whole_number
    add("--tokens", dest="completion_tokens", type=whole, metavar="N", help="maximum number of tokens [the run's]")
    add("--temperature", type=parse_number, metavar="X", help="0 takes the most likely token [the run's]")
    add("--top_k", type=whole, metavar="K", help="draw from the K most likely tokens [the run's]")
    add(
        "--top_p",
        type=parse_number,
        metavar="P",
        help="draw from the most likely tokens that together reach probability P [the run's]",
    )
    add("--seed", type=whole, metavar="N", help="seed of the random numbers; equal seeds give equal text [the run's]")
    add("--best", action="store_true", help="use the checkpoint with the lowest validation loss")
    add("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N [auto]")


def replace_settings(config: Config, options: Mapping[str, Any], *, keep_none: Collection[str] = ()) -> Config:
    """Return `config` with the settings in `options`; None leaves one unchanged unless it is in `keep_none`.

    Raises MisuseError for a value that is out of range or has no effect.
    """
    given = {key: value for key, value in options.items() if value is not None or key in keep_none}
    try:
        config = dataclasses.replace(config, **given)
    except MisuseError as e:  # names the setting of a config file; say the option instead
        raise MisuseError(re.sub("^(completion_)?", "--", str(e))) from e
    for key in RANDOM_SETTINGS:
        if key in given and config.temperature == 0:
            raise MisuseError(
                f"--{key} has no effect because temperature is 0, which takes the most likely token; leave it out, "
                "or set --temperature"
            )
    return config


def open_trained_model(checkpoint: Checkpoint, config: Config) -> TrainedModel:
    """Load the weights of `checkpoint` to the device of `config`, its settings with changes.

    Raises MisuseError if the weights do not fit or the vocabulary is missing, and FolioError if one
    of them is damaged.
    """
    device = choose_device(config.device)
    folder, manifest = vocabulary_of(checkpoint)
    check_shapes(checkpoint, config)
    model = make_model(config, checkpoint.info.vocab_size)
    load_model(checkpoint, model)
    return TrainedModel(model=model.to(device), config=config, folder=folder, manifest=manifest)
