"""GPT-2, lean.

Parameters carry the names of Hugging Face's gpt2 (wte, wpe, h.N.ln_1, h.N.attn.c_attn …); its four Conv1D matrices are
our Linear ones transposed. Shapes: B rows, T tokens, C width, H heads, D = C / H, V padded vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config import Config

# A vocabulary of 50,257 makes the head's matrix product misaligned, and slower by a quarter on GPUs.
VOCAB_MULTIPLE = 64
INIT_STD = 0.02


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head, self.dropout = config.n_head, config.dropout

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in self.c_attn(x).split(C, dim=2))  # (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # (B, T, C)
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The model. `vocab_size` is exact; the head is the token embedding, padded to a multiple of 64."""

    padding_bias: Tensor

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.block_size, self.dropout = vocab_size, config.block_size, config.dropout
        padded = math.ceil(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        self.wte = nn.Embedding(padded, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        # Added to the logits: a padded id has no probability, so it takes no part in the loss and is never sampled.
        # As a bias it is fused into the matrix product and costs nothing.
        bias = torch.zeros(padded).masked_fill(torch.arange(padded) >= vocab_size, -math.inf)
        self.register_buffer("padding_bias", bias, persistent=False)
        self.apply(_init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # GPT-2 scales what is added to the residual stream by its depth
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * config.n_layer))

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def features(self, ids: Tensor) -> Tensor:
        """`ids`: (B, T) int64, T up to block_size. Returns (B, T, C), what the head reads."""
        positions = torch.arange(ids.shape[1], device=ids.device)  # (T,)
        x = self.wte(ids) + self.wpe(positions)  # (B, T, C)
        x = F.dropout(x, self.dropout, self.training)
        for block in self.h:
            x = block(x)
        normed: Tensor = self.ln_f(x)
        return normed

    def logits(self, features: Tensor) -> Tensor:
        """`features`: (…, C). Returns (…, V); the padded ids' are -inf."""
        return F.linear(features, self.wte.weight, self.padding_bias)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """`ids`, `targets`: (B, T) int64. Returns the mean loss of each row in nats: (B,) float32."""
        logits = self.logits(self.features(ids)).float()  # (B, T, V)
        losses = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1), reduction="none")  # (B·T,)
        return losses.view(targets.shape).mean(dim=1)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
