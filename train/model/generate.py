"""Draw ids from a model, one at a time, and decode them to text.

Generation keeps the keys and values of the context in a cache, so the forward pass for a new token
processes one position instead of a whole window. The context is limited to block_size tokens. When
it is full, the last half is kept and the cache is computed again from position 0. This happens once
every block_size / 2 tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from preprocess.errors import FolioError
from preprocess.shards.permutation import keyed_hash
from train.config import Config
from train.model.base import KVCache, LanguageModel, evaluation_mode

MIN_TEMPERATURE = 1e-6  # below it the most likely id is taken, as float32 rounds a tiny temperature to 0


def completion_seed(seed: int, number: int) -> int:
    """Return the seed of completion `number`; the first, number 0, uses `seed` itself."""
    return seed if number == 0 else int(keyed_hash(seed, np.array([number], np.uint64))[0])


@torch.no_grad()
def generate(
    model: LanguageModel,
    ids: list[int],
    *,
    config: Config,
    eot_id: int | None,
    number: int = 0,
    forget_prompt: bool = False,
) -> Generator[int, None, None]:
    """Yield the ids that continue `ids`, which must not be empty.

    With `forget_prompt`, only the first id is predicted from `ids`, and the others from those after them:
    with mask_documents, no token attends to the end of the document before.

    Ends after config.completion_tokens ids, or when `eot_id` is drawn, which is not yielded. The
    random numbers depend only on config.seed and `number`, the number of the completion. torch's
    default generator is not used, so a completion during training changes no loss. Raises
    FolioError if the model's output is not finite.
    """
    generator = torch.Generator().manual_seed(completion_seed(config.seed, number))
    context, cache = ids[-model.block_size :], model.empty_cache(1)
    with evaluation_mode(model):
        for _ in range(config.completion_tokens):
            next_id = draw(_next_logits(model, context, cache), config, generator=generator)
            if next_id == eot_id:
                return
            yield next_id
            context = [next_id] if forget_prompt else extend_context(context, next_id, block_size=model.block_size)
            forget_prompt = False


def extend_context(context: list[int], next_id: int, *, block_size: int) -> list[int]:
    """Return `context` with `next_id` appended.

    If it is then longer than `block_size`, return only its last block_size // 2 ids (at least one).
    """
    extended = [*context, next_id]
    return extended if len(extended) <= block_size else extended[-max(1, block_size // 2) :]


def _next_logits(model: LanguageModel, context: list[int], cache: KVCache) -> Tensor:
    """Return the logits of the id after `context`, (vocab_size,) float32 on the CPU.

    If `cache` does not hold all of `context` except its last id, it is cleared and filled again.
    """
    if cache.length != len(context) - 1:
        cache.clear()
    ids = torch.tensor([context[cache.length :]], device=model.head_weight.device)  # (1, T)
    features = model.features(ids, cache=cache)[0, -1]  # (C,)
    # Cut off the padded ids, so that they cannot be drawn.
    return model.logits(features).float()[: model.vocab_size].cpu()


def draw(logits: Tensor, config: Config, *, generator: torch.Generator) -> int:
    """Draw one id from `logits`, (vocab_size,) float32, with the config's temperature, top_k and top_p.

    A temperature of 0 takes the most likely id. top_p (nucleus sampling, Holtzman et al. 2019)
    keeps the smallest set of the most likely ids, among those that top_k kept, whose probabilities
    sum to at least top_p. Raises FolioError if a logit is not finite.
    """
    if not logits.isfinite().all():
        raise FolioError(
            "the model's output is not finite: its weights are damaged or its training diverged; use another checkpoint"
        )
    if config.temperature < MIN_TEMPERATURE:
        return int(logits.argmax())
    logits, ids = logits.topk(min(config.top_k or len(logits), len(logits)))
    # Subtract the maximum before dividing: a temperature near 0 would overflow.
    probabilities = ((logits - logits[0]) / config.temperature).softmax(dim=0)  # (K,), in falling order
    if config.top_p is not None:
        sum_before = probabilities.cumsum(dim=0) - probabilities
        is_kept = sum_before < config.top_p
        is_kept[0] = True  # also for a top_p that rounds to 0 in float32
        probabilities = probabilities.where(is_kept, 0.0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def decode_stream(decode_bytes: Callable[[np.ndarray], bytes], ids: Iterable[int]) -> Iterator[str]:
    """Yield the text of `ids` in parts, each as soon as its characters are complete.

    A character whose bytes come from several ids is yielded after the last of them. All parts
    together equal the tokenizer's `decode` of all ids. `decode_bytes` is the method of the
    tokenizer, which raises FolioError for an id outside the vocabulary.
    """
    # The bytes of an id do not depend on its neighbours; only characters can span two ids.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for i in ids:
        if text := decoder.decode(decode_bytes(np.array([i], np.uint32))):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Return `text` up to where the first of `stops` begins in it."""
    return text[: min((i for stop in stops if (i := text.find(stop)) >= 0), default=len(text))]
