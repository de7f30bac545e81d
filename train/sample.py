"""Print text from a trained model: `python train/sample.py RUN --prompt TEXT --author NAME …`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: the folder train/ would hide the package `train`
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

# Without these options there is no prompt, whatever the run's own completions start with.
PROMPT_SETTINGS = ("completion_prompt", "completion_author", "completion_city", "completion_year")


def main(arguments: list[str]) -> int:
    """Print the completions that the command line asks for. Return the exit status."""
    options = _parse(arguments)
    run, best, num_completions, quiet = (options.pop(key) for key in ("run", "best", "num_completions", "quiet"))
    if num_completions < 1:
        raise MisuseError(f"num_completions must be at least 1, got {num_completions}")
    checkpoint = find_checkpoint(run, warn, best=best)
    config = config_from_saved(checkpoint.origin.settings, str(checkpoint.folder))
    given = {key: value for key, value in options.items() if value is not None or key in PROMPT_SETTINGS}
    try:
        config = dataclasses.replace(config, **given)
    except MisuseError as e:  # names the setting of a config file; say the option instead
        raise MisuseError(re.sub("^completion_", "--", str(e))) from e
    device = choose_device(config.device)
    folder, manifest = vocabulary_of(checkpoint)
    check_shapes(checkpoint, config)
    model = make_model(config, checkpoint.vocab_size)
    load_model(checkpoint, model)
    sampler = Sampler(model.to(device), folder, manifest, config=config)
    for number in range(num_completions):
        if num_completions > 1 and not quiet:
            print("\n" * (number > 0) + f"--- completion {number + 1} of {num_completions} ---")
        show(sampler.stream(number))
    return 0


def show(texts: Iterator[str]) -> None:
    """Print a completion part by part, each as soon as it is drawn."""
    for text in texts:
        print(printable(text), end="", flush=True)
    print(flush=True)


def _parse(arguments: list[str]) -> dict[str, Any]:
    """Return RUN and the options by the name of their setting; options that are not given are None."""
    parser = Parser(
        prog="python train/sample.py", description="Print text from a run's newest checkpoint as it is drawn."
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the out_dir of a run, or a checkpoint in it")
    add("--prompt", dest="completion_prompt", default="", metavar="TEXT", help="text to continue")
    add("--author", dest="completion_author", metavar="NAME", help="author whose control token precedes the prompt")
    add("--city", dest="completion_city", metavar="NAME", help="city whose control token precedes the prompt")
    add("--year", dest="completion_year", type=int, metavar="YEAR", help="year whose control token precedes the prompt")
    add("--tokens", dest="completion_tokens", type=int, metavar="N", help="maximum number of tokens [the run's]")
    add("--temperature", type=float, metavar="X", help="0 takes the most likely token [the run's]")
    add("--top_k", type=int, metavar="K", help="draw from the K most likely tokens [the run's]")
    add(
        "--top_p",
        type=float,
        metavar="P",
        help="draw from the fewest most likely tokens with probability P [the run's]",
    )
    add("--num_completions", type=int, default=1, metavar="N", help="completions to print, each drawn separately [1]")
    add("--seed", type=int, help="the same seed draws the same completions [the run's]")
    add("--best", action="store_true", help="use the checkpoint with the lowest validation loss")
    add("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N [auto]")
    return vars(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
