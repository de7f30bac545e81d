"""Text from a trained model: `python train/sample.py RUN --prompt … --author … --city … --year …`."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoint import find_checkpoint, load_model, require_shapes
from command import Parser, run_command, warn
from config import Config, config_from_saved
from device import choose_device
from language_model import LanguageModel
from model import make_model
from preprocess.errors import FolioError, MisuseError, printable
from preprocess.shards.format import CONTROL_FIELDS, Build, spell_control_token

# What an invocation that leaves them out means to be without, whatever the run's own samples began with.
GREEDY_BELOW = 1e-6  # a temperature that float32 cannot divide by
PROMPT = ("sample_prompt", "sample_author", "sample_city", "sample_year")


@torch.no_grad()
def generate(model: LanguageModel, ids: list[int], *, config: Config, eot_id: int | None) -> list[int]:
    """The ids that follow `ids`, of which there must be one: up to sample_tokens, fewer where `eot_id` is drawn, which is left out.

    Draws from a generator of its own: training's random numbers stay as they were. Costs a full forward pass a token.
    """
    generator = torch.Generator().manual_seed(config.seed)
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    new: list[int] = []
    try:
        for _ in range(config.sample_tokens):
            window = torch.tensor([[*ids, *new][-model.block_size :]], device=device)  # (1, T)
            # The padded ids, beyond vocab_size, have no probability; they are cut off so that no rounding can give them one.
            logits = model.logits(model.features(window)[0, -1]).float()[: model.vocab_size]  # (vocab_size,)
            if (drawn := draw(logits.cpu(), config, generator=generator)) == eot_id:
                break
            new.append(drawn)
    finally:
        model.train(was_training)
    return new


def draw(logits: torch.Tensor, config: Config, *, generator: torch.Generator) -> int:
    """One id, by temperature and top_k: temperature 0 takes the likeliest. `logits`: (vocab_size,) float32."""
    if not logits.isfinite().all():
        raise FolioError("the model's output is not finite: its weights are damaged, or its training diverged; use another checkpoint")
    if config.temperature < GREEDY_BELOW:
        return int(logits.argmax())
    logits, ids = logits.topk(min(config.top_k or len(logits), len(logits)))
    # The highest is taken off before dividing: a temperature near 0 would take it to infinity.
    probabilities = ((logits - logits[0]) / config.temperature).softmax(dim=0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def sample_text(model: LanguageModel, build: Build, *, config: Config) -> str:
    """The prompt that `config` describes and what the model makes of it, control tokens in front as they are spelled.

    Raises MisuseError for a name that the build does not know, FolioError for text that its tokenizer cannot encode.
    """
    try:
        from preprocess.tokenizers import load_tokenizer
    except ImportError as e:
        raise FolioError(f"text needs the tokenizer's libraries, and {e.name} is not installed; pip install folio-lm") from e
    manifest = build.manifest
    controls = control_tokens(manifest, config)
    tokenizer = load_tokenizer(build.folder, manifest)
    ids = [*controls.values(), *tokenizer.encode_text(config.sample_prompt).tolist()]
    start = ids or [manifest["eot_id"] or 0]
    new = generate(model, start, config=config, eot_id=manifest["eot_id"])
    silent = set(manifest["special_tokens"].values())
    text = tokenizer.decode(np.array([i for i in new if i not in silent and i < build.vocab_size], dtype=np.uint32))
    return " ".join([*controls, config.sample_prompt + text])


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
    known = [t for t in special if t.startswith(f"<{field}_")]
    close = difflib.get_close_matches(token, known, n=1, cutoff=0)
    return f"did you mean {close[0].removeprefix(f'<{field}_').removesuffix('>')!r}?" if close else f"it names none; leave the {field} out"


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    checkpoint = find_checkpoint(options.pop("run"), warn)
    config = config_from_saved(checkpoint.origin.settings, str(checkpoint.folder))
    config = dataclasses.replace(config, **{key: value for key, value in options.items() if value is not None or key in PROMPT})
    device = choose_device(config.device)
    build = Build(config.data)
    if build.build_id != checkpoint.origin.build_id:
        raise MisuseError(f"{checkpoint.folder} was trained on another build than {build.folder} is now; put that one there")
    require_shapes(checkpoint, config)
    model = make_model(config, checkpoint.vocab_size)
    load_model(checkpoint, model)
    print(printable(sample_text(model.to(device), build, config=config)))
    return 0


def _parse(arguments: list[str]) -> dict[str, Any]:
    """RUN, and settings by name; None where one is not given."""
    parser = Parser(prog="python train/sample.py", description="Text from the newest checkpoint of a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the out_dir of a run, or a checkpoint in it")
    parser.add_argument("--prompt", dest="sample_prompt", default="", metavar="TEXT", help="text to continue")
    parser.add_argument("--author", dest="sample_author", metavar="NAME", help="author whose control token stands in front")
    parser.add_argument("--city", dest="sample_city", metavar="NAME", help="city whose control token stands in front")
    parser.add_argument("--year", dest="sample_year", type=int, metavar="YEAR", help="year whose control token stands in front")
    parser.add_argument("--tokens", dest="sample_tokens", type=int, metavar="N", help="tokens to draw at most [the run's]")
    parser.add_argument("--temperature", type=float, metavar="X", help="0 always takes the likeliest token [the run's]")
    parser.add_argument("--top_k", type=int, metavar="K", help="draw from the K likeliest tokens [the run's]")
    parser.add_argument("--seed", type=int, help="the same seed draws the same text [the run's]")
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N [auto]")
    return vars(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
