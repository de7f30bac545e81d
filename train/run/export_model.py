"""A run's model and tokenizer as files for other programs; see docs/exported_model.md."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from preprocess.errors import FolioError
from preprocess.shards.files import readable_json
from preprocess.shards.manifest import Manifest
from train.config import Config
from train.core.tensors import write_tensors
from train.model import get_architecture
from train.run.checkpoint import Checkpoint, read_weights
from train.run.huggingface_folder import CONFIG_FILE

GENERATION_CONFIG = "generation_config.json"
METADATA = {"format": "pt"}  # transformers refuses a file without it


def export_tensors(checkpoint: Checkpoint, config: Config) -> dict[str, Tensor]:
    """Return the weights by the names of an export, in float32, without the vocabulary's padding.

    Raises CheckpointError if they are damaged.
    """
    tensors = dict(read_weights(checkpoint))
    architecture = get_architecture(config.arch)
    for name in architecture.vocabulary_weights:
        tensors[name] = tensors[name][: checkpoint.info.vocab_size]
    return {name: tensor.float().contiguous() for name, tensor in architecture.export_tensors(tensors).items()}


def config_files(config: Config, manifest: Manifest, vocab_size: int) -> dict[str, bytes]:
    """Return the names and contents of the files that describe the model and how it generates."""
    eot_id = manifest.eot_id
    # As in GPT-2, the end-of-text token also begins a text and pads short ones, unless the build has
    # other tokens for that.
    ids = {
        "bos_token_id": eot_id if manifest.bos_id is None else manifest.bos_id,
        "eos_token_id": eot_id,
        "pad_token_id": eot_id if manifest.pad_id is None else manifest.pad_id,
    }
    model_config = get_architecture(config.arch).export_config(config, vocab_size)
    return {CONFIG_FILE: readable_json(model_config | ids), GENERATION_CONFIG: readable_json(ids)}


def tokenizer_files(folder: Path, manifest: Manifest, config: Config) -> dict[str, bytes]:
    """Return the names and contents of the tokenizer's files in Hugging Face's format.

    `folder` contains the files of the tokenizer of `manifest`. Raises FolioError if the tokenizer
    cannot be written in that format, or if a library is missing.
    """
    try:
        from preprocess.tokenizers.to_huggingface import make_huggingface_files
    except ImportError as e:
        raise FolioError(
            f"an export needs the tokenizer's libraries, and {e.name} is not installed; pip install folio-lm"
        ) from e
    files: dict[str, bytes] = make_huggingface_files(folder, manifest, model_max_length=config.block_size)
    return files


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
