"""Print text from a trained model: `python train/sample.py RUN --prompt TEXT --author NAME …`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: the folder train/ would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from train.__main__ import run_script

    run_script("sample")

from collections.abc import Iterator
from typing import Any

from preprocess.console import Console
from preprocess.errors import MisuseError, printable
from train.core.arguments import Parser, make_path_parser, parse_whole_number
from train.core.cli import warn
from train.model.sampler import Sampler
from train.run.checkpoint import find_checkpoint
from train.run.sampling import add_sampling_options, open_trained_model, replace_settings

# The prompt consists of these options only, not of what the run's own completions begin with.
PROMPT_SETTINGS = ("completion_prompt", "completion_author", "completion_city", "completion_year")


def main(arguments: list[str]) -> int:
    """Print the completions that the command line asks for. Return the exit status."""
    options = _parse(arguments)
    run, best, num_completions, quiet = (options.pop(key) for key in ("run", "best", "num_completions", "quiet"))
    if num_completions < 1:
        raise MisuseError(f"--num_completions must be at least 1, got {num_completions}")
    with Console("stderr", quiet=quiet).activity("reading the checkpoint"):
        checkpoint = find_checkpoint(run, warn, best=best)
        config = replace_settings(checkpoint.info.config, options, keep_none=PROMPT_SETTINGS)
        trained = open_trained_model(checkpoint, config)
        sampler = Sampler(trained.model, trained.folder, trained.manifest, config=config)
    for index in range(num_completions):
        if num_completions > 1 and not quiet:
            print("\n" * (index > 0) + f"--- completion {index + 1} of {num_completions} ---")
        show(sampler.stream(index))
    return 0


def show(texts: Iterator[str]) -> None:
    """Print the parts of a completion, each as soon as it is generated."""
    for text in texts:
        print(printable(text), end="", flush=True)
    print(flush=True)


def _parse(arguments: list[str]) -> dict[str, Any]:
    """Return RUN and the options by name: those that replace a setting have the setting's name.

    Without an option, its value is None, which leaves the setting unchanged, or has a default here.
    """
    parser = Parser(prog="python train/sample.py", description="Print text that a run's newest checkpoint generates.")
    add, whole = parser.add_argument, parse_whole_number
    add("run", type=make_path_parser("RUN"), metavar="RUN", help="a run, by its out_dir, or a checkpoint in it")
    add("--prompt", dest="completion_prompt", default="", metavar="TEXT", help="text to continue")
    add("--author", dest="completion_author", metavar="NAME", help="author token before the prompt")
    add("--city", dest="completion_city", metavar="NAME", help="city token before the prompt")
    add("--year", dest="completion_year", type=whole, metavar="YEAR", help="year token before the prompt")
    add("--num_completions", type=whole, default=1, metavar="N", help="number of completions to print [1]")
    add_sampling_options(parser)
    return vars(parser.parse_args(arguments))
