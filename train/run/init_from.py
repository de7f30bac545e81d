"""Initial weights (`init_from`) from another run, or from a model folder of Hugging Face's transformers.

A model of the Hugging Face hub is downloaded, and then read as a folder.

The rows of ids that the other model does not have, such as author tokens, become the mean of the
rows that it has (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models"). A
new id then takes little probability from the old ones. Control tokens are matched by their text,
all other ids by their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.format import CONTROL_FIELDS
from train.config import Config
from train.data.builds import tokenizer_sha256
from train.data.streams import DataSource
from train.model import get_architecture
from train.model.base import LanguageModel
from train.run import huggingface_folder
from train.run.checkpoint import check_shapes, find_checkpoint, list_checkpoints, read_weights
from train.run.checkpoint_info import INFO_FILE
from train.run.hub_models import download_model, is_hub_address
from train.run.run_dir import vocabulary_of
from train.run.stored_tensors import StoredTensor

SHAPE_SETTINGS = ("arch", "token_shift", "n_layer", "n_head", "n_embd")


@dataclass(frozen=True, kw_only=True)
class PretrainedWeights:
    """Weights that fit the settings. The tensors are memory-mapped."""

    path: Path
    tensors: dict[str, Tensor]  # with the model's names and shapes, except the number of ids and positions
    vocab_size: int  # the number of ids; further rows are padding
    special_tokens: dict[str, int]  # text → id
    has_manifest: bool  # whether special_tokens is complete


def initialize(model: LanguageModel, config: Config, source: DataSource, *, warn: Callable[[str], None]) -> None:
    """Copy the weights that config.init_from names into the new `model`, in place.

    The padding rows of the vocabulary keep their random values, and the rows of positions from
    block_size on are not copied. `source` is the data of the run. `warn` is called with the text of
    each warning. A model of the hub is downloaded first.

    Raises MisuseError if the weights do not fit the settings or the data, and FolioError if they are
    damaged or cannot be downloaded.
    """
    init_from = config.init_from or ""
    path = download_model(init_from) if is_hub_address(init_from) else Path(init_from)
    if path.resolve().is_relative_to(Path(config.out_dir).resolve()):
        raise MisuseError(
            f"init_from={path} is inside out_dir {config.out_dir}, which this run would overwrite; choose "
            "another --out_dir"
        )
    weights = _open_weights(path, config, source, model, warn)
    rows = _match_rows(weights, source)  # (vocab_size,)
    if not weights.has_manifest:
        warn(
            f"init_from {weights.path}: its ids are assumed to be those of the tokenizer of {source.name}; if "
            "the tokenizer differs, they mean other text"
        )
    for name, parameter in model.state_dict().items():
        tensor = weights.tensors[name].float()
        if not tensor.isfinite().all():
            raise FolioError(f"{weights.path} has numbers in {name} that are not finite; use other weights")
        if name in model.vocabulary_weights:
            tensor = _take_rows(tensor, rows)
        elif name in model.position_weights:
            tensor = tensor[: config.block_size]
        StoredTensor((tensor,)).copy_to(parameter)  # to this process's rows if the model is sharded


def _match_rows(weights: PretrainedWeights, source: DataSource) -> Tensor:
    """Return the row of `weights` for each id of `source`, (vocab_size,) int64; -1 if it has none.

    Raises MisuseError if the weights have too few ids.
    """
    rows = torch.arange(source.vocab_size)
    for token, i in source.manifest.special_tokens.items():
        if token in weights.special_tokens:
            rows[i] = weights.special_tokens[token]
        elif weights.has_manifest or token.startswith(tuple(f"<{field}_" for field in CONTROL_FIELDS)):
            rows[i] = -1
    if (num_missing := int((rows >= weights.vocab_size).sum())) > 0:
        raise MisuseError(
            f"init_from {weights.path} has {weights.vocab_size:,} ids, {num_missing:,} too few for the tokenizer of "
            f"{source.name}; train on a build with the tokenizer that it was trained with"
        )
    return rows


def _take_rows(weight: Tensor, rows: Tensor) -> Tensor:
    """Return `weight[rows]`, (V, C). `weight`: (N, C). `rows`: (V,) int64.

    For an index of -1, the result has the mean of the rows that the other indices select.
    """
    is_known = rows >= 0
    taken = weight[rows.clamp(min=0)]
    taken[~is_known] = taken[is_known].mean(dim=0)
    return taken


def _open_weights(
    path: Path, config: Config, source: DataSource, model: LanguageModel, warn: Callable[[str], None]
) -> PretrainedWeights:
    if (path / huggingface_folder.CONFIG_FILE).is_file():
        return _open_huggingface(path, config, model)
    if (path / INFO_FILE).is_file() or list_checkpoints(path):
        return _open_run(path, config, source, warn)
    raise MisuseError(
        "init_from must name a checkpoint, a run that has one, a Hugging Face folder with a "
        f"{huggingface_folder.CONFIG_FILE}, or a model of the hub as hf:OWNER/NAME, got {path}"
    )


def _open_run(path: Path, config: Config, source: DataSource, warn: Callable[[str], None]) -> PretrainedWeights:
    checkpoint = find_checkpoint(path, warn)
    _, manifest = vocabulary_of(checkpoint)
    if tokenizer_sha256(manifest) != source.tokenizer_sha256:
        raise MisuseError(
            f"init_from {checkpoint.folder} was trained with another tokenizer than that of {source.name}, so "
            "the same id means different text; build with its tokenizer: preprocess build --tokenizer FOLDER"
        )
    saved = checkpoint.info.config
    sizes = {key: getattr(saved, key) for key in SHAPE_SETTINGS}
    has_positions = bool(get_architecture(saved.arch).position_weights)  # rotary positions have no table
    _check_sizes(path, config, sizes, num_positions=saved.block_size if has_positions else None)
    check_shapes(checkpoint, saved)
    return PretrainedWeights(
        path=checkpoint.folder,
        tensors=dict(read_weights(checkpoint)),
        vocab_size=checkpoint.info.vocab_size,
        special_tokens=manifest.special_tokens,
        has_manifest=True,
    )


def _check_sizes(path: Path, config: Config, sizes: Mapping[str, Any], *, num_positions: int | None) -> None:
    """Raise MisuseError unless `config` describes a model of `sizes` with at most `num_positions`."""
    differing = {key: value for key, value in sizes.items() if value != getattr(config, key)}
    if num_positions is not None and config.block_size > num_positions:
        differing["block_size"] = num_positions
    if differing:
        details = ", ".join(f"{key} {value}, not {getattr(config, key)}" for key, value in differing.items())
        options = " ".join(f"--{key}={value}" for key, value in differing.items())
        raise MisuseError(f"init_from {path} has {details}; set {options}")


def _open_huggingface(folder: Path, config: Config, model: LanguageModel) -> PretrainedWeights:
    arch, sizes = huggingface_folder.read_sizes(folder)
    architecture = get_architecture(arch)
    tensors = huggingface_folder.read_weights(folder, architecture)
    positions = [tensors[name] for name in architecture.position_weights if name in tensors]
    num_positions = len(positions[0]) if positions and positions[0].dim() else None
    _check_sizes(folder, config, {"arch": arch, "token_shift": False, **sizes}, num_positions=num_positions)
    huggingface_folder.check_shapes(folder, tensors, model)
    vocab_size = len(tensors[model.vocabulary_weights[0]])
    added_tokens = huggingface_folder.read_added_tokens(folder)
    return PretrainedWeights(
        path=folder,
        tensors=tensors,
        vocab_size=vocab_size,
        special_tokens={token: i for token, i in added_tokens.items() if i < vocab_size},
        has_manifest=False,
    )
