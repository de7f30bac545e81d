"""Tokens drawn from a model one after the other, and their bytes as text."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from preprocess.errors import FolioError
from preprocess.shards.permutation import keyed_hash
from train.config import Config
from train.model.base import Cache, LanguageModel, evaluation_mode

GREEDY_BELOW = 1e-6  # a temperature that float32 cannot divide by


def completion_seed(seed: int, number: int) -> int:
    """What the generator of sample `number` begins with; the first, 0, begins with `seed` itself."""
    return seed if number == 0 else int(keyed_hash(seed, np.array([number], np.uint64))[0])


@torch.no_grad()
def generate(
    model: LanguageModel, ids: list[int], *, config: Config, eot_id: int | None, number: int = 0
) -> Generator[int, None, None]:
    """The ids that follow `ids`, of which there must be one: up to completion_tokens, fewer where `eot_id` is drawn, which is left out.

    The model reads at most block_size tokens: of longer `ids` the last, and when these have become more, their last half, from
    position 0 on. So each token costs one row of the model, not a window, but where it begins anew: once in block_size / 2 tokens.
    Draws from a generator of its own, which follows from seed and the sample's `number`: training's random numbers stay as they
    were. Raises FolioError where the model's output is not finite.
    """
    generator = torch.Generator().manual_seed(completion_seed(config.seed, number))
    context, cache = ids[-model.block_size :], model.empty_cache(1)
    with evaluation_mode(model):
        for _ in range(config.completion_tokens):
            drawn = draw(_next_logits(model, context, cache), config, generator=generator)
            if drawn == eot_id:
                return
            yield drawn
            context = next_context(context, drawn, block_size=model.block_size)


def next_context(context: list[int], drawn: int, *, block_size: int) -> list[int]:
    """What the model reads after `drawn` has followed `context`: both, or where these are too many their last half block."""
    longer = [*context, drawn]
    return longer if len(longer) <= block_size else longer[-max(1, block_size // 2) :]


def _next_logits(model: LanguageModel, context: list[int], cache: Cache) -> Tensor:
    """The logits of what follows `context`, (vocab_size,) float32 on the CPU.

    `cache` holds all of it but the last token, or else is emptied and filled by it.
    """
    if cache.length != len(context) - 1:
        cache.clear()
    ids = torch.tensor([context[cache.length :]], device=model.head.device)  # (1, T)
    features = model.features(ids, cache=cache)[0, -1]  # (C,)
    # The padded ids, beyond vocab_size, have no probability; they are cut off so that no rounding can give them one.
    return model.logits(features).float()[: model.vocab_size].cpu()


def draw(logits: Tensor, config: Config, *, generator: torch.Generator) -> int:
    """One id, by temperature, top_k and top_p: temperature 0 takes the likeliest. `logits`: (vocab_size,) float32.

    top_p, nucleus sampling (Holtzman et al. 2019), keeps the fewest of the likeliest that together have this probability, of
    what top_k has left.
    """
    if not logits.isfinite().all():
        raise FolioError(
            "the model's output is not finite: its weights are damaged, or its training diverged; use another checkpoint"
        )
    if config.temperature < GREEDY_BELOW:
        return int(logits.argmax())
    logits, ids = logits.topk(min(config.top_k or len(logits), len(logits)))
    # The highest is taken off before dividing: a temperature near 0 would take it to infinity.
    probabilities = ((logits - logits[0]) / config.temperature).softmax(dim=0)  # (K,), falling
    if config.top_p is not None:
        before = probabilities.cumsum(dim=0) - probabilities
        is_kept = before < config.top_p
        is_kept[0] = True  # also for a top_p that is nothing in float32
        probabilities = probabilities.where(is_kept, 0.0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def decode_stream(decode_bytes: Callable[[np.ndarray], bytes], ids: Iterable[int]) -> Iterator[str]:
    """The text of `ids` as it becomes certain, nothing twice: init_processes, it is the tokenizer's `decode` of all of them.

    `decode_bytes` is the tokenizer's, and raises FolioError for an id beyond its last. A character whose bytes are not all there
    yet waits.
    """
    # Each id stands for fixed bytes, whatever comes before it: only characters can reach over the border of two.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for i in ids:
        if text := decoder.decode(decode_bytes(np.array([i], np.uint32))):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
