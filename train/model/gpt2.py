"""GPT-2 (Radford et al. 2019), lean.

Parameters carry the names of Hugging Face's gpt2 (wte, wpe, h.N.ln_1, h.N.attn.c_attn …); its four Conv1D matrices are
our Linear ones transposed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.config import Config
from train.model.base import Cache, KeyValues, LanguageModel, attend, split_heads

INIT_STD = 0.02


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head, self.dropout = config.n_head, config.dropout

    def forward(self, x: Tensor, mask: Tensor | None, cache: KeyValues | None) -> Tensor:
        q, k, v = (split_heads(t, self.n_head) for t in self.c_attn(x).chunk(3, dim=2))  # (B, H, T, D)
        y = self.c_proj(
            attend(q, k, v, mask=mask, cache=cache, dropout=self.dropout if self.training else 0.0)
        )  # (B, T, C)
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(gelu(self.c_fc(x)))  # (B, T, C)
        return F.dropout(x, self.dropout, self.training)


def gelu(x: Tensor) -> Tensor:
    """GPT-2's: x · (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, of any shape."""
    is_plain = (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )
    return CPUGELU.apply(x) if is_plain else F.gelu(x, approximate="tanh")


class CPUGELU(torch.autograd.Function):
    """The same, as x · σ(2 √(2/π) (x + 0.044715 x³)), its derivative made at once: 0.3 ms of 768 × 512 numbers; torch takes 1.0."""

    SCALE, CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        square = x * x
        sigma = torch.addcmul(x, square, x, value=CPUGELU.CUBIC).mul_(CPUGELU.SCALE).sigmoid_()
        y = x * sigma
        # σ + x σ (1 − σ) times the derivative of what σ is taken of
        slope = square.mul_(3 * CPUGELU.CUBIC * CPUGELU.SCALE).add_(CPUGELU.SCALE).mul_(y)
        ctx.save_for_backward(slope.addcmul_(slope, sigma, value=-1).add_(sigma))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return gradient * slope


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KeyValues | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask, cache)
        return x + self.mlp(self.ln_2(x))


class GPT2(LanguageModel):
    """Learned positions, LayerNorm before each half of a block, GELU; the head is the token embedding."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.wte = nn.Embedding(self.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.apply(_init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # GPT-2 scales what is added to the residual stream by its depth
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * config.n_layer))

    def embed(self, ids: Tensor, documents: Tensor | None, cache: Cache | None) -> Tensor:
        first = cache.length if cache else 0
        positions = torch.arange(first, first + ids.shape[1], device=ids.device)  # (T,)
        return F.dropout(self.wte(ids) + self.wpe(positions), self.dropout, self.training)  # (B, T, C)

    def normed(self, x: Tensor) -> Tensor:
        normed: Tensor = self.ln_f(x)
        return normed

    @property
    def head(self) -> Tensor:
        return self.wte.weight


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
