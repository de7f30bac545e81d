"""A GPT with what has been found to learn faster since GPT-2, each a line or two.

Each embedding with a learned part of the one before (RWKV's token shift, Peng et al. 2023; modded-nanogpt's smear), rotary positions (Su
et al. 2021), RMS norm without weights (Zhang & Sennrich 2019), norm of queries and keys (Henry et al. 2020), ReLU² (So et al. 2021), no
biases, an untied head, projections into the residual stream and the head that begin at zero, and logits softly capped (Gemma 2): as in
Keller Jordan's modded-nanogpt, whose records measured what each gives there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.config import Config
from train.model.base import Cache, KeyValues, LanguageModel, attend

ROTARY_BASE = 10_000.0
LOGIT_CAP = 15.0


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


def rotary_table(block_size: int, head_size: int) -> Tensor:
    """Cosine and sine of every position's angles: (2, block_size, 1, D / 2) float32, alike for all heads."""
    frequencies = ROTARY_BASE ** -(torch.arange(0, head_size, 2) / head_size)  # (D / 2,)
    angles = torch.outer(torch.arange(block_size), frequencies)
    return torch.stack([angles.cos(), angles.sin()])[:, :, None]


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """`x`: (B, T, H, D), each half's pair turned by its position's angles. `table`: (2, T, 1, D / 2)."""
    cos, sin = table.to(x.dtype)
    one, two = x.chunk(2, dim=-1)  # (B, T, H, D / 2)
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
        B, T, C = x.shape
        first = cache.length if cache else 0
        # Queries and keys together: half as many kernels, of which a small model's time mostly goes into starting.
        qk, v = (
            self.c_attn(x).view(B, T, -1, C // self.n_head).split((2 * self.n_head, self.n_head), dim=2)
        )  # (B, T, 2 H, D), (B, T, H, D)
        q, k = rotate(norm(qk), self.table[:, first : first + T]).transpose(1, 2).chunk(2, dim=1)  # (B, H, T, D)
        v = v.transpose(1, 2)
        y = self.c_proj(
            attend(q, k, v, mask=mask, cache=cache, dropout=self.dropout if self.training else 0.0)
        )  # (B, T, C)
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c_fc(x))  # (B, T, 4 C)
        x = self.c_proj(x * x)  # (B, T, C); .square() takes twice as long back on a CPU
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
    logit_cap = LOGIT_CAP

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.wte = nn.Embedding(self.padded_vocab_size, config.n_embd)
        self.shift = nn.Parameter(torch.zeros(config.n_embd))
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.lm_head = nn.Linear(config.n_embd, self.padded_vocab_size, bias=False)
        self.apply(_init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith(("c_proj.weight", "lm_head.weight")):
                nn.init.zeros_(parameter)

    def embed(self, ids: Tensor, documents: Tensor | None, cache: Cache | None) -> Tensor:
        x = norm(self.wte(ids))  # (B, T, C)
        first = torch.zeros_like(x[:, :1]) if cache is None or cache.last is None else norm(self.wte(cache.last))
        before = torch.cat([first, x[:, :-1]], dim=1)
        if documents is not None:  # the first of a document follows nothing
            before = before.masked_fill(F.pad(documents.diff() != 0, (1, 0))[..., None], 0.0)
        return F.dropout(norm(x + self.shift * before), self.dropout, self.training)

    def normed(self, x: Tensor) -> Tensor:
        return norm(x)

    @property
    def head(self) -> Tensor:
        return self.lm_head.weight


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight)
    if isinstance(module, nn.Linear):  # uniform, of the standard deviation 1 / √(its inputs)
        bound = (3 / module.in_features) ** 0.5
        nn.init.uniform_(module.weight, -bound, bound)
