"""Weights that a run begins with: of another run, or of a Hugging Face gpt2 folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import PLAIN_NAME, parse_json
from preprocess.shards.format import CONTROL_FIELDS
from train.config import Config, config_from_saved
from train.data.streams import DataSource
from train.model.base import VOCABULARY_WEIGHTS, LanguageModel
from train.run.checkpoint import INFO_FILE, MODEL_FILE, check_shapes, find_checkpoint, list_checkpoints
from train.run.run_dir import vocabulary_of

POSITIONS = "wpe.weight"
SHAPE_SETTINGS = ("arch", "n_layer", "n_head", "n_embd")
HF_CONFIG, HF_INDEX, HF_TOKENIZER = "config.json", "model.safetensors.index.json", "tokenizer.json"
HF_PREFIX = "transformer."  # before every name, but in old files
HF_TIED = "lm_head.weight"  # the embedding once more, which old files hold
# Hugging Face's GPT-2 keeps these four the other way around.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias")  # causal masks, which old files hold
# What Hugging Face's config must say for its model to be ours; a key that is missing has this value there too.
HF_GPT2 = {
    "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False, "tie_word_embeddings": True, "add_cross_attention": False,
}  # fmt: skip
HF_SIZES = {"n_layer": 12, "n_head": 12, "n_embd": 768}  # and what each is where the config leaves it out


@dataclass(frozen=True, kw_only=True)
class PretrainedWeights:
    """A model whose weights fit the settings; their numbers are mapped, not read."""

    path: Path
    tensors: dict[str, Tensor]  # as our models name and shape them, but for the number of ids and positions
    vocab_size: int  # rows that stand for ids
    special_tokens: dict[str, int]  # text → id
    has_own_manifest: bool  # so that special_tokens are all that there are


def initialize(model: LanguageModel, config: Config, builds: DataSource, *, warn: Callable[[str], None]) -> None:
    """Overwrite the new `model`'s weights with those of `init_from`; the padding of its vocabulary stays as it was drawn.

    Rows of ids that the source does not know, such as those of authors, become the mean of the rows that it does (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models"): so no new id takes probability from the old ones.
    Control tokens are known by their text, all other ids by their number. Positions beyond block_size are left out.
    Raises MisuseError where the source does not fit the settings or the build, FolioError where it is damaged.
    """
    path = Path(config.init_from or "").expanduser()
    if path.resolve().is_relative_to(Path(config.out_dir).resolve()):
        raise MisuseError(
            f"init_from={path} lies in out_dir {config.out_dir}, which this run would replace; choose another --out_dir"
        )
    source = _open_weights(path, config, builds, model, warn)
    rows = _rows(source, builds)  # (vocab_size,)
    if not source.has_own_manifest:
        warn(
            f"init_from {source.path}: its ids are taken to be those of {builds.name}'s tokenizer; another's would stand for other text"
        )
    for name, parameter in model.state_dict().items():
        tensor = source.tensors[name].float()
        if not tensor.isfinite().all():
            raise FolioError(f"{source.path} has numbers in {name} that are not finite; use other weights")
        if name in VOCABULARY_WEIGHTS:
            parameter[: model.vocab_size] = _take(tensor, rows).to(parameter.device)
        else:
            parameter.copy_(tensor[: config.block_size] if name == POSITIONS else tensor)


def _rows(source: PretrainedWeights, builds: DataSource) -> Tensor:
    """The source's row for each id of the builds: (vocab_size,) int64, −1 where it has none. Raises MisuseError."""
    rows = torch.arange(builds.vocab_size)
    for token, i in builds.manifest["special_tokens"].items():
        if token in source.special_tokens:
            rows[i] = source.special_tokens[token]
        elif source.has_own_manifest or token.startswith(tuple(f"<{field}_" for field in CONTROL_FIELDS)):
            rows[i] = -1
    if (num_beyond := int((rows >= source.vocab_size).sum())) > 0:
        raise MisuseError(
            f"init_from {source.path} has {source.vocab_size:,} ids, {num_beyond:,} too few for the tokenizer of {builds.name}; "
            "train on a build of the tokenizer that it was trained with"
        )
    return rows


def _take(weight: Tensor, rows: Tensor) -> Tensor:
    """`weight`: (N, C). Its `rows`, (V,), as (V, C): where −1 stands, the mean of the others."""
    known = rows >= 0
    taken = weight[rows.clamp(min=0)]
    taken[~known] = taken[known].mean(dim=0)
    return taken


def _open_weights(
    path: Path, config: Config, builds: DataSource, model: LanguageModel, warn: Callable[[str], None]
) -> PretrainedWeights:
    if (path / HF_CONFIG).is_file():
        return _open_huggingface(path, config, model)
    if (path / INFO_FILE).is_file() or list_checkpoints(path):
        return _open_run(path, config, builds, warn)
    raise MisuseError(
        f"init_from {path} is no checkpoint, no run that has one and no Hugging Face folder (which has a {HF_CONFIG}); name one of these"
    )


def _open_run(path: Path, config: Config, builds: DataSource, warn: Callable[[str], None]) -> PretrainedWeights:
    checkpoint = find_checkpoint(path, warn)
    theirs = config_from_saved(checkpoint.origin.settings, str(checkpoint.folder))
    if checkpoint.origin.tokenizer_sha256 != builds.tokenizer_sha256:
        raise MisuseError(
            f"init_from {checkpoint.folder} was trained with another tokenizer than that of {builds.name}, so that every id means "
            "something else; build with its tokenizer: preprocess build --tokenizer FOLDER"
        )
    sizes = {key: getattr(theirs, key) for key in SHAPE_SETTINGS}
    # Only learned positions end: rotary ones are computed for any length.
    _check_settings(path, config, sizes, num_positions=theirs.block_size if theirs.arch == "gpt2" else None)
    check_shapes(checkpoint, theirs)
    _, manifest = vocabulary_of(checkpoint)
    return PretrainedWeights(
        path=checkpoint.folder,
        tensors=dict(_tensors(checkpoint.folder / MODEL_FILE)),
        vocab_size=checkpoint.vocab_size,
        special_tokens=manifest["special_tokens"],
        has_own_manifest=True,
    )


def _check_settings(path: Path, config: Config, sizes: Mapping[str, Any], *, num_positions: int | None) -> None:
    """Raise MisuseError unless `config` asks for a model of `sizes` and of at most `num_positions`."""
    differing = {key: value for key, value in sizes.items() if value != getattr(config, key)}
    if num_positions is not None and config.block_size > num_positions:
        differing["block_size"] = num_positions
    if differing:
        told = ", ".join(
            f"{key} {value} where the settings have {getattr(config, key)}" for key, value in differing.items()
        )
        cure = " ".join(f"--{key}={value}" for key, value in differing.items())
        raise MisuseError(f"init_from {path} has {told}; set {cure}")


def _open_huggingface(folder: Path, config: Config, model: LanguageModel) -> PretrainedWeights:
    described = _read_object(folder / HF_CONFIG)
    sizes = {key: described.get(key, default) for key, default in HF_SIZES.items()}
    if bad := [key for key, size in sizes.items() if type(size) is not int or size < 1]:
        raise FolioError(
            f"{folder / HF_CONFIG} has {bad[0]} {sizes[bad[0]]!r:.40}, wanted a whole number from 1; download it again"
        )
    wanted = HF_GPT2 | {"n_inner": 4 * sizes["n_embd"]}
    said = {key: described.get(key, value) for key, value in wanted.items()}
    said["n_inner"] = said["n_inner"] or wanted["n_inner"]
    if foreign := [key for key, value in said.items() if value != wanted[key]]:
        told = ", ".join(f"{key} {said[key]!r:.40} where Folio's GPT-2 has {wanted[key]!r}" for key in foreign)
        raise MisuseError(f"init_from {folder} has {told}; name a model of GPT-2's architecture")
    tensors = _huggingface_tensors(folder)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    num_positions = shapes[POSITIONS][0] if shapes.get(POSITIONS) else None
    _check_settings(folder, config, {"arch": "gpt2", **sizes}, num_positions=num_positions)
    _check_huggingface_shapes(folder, shapes, model)
    vocab_size = shapes[VOCABULARY_WEIGHTS[0]][0]
    special_tokens = {token: i for token, i in _added_tokens(folder / HF_TOKENIZER).items() if i < vocab_size}
    return PretrainedWeights(
        path=folder, tensors=tensors, vocab_size=vocab_size, special_tokens=special_tokens, has_own_manifest=False
    )


def _huggingface_tensors(folder: Path) -> dict[str, Tensor]:
    """By our names and the right way around. Raises MisuseError for a folder whose weights are pickled, FolioError for a damaged one."""
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        for their_name, tensor in _tensors(path):
            name = their_name.removeprefix(HF_PREFIX)
            if their_name == HF_TIED or name.endswith(NOT_WEIGHTS):
                continue
            if name in tensors:
                raise FolioError(f"{path} holds {name} a second time; download the folder again")
            tensors[name] = tensor.t() if name.endswith(TRANSPOSED) and tensor.dim() == 2 else tensor
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    if (folder / MODEL_FILE).is_file():
        return [folder / MODEL_FILE]
    index = folder / HF_INDEX
    if index.is_file():
        places = _read_object(index).get("weight_map")
        names = (
            set(places.values())
            if isinstance(places, dict) and all(isinstance(n, str) for n in places.values())
            else set()
        )
        if not names or not all(PLAIN_NAME.fullmatch(name) and name.endswith(".safetensors") for name in names):
            raise FolioError(
                f"{index} names no files, or none that are .safetensors in its own folder; download the folder again"
            )
        if missing := sorted(name for name in names if not (folder / name).is_file()):
            raise FolioError(f"{folder / missing[0]} is missing, which {HF_INDEX} names; download the folder again")
        return [folder / name for name in sorted(names)]
    if any(folder.glob("pytorch_model*.bin*")):
        raise MisuseError(
            f"init_from {folder} holds its weights as a pickle (pytorch_model.bin), which can run code and is not read; where you trust "
            "it, load it with transformers and write it by save_pretrained(FOLDER, safe_serialization=True)"
        )
    raise FolioError(f"{folder} has neither {MODEL_FILE} nor {HF_INDEX}; download the folder again")


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and content of every tensor in a safetensors file, mapped. Raises FolioError."""
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                yield name, file.get_tensor(name)
    except SafetensorError as e:
        raise FolioError(f"{path} is no safetensors file ({e}); download or save it again") from e


def _check_huggingface_shapes(folder: Path, shapes: Mapping[str, list[int]], model: LanguageModel) -> None:
    """Raise FolioError unless `shapes` are those of the model, but for the number of ids and positions."""
    wanted = {name: list(parameter.shape) for name, parameter in model.state_dict().items()}
    for name in (VOCABULARY_WEIGHTS[0], POSITIONS):
        wanted[name][0] = (shapes.get(name) or wanted[name])[0]
    for name in sorted(wanted.keys() | shapes.keys()):
        if shapes.get(name) != wanted.get(name):
            got, want = (tuple(shape) if shape else "nothing" for shape in (shapes.get(name), wanted.get(name)))
            raise FolioError(
                f"{folder} has {got} for {name}, its {HF_CONFIG} asks for {want}; download the folder again"
            )


def _added_tokens(path: Path) -> dict[str, int]:
    """DataSource → id of the control tokens that a tokenizer.json names; none where there is no such file. Raises FolioError."""
    added = (_read_object(path).get("added_tokens") or []) if path.is_file() else []
    try:
        found = {token["content"]: token["id"] for token in added}
    except (KeyError, TypeError) as e:
        raise FolioError(f"{path} has added_tokens that are no list of tokens; download the folder again") from e
    if not all(isinstance(text, str) and type(i) is int and i >= 0 for text, i in found.items()):
        raise FolioError(f"{path} has an added token without text or id; download the folder again")
    return found


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as e:
        raise FolioError(f"{path} is not JSON ({e}); download the folder again") from e
    if not isinstance(value, dict):
        raise FolioError(f"{path} is {type(value).__name__}, wanted an object; download the folder again")
    return value
