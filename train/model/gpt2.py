"""GPT-2 (Radford et al. 2019): learned positions, pre-norm blocks (LayerNorm), GELU, a tied head.

Parameters have the names of Hugging Face's GPT-2 (wte, wpe, h.N.ln_1, h.N.attn.c_attn …). The four
Conv1D matrices of each of its blocks are the transposes of the Linear ones here.

Shapes: B rows, T tokens, C width, H heads, D = C / H, V padded vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from preprocess.shards.files import JsonObject
from train.config import Config
from train.model.base import HuggingFaceFormat, KVCache, LanguageModel, LayerCache, attend, split_heads

INIT_STD = 0.02
# How Hugging Face's GPT-2 stores the same model.
HF_PREFIX = "transformer."  # of every name, except in old files
HF_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
HF_TIED = "lm_head.weight"  # a copy of the embedding, in old files
HF_NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias")  # causal masks, in old files
HF_CONSTANTS = {
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False, "tie_word_embeddings": True, "add_cross_attention": False,
}  # fmt: skip


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head, self.dropout = config.n_head, config.dropout

    def forward(self, x: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        q, k, v = (split_heads(t, self.n_head) for t in self.c_attn(x).chunk(3, dim=2))  # (B, H, T, D)
        dropout = self.dropout if self.training else 0.0
        y = self.c_proj(attend(q, k, v, mask=mask, cache=cache, dropout=dropout))  # (B, T, C)
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)  # (B, T, 4 C)
        x = F.gelu(x, approximate="tanh")
        return F.dropout(self.c_proj(x), self.dropout, self.training)  # (B, T, C)


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask, cache)
        return x + self.mlp(self.ln_2(x))


class GPT2(LanguageModel):
    vocabulary_weights = ("wte.weight",)
    position_weights = ("wpe.weight",)
    matrices_per_head: ClassVar[Mapping[str, int]] = {"attn.c_attn.weight": 3}  # for queries, keys and values
    has_tied_head = True
    huggingface = HuggingFaceFormat(
        model_type="gpt2",
        sizes={"n_layer": ("n_layer", 12), "n_head": ("n_head", 12), "n_embd": ("n_embd", 768)},
        width_keys={"n_inner": 4},
        equal_keys={},
        constants=HF_CONSTANTS,
    )

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.wte = nn.Embedding(self.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.apply(_init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # GPT-2 scales what it adds to the residual stream by the depth
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * config.n_layer))

    def embed(self, ids: Tensor, documents: Tensor | None, cache: KVCache | None) -> Tensor:
        first = cache.length if cache else 0
        positions = torch.arange(first, first + ids.shape[1], device=ids.device)  # (T,)
        if documents is not None:  # a document has the same positions as if it were alone
            is_first = documents.diff(dim=1, prepend=documents[:, :1] - 1) != 0  # (B, T)
            positions = positions - (positions * is_first).cummax(dim=1).values  # (B, T)
        return F.dropout(self.wte(ids) + self.wpe(positions), self.dropout, self.training)  # (B, T, C)

    def final_norm(self, x: Tensor) -> Tensor:
        y: Tensor = self.ln_f(x)
        return y

    @property
    def head_weight(self) -> Tensor:
        return self.wte.weight

    @classmethod
    def export_config(cls, config: Config, vocab_size: int) -> JsonObject:
        """Return the config.json of Hugging Face's GPT2LMHeadModel."""
        return HF_CONSTANTS | {
            "model_type": cls.huggingface.model_type,
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": vocab_size,
            "n_positions": config.block_size,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": None,
            "attn_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
            "initializer_range": INIT_STD,
            "use_cache": True,
        }

    @classmethod
    def export_tensors(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights as Hugging Face's GPT-2 names and transposes them."""
        return {
            HF_PREFIX + name: tensor.t() if name.endswith(HF_TRANSPOSED) else tensor for name, tensor in tensors.items()
        }

    @classmethod
    def import_tensors(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        imported: dict[str, Tensor] = {}
        for hf_name, tensor in tensors.items():
            name = hf_name.removeprefix(HF_PREFIX)
            if hf_name == HF_TIED or name.endswith(HF_NOT_WEIGHTS):
                continue
            if name in imported:
                raise ValueError(name)
            imported[name] = tensor.t() if name.endswith(HF_TRANSPOSED) and tensor.dim() == 2 else tensor
        return imported


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
