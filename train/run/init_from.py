"""Initial weights (`init_from`) from another run, or from a folder of Hugging Face's GPT-2.

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

from preprocess.errors import FolioError, MisuseError, shorten
from preprocess.shards.files import PLAIN_NAME, JsonObject, parse_json, read_small_file
from preprocess.shards.format import CONTROL_FIELDS
from train.config import Config
from train.core.tensors import TensorFileError, read_tensors
from train.data.builds import tokenizer_sha256
from train.data.streams import DataSource
from train.model import get_architecture
from train.model.base import LanguageModel
from train.model.gpt2 import GPT2, HF_CONFIG, HF_PREFIX, HF_TRANSPOSED
from train.run.checkpoint import check_shapes, find_checkpoint, list_checkpoints, read_weights
from train.run.checkpoint_info import INFO_FILE, MODEL_FILE
from train.run.run_dir import vocabulary_of

SHAPE_SETTINGS = ("arch", "n_layer", "n_head", "n_embd")
HF_CONFIG_FILE, HF_INDEX, HF_TOKENIZER = "config.json", "model.safetensors.index.json", "tokenizer.json"
HF_TIED = "lm_head.weight"  # a copy of the embedding, in old files
HF_NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias")  # causal masks, in old files
MAX_HF_SIZE = 1 << 20
HF_SIZES = {"n_layer": 12, "n_head": 12, "n_embd": 768}  # with the defaults for missing keys
ADVICE = "; download the folder again"


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
    each warning. Raises MisuseError if the weights do not fit the settings or the data, and
    FolioError if they are damaged.
    """
    path = Path(config.init_from or "")
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
            parameter[: model.vocab_size] = _take_rows(tensor, rows).to(parameter.device)
        else:
            parameter.copy_(tensor[: config.block_size] if name in model.position_weights else tensor)


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
    if (path / HF_CONFIG_FILE).is_file():
        return _open_huggingface(path, config, model)
    if (path / INFO_FILE).is_file() or list_checkpoints(path):
        return _open_run(path, config, source, warn)
    raise MisuseError(
        "init_from must name a checkpoint, a run that has one, or a Hugging Face folder with a "
        f"{HF_CONFIG_FILE}, got {path}"
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
    hf_config = _read_object(folder / HF_CONFIG_FILE)
    sizes = {key: hf_config.get(key, default) for key, default in HF_SIZES.items()}
    if bad := [key for key, size in sizes.items() if type(size) is not int or not 1 <= size <= MAX_HF_SIZE]:
        raise FolioError(
            f"{folder / HF_CONFIG_FILE}: {bad[0]} must be a whole number from 1 to {MAX_HF_SIZE:,}, "
            f"got {sizes[bad[0]]!r:.40}{ADVICE}"
        )
    expected = HF_CONFIG | {"n_inner": 4 * sizes["n_embd"]}
    found = {key: hf_config.get(key, value) for key, value in expected.items()}
    found["n_inner"] = found["n_inner"] or expected["n_inner"]
    if differing := [key for key, value in found.items() if value != expected[key]]:
        details = ", ".join(f"{key} {found[key]!r:.40}, not {expected[key]!r}" for key in differing)
        raise MisuseError(f"init_from {folder} has {details}; name a model of GPT-2's architecture")
    tensors = _huggingface_tensors(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    (embedding,), (positions,) = GPT2.vocabulary_weights, GPT2.position_weights
    num_positions = shapes[positions][0] if shapes.get(positions) else None
    _check_sizes(folder, config, {"arch": "gpt2", **sizes}, num_positions=num_positions)
    _check_huggingface_shapes(folder, shapes, model)
    vocab_size = shapes[embedding][0]
    special_tokens = {token: i for token, i in _added_tokens(folder / HF_TOKENIZER).items() if i < vocab_size}
    return PretrainedWeights(
        path=folder, tensors=tensors, vocab_size=vocab_size, special_tokens=special_tokens, has_manifest=False
    )


def _huggingface_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the weights with the names and the orientation of the GPT2 here.

    Raises MisuseError if they are pickled, and FolioError if they are damaged.
    """
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        for hf_name, tensor in _read_weights(path).items():
            name = hf_name.removeprefix(HF_PREFIX)
            if hf_name == HF_TIED or name.endswith(HF_NOT_WEIGHTS):
                continue
            if name in tensors:
                raise FolioError(f"{path} contains {shorten(name)} a second time{ADVICE}")
            tensors[name] = tensor.t() if name.endswith(HF_TRANSPOSED) and tensor.dim() == 2 else tensor
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a Hugging Face folder: one, or those that its index names."""
    if (folder / MODEL_FILE).is_file():
        return [folder / MODEL_FILE]
    index = folder / HF_INDEX
    if index.is_file():
        weight_map = _read_object(index).get("weight_map")
        files = [*weight_map.values()] if isinstance(weight_map, dict) else []
        names = {name for name in files if isinstance(name, str) and PLAIN_NAME.fullmatch(name)}
        if not names or len(names) < len({*map(str, files)}) or not all(n.endswith(".safetensors") for n in names):
            raise FolioError(f"{index} must name .safetensors files in its folder{ADVICE}")
        if missing := sorted(name for name in names if not (folder / name).is_file()):
            raise FolioError(f"{folder / missing[0]} is missing, which {HF_INDEX} names{ADVICE}")
        return [folder / name for name in sorted(names)]
    if any(folder.glob("pytorch_model*.bin*")):
        raise MisuseError(
            f"init_from {folder} has its weights in a pickle (pytorch_model.bin), which can run code and is "
            "not read; if you trust it, load it with transformers and save it by save_pretrained(FOLDER, "
            "safe_serialization=True)"
        )
    raise FolioError(f"{folder} has neither {MODEL_FILE} nor {HF_INDEX}{ADVICE}")


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return dict(read_tensors(path))
    except TensorFileError as e:
        raise FolioError(f"{e}; download or save it again") from e


def _check_huggingface_shapes(folder: Path, shapes: Mapping[str, tuple[int, ...]], model: LanguageModel) -> None:
    """Raise FolioError if a name or a shape differs from the model's.

    The number of ids and of positions can differ.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    for name in (*GPT2.vocabulary_weights, *GPT2.position_weights):
        expected[name] = ((shapes.get(name) or expected[name])[0], *expected[name][1:])
    for name in sorted(expected.keys() | shapes.keys()):
        if shapes.get(name) != expected.get(name):
            got, want = (shorten(str(each.get(name) or "nothing")) for each in (shapes, expected))
            raise FolioError(f"{folder} has {got} for {shorten(name)}, but its {HF_CONFIG_FILE} needs {want}{ADVICE}")


def _added_tokens(path: Path) -> dict[str, int]:
    """Return the control tokens in the tokenizer.json at `path`, text → id; none without the file.

    Raises FolioError if the file is damaged.
    """
    added = (_read_object(path).get("added_tokens") or []) if path.is_file() else []
    try:
        tokens = {token["content"]: token["id"] for token in added}
    except (KeyError, TypeError) as e:
        raise FolioError(f"{path}: added_tokens is not a list of tokens{ADVICE}") from e
    if not all(isinstance(text, str) and type(i) is int and i >= 0 for text, i in tokens.items()):
        raise FolioError(f"{path}: an added token has no text or no id{ADVICE}")
    return tokens


def _read_object(path: Path) -> JsonObject:
    try:
        value = parse_json(read_small_file(path))
    except ValueError as e:
        raise FolioError(f"{path} is not JSON ({shorten(str(e))}){ADVICE}") from e
    if not isinstance(value, dict):
        raise FolioError(f"{path} must be a JSON object, got {type(value).__name__}{ADVICE}")
    return value
