"""A run's model and tokenizer as one GGUF file, which llama.cpp and programs that contain it load.

llama.cpp has GPT-2, but neither NanoChat nor the token shift. Of the tokenizers it has the byte-level
BPE with GPT-2's way of dividing a text into words. Matrices have the dtype of the export. Biases,
norms and positions are stored in float32, as llama.cpp's own converter does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import JsonObject, parse_json
from train.config import Config
from train.model import get_architecture
from train.run.export_model import GENERATION_CONFIG
from train.run.huggingface_folder import TOKENIZER_FILE

GGUF_FILE = "model.gguf"
ARCHITECTURE, TOKENIZER_MODEL, PRE_TOKENIZER = "gpt2", "gpt2", "gpt-2"  # as llama.cpp names them
CHAT_TEMPLATE_FILE = "chat_template.jinja"
TAGS_OF_TRANSFORMERS = ("{%- generation -%}", "{%- endgeneration -%}")
TYPES = {"float32": ("F32", "ALL_F32"), "bfloat16": ("BF16", "MOSTLY_BF16"), "float16": ("F16", "MOSTLY_F16")}
FLOAT32_NAMES = ("wpe.weight",)  # besides vectors


def import_gguf(config: Config) -> Any:
    """Return the library gguf. Raises MisuseError if it is missing or if llama.cpp has no such model."""
    if config.arch != ARCHITECTURE:
        raise MisuseError(
            f"llama.cpp cannot compute arch={config.arch}, only gpt2; export this run with --format huggingface"
        )
    try:
        import gguf
    except ImportError as e:
        raise MisuseError("--format gguf needs the library gguf; install it with pip install 'folio-lm[gguf]'") from e
    return gguf


def write_gguf(path: Path, tensors: dict[str, Tensor], files: Mapping[str, bytes], config: Config, dtype: str) -> None:
    """Write the GGUF file `path` and flush it to the disk.

    `tensors` and `files`: of the export in Hugging Face's format, with the weights rounded to `dtype`.
    Raises MisuseError if the library gguf is missing or if llama.cpp has no such architecture, and
    FolioError if it has no such tokenizer.
    """
    gguf = import_gguf(config)
    type_name, file_type = TYPES[dtype]
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(1e-5)
    _add_vocabulary(writer, gguf, files, vocab_size=len(tensors["transformer.wte.weight"]))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    for name, tensor in get_architecture(config.arch).import_tensors(tensors).items():
        base, _, kind = name.rpartition(".")
        is_matrix = tensor.dim() > 1 and name not in FLOAT32_NAMES
        quantization = gguf.GGMLQuantizationType[type_name if is_matrix else "F32"]
        data = gguf.quantize(tensor.float().contiguous().numpy(), quantization)
        writer.add_tensor(f"{names.get_name(f'transformer.{base}')}.{kind}", data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _add_vocabulary(writer: Any, gguf: Any, files: Mapping[str, bytes], *, vocab_size: int) -> None:
    spec, ids = parse_json(files[TOKENIZER_FILE]), parse_json(files[GENERATION_CONFIG])
    _check_tokenizer(spec)
    text_of = {i: text for text, i in spec["model"]["vocab"].items()}
    control = {token["id"]: token["content"] for token in spec["added_tokens"]}
    tokens, types = [], []
    for i in range(vocab_size):
        is_unused = i not in control and (i not in text_of or text_of[i].startswith("\U0010ffff"))
        kind = "CONTROL" if i in control else "UNUSED" if is_unused else "NORMAL"
        tokens.append(control[i] if i in control else f"[UNUSED{i}]" if is_unused else text_of[i])
        types.append(gguf.TokenType[kind])
    writer.add_tokenizer_model(TOKENIZER_MODEL)
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in spec["model"]["merges"]])
    writer.add_add_bos_token(False)
    end_ids = ids["eos_token_id"]
    if isinstance(end_ids, list):
        end_ids, end_of_reply = end_ids
        writer.add_eot_token_id(end_of_reply)
    for add, i in (
        (writer.add_bos_token_id, ids["bos_token_id"]),
        (writer.add_eos_token_id, end_ids),
        (writer.add_pad_token_id, ids["pad_token_id"]),
    ):
        if i is not None:
            add(i)
    if CHAT_TEMPLATE_FILE in files:
        template = files[CHAT_TEMPLATE_FILE].decode()
        for tag in TAGS_OF_TRANSFORMERS:
            template = template.replace(tag, "")
        writer.add_chat_template(template)


def _check_tokenizer(spec: JsonObject) -> None:
    """Raise FolioError unless llama.cpp's tokenizer gpt2 divides text as this tokenizer.json does."""
    pre_tokenizer = spec.get("pre_tokenizer") or {}
    is_gpt2 = (
        spec["model"].get("type") == "BPE"
        and spec.get("normalizer") is None
        and pre_tokenizer.get("type") == "ByteLevel"
        and pre_tokenizer.get("use_regex", True)
        and not pre_tokenizer.get("add_prefix_space", True)
        and len(spec["model"]["merges"]) > 0
    )
    if not is_gpt2:
        raise FolioError(
            "--format gguf needs a tokenizer that divides text as GPT-2's does, and this run has another; use "
            "--format huggingface, or build with --tokenizer gpt2"
        )
