"""What every architecture shares: a padded vocabulary, the loss, attention, and the memory of generation.

`gpt2.py` and `modern.py` are the architectures. Shapes: B rows, T tokens, C width, H heads, D = C / H, V padded vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from train.config import Config
from train.model.kernels import HeadLoss, logits_of

# A vocabulary of 50,257 makes the head's matrix product misaligned, and slower by a quarter on GPUs.
VOCAB_MULTIPLE = 64
VOCABULARY_WEIGHTS = ("wte.weight", "lm_head.weight")  # a row an id


@dataclass
class KeyValues:
    """The keys and values of one layer so far, (B, H, block_size, D) each, of which `length` positions are filled."""

    keys: Tensor
    values: Tensor
    length: int = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) each; returns all that is filled."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass
class Cache:
    """What generation keeps of a text so far: every layer's keys and values, and the last id, (B, 1), none where there is no text yet."""

    layers: list[KeyValues]
    last: Tensor | None = None

    @property
    def length(self) -> int:
        return self.layers[0].length

    def clear(self) -> None:
        self.last = None
        for layer in self.layers:
            layer.length = 0


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """(B, T, C) as (B, H, T, D)."""
    B, T, _ = x.shape
    return x.view(B, T, n_head, -1).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, cache: KeyValues | None, dropout: float) -> Tensor:
    """Causal attention of (B, H, T, D) each, within documents where there is a `mask`: (B, T, C).

    With a `cache`, whose keys come first: either it is empty, or T is 1.
    """
    is_causal = mask is None
    if cache is not None:
        is_causal = cache.length == 0
        assert is_causal or q.shape[2] == 1
        k, v = cache.extend(k, v)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, dropout_p=dropout)
    B, H, T, D = y.shape
    return y.transpose(1, 2).reshape(B, T, H * D)


def document_mask(documents: Tensor) -> Tensor:
    """`documents`: (B, T), the number of each token's document. Which token sees which: (B, 1, T, T) bool, causal."""
    T = documents.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=documents.device).tril()
    return (causal & (documents[:, :, None] == documents[:, None, :]))[:, None]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout; afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class LanguageModel(nn.Module):
    """What training, evaluation and sampling ask of a model. An architecture is a subclass with `h`, `embed`, `normed` and `head`."""

    h: nn.ModuleList
    logit_cap: float | None = None  # which logits are softly kept within

    def __init__(self, config: Config, vocab_size: int) -> None:
        """`vocab_size` is exact; inside, it is padded to a multiple of 64."""
        super().__init__()
        self.vocab_size, self.block_size, self.dropout = vocab_size, config.block_size, config.dropout
        self.n_head, self.n_embd, self.gradient_checkpointing = (
            config.n_head,
            config.n_embd,
            config.gradient_checkpointing,
        )
        self.padded_vocab_size = math.ceil(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def embed(self, ids: Tensor, documents: Tensor | None, cache: Cache | None) -> Tensor:
        """`ids`, `documents`: (B, T) int64; they follow what `cache` holds. Returns (B, T, C)."""
        raise NotImplementedError

    def normed(self, x: Tensor) -> Tensor:
        """What the last block gives, (B, T, C), as the head reads it."""
        raise NotImplementedError

    @property
    def head(self) -> Tensor:
        """The weight of the last matrix product, (V, C)."""
        raise NotImplementedError

    @property
    def num_parameters(self) -> int:
        """Without the rows of padded ids, which take no part in anything."""
        padding = (self.padded_vocab_size - self.vocab_size) * self.n_embd
        return sum(p.numel() - (padding if name in VOCABULARY_WEIGHTS else 0) for name, p in self.named_parameters())

    def flops_per_token(self) -> float:
        """Of forward and backward: 6 a weight of a matrix product, and 12 · layers · C · T of attention.

        As in the PaLM paper's appendix B (Chowdhery et al. 2022), which counts attention as if it were not causal.
        """
        in_blocks = sum(p.numel() for p in self.h.parameters() if p.dim() == 2)
        return (
            6.0 * (in_blocks + self.padded_vocab_size * self.n_embd)
            + 12.0 * len(self.h) * self.n_embd * self.block_size
        )

    def empty_cache(self, batch_size: int) -> Cache:
        """What generation of `batch_size` rows starts with, in the dtype and on the device of the weights."""
        like = next(self.parameters())
        shape = batch_size, self.n_head, self.block_size, self.n_embd // self.n_head
        return Cache([KeyValues(like.new_empty(shape), like.new_empty(shape)) for _ in self.h])

    def features(self, ids: Tensor, documents: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """`ids`: (B, T) int64, T up to block_size with what `cache` holds. Returns (B, T, C), what the head reads.

        With `documents`, (B, T), no token sees one of another document.
        """
        x = self.embed(ids, documents, cache)
        mask = None if documents is None else document_mask(documents)
        for number, block in enumerate(self.h):
            if self.gradient_checkpointing and self.training:
                # Only dropout draws, and then the second forward pass must draw the same.
                x = checkpoint(block, x, mask, use_reentrant=False, preserve_rng_state=self.dropout > 0)
            else:
                x = block(x, mask, cache.layers[number] if cache else None)
        if cache:
            cache.last = ids[:, -1:]
        return self.normed(x)

    def logits(self, features: Tensor) -> Tensor:
        """`features`: (…, C). Returns (…, V); the padded ids' are -inf."""
        return logits_of(features, self.head, cap=self.logit_cap, vocab_size=self.vocab_size)

    def forward(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`ids`, `targets`, `documents`: (B, T) int64.

        Returns the mean loss in nats, (), which alone has a gradient, and each row's, (B,); both float32.
        """
        features, weight = self.features(ids, documents).flatten(0, 1), self.head  # (B·T, C), (V, C)
        if torch.is_autocast_enabled(features.device.type):
            dtype = torch.get_autocast_dtype(features.device.type)
            features, weight = features.to(dtype), weight.to(dtype)
        loss, losses = HeadLoss.apply(
            features, weight, targets.flatten(), self.logit_cap, self.vocab_size, torch.is_grad_enabled()
        )
        return loss, losses.view(targets.shape).mean(dim=1)
