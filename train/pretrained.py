"""Weights that a run begins with: of another run, or of a Hugging Face gpt2 folder."""

from __future__ import annotations

from collections.abc import Callable

from builds import Builds
from config import Config
from language_model import LanguageModel

VOCABULARY_WEIGHTS = ("wte.weight", "lm_head.weight")  # a row an id
POSITIONS = "wpe.weight"
SHAPE_SETTINGS = ("arch", "n_layer", "n_head", "n_embd")
HF_CONFIG, HF_INDEX, HF_TOKENIZER = "config.json", "model.safetensors.index.json", "tokenizer.json"
# Hugging Face's GPT-2 keeps these four the other way around.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias")  # causal masks, which old files hold
# What Hugging Face's config must say for its model to be ours; a key that is missing has this value there too.
HF_GPT2 = {
    "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False, "tie_word_embeddings": True, "add_cross_attention": False,
}  # fmt: skip


def initialize(model: LanguageModel, config: Config, builds: Builds, *, warn: Callable[[str], None]) -> None:
    """Overwrite the new `model`'s weights with those of `init_from`.

    Rows of ids that the source does not know, such as those of authors, become the mean of the rows that it does (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models"): so no new id takes probability from the old ones.
    Raises MisuseError where the source does not fit the settings or the build, FolioError where it is damaged.
    """
    raise NotImplementedError
