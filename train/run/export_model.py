"""A run's model and tokenizer as files for other programs; see docs/exported_model.md."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError
from torch import Tensor

from preprocess.errors import FolioError
from preprocess.shards.files import readable_json
from preprocess.shards.manifest import Manifest
from train.config import Config
from train.core.tensors import write_tensors
from train.model import get_architecture
from train.model.modern import MODELING_FILE
from train.run.checkpoint import Checkpoint, read_weights
from train.run.huggingface_folder import CONFIG_FILE

GENERATION_CONFIG = "generation_config.json"
METADATA = {"format": "pt"}  # transformers refuses a file without it
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_tensors(checkpoint: Checkpoint, config: Config, dtype: str = "float32") -> dict[str, Tensor]:
    """Return the weights by the names of an export, in `dtype`, one of DTYPES, without the vocabulary's padding.

    They are rounded to the nearest number. Raises CheckpointError if they are damaged, and FolioError
    if `dtype` cannot represent a number as large as one of them.
    """
    tensors = dict(read_weights(checkpoint))
    architecture = get_architecture(config.arch)
    for name in architecture.vocabulary_weights:
        tensors[name] = tensors[name][: checkpoint.info.vocab_size]
    return {name: _round(name, tensor, dtype) for name, tensor in architecture.export_tensors(tensors).items()}


def _round(name: str, tensor: Tensor, dtype: str) -> Tensor:
    rounded = tensor.float().to(DTYPES[dtype]).contiguous()
    if dtype == "float16" and not rounded.isfinite().all():
        largest = tensor.float().abs().max().item()
        raise FolioError(
            f"{name} has a number of the size {largest:.4g}, and float16 ends at 65,504; use --dtype bfloat16"
        )
    return rounded


def config_files(config: Config, manifest: Manifest, vocab_size: int, dtype: str = "float32") -> dict[str, bytes]:
    """Return the names and contents of the files that describe the model and how it generates.

    With a token shift, one of them is the code with which transformers computes the model.

    `dtype` is that of the weights, one of DTYPES.
    """
    eot_id = manifest.eot_id
    # As in GPT-2, the end-of-text token also begins a text and pads short ones, unless the build has
    # other tokens for that.
    ids = {
        "bos_token_id": eot_id if manifest.bos_id is None else manifest.bos_id,
        "eos_token_id": eot_id,
        "pad_token_id": eot_id if manifest.pad_id is None else manifest.pad_id,
    }
    model_config = get_architecture(config.arch).export_config(config, vocab_size) | {"dtype": dtype}
    end_ids = _import_converter().list_end_ids(manifest)
    generation_config = ids | {"eos_token_id": end_ids if len(end_ids) > 1 else next(iter(end_ids), None)}
    files = {CONFIG_FILE: readable_json(model_config | ids), GENERATION_CONFIG: readable_json(generation_config)}
    if config.token_shift:
        files[MODELING_FILE] = Path(__file__).with_name(MODELING_FILE).read_bytes()
    return files


def tokenizer_files(folder: Path, manifest: Manifest, config: Config) -> dict[str, bytes]:
    """Return the names and contents of the tokenizer's files in Hugging Face's format.

    `folder` contains the files of the tokenizer of `manifest`. Raises FolioError if the tokenizer
    cannot be written in that format, or if a library is missing.
    """
    files: dict[str, bytes] = _import_converter().make_huggingface_files(
        folder, manifest, model_max_length=config.block_size
    )
    return files


def find_chat_template(manifest: Manifest) -> str | None:
    """Return the name of the chat template in the export of a model with the vocabulary of `manifest`."""
    name: str | None = _import_converter().find_template_name(manifest)
    return name


def _import_converter() -> ModuleType:
    try:
        from preprocess.tokenizers import to_huggingface
    except ImportError as e:
        raise FolioError(
            f"an export needs the tokenizer's libraries, and {e.name} is not installed; pip install folio-lm"
        ) from e
    return to_huggingface


def write_model(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write the weights to the file `path`, with the file mode of the config.json beside it.

    Raises FolioError if the file cannot be written, for example because the disk is full.
    """
    try:
        write_tensors(path, tensors, METADATA)
    except SafetensorError as e:
        size_mb = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
        raise FolioError(
            f"cannot write {path.name} of {size_mb:,.1f} MB ({e}); free some disk space, or choose another --output"
        ) from e
    shutil.copymode(path.with_name(CONFIG_FILE), path)  # safetensors writes files that only their owner can read
