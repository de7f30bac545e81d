"""Text from a trained model: `python train/sample.py RUN --prompt … --author … --city … --year …`."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from checkpoint import find_checkpoint, load_model, require_shapes
from command import Parser, run_command, warn
from config import Config, config_from_saved
from device import choose_device
from generate import decode_stream, generate
from language_model import LanguageModel
from model import make_model
from preprocess.errors import FolioError, MisuseError, printable
from preprocess.shards.format import CONTROL_FIELDS, spell_control_token
from run_folder import vocabulary_of

# What an invocation that leaves them out means to be without, whatever the run's own samples began with.
PROMPT = ("sample_prompt", "sample_author", "sample_city", "sample_year")


def sample_text(model: LanguageModel, folder: Path, manifest: dict[str, Any], *, config: Config) -> str:
    """The prompt that `config` describes and what the model makes of it, control tokens in front as they are spelled.

    `folder` holds the tokenizer of `manifest`.

    Raises MisuseError for a name that the build does not know, FolioError for text that its tokenizer cannot encode.
    """
    return "".join(Sampler(model, folder, manifest, config=config).stream())


def load_text_tokenizer(folder: Path, manifest: dict[str, Any]) -> Any:
    """The tokenizer of `manifest`, which `folder` holds. Raises FolioError where it is not whole, or its libraries are missing."""
    try:
        from preprocess.tokenizers import load_tokenizer
    except ImportError as e:
        raise FolioError(f"text needs the tokenizer's libraries, and {e.name} is not installed; pip install folio-lm") from e
    return load_tokenizer(folder, manifest)


class Sampler:
    """A model, what turns its ids into text, and a prompt: texts that begin alike."""

    def __init__(self, model: LanguageModel, folder: Path, manifest: dict[str, Any], *, config: Config) -> None:
        """`folder` holds the tokenizer of `manifest`. Raises as sample_text does."""
        self._model, self._config = model, config
        controls = control_tokens(manifest, config)
        self._tokenizer = load_text_tokenizer(folder, manifest)
        self._eot_id: int | None = manifest["eot_id"]
        ids = [*controls.values(), *self._tokenizer.encode_text(config.sample_prompt).tolist()]
        self._ids = ids or [self._eot_id or 0]
        self._prompt = " ".join([*controls, config.sample_prompt])
        # Ids that stand for no text: control tokens, and those of a larger build that the model was trained on before this one.
        self._silent = {*manifest["special_tokens"].values(), *range(manifest["vocab_size"], model.vocab_size)}

    def stream(self, number: int = 0) -> Iterator[str]:
        """The text of sample `number`, prompt first, in pieces as they come. Raises FolioError where the model is damaged."""
        yield self._prompt
        with closing(generate(self._model, self._ids, config=self._config, eot_id=self._eot_id, number=number)) as ids:
            yield from decode_stream(self._tokenizer.decode_bytes, (i for i in ids if i not in self._silent))


def control_tokens(manifest: dict[str, Any], config: Config) -> dict[str, int]:
    """Spelling and id of what stands in front of the text, in the order of a stored document. Raises MisuseError."""
    special: dict[str, int] = manifest["special_tokens"]
    found: dict[str, int] = {}
    if manifest["recipe"].get("bos") and manifest["bos_id"] is not None:
        found |= {token: i for token, i in special.items() if i == manifest["bos_id"]}
    for field in CONTROL_FIELDS:
        name = getattr(config, f"sample_{field}")
        if name is not None:
            token = spell_control_token(field, name)
            if token not in special:
                raise MisuseError(f"the build {manifest['name']} has no {field} {name!r}; {_nearest(token, field, special=special)}")
            found[token] = special[token]
    return found


def _nearest(token: str, field: str, *, special: dict[str, int]) -> str:
    known = {t: t.removeprefix(f"<{field}_").removesuffix(">") for t in special if t.startswith(f"<{field}_")}
    if close := difflib.get_close_matches(token, known, n=1):
        return f"did you mean {known[close[0]]!r}?"
    return f"it names {len(known):,}, such as {next(iter(known.values()))!r}" if known else f"it names none; leave the {field} out"


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
        raise MisuseError(re.sub("^sample_", "--", str(e))) from e
    device = choose_device(config.device)
    folder, manifest = vocabulary_of(checkpoint)
    require_shapes(checkpoint, config)
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
    parser.add_argument("--prompt", dest="sample_prompt", default="", metavar="TEXT", help="text to continue")
    parser.add_argument("--author", dest="sample_author", metavar="NAME", help="author whose control token stands in front")
    parser.add_argument("--city", dest="sample_city", metavar="NAME", help="city whose control token stands in front")
    parser.add_argument("--year", dest="sample_year", type=int, metavar="YEAR", help="year whose control token stands in front")
    parser.add_argument("--tokens", dest="sample_tokens", type=int, metavar="N", help="tokens to draw at most [the run's]")
    parser.add_argument("--temperature", type=float, metavar="X", help="0 always takes the likeliest token [the run's]")
    parser.add_argument("--top_k", type=int, metavar="K", help="draw from the K likeliest tokens [the run's]")
    parser.add_argument("--top_p", type=float, metavar="P", help="draw from the likeliest that together have the probability P [the run's]")
    parser.add_argument("--num_samples", type=int, default=1, metavar="N", help="texts to draw, each from numbers of its own [1]")
    parser.add_argument("--seed", type=int, help="the same seed draws the same texts [the run's]")
    parser.add_argument("--best", action="store_true", help="the checkpoint of the lowest validation loss, not the newest")
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N [auto]")
    return vars(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
