"""Text from a trained model: `python train/sample.py RUN --prompt … --author … --city … --year …`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from preprocess.errors import MisuseError, printable
from train.config import config_from_saved
from train.core.cli import Parser, run_command, warn
from train.core.device import choose_device
from train.model import make_model
from train.model.sampler import Sampler
from train.run.checkpoint import check_shapes, find_checkpoint, load_model
from train.run.run_dir import vocabulary_of

# What an invocation that leaves them out means to be without, whatever the run's own samples began with.
PROMPT = ("completion_prompt", "completion_author", "completion_city", "completion_year")


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    run, best, num_samples = options.pop("run"), options.pop("best"), options.pop("num_samples")
    if num_samples < 1:
        raise MisuseError(f"num_samples is {num_samples}, wanted 1 or more")
    checkpoint = find_checkpoint(run, warn, best=best)
    config = config_from_saved(checkpoint.origin.settings, str(checkpoint.folder))
    given = {key: value for key, value in options.items() if value is not None or key in PROMPT}
    try:
        config = dataclasses.replace(config, **given)
    except MisuseError as e:  # which calls the settings as a config does
        raise MisuseError(re.sub("^completion_", "--", str(e))) from e
    device = choose_device(config.device)
    folder, manifest = vocabulary_of(checkpoint)
    check_shapes(checkpoint, config)
    model = make_model(config, checkpoint.vocab_size)
    load_model(checkpoint, model)
    sampler = Sampler(model.to(device), folder, manifest, config=config)
    for number in range(num_samples):
        if num_samples > 1:
            print("\n" * (number > 0) + f"--- sample {number + 1} of {num_samples} ---")
        show(sampler.stream(number))
    return 0


def show(texts: Iterator[str]) -> None:
    """Print a sample piece by piece, each as soon as it is there."""
    for text in texts:
        print(printable(text), end="", flush=True)
    print(flush=True)


def _parse(arguments: list[str]) -> dict[str, Any]:
    """RUN, and settings by name; None where one is not given."""
    parser = Parser(prog="python train/sample.py", description="Text from a run's newest checkpoint, as it is drawn.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the out_dir of a run, or a checkpoint in it")
    parser.add_argument("--prompt", dest="completion_prompt", default="", metavar="TEXT", help="text to continue")
    parser.add_argument(
        "--author", dest="completion_author", metavar="NAME", help="author whose control token stands in front"
    )
    parser.add_argument(
        "--city", dest="completion_city", metavar="NAME", help="city whose control token stands in front"
    )
    parser.add_argument(
        "--year", dest="completion_year", type=int, metavar="YEAR", help="year whose control token stands in front"
    )
    parser.add_argument(
        "--tokens", dest="completion_tokens", type=int, metavar="N", help="tokens to draw at most [the run's]"
    )
    parser.add_argument("--temperature", type=float, metavar="X", help="0 always takes the likeliest token [the run's]")
    parser.add_argument("--top_k", type=int, metavar="K", help="draw from the K likeliest tokens [the run's]")
    parser.add_argument(
        "--top_p",
        type=float,
        metavar="P",
        help="draw from the likeliest that together have the probability P [the run's]",
    )
    parser.add_argument(
        "--num_samples", type=int, default=1, metavar="N", help="texts to draw, each from numbers of its own [1]"
    )
    parser.add_argument("--seed", type=int, help="the same seed draws the same texts [the run's]")
    parser.add_argument(
        "--best", action="store_true", help="the checkpoint of the lowest validation loss, not the newest"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N [auto]")
    return vars(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
