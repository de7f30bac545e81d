"""A run's model for others: `python train/export.py RUN --output FOLDER`.

gpt2 becomes what Hugging Face's `AutoModelForCausalLM.from_pretrained(FOLDER)` loads; modern, which no library knows, keeps Folio's
names. docs/exported_model.md says what is in the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from preprocess.errors import FolioError, MisuseError, one_line
from preprocess.shards.files import readable_json, sync_folder, write_durable
from train.config import Config, config_from_saved
from train.core.cli import Parser, run_command, warn
from train.model.base import VOCABULARY_WEIGHTS
from train.model.gpt2 import INIT_STD
from train.model.modern import LOGIT_CAP, ROTARY_BASE
from train.run.checkpoint import MODEL_FILE, Checkpoint, check_shapes, find_checkpoint, write_tensors
from train.run.init_from import HF_CONFIG, HF_GPT2, HF_PREFIX, TRANSPOSED
from train.run.run_dir import vocabulary_of

GENERATION_CONFIG = "generation_config.json"
MODERN_TYPE, MODERN_VERSION = "folio-modern", 2
# transformers refuses a file that does not name its framework.
METADATA = {"format": "pt"}


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="python train/export.py", description="A run's model and tokenizer as a folder that other programs load."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the out_dir of a run, or a checkpoint in it")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="where to write: a new or an empty folder"
    )
    parser.add_argument(
        "--best", action="store_true", help="the checkpoint of the lowest validation loss, not the newest"
    )
    options = parser.parse_args(arguments)
    checkpoint = find_checkpoint(options.run, warn, best=options.best)
    config = config_from_saved(checkpoint.origin.settings, str(checkpoint.folder))
    check_shapes(checkpoint, config)
    folder, manifest = vocabulary_of(checkpoint)
    with new_folder(options.output) as aside:
        files = tokenizer_files(folder, manifest, config) | config_files(config, manifest, checkpoint.vocab_size)
        for name, data in files.items():
            write_durable(aside / name, data)
        tensors = exported_tensors(checkpoint, config)
        write_model(aside / MODEL_FILE, tensors)
    num_parameters = sum(tensor.numel() for tensor in tensors.values())
    what = f"{config.arch} of step {checkpoint.step:,}, {num_parameters:,} parameters, {checkpoint.vocab_size:,} ids"
    print(one_line(f"{options.output}: {what}"))
    return 0


def exported_tensors(checkpoint: Checkpoint, config: Config) -> dict[str, Tensor]:
    """The weights as they are exported: float32, without the vocabulary's padding. Raises FolioError."""
    path = checkpoint.folder / MODEL_FILE
    try:
        tensors = load_file(path)
    except SafetensorError as e:
        raise FolioError(f"{path} is no safetensors file ({e}); use another checkpoint") from e
    for name in VOCABULARY_WEIGHTS & tensors.keys():
        tensors[name] = tensors[name][: checkpoint.vocab_size]
    if config.arch == "gpt2":
        tensors = {
            HF_PREFIX + name: tensor.t() if name.endswith(TRANSPOSED) else tensor for name, tensor in tensors.items()
        }
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def config_files(config: Config, manifest: dict[str, Any], vocab_size: int) -> dict[str, bytes]:
    """File name → content of what describes the model and how it generates."""
    eot_id = manifest["eot_id"]
    # As GPT-2 has it, the end of a text is also what stands before one, and what fills up short ones.
    ids = {
        "bos_token_id": eot_id if manifest["bos_id"] is None else manifest["bos_id"],
        "eos_token_id": eot_id,
        "pad_token_id": eot_id if manifest["pad_id"] is None else manifest["pad_id"],
    }
    described = (_gpt2_config if config.arch == "gpt2" else _modern_config)(config, vocab_size)
    return {HF_CONFIG: readable_json(described | ids), GENERATION_CONFIG: readable_json(ids)}


def _gpt2_config(config: Config, vocab_size: int) -> dict[str, Any]:
    return HF_GPT2 | {
        "architectures": ["GPT2LMHeadModel"],
        "dtype": "float32",
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


def _modern_config(config: Config, vocab_size: int) -> dict[str, Any]:
    return {
        "model_type": MODERN_TYPE,
        "version": MODERN_VERSION,
        "dtype": "float32",
        "vocab_size": vocab_size,
        "block_size": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "rotary_base": ROTARY_BASE,
        "logit_cap": LOGIT_CAP,
        "norm_epsilon": torch.finfo(torch.float32).eps,  # what torch's rms_norm takes where none is given
    }


def tokenizer_files(folder: Path, manifest: dict[str, Any], config: Config) -> dict[str, bytes]:
    """File name → content of the tokenizer, which `folder` holds. Raises FolioError where it has no such form."""
    try:
        from preprocess.tokenizers.to_huggingface import huggingface_files
    except ImportError as e:
        raise FolioError(
            f"an export needs the tokenizer's libraries, and {e.name} is not installed; pip install folio-lm"
        ) from e
    files: dict[str, bytes] = huggingface_files(folder, manifest, model_max_length=config.block_size)
    return files


def write_model(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write the weights, as readable as their neighbours. Raises FolioError where there is no room."""
    try:
        write_tensors(path, tensors, METADATA)
    except SafetensorError as e:
        size_mb = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
        raise FolioError(
            f"cannot write {path.name} of {size_mb:,.1f} MB ({e}); free some room, or choose another --output"
        ) from e
    shutil.copymode(path.with_name(HF_CONFIG), path)  # safetensors lets none but the owner read what it writes


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill that becomes `output` when the block ends well; otherwise nothing stays.

    Raises MisuseError where `output` is there and is not an empty folder.
    """
    target = output.expanduser().resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise MisuseError(f"{output} is there and is no empty folder; choose another --output, or empty it")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.{os.getpid()}.partial"
    try:
        aside.mkdir()
        yield aside
        sync_folder(aside)
        if target.exists():
            target.rmdir()
        aside.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
