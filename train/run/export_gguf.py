"""A run's model and tokenizer as one GGUF file, which llama.cpp and programs that contain it load.

llama.cpp has GPT-2. It has no architecture that can hold the weights of arch=modern: those that limit
the logits by a tanh (Gemma 2 and a few others) have gated MLPs with GELU or SiLU in place of ReLU².

Matrices have the dtype of the export. Biases, norms and positions are stored in float32, as llama.cpp's
own converter does. Quantized matrices consist of blocks of 32 numbers of a row, each with a scale in
float16 (and, in q4_1 and q5_1, a minimum). The library gguf, which is a part of llama.cpp, quantizes
them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import parse_json
from train.config import Config
from train.model import get_architecture
from train.run.export_model import GENERATION_CONFIG
from train.run.gguf_vocabulary import make_vocabulary
from train.run.huggingface_folder import TOKENIZER_FILE

GGUF_FILE = "model.gguf"
ARCHITECTURE = "gpt2"  # as Folio and llama.cpp name it
CHAT_TEMPLATE_FILE = "chat_template.jinja"
TAGS_OF_TRANSFORMERS = ("{%- generation -%}", "{%- endgeneration -%}")
QUANTIZED_DTYPES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
# gguf's names of the type of the matrices and of the file, by the dtype of an export
TYPES = {"float32": ("F32", "ALL_F32"), "bfloat16": ("BF16", "MOSTLY_BF16"), "float16": ("F16", "MOSTLY_F16")}
TYPES |= {dtype: (dtype.upper(), f"MOSTLY_{dtype.upper()}") for dtype in QUANTIZED_DTYPES}
BLOCK_SIZE = 32  # of all quantized types
EMBEDDING = "wte.weight"
FLOAT32_NAMES = ("wpe.weight",)  # besides vectors


def import_gguf(config: Config, dtype: str) -> Any:
    """Return the library gguf.

    Raises MisuseError if it is missing, if llama.cpp has no such model, or if its rows are not whole
    blocks of the quantized `dtype`.
    """
    if config.arch != ARCHITECTURE:
        raise MisuseError(
            f"llama.cpp cannot compute arch={config.arch}, only gpt2; export this run with --format huggingface"
        )
    if dtype in QUANTIZED_DTYPES and config.n_embd % BLOCK_SIZE:
        raise MisuseError(
            f"--dtype {dtype} needs n_embd to be a multiple of {BLOCK_SIZE}, and this run has {config.n_embd}; use "
            "--dtype float16"
        )
    try:
        import gguf
    except ImportError as e:
        raise MisuseError("--format gguf needs the library gguf; install it with pip install 'folio-lm[gguf]'") from e
    return gguf


def write_gguf(path: Path, tensors: dict[str, Tensor], files: Mapping[str, bytes], config: Config, dtype: str) -> None:
    """Write the GGUF file `path` and flush it to the disk.

    `tensors` and `files`: of the export in Hugging Face's format, with the weights rounded to `dtype`
    unless it is one of QUANTIZED_DTYPES.
    Raises what `import_gguf` raises, and FolioError if llama.cpp has no such tokenizer.
    """
    gguf = import_gguf(config, dtype)
    type_name, file_type = TYPES[dtype]
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    if dtype in QUANTIZED_DTYPES:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(1e-5)
    _add_vocabulary(writer, gguf, files, vocab_size=len(tensors[f"transformer.{EMBEDDING}"]))
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
    ids = parse_json(files[GENERATION_CONFIG])
    vocabulary = make_vocabulary(parse_json(files[TOKENIZER_FILE]), vocab_size)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([gguf.TokenType[name] for name in vocabulary.types])
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
    if "UNKNOWN" in vocabulary.types:
        writer.add_unk_token_id(vocabulary.types.index("UNKNOWN"))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    _add_control_ids(writer, ids["bos_token_id"], ids["eos_token_id"], ids["pad_token_id"])
    if CHAT_TEMPLATE_FILE in files:
        template = files[CHAT_TEMPLATE_FILE].decode()
        for tag in TAGS_OF_TRANSFORMERS:
            template = template.replace(tag, "")
        writer.add_chat_template(template)


def _add_control_ids(writer: Any, bos_id: int | None, end_ids: int | list[int] | None, pad_id: int | None) -> None:
    eos_id, *ends_of_replies = end_ids if isinstance(end_ids, list) else [end_ids]
    if eos_id is None:  # llama.cpp would end at an id of its own
        raise FolioError(
            "--format gguf needs an end-of-text token, and this run's tokenizer has none; use --format huggingface"
        )
    writer.add_eos_token_id(eos_id)
    for end_of_reply in ends_of_replies:
        writer.add_eot_token_id(end_of_reply)
    if bos_id is not None:
        writer.add_bos_token_id(bos_id)
    if pad_id is not None:
        writer.add_pad_token_id(pad_id)
