"""A GPT with changes to GPT-2 that were measured to make it learn faster; each takes a line or two.

- Rotary positions (Su et al. 2021) instead of learned ones.
- RMS norm without weights (Zhang & Sennrich 2019), also of queries and keys (Henry et al. 2020).
- ReLU² (So et al. 2021) instead of GELU, and no biases.
- An untied head; the head and the projections into the residual stream start at zero.
- Logits limited to ±15 by a tanh (Gemma 2).
- With the setting `token_shift`: the previous token's embedding, times learned weights, is added to
  each embedding (RWKV, Peng et al. 2023; "smear" in modded-nanogpt).

Keller Jordan's modded-nanogpt combines them, and its records measure the effect of each.
bench/README.md has measurements of this model. Without the token shift it is the architecture of
nanochat, which transformers has as `NanoChatForCausalLM`.

Shapes: B rows, T tokens, C width, H heads, D = C / H, V padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from preprocess.errors import MisuseError
from preprocess.shards.files import JsonObject
from train.config import Config
from train.model.base import HuggingFaceFormat, KVCache, LanguageModel, LayerCache, attend
from train.model.kernels import can_use_squared_relu, squared_relu

ROTARY_BASE = 10_000.0
LOGIT_CAP = 15.0
NORM_EPSILON = torch.finfo(torch.float32).eps  # the default of F.rms_norm
MAX_NORM_EPSILON = 1e-5  # of an imported model; larger ones change its logits noticeably
# In config.json of an exported model with a token shift. transformers finds its classes in MODELING_FILE.
EXPORT_TYPE, EXPORT_VERSION, EXPORT_CLASS = "folio-modern", 3, "FolioModernForCausalLM"
MODELING_FILE = "modeling_folio.py"
AUTO_MAP = {"AutoConfig": "modeling_folio.FolioModernConfig", "AutoModelForCausalLM": f"modeling_folio.{EXPORT_CLASS}"}
# How transformers' NanoChat names the weights; its queries, keys and values are three matrices.
HF_NAMES = {
    "attn.c_proj.weight": "self_attn.o_proj.weight", "mlp.c_fc.weight": "mlp.fc1.weight",
    "mlp.c_proj.weight": "mlp.fc2.weight",
}  # fmt: skip
QKV, HF_QKV = "attn.c_attn.weight", tuple(f"self_attn.{part}_proj.weight" for part in "qkv")
EMBEDDING, HF_EMBEDDING = "wte.weight", "model.embed_tokens.weight"
HF_CONSTANTS = {
    "hidden_act": "relu2", "final_logit_softcapping": LOGIT_CAP, "attention_bias": False, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
}  # fmt: skip


def norm(x: Tensor) -> Tensor:
    """Return `x` divided by its root mean square over the last dimension."""
    return F.rms_norm(x, (x.shape[-1],))


def rotary_table(block_size: int, head_size: int) -> Tensor:
    """Return the cosines and sines of each position's angles, (2, block_size, 1, D / 2) float32.

    All heads use the same ones.
    """
    frequencies = ROTARY_BASE ** -(torch.arange(0, head_size, 2) / head_size)  # (D / 2,)
    angles = torch.outer(torch.arange(block_size), frequencies)
    return torch.stack([angles.cos(), angles.sin()])[:, :, None]


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Return `x`, (B, T, H, D), with each pair (x[i], x[i + D / 2]) rotated clockwise by its angle.

    `table`: the cosines and sines of the angles, (2, T, 1, D / 2). They are converted to the dtype
    of `x`, which is also that of the result.
    """
    cos, sin = table.to(x.dtype)
    first, second = x.chunk(2, dim=-1)  # (B, T, H, D / 2)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.n_head, self.dropout = config.n_head, config.dropout
        table = rotary_table(config.block_size, config.n_embd // config.n_head)
        self.register_buffer("table", table, persistent=False)
        self.table: Tensor

    def forward(self, x: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        B, T, C = x.shape
        first = cache.length if cache else 0
        qkv = self.c_attn(x).view(B, T, -1, C // self.n_head)  # (B, T, 3 H, D)
        # Queries and keys are processed together: half as many kernels, whose launches dominate a
        # small model's time.
        qk, v = qkv.split((2 * self.n_head, self.n_head), dim=2)  # (B, T, 2 H, D), (B, T, H, D)
        q, k = rotate(norm(qk), self.table[:, first : first + T]).transpose(1, 2).chunk(2, dim=1)  # (B, H, T, D)
        dropout = self.dropout if self.training else 0.0
        y = self.c_proj(attend(q, k, v.transpose(1, 2), mask=mask, cache=cache, dropout=dropout))  # (B, T, C)
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)  # (B, T, 4 C)
        x = squared_relu(x) if can_use_squared_relu(x) else F.relu(x).square()
        return F.dropout(self.c_proj(x), self.dropout, self.training)  # (B, T, C)


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        x = x + self.attn(norm(x), mask, cache)
        return x + self.mlp(norm(x))


class Modern(LanguageModel):
    logit_cap = LOGIT_CAP
    vocabulary_weights = (EMBEDDING, "lm_head.weight")
    matrices_per_head: ClassVar[Mapping[str, int]] = {QKV: 3}  # for queries, keys and values
    huggingface = HuggingFaceFormat(
        model_type="nanochat",
        sizes={
            "n_layer": ("num_hidden_layers", 12),
            "n_head": ("num_attention_heads", 6),
            "n_embd": ("hidden_size", 768),
        },
        width_keys={"intermediate_size": 4},
        equal_keys={"num_key_value_heads": "n_head"},
        # Older versions of transformers write the settings of rotary positions by themselves.
        constants=HF_CONSTANTS | {"rope_theta": ROTARY_BASE, "rope_scaling": None},
        max_values={"rms_norm_eps": MAX_NORM_EPSILON},
    )

    def __init__(self, config: Config, vocab_size: int) -> None:
        """Draw the weights. Raises MisuseError for an odd head size: rotary positions rotate pairs."""
        if config.n_embd // config.n_head % 2:
            raise MisuseError(
                f"n_embd / n_head must be even with arch=modern, got {config.n_embd // config.n_head}; change "
                "one of them"
            )
        super().__init__(config, vocab_size)
        self.wte = nn.Embedding(self.padded_vocab_size, config.n_embd)
        self.shift = nn.Parameter(torch.zeros(config.n_embd)) if config.token_shift else None
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.lm_head = nn.Linear(config.n_embd, self.padded_vocab_size, bias=False)
        self.apply(_init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith(("c_proj.weight", "lm_head.weight")):
                nn.init.zeros_(parameter)

    def embed(self, ids: Tensor, documents: Tensor | None, cache: KVCache | None) -> Tensor:
        x = norm(self.wte(ids))  # (B, T, C)
        if self.shift is not None:
            x = norm(x + self.shift * self._previous(x, documents, cache))
        return F.dropout(x, self.dropout, self.training)

    def _previous(self, x: Tensor, documents: Tensor | None, cache: KVCache | None) -> Tensor:
        """Return the embedding of each token's previous token, (B, T, C), 0 if there is none."""
        first = torch.zeros_like(x[:, :1]) if cache is None or cache.last is None else norm(self.wte(cache.last))
        previous = torch.cat([first, x[:, :-1]], dim=1)  # (B, T, C)
        if documents is not None:  # the first token of a document has no previous one
            starts_document = F.pad(documents.diff() != 0, (1, 0))  # (B, T)
            previous = previous.masked_fill(starts_document[..., None], 0.0)
        return previous

    def final_norm(self, x: Tensor) -> Tensor:
        return norm(x)

    @property
    def head_weight(self) -> Tensor:
        return self.lm_head.weight

    @classmethod
    def export_config(cls, config: Config, vocab_size: int) -> JsonObject:
        """Return the config.json of transformers' NanoChatForCausalLM.

        With a token shift, it names the classes in MODELING_FILE; docs/exported_model.md describes it.
        """
        exported = HF_CONSTANTS | {
            "model_type": cls.huggingface.model_type,
            "architectures": ["NanoChatForCausalLM"],
            **{key: getattr(config, name) for name, (key, _) in cls.huggingface.sizes.items()},
            "vocab_size": vocab_size,
            "intermediate_size": 4 * config.n_embd,
            "num_key_value_heads": config.n_head,
            "max_position_embeddings": config.block_size,
            "rms_norm_eps": NORM_EPSILON,
            "use_cache": True,
        }
        if config.token_shift:
            exported |= {"model_type": EXPORT_TYPE, "version": EXPORT_VERSION, "architectures": [EXPORT_CLASS]}
            exported["auto_map"] = AUTO_MAP
        return exported

    @classmethod
    def export_tensors(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights as transformers' NanoChat has them, and the token shift under its own name."""
        exported: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if not name.startswith("h."):
                exported[HF_EMBEDDING if name == EMBEDDING else name] = tensor
                continue
            _, layer, rest = name.split(".", 2)
            parts = zip(HF_QKV, tensor.chunk(3), strict=True) if rest == QKV else [(HF_NAMES[rest], tensor)]
            exported |= {f"model.layers.{layer}.{hf_name}": part for hf_name, part in parts}
        return exported

    @classmethod
    def import_tensors(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {hf_name: name for name, hf_name in HF_NAMES.items()}
        imported: dict[str, Tensor] = {}
        for hf_name, tensor in tensors.items():
            _, _, layer, rest = (*hf_name.split(".", 3), "", "", "", "")[:4]
            if rest in HF_QKV:
                parts = [tensors.get(f"model.layers.{layer}.{part}") for part in HF_QKV]
                if not any(part is None for part in parts):
                    imported[f"h.{layer}.{QKV}"] = torch.cat([part for part in parts if part is not None])
            elif rest in names:
                imported[f"h.{layer}.{names[rest]}"] = tensor
            else:
                imported[EMBEDDING if hf_name == HF_EMBEDDING else hf_name] = tensor
        return imported


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight)
    if isinstance(module, nn.Linear):  # uniform, with standard deviation 1 / sqrt(in_features)
        bound = (3 / module.in_features) ** 0.5
        nn.init.uniform_(module.weight, -bound, bound)
