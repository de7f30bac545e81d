"""The base class of every architecture, and what they share: attention, loss, key-value cache.

Shapes: B rows, T tokens, C width, H heads, D = C / H, V padded vocabulary.

The vocabulary is padded to a multiple of 64 because matrix products with 50,257 columns are a
quarter slower on GPUs than with 50,304. Padded ids have a logit of -inf, so they have no
probability and no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from preprocess.shards.files import JsonObject
from train.config import Config
from train.model.kernels import chunked_cross_entropy, should_chunk_loss

VOCAB_MULTIPLE = 64


@dataclass(frozen=True)
class HuggingFaceFormat:
    """How the library transformers stores a model of the same architecture."""

    model_type: str
    sizes: Mapping[str, tuple[str, int]]  # setting → the key in config.json and its default
    width_keys: Mapping[str, int]  # key in config.json → its value as a multiple of n_embd; may be null
    equal_keys: Mapping[str, str]  # key in config.json → the setting to which it is equal; may be null
    constants: Mapping[str, Any]  # key in config.json → the value that makes it the same model, and its default
    max_values: Mapping[str, float] = field(default_factory=dict)  # key in config.json → the largest value; may be null


@dataclass
class LayerCache:
    """The keys and values of one layer, (B, H, block_size, D) each.

    The first `length` positions are filled.
    """

    keys: Tensor
    values: Tensor
    length: int = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append `keys` and `values`, (B, H, T, D) each. Return all positions filled so far."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass
class KVCache:
    """The state of generation: the keys and values of every layer, and the last id.

    `last` is (B, 1), or None before the first id.
    """

    layers: list[LayerCache]
    last: Tensor | None = None

    @property
    def length(self) -> int:
        return self.layers[0].length

    def clear(self) -> None:
        self.last = None
        for layer in self.layers:
            layer.length = 0


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """Return `x`, (B, T, C), as (B, H, T, D)."""
    B, T, _ = x.shape
    return x.view(B, T, n_head, -1).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, cache: LayerCache | None, dropout: float) -> Tensor:
    """Return the causal attention, (B, T, C), of queries, keys and values, (B, H, T, D) each.

    `mask`, (B, 1, T, T) bool, replaces the causal mask (see `document_mask`). With a `cache`, the
    new keys and values are first appended to it, and the queries attend to all that it holds; it
    must be empty, or T must be 1. `dropout` is the fraction of attention weights to drop.
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
    """Return whether each token can attend to each other token, (B, 1, T, T) bool.

    It attends to itself and to earlier tokens of the same document. `documents`, (B, T) int64, is
    the number of each token's document.
    """
    T = documents.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=documents.device).tril()
    return (causal & (documents[:, :, None] == documents[:, None, :]))[:, None]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block, and restore the model's mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class LanguageModel(nn.Module):
    """A causal language model: what training, sampling, checkpoints and export need from one.

    A subclass defines:

    - `wte`: the token embedding, which can have its own learning rate.
    - `h`: its blocks, an nn.ModuleList; a block is called as `block(x, mask, layer_cache)` and
      returns (B, T, C). Muon updates their two-dimensional parameters.
    - `embed`, `final_norm` and `head_weight`, which are documented below.
    - `vocabulary_weights`: names of the parameters with one row per id. The model and checkpoints
      have V rows; an export has `vocab_size`, without the padding.
    - `matrices_per_head`: names of a block's parameters that hold several matrices for each head, one
      below the other, and how many. Muon updates each of them separately.
    - `position_weights`: names of the parameters with one row per position of the context.
    - `export_config` and `export_tensors`, which describe the model to other programs.
    - `huggingface` and `import_tensors`, if transformers has the architecture: how it stores a model.
    """

    h: nn.ModuleList
    wte: nn.Embedding  # the token embedding, (V, C)
    logit_cap: float | None = None  # if set, the logits become cap · tanh(logits / cap)
    vocabulary_weights: ClassVar[tuple[str, ...]]
    position_weights: ClassVar[tuple[str, ...]] = ()
    matrices_per_head: ClassVar[Mapping[str, int]] = {}
    has_tied_head: ClassVar[bool] = False  # whether the head's weight is the token embedding
    huggingface: ClassVar[HuggingFaceFormat | None] = None

    def __init__(self, config: Config, vocab_size: int) -> None:
        """Store the sizes. `vocab_size` is the number of ids without padding."""
        super().__init__()
        self.vocab_size, self.block_size, self.dropout = vocab_size, config.block_size, config.dropout
        self.n_head, self.n_embd = config.n_head, config.n_embd
        self.gradient_checkpointing = config.gradient_checkpointing
        self.padded_vocab_size = math.ceil(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def embed(self, ids: Tensor, documents: Tensor | None, cache: KVCache | None) -> Tensor:
        """Return the input of the first block, (B, T, C), for `ids`, (B, T) int64.

        `documents`, (B, T) int64 if given, is the number of each token's document. If `cache` is
        given, `ids` are at the positions after those that it holds.
        """
        raise NotImplementedError

    def final_norm(self, x: Tensor) -> Tensor:
        """Return the input of the head, (B, T, C), from the last block's output `x`, (B, T, C)."""
        raise NotImplementedError

    @property
    def head_weight(self) -> Tensor:
        """The weight of the head, (V, C): logits are features @ head_weight.T."""
        raise NotImplementedError

    @classmethod
    def export_config(cls, config: Config, vocab_size: int) -> JsonObject:
        """Return the content of config.json in an export, without the dtype and the ids of control tokens."""
        raise NotImplementedError

    @classmethod
    def export_tensors(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights under the names and in the layout that other programs expect."""
        return tensors

    @classmethod
    def import_tensors(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of `huggingface`, which has other names and layouts, as this model has them.

        Raises ValueError with the name of a weight that is there twice.
        """
        raise NotImplementedError

    def forward(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean loss in nats, (), and the loss of each row, (B,).

        Only the mean loss has a gradient. `ids`, `targets` and `documents` are (B, T) int64; both
        losses are float32. A target that is IGNORE_INDEX has the loss 0 and no gradient, but the
        means are over all T or B·T targets: divide them by the fraction that counts. With
        `documents`, no token attends to a token of another document.
        """
        x = self.features(ids, documents)  # (B, T, C)
        if should_chunk_loss(ids.numel() * self.padded_vocab_size, x.device):
            # The same as below, for some tokens at a time, so that not all logits are in memory.
            # To change the loss, delete this branch.
            loss, token_losses = self._chunked_loss(x, targets)
        else:
            logits = self.logits(x)  # (B, T, V)
            token_losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")  # (B·T,)
            loss = token_losses.mean()
        return loss, token_losses.detach().view(targets.shape).mean(dim=1)

    def features(self, ids: Tensor, documents: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Return the input of the head, (B, T, C), for `ids`, (B, T) int64.

        T plus the length of `cache` must not exceed block_size. With `documents`, (B, T), no token
        attends to a token of another document.
        """
        x = self.embed(ids, documents, cache)  # (B, T, C)
        mask = None if documents is None else document_mask(documents)
        for number, block in enumerate(self.h):
            if self.gradient_checkpointing and self.training:
                # Only dropout uses random numbers. The second forward pass must draw the same ones.
                x = checkpoint(block, x, mask, use_reentrant=False, preserve_rng_state=self.dropout > 0)
            else:
                x = block(x, mask, cache.layers[number] if cache else None)
        if cache:
            cache.last = ids[:, -1:]
        return self.final_norm(x)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits, (…, V) float32, of `features`, (…, C). Those of padded ids are -inf."""
        logits = F.linear(features, self.head_weight).float()  # autocast's dtype is too coarse for the cap
        if self.logit_cap is not None:
            logits = self.logit_cap * torch.tanh(logits / self.logit_cap)
        logits[..., self.vocab_size :] = -math.inf
        return logits

    def _chunked_loss(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss, (), and each token's, (B·T,), of `features`, (B, T, C).

        They are computed by `chunked_cross_entropy`. `targets` is (B, T) int64.
        """
        x, weight = features.flatten(0, 1), self.head_weight
        if torch.is_autocast_enabled(x.device.type):  # autocast does not apply inside a custom function
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        return chunked_cross_entropy(x, weight, targets.flatten(), logit_cap=self.logit_cap, vocab_size=self.vocab_size)

    @property
    def num_parameters(self) -> int:
        """The number of weights, without the padded rows of the vocabulary."""
        padding = (self.padded_vocab_size - self.vocab_size) * self.n_embd
        return sum(
            p.numel() - (padding if name in self.vocabulary_weights else 0) for name, p in self.named_parameters()
        )

    def flops_per_token(self) -> float:
        """Return the FLOPs of a forward and backward pass per token.

        6 for each weight of a matrix product, and 12 · layers · C · T for attention, as in appendix
        B of the PaLM paper (Chowdhery et al. 2022), which counts attention as if it were not
        causal.
        """
        num_weights = sum(p.numel() for p in self.h.parameters() if p.dim() == 2) + self.padded_vocab_size * self.n_embd
        return 6.0 * num_weights + 12.0 * len(self.h) * self.n_embd * self.block_size

    def empty_cache(self, batch_size: int) -> KVCache:
        """Return an empty cache for `batch_size` rows, with the dtype and device of the weights."""
        like = next(self.parameters())
        shape = batch_size, self.n_head, self.block_size, self.n_embd // self.n_head
        return KVCache([LayerCache(like.new_empty(shape), like.new_empty(shape)) for _ in self.h])
