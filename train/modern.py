"""A GPT with what has been found to learn faster since GPT-2, each a line or two.

Rotary positions (Su et al. 2021), RMS norm without weights (Zhang & Sennrich 2019), norm of queries and keys (Henry et al. 2020),
ReLU² (So et al. 2021), no biases, an untied head, projections into the residual stream and the head that begin at zero, and
logits softly capped (Gemma 2): together as in Keller Jordan's modded-nanogpt, whose records measured what each gives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config import Config
from language_model import KeyValues, LanguageModel, attend, split_heads

ROTARY_BASE = 10_000.0
LOGIT_CAP = 15.0


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


def rotary_table(block_size: int, head_size: int) -> Tensor:
    """Cosine and sine of every position's angles: (2, block_size, D / 2) float32."""
    frequencies = ROTARY_BASE ** -(torch.arange(0, head_size, 2) / head_size)  # (D / 2,)
    angles = torch.outer(torch.arange(block_size), frequencies)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """`x`: (B, H, T, D), each half's pair turned by its position's angles. `table`: (2, T, D / 2)."""
    cos, sin = table.to(x.dtype)
    one, two = x.chunk(2, dim=-1)  # (B, H, T, D / 2)
    return torch.cat([one * cos + two * sin, two * cos - one * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.n_head, self.dropout = config.n_head, config.dropout
        table = rotary_table(config.block_size, config.n_embd // config.n_head)
        self.register_buffer("table", table, persistent=False)
        self.table: Tensor

    def forward(self, x: Tensor, mask: Tensor | None, cache: KeyValues | None) -> Tensor:
        q, k, v = (split_heads(t, self.n_head) for t in self.c_attn(x).chunk(3, dim=2))  # (B, H, T, D)
        first = cache.length if cache else 0
        table = self.table[:, first : first + x.shape[1]]
        q, k = rotate(norm(q), table), rotate(norm(k), table)
        y = self.c_proj(attend(q, k, v, mask=mask, cache=cache, dropout=self.dropout if self.training else 0.0))  # (B, T, C)
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(F.relu(self.c_fc(x)).square())  # (B, T, C)
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KeyValues | None = None) -> Tensor:
        x = x + self.attn(norm(x), mask, cache)
        return x + self.mlp(norm(x))


class Modern(LanguageModel):
    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.wte = nn.Embedding(self.padded_vocab_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.lm_head = nn.Linear(config.n_embd, self.padded_vocab_size, bias=False)
        self.apply(_init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith(("c_proj.weight", "lm_head.weight")):
                nn.init.zeros_(parameter)

    def embed(self, ids: Tensor, first: int) -> Tensor:
        return F.dropout(norm(self.wte(ids)), self.dropout, self.training)  # (B, T, C)

    def normed(self, x: Tensor) -> Tensor:
        return norm(x)

    def logits(self, features: Tensor) -> Tensor:
        logits = LOGIT_CAP * torch.tanh(self.lm_head(features) / LOGIT_CAP)
        return logits if self.vocab_size == self.padded_vocab_size else logits + self.padding_bias


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight)
    if isinstance(module, nn.Linear):  # uniform, of the standard deviation 1 / √(its inputs)
        bound = (3 / module.in_features) ** 0.5
        nn.init.uniform_(module.weight, -bound, bound)
